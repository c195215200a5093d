"""A supervised child process: started, watched, started again, and never left behind."""

from __future__ import annotations

import contextlib
import logging
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path

from service.log_limit import LogLimit, short

log = logging.getLogger(__name__)

MAX_LOG_BYTES = 10_000_000
"""A log file that has grown beyond this is moved to `<name>.1`, whose former content is dropped."""

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
        environment: all of it.
        log_file: where its output goes; appended to, and bounded by `limit_log`.
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
        self._failed_to_start = False
        self._log_limit = LogLimit()

    def start(self) -> None:
        self.log_file.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        # For its owner alone: a log tells of data and paths.
        descriptor = os.open(self.log_file, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
        with os.fdopen(descriptor, "ab") as output:
            self._process = subprocess.Popen(
                [sys.executable, "-c", _TIE_TO_PARENT, str(os.getpid()), *self._command],
                env=self._environment,
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

    @property
    def is_stable(self) -> bool:
        """Whether it is alive, and has been for a while."""
        return self.is_alive and time.monotonic() - self._started_at > STABLE_SECONDS

    def keep_alive(self) -> bool:
        """Start it again if it has died, waiting longer each time. Whether it was started now.

        One that cannot be started (no descriptor or memory left, a log that cannot be opened) is tried again
        likewise; the cause is logged once, and then ever more rarely.
        """
        if self.is_alive:
            return False
        now = time.monotonic()
        if self._next_start_at == 0.0:
            if now - self._started_at > STABLE_SECONDS:
                self._backoff = 0.5
            pause = self._back_off(now)
            self._log(
                f"code {self.exit_code}",
                f"{self.name} ended with code {self.exit_code}; starting it again in {pause:.1f} s "
                f"(see {self.log_file})",
            )
        if now < self._next_start_at:
            return False
        try:
            self.start()
        except (OSError, RuntimeError, MemoryError, subprocess.SubprocessError) as error:
            self._back_off(now)
            self._failed_to_start = True
            self._log(
                short(error), f"{self.name} cannot be started: {short(error)}; it is tried again until it can"
            )
            return False
        self._next_start_at = 0.0
        if self._failed_to_start:
            log.warning("%s was started again, with process id %s", self.name, self.pid)
        self._failed_to_start = False
        return True

    def _back_off(self, now: float) -> float:
        pause = self._backoff
        self._next_start_at = now + pause
        self._backoff = min(2 * pause, MAX_BACKOFF_SECONDS)
        return pause

    def _log(self, cause: str, message: str) -> None:
        suffix = self._log_limit.suffix(cause)
        if suffix is not None:
            log.warning("%s%s", message, suffix)

    def limit_log(self) -> None:
        """Copy a log that has grown beyond `MAX_LOG_BYTES` to `<name>.1`, and empty it.

        The child keeps the file open and appends, so it cannot be renamed. What it writes between the copy
        and the emptying is lost. Where the copy cannot be made (a full disk), the file is emptied all the
        same: it is what fills the disk.

        Raises:
            OSError: it cannot be emptied.
        """
        if not self.log_file.is_file() or self.log_file.stat().st_size <= MAX_LOG_BYTES:
            return
        older = self.log_file.with_name(f"{self.log_file.name}.1")
        older.unlink(missing_ok=True)
        try:
            with (
                self.log_file.open("rb") as source,
                open(os.open(older, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "wb") as target,
            ):
                shutil.copyfileobj(source, target)
        except OSError as error:
            older.unlink(missing_ok=True)
            self._log(short(error), f"{self.log_file} was emptied without a copy: {short(error)}")
        os.truncate(self.log_file, 0)

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
