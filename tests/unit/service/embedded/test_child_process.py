"""Children are started again when they die and never outlive their parent."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from service.embedded import child_process
from service.embedded.child_process import ChildProcess
from tests.support.waiting import wait_until

FOREVER = [sys.executable, "-c", "import threading; threading.Event().wait()"]


def child(tmp_path: Path, command: list[str]) -> ChildProcess:
    return ChildProcess("child", command, environment={"WORD": "hello"}, log_file=tmp_path / "logs" / "c.log")


def test_output_and_exit_code_are_kept(tmp_path: Path) -> None:
    one = child(tmp_path, [sys.executable, "-c", "import os; print(os.environ['WORD']); raise SystemExit(3)"])
    one.start()
    wait_until(lambda: not one.is_alive)
    assert (one.exit_code, one.last_words()) == (3, "hello")


def test_a_child_that_died_is_started_again(tmp_path: Path) -> None:
    one = child(tmp_path, FOREVER)
    one.start()
    first = one.pid
    assert first is not None
    os.kill(first, signal.SIGKILL)
    wait_until(lambda: not one.is_alive)
    wait_until(one.keep_alive)
    assert one.is_alive
    assert one.pid != first
    one.terminate()
    one.join(10)
    assert not one.is_alive


@pytest.mark.parametrize(
    "error", [OSError(24, "Too many open files"), MemoryError(), RuntimeError("no thread")]
)
def test_a_child_that_cannot_be_started_is_tried_again_and_the_cause_logged_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, error: Exception
) -> None:
    monkeypatch.setattr(child_process, "MAX_BACKOFF_SECONDS", 0.01)
    one = child(tmp_path, [sys.executable, "-c", "raise SystemExit(5)"])
    one._backoff = 0.01
    one.start()
    wait_until(lambda: not one.is_alive)
    tries = 0

    def refuse(*_: object, **__: object) -> None:
        nonlocal tries
        tries += 1
        raise error

    with monkeypatch.context() as broken:
        broken.setattr(subprocess, "Popen", refuse)
        wait_until(lambda: one.keep_alive() or tries >= 5)
    assert not one.is_alive
    messages = [record.getMessage() for record in caplog.records]
    assert len(messages) == 2, messages
    assert messages[0].startswith("child ended with code 5; starting it again")
    assert messages[1].startswith(f"child cannot be started: {type(error).__name__}")
    wait_until(one.keep_alive)
    assert caplog.records[-1].getMessage().startswith("child was started again")
    one.join(20)


def test_a_child_whose_folder_of_logs_was_removed_or_blocked_comes_back(tmp_path: Path) -> None:
    one = child(tmp_path, FOREVER)
    one._backoff = 0.01
    one.start()
    for blocked in (False, True):
        (tmp_path / "logs" / "c.log").unlink()
        (tmp_path / "logs").rmdir()
        if blocked:
            (tmp_path / "logs").touch()
        assert one.pid is not None
        os.kill(one.pid, signal.SIGKILL)
        wait_until(lambda: not one.is_alive)
        if blocked:
            for _ in range(3):
                assert not one.keep_alive()
                one._next_start_at = min(one._next_start_at, 1.0)  # as if the pause were over
            (tmp_path / "logs").unlink()
            one._next_start_at = 1.0
        wait_until(one.keep_alive)
        assert one.is_alive
    one.terminate()
    one.join(20)


def test_a_log_is_bounded_and_the_child_writes_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(child_process, "MAX_LOG_BYTES", 1000)
    script = (
        "import pathlib, sys, time\n"
        f"go = pathlib.Path({str(tmp_path / 'go')!r})\n"
        "for number in range(30): print('x' * 99, flush=True)\n"
        "while not go.exists(): time.sleep(0.01)\n"
        "print('the end', flush=True)"
    )
    one = child(tmp_path, [sys.executable, "-c", script])
    one.start()
    wait_until(lambda: one.log_file.stat().st_size >= 3000)
    one.limit_log()
    older = tmp_path / "logs" / "c.log.1"
    assert (one.log_file.stat().st_size, older.stat().st_size) == (0, 3000)
    assert older.stat().st_mode & 0o077 == 0
    (tmp_path / "go").touch()
    one.join(20)
    assert one.log_file.read_bytes() == b"the end\n"  # at the beginning, and not after a hole
    one.limit_log()
    assert older.stat().st_size == 3000


def test_a_log_that_cannot_be_copied_is_emptied_all_the_same(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(child_process, "MAX_LOG_BYTES", 1000)
    monkeypatch.setattr(shutil, "copyfileobj", full)
    one = child(tmp_path, FOREVER)
    one.log_file.parent.mkdir()
    one.log_file.write_bytes(b"x" * 2000)
    one.limit_log()
    assert [(path.name, path.stat().st_size) for path in one.log_file.parent.iterdir()] == [("c.log", 0)]
    assert "was emptied without a copy: OSError: [Errno 28] No space left on device" in caplog.text


def test_a_child_that_ignores_sigterm_is_killed(tmp_path: Path) -> None:
    stubborn = "import signal, threading; signal.signal(15, signal.SIG_IGN); print('deaf', flush=True)"
    one = child(tmp_path, [sys.executable, "-c", f"{stubborn}; threading.Event().wait()"])
    one.start()
    wait_until(lambda: one.last_words() == "deaf")
    one.terminate()
    one.join(0.2)
    assert one.exit_code == -signal.SIGKILL


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux can tie a child's life to its parent's")
def test_a_child_dies_with_a_parent_that_was_killed_outright(tmp_path: Path) -> None:
    script = f"""
import threading
from pathlib import Path
from service.embedded.child_process import ChildProcess
from tests.support.waiting import wait_until
one = ChildProcess("c", {FOREVER!r}, environment={{}}, log_file=Path({str(tmp_path / "c.log")!r}))
one.start()
print(one.pid, flush=True)
threading.Event().wait()
"""
    parent = subprocess.Popen([sys.executable, "-c", script], stdout=subprocess.PIPE, text=True)
    assert parent.stdout is not None
    with parent.stdout:
        grandchild = int(parent.stdout.readline())
    parent.kill()
    parent.wait()
    stat = Path(f"/proc/{grandchild}/stat")
    wait_until(lambda: not stat.exists() or stat.read_text().split()[2] == "Z")
