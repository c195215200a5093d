"""One `nightsweep serve` per home: the second is told who holds it, and a killed one holds nothing."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from typer.testing import CliRunner

from service.cli.root import app
from service.embedded.home_lock import HOLDER_FILE, LOCK_FILE, HomeInUse, HomeLock
from service.embedded.supervisor import Supervisor
from service.settings import Settings

HOLD = """
import sys
from pathlib import Path
from service.embedded.home_lock import HomeLock
lock = HomeLock(Path(sys.argv[1]))
lock.acquire("http://127.0.0.1:8787")
print("held", flush=True)
sys.stdin.read()
lock.release()
"""


@contextmanager
def holder(home: Path) -> Iterator[subprocess.Popen[str]]:
    """Another process that serves in this home."""
    home.mkdir(exist_ok=True)
    command = [sys.executable, "-c", HOLD, str(home)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "held\n"
        yield process


def test_a_second_one_is_told_who_holds_the_home_since_when_and_where(tmp_path: Path) -> None:
    with holder(tmp_path) as process:
        since = json.loads((tmp_path / HOLDER_FILE).read_text())["since"]
        with pytest.raises(HomeInUse) as refused:
            HomeLock(tmp_path).acquire("http://127.0.0.1:9999")
    for words in (str(tmp_path), f"process id {process.pid} ", since, "at http://127.0.0.1:8787.", "--home"):
        assert words in refused.value.detail


def test_a_lock_of_a_process_that_was_killed_does_not_block(tmp_path: Path) -> None:
    with holder(tmp_path) as process:
        process.send_signal(signal.SIGKILL)
        process.wait()
    assert (tmp_path / HOLDER_FILE).exists()
    lock = HomeLock(tmp_path)
    lock.acquire("http://127.0.0.1:1")
    assert json.loads((tmp_path / HOLDER_FILE).read_text())["pid"] == os.getpid()
    lock.release()


def test_a_home_that_was_given_back_can_be_taken_again(tmp_path: Path) -> None:
    for _ in range(2):
        lock = HomeLock(tmp_path)
        lock.acquire("http://127.0.0.1:1")
        lock.release()
        lock.release()  # what ends twice gives back once
    assert not (tmp_path / HOLDER_FILE).exists()


@pytest.mark.parametrize("words", [None, "", "[]", "{}", '{"pid": 1}'])
def test_without_words_of_the_holder_the_home_is_refused_all_the_same(
    tmp_path: Path, words: str | None
) -> None:
    with holder(tmp_path):
        (tmp_path / HOLDER_FILE).unlink()
        if words is not None:
            (tmp_path / HOLDER_FILE).write_text(words)
        with pytest.raises(HomeInUse, match="another `nightsweep serve` or `demo` is running there"):
            HomeLock(tmp_path).acquire("http://127.0.0.1:1")


def test_the_files_are_their_owners_alone(tmp_path: Path) -> None:
    lock = HomeLock(tmp_path)
    lock.acquire("http://127.0.0.1:1")
    assert [(tmp_path / name).stat().st_mode & 0o777 for name in (LOCK_FILE, HOLDER_FILE)] == [0o600, 0o600]
    lock.release()


def test_nothing_is_started_in_a_home_in_use(tmp_path: Path) -> None:
    home = tmp_path / "home"
    with holder(home), pytest.raises(HomeInUse):
        Supervisor(Settings(home=home)).__enter__()
    assert {path.name for path in home.iterdir() if path.suffix != ".db"} == {LOCK_FILE}
    assert not (home / "logs").exists()


def test_the_lock_is_given_back_when_starting_fails(tmp_path: Path) -> None:
    home = tmp_path / "home"
    with pytest.raises(Exception, match="NIGHTSWEEP_API_KEY"):
        Supervisor(Settings(home=home, host="0.0.0.0")).__enter__()
    lock = HomeLock(home)
    lock.acquire("http://127.0.0.1:1")
    lock.release()


def test_serve_ends_at_once_and_says_so(tmp_path: Path) -> None:
    with holder(tmp_path) as process:
        result = CliRunner().invoke(app, ["serve", "--home", str(tmp_path)])
    assert result.exit_code == 1
    assert f"The home folder {tmp_path} is in use" in result.stderr
    assert f"process id {process.pid} " in result.stderr
