"""Children are started again when they die and never outlive their parent."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from service.child_process import ChildProcess

FOREVER = [sys.executable, "-c", "import threading; threading.Event().wait()"]


def wait_for(condition: Callable[[], bool], seconds: float = 20.0) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "the condition did not come true in time"
        os.sched_yield()


def child(tmp_path: Path, command: list[str]) -> ChildProcess:
    return ChildProcess("child", command, environment={"WORD": "hello"}, log_file=tmp_path / "logs" / "c.log")


def test_output_and_exit_code_are_kept(tmp_path: Path) -> None:
    one = child(tmp_path, [sys.executable, "-c", "import os; print(os.environ['WORD']); raise SystemExit(3)"])
    one.start()
    wait_for(lambda: not one.is_alive)
    assert (one.exit_code, one.last_words()) == (3, "hello")


def test_a_child_that_died_is_started_again(tmp_path: Path) -> None:
    one = child(tmp_path, FOREVER)
    one.start()
    first = one.pid
    assert first is not None
    os.kill(first, signal.SIGKILL)
    wait_for(lambda: not one.is_alive)
    wait_for(one.keep_alive)
    assert one.is_alive
    assert one.pid != first
    one.terminate()
    one.join(10)
    assert not one.is_alive


def test_a_child_that_ignores_sigterm_is_killed(tmp_path: Path) -> None:
    stubborn = "import signal, threading; signal.signal(15, signal.SIG_IGN); print('deaf', flush=True)"
    one = child(tmp_path, [sys.executable, "-c", f"{stubborn}; threading.Event().wait()"])
    one.start()
    wait_for(lambda: one.last_words() == "deaf")
    one.terminate()
    one.join(0.2)
    assert one.exit_code == -signal.SIGKILL


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux can tie a child's life to its parent's")
def test_a_child_dies_with_a_parent_that_was_killed_outright(tmp_path: Path) -> None:
    script = f"""
import threading
from pathlib import Path
from service.child_process import ChildProcess
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
    wait_for(lambda: not stat.exists() or stat.read_text().split()[2] == "Z")
