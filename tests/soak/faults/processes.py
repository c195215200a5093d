"""One process of a deployment under test: started, killed, stopped, woken, and started again at once."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

# Becomes another user if need be, asks the kernel for a signal when the tests die, and becomes the command:
# nothing is left running when they are killed outright. In this order: a change of user forgets the signal.
_SHIM = """
import ctypes, os, pwd, sys
parent, user = sys.argv[1:3]
if user:
    entry = pwd.getpwnam(user)
    os.initgroups(user, entry.pw_gid)
    os.setgid(entry.pw_gid)
    os.setuid(entry.pw_uid)
ctypes.CDLL(None).prctl(1, 15)  # PR_SET_PDEATHSIG, SIGTERM
if os.getppid() != int(parent):
    sys.exit("the tests died before this process was tied to them")
os.execvp(sys.argv[3], sys.argv[3:])
"""


@dataclass(frozen=True)
class Exit:
    """How a process ended that nobody asked to end."""

    name: str
    code: int
    last_words: str


class Process:
    """A command that can be started many times, each time under another name.

    Args:
        kind: For example `coordinator-1`; its runs are `coordinator-1.1`, `coordinator-1.2`, ...
        command: What to run.
        environment: All of it but what tells the injected module who it is.
        log_file: Appended to.
        user: Who runs it; None: who runs the tests.
    """

    def __init__(
        self,
        kind: str,
        command: Sequence[str],
        *,
        environment: Mapping[str, str],
        log_file: Path,
        user: str | None = None,
    ) -> None:
        self.kind = kind
        self.log_file = log_file
        self.runs = 0
        self._command = list(command)
        self._environment = dict(environment)
        self._user = user
        self._process: subprocess.Popen[bytes] | None = None

    @property
    def name(self) -> str:
        """Of the present run."""
        return f"{self.kind}.{self.runs}"

    @property
    def pid(self) -> int:
        assert self._process is not None
        return self._process.pid

    @property
    def exit_code(self) -> int | None:
        """None while it runs, and before its first run."""
        return None if self._process is None else self._process.poll()

    @property
    def is_alive(self) -> bool:
        return self._process is not None and self._process.poll() is None

    def start(self) -> None:
        self.runs += 1
        named = {key: value.replace("{process}", self.name) for key, value in self._environment.items()}
        with self.log_file.open("ab") as output:
            output.write(f"\n----- {self.name}\n".encode())
            output.flush()
            self._process = subprocess.Popen(
                [sys.executable, "-ISc", _SHIM, str(os.getpid()), self._user or "", *self._command],
                env=named,
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )

    def signal(self, number: int) -> None:
        """Send it a signal; nothing when it has ended."""
        if self._process is not None and self.is_alive:
            self._process.send_signal(number)

    def end(self, patience: float) -> None:
        """Ask it to end, and kill what is left of its process group."""
        if self._process is None:
            return
        self.signal(signal.SIGCONT)
        self.signal(signal.SIGTERM)
        with contextlib.suppress(subprocess.TimeoutExpired):
            self._process.wait(patience)
        self.kill_group()

    def kill_group(self) -> None:
        """SIGKILL for it and for what it has started in its process group."""
        if self._process is None:
            return
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self._process.pid, signal.SIGKILL)
        self._process.wait()

    def last_words(self, lines: int = 20) -> str:
        if not self.log_file.is_file():
            return ""
        return "\n".join(self.log_file.read_text(errors="replace").splitlines()[-lines:])

    def wait(self, patience: float) -> int | None:
        """Its exit code, or None when it runs on for longer than that."""
        assert self._process is not None
        try:
            return self._process.wait(patience)
        except subprocess.TimeoutExpired:
            return None


def pids_with(marks: Mapping[str, str]) -> list[int]:
    """Processes that were started with these environment variables, whoever their parent is."""
    wanted = {f"{key}={value}".encode() for key, value in marks.items()}
    found = []
    for entry in Path("/proc").glob("[0-9]*"):
        try:
            environment = (entry / "environ").read_bytes()
        except OSError:
            continue
        if wanted <= set(environment.split(b"\0")):
            found.append(int(entry.name))
    return found


def title(pid: int) -> str:
    """A process's command line; empty when it is gone."""
    try:
        return Path(f"/proc/{pid}/cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace").strip()
    except OSError:
        return ""


def kill(pids: Sequence[int]) -> None:
    for pid in pids:
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)


def wait_until_gone(pids: Sequence[int], patience: float) -> None:
    deadline = time.monotonic() + patience
    while any(Path(f"/proc/{pid}").exists() and not _is_zombie(pid) for pid in pids):
        assert time.monotonic() < deadline, f"some of {pids} do not end"
        time.sleep(0.05)


def _is_zombie(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] == "Z"
    except OSError:
        return True
