"""Messages and pages have none of the phrases that a native reader has to read twice."""

from __future__ import annotations

import ast
import re
from pathlib import Path

import pytest

from tests.support.checkout import ROOT

SOURCES = sorted(
    path for package in ("search_spaces", "workers", "service") for path in (ROOT / package).rglob("*.py")
)
AVOIDED = re.compile(
    r"\bis no (?:known|name|setting|key|prior|place)\b"
    r"|\bare no (?:numbers|settings|names)\b"
    r"|\bstopped to \w+"
    r"|\bso many (?:that|trials)\b"
    r"|\bfrom where it is\b|\bwhere they lie\b|\bof it lies\b"
    r"|\bput down (?:again|at once)\b|\btaken up\b"
    r"|\blittle is left to\b"
    r"|\b1 (?:trials|rows|studies|points|tensors)\b"
)


def messages_in(source: str) -> list[str]:
    """The text of every string that is not a docstring; a replacement field of an f-string is `{}`."""
    tree = ast.parse(source)
    # A docstring, also of an attribute, is an expression of its own.
    docstrings = {id(node.value) for node in ast.walk(tree) if isinstance(node, ast.Expr)}
    found = []
    within: set[int] = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.JoinedStr):
            within |= {id(part) for part in node.values}
            parts = [part.value if isinstance(part, ast.Constant) else "{}" for part in node.values]
            found.append("".join(map(str, parts)))
        elif (
            isinstance(node, ast.Constant)
            and isinstance(node.value, str)
            and id(node) not in docstrings | within
        ):
            found.append(node.value)
    return found


@pytest.mark.parametrize("path", SOURCES, ids=lambda path: str(path.relative_to(ROOT)))
def test_no_message_has_a_phrase_that_is_to_be_avoided(path: Path) -> None:
    assert [text for text in messages_in(path.read_text()) if AVOIDED.search(text)] == []


PAGES = sorted([ROOT / "README.md", ROOT / "CHANGELOG.md", *(ROOT / "docs").rglob("*.md")])


@pytest.mark.parametrize("path", PAGES, ids=lambda path: str(path.relative_to(ROOT)))
def test_no_page_has_a_phrase_that_is_to_be_avoided(path: Path) -> None:
    assert AVOIDED.findall(" ".join(path.read_text().split())) == []


@pytest.mark.parametrize(
    "text",
    [
        "is no known key",
        "it has stopped to improve",
        "with 1 trials",
        "so many trials must complete",
        "is no name",
    ],
)
def test_each_kind_of_phrase_is_found(text: str) -> None:
    assert AVOIDED.search(text)


def test_a_message_is_found_and_a_docstring_is_not() -> None:
    source = 'def f(n):\n    """is no name"""\n    return f"{n} is no name", "plain"\n'
    assert messages_in(source) == ["{} is no name", "plain"]
