"""The architecture page names every folder of the tree, and only functions that exist."""

from __future__ import annotations

import ast
import re

import pytest

from tests.support.checkout import ROOT

PAGE = (ROOT / "docs/architecture.md").read_text()
STOPS = sorted(set(re.findall(r"`([\w/]+\.py):([\w.]+)`", PAGE)))
WALKS = re.findall(r"^From (.*?):\n\n((?:\d+\. .*\n)+)", PAGE, re.MULTILINE)


def names_in(body: list[ast.stmt], prefix: str = "") -> set[str]:
    """Functions and classes, and methods as `Class.method`."""
    found = set()
    for node in body:
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            found.add(prefix + node.name)
        elif isinstance(node, ast.ClassDef):
            found |= {prefix + node.name} | names_in(node.body, f"{prefix}{node.name}.")
    return found


@pytest.mark.parametrize(("path", "name"), STOPS, ids=lambda value: value)
def test_every_stop_of_a_walk_exists(path: str, name: str) -> None:
    assert name in names_in(ast.parse((ROOT / path).read_text()).body)


def test_the_walk_of_a_hyperparameter_is_short() -> None:
    stops = {title: len(steps.splitlines()) for title, steps in WALKS}
    assert list(stops) == ["`POST /v1/studies` to the row in SQL", "the ask to the optimizer"]
    assert stops["`POST /v1/studies` to the row in SQL"] <= 15
    assert stops["the ask to the optimizer"] <= 18


def folders() -> set[str]:
    """Every folder of the packages that has a module or a preset of its own."""
    found = set()
    for package in ("search_spaces", "workers", "service", "migrations"):
        for file in (ROOT / package).rglob("*"):
            if file.suffix in (".py", ".yaml") and file.name != "__init__.py":
                found.add(f"{file.parent.relative_to(ROOT)}/")
    return found - {"migrations/"}


def test_the_tree_has_every_folder_and_no_other() -> None:
    tests = {f"tests/{path.name}/" for path in (ROOT / "tests").iterdir() if path.is_dir()}
    tests -= {"tests/__pycache__/"}
    table = PAGE.split("## The tree")[1].split("## Three walks")[0]
    named = set(re.findall(r"`([\w/]+/)`", table))
    assert folders() | tests <= named
    assert {name for name in named if not (ROOT / name).is_dir()} == set()


@pytest.mark.parametrize(
    "folder",
    sorted(f for f in folders() if (ROOT / f / "__init__.py").is_file() and not f.startswith("tests")),
)
def test_every_package_says_what_is_in_it(folder: str) -> None:
    assert ast.get_docstring(ast.parse((ROOT / folder / "__init__.py").read_text()))
