"""How the command line starts: its version, its help, and Ctrl-C before a command has begun."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Iterator, Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any

import pytest
import typer
from typer.testing import CliRunner

from service.cli.root import app
from tests.support.checkout import ROOT

INTERRUPTS = "import os, signal\nos.kill(os.getpid(), signal.SIGINT)\n"
SWALLOWS = "try:\n    import interrupts\nexcept BaseException:\n    pass\n"


def commands() -> Iterator[tuple[str, ...]]:
    """Every command and every group of commands, as they are typed."""
    waiting: list[tuple[tuple[str, ...], Any]] = [((), typer.main.get_command(app))]
    while waiting:
        words, command = waiting.pop()
        yield words
        waiting += [((*words, name), sub) for name, sub in getattr(command, "commands", {}).items()]


@pytest.mark.parametrize("arguments", [["--version"], ["-V"], ["version"]])
def test_the_version_is_an_answer_and_not_an_error(arguments: list[str]) -> None:
    result = CliRunner().invoke(app, arguments)
    assert (result.exit_code, result.stdout, result.stderr) == (
        0,
        f"nightsweep {version('nightsweep')}\n",
        "",
    )


def test_the_version_needs_no_installation(monkeypatch: pytest.MonkeyPatch) -> None:
    from importlib import metadata

    def missing(name: str) -> str:
        raise metadata.PackageNotFoundError(name)

    monkeypatch.setattr(metadata, "version", missing)
    result = CliRunner().invoke(app, ["--version"])
    assert (result.exit_code, result.stdout) == (
        0,
        "nightsweep, run from a source tree that is not installed\n",
    )


@pytest.mark.parametrize("words", list(commands()), ids=" ".join)
@pytest.mark.parametrize("option", ["-h", "--help"])
def test_every_command_answers_a_call_for_help_within_80_columns(words: Sequence[str], option: str) -> None:
    result = CliRunner(env={"COLUMNS": "80"}).invoke(app, [*words, option])
    assert (result.exit_code, result.stderr) == (0, "")
    assert "Usage: " in result.stdout
    assert max(len(line) for line in result.stdout.splitlines()) <= 80


@pytest.mark.parametrize("command", ["add", "edit"])
def test_an_option_whose_name_is_cut_in_a_table_is_named_in_full_above_it(command: str) -> None:
    result = CliRunner(env={"COLUMNS": "80"}).invoke(app, ["schedules", command, "--help"])
    assert "--repeat-configurations" in result.stdout


def interrupted(folder: Path, module: str, text: str, *arguments: str) -> subprocess.CompletedProcess[str]:
    """A command line in a process of its own, where importing `module` runs `text`."""
    (folder / f"{module}.py").write_text(text)
    (folder / "interrupts.py").write_text(INTERRUPTS)
    return subprocess.run(
        [sys.executable, "-m", "service.cli", *arguments],
        capture_output=True,
        text=True,
        check=False,
        cwd=ROOT,
        env=os.environ
        | {"PYTHONPATH": f"{folder}{os.pathsep}{ROOT}", "NIGHTSWEEP_HOME": str(folder / "home")},
        # A shell lets its background jobs ignore Ctrl-C, which every process below them inherits.
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.default_int_handler),
    )


@pytest.mark.parametrize(
    ("module", "text", "arguments"),
    [
        ("typer", INTERRUPTS, ["plan", "study.yaml"]),
        ("httpx", SWALLOWS, ["trials", "tone"]),
        ("pydantic", INTERRUPTS, ["--version"]),
        ("sqlalchemy", INTERRUPTS, ["db", "check"]),
        ("sqlalchemy", SWALLOWS, ["api"]),
        ("pydantic_settings", INTERRUPTS, ["serve"]),
        ("pydantic_settings", SWALLOWS, ["demo"]),
        ("ray", INTERRUPTS, ["coordinator", "--ray-address", "127.0.0.1:1"]),
    ],
)
def test_ctrl_c_while_modules_are_imported_ends_any_command_without_a_traceback(
    tmp_path: Path, module: str, text: str, arguments: list[str]
) -> None:
    ended = interrupted(tmp_path, module, text, *arguments)
    assert (ended.returncode, ended.stdout, ended.stderr) == (130, "", "")
