"""A child process that is looked after: started, watched, started again, and never left behind."""

from __future__ import annotations

import contextlib
import logging
import os
import signal
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path

log = logging.getLogger(__name__)

MAX_BACKOFF_SECONDS = 30.0
STABLE_SECONDS = 60.0
"""A child that has lived this long starts again at once when it dies."""

# The child asks the kernel for SIGTERM when its parent dies, makes sure that it has not died already,
# and becomes the command: nothing is left running when the supervisor is killed outright. Elsewhere than
# on Linux there is no such call.
_TIE_TO_PARENT = """
import ctypes, os, sys
if sys.platform == "linux":
    ctypes.CDLL(None).prctl(1, 15)  # PR_SET_PDEATHSIG, SIGTERM
    if os.getppid() != int(sys.argv[1]):
        sys.exit("the parent died before this process was tied to it")
os.execvp(sys.argv[2], sys.argv[2:])
"""


class ChildProcess:
    """One command under supervision.

    Args:
        name: for messages.
        command: what to run.
        environment: added to the parent's.
        log_file: where its output goes; appended to.
    """

    def __init__(
        self, name: str, command: Sequence[str], *, environment: Mapping[str, str], log_file: Path
    ) -> None:
        self.name = name
        self.log_file = log_file
        self._command = list(command)
        self._environment = dict(environment)
        self._process: subprocess.Popen[bytes] | None = None
        self._started_at = 0.0
        self._next_start_at = 0.0
        self._backoff = 0.5

    def start(self) -> None:
        self.log_file.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        # For its owner alone: a log tells of data and paths.
        descriptor = os.open(self.log_file, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
        with os.fdopen(descriptor, "ab") as output:
            self._process = subprocess.Popen(
                [sys.executable, "-c", _TIE_TO_PARENT, str(os.getpid()), *self._command],
                env={**os.environ, **self._environment},
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
                start_new_session=True,  # a Ctrl-C in the terminal reaches the supervisor alone
            )
        self._started_at = time.monotonic()

    @property
    def pid(self) -> int | None:
        return None if self._process is None else self._process.pid

    @property
    def exit_code(self) -> int | None:
        """None while it runs or before it was started."""
        return None if self._process is None else self._process.poll()

    @property
    def is_alive(self) -> bool:
        return self._process is not None and self._process.poll() is None

    def keep_alive(self) -> bool:
        """Start it again if it has died, waiting longer each time. Whether it was started now."""
        if self.is_alive:
            return False
        now = time.monotonic()
        if self._next_start_at == 0.0:
            if now - self._started_at > STABLE_SECONDS:
                self._backoff = 0.5
            log.warning(
                "%s ended with code %s; starting it again in %.1f s (see %s)",
                self.name,
                self.exit_code,
                self._backoff,
                self.log_file,
            )
            self._next_start_at = now + self._backoff
            self._backoff = min(2 * self._backoff, MAX_BACKOFF_SECONDS)
        if now < self._next_start_at:
            return False
        self._next_start_at = 0.0
        self.start()
        return True

    def terminate(self) -> None:
        """Ask it to end."""
        if self._process is not None and self.is_alive:
            self._process.terminate()

    def interrupt(self) -> None:
        """Ask it once more to end, and not to finish first what it does."""
        if self._process is not None and self.is_alive:
            self._process.send_signal(signal.SIGINT)

    def join(self, timeout_s: float) -> None:
        """Wait for its end, and kill its whole process group when it does not come."""
        if self._process is None:
            return
        try:
            self._process.wait(timeout_s)
        except subprocess.TimeoutExpired:
            log.warning("%s did not end within %g s and is killed", self.name, timeout_s)
        with contextlib.suppress(ProcessLookupError):  # all of it has ended, as it should
            os.killpg(self._process.pid, signal.SIGKILL)
        self._process.wait()

    def last_words(self, lines: int = 15) -> str:
        """The end of its log, for error messages."""
        if not self.log_file.is_file():
            return ""
        return "\n".join(self.log_file.read_text(errors="replace").splitlines()[-lines:])
