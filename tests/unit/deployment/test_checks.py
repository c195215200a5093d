"""The wheel carries the packages' types, and every way to check a change runs the same checks."""

from __future__ import annotations

import re
import tomllib

import pytest
import yaml

from tests.support.checkout import ROOT

WHEEL = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["hatch"]["build"]["targets"]["wheel"]
MAKEFILE = (ROOT / "Makefile").read_text()


@pytest.mark.parametrize("package", WHEEL["packages"])
def test_every_package_in_the_wheel_is_typed(package: str) -> None:
    assert (ROOT / package / "py.typed").is_file()


def test_the_hooks_run_what_make_lint_runs() -> None:
    lint = re.findall(
        r"^\t\$\(BIN\)/(\S+)(?: (\S+))?", MAKEFILE.split("\nlint:")[1].split("\n\n")[0], re.MULTILINE
    )
    commands = {(tool, word if word in ("check", "format") else "") for tool, word in lint}
    config = yaml.safe_load((ROOT / ".pre-commit-config.yaml").read_text())
    hooks = [hook for repo in config["repos"] for hook in repo["hooks"]]
    assert {repo["repo"] for repo in config["repos"]} == {"local"}  # nothing is downloaded
    words = [hook["entry"].removeprefix(".venv/bin/").split() for hook in hooks]
    assert {(word[0], word[1] if len(word) > 1 else "") for word in words} == commands


def test_the_workflow_runs_the_script_that_checks_the_project() -> None:
    (workflow,) = (ROOT / ".github/workflows").glob("*.yml")
    steps = yaml.safe_load(workflow.read_text())["jobs"]["check"]["steps"]
    scripts = [step["run"] for step in steps if "run" in step]
    assert scripts == [".ci/run"]
    assert (ROOT / scripts[0]).stat().st_mode & 0o100
