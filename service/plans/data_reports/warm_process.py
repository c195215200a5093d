"""One process that makes data reports, over a pair of sockets; `workers.report.server` is the other end."""

from __future__ import annotations

import contextlib
import json
import logging
import os
import signal
import socket
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from search_spaces.data_report import ReportRequest

log = logging.getLogger(__name__)

_MOST_BYTES = 20_000_000
GRACE_SECONDS = 5.0
"""How long a process may take to say that it has given a report up, before it is killed."""
_READY, _FAILED, _END = b'{"ready"', b'{"failed": ', b'{"code": '
"""How the line begins that a process says once it has started, one in place of a report, and the last line of
an answer."""
_CODE = """
import gc, os, sys
answers = os.fdopen(os.dup(1), "wb")
os.dup2(2, 1)
sys.path.append(sys.argv[1])
gc.disable()  # hardly anything that is imported becomes garbage
from workers.report.server import serve
gc.enable()
serve(answers)
"""
# The package's folder comes last in the path, and the current folder not at all (-P): whatever lies there
# must not stand in for a library.


class ReportUnavailable(Exception):  # noqa: N818  (it says what happened)
    """There is no report. The message says why, and "them" in it are the data and the model."""


class WarmProcess:
    """One process that makes reports."""

    def __init__(self, command: tuple[str, ...] | None) -> None:
        root = str(Path(__file__).resolve().parents[3])
        self._ready = False
        self.is_usable = True
        """Whether it can be asked, as it cannot while it owes an answer."""
        self._complaints = tempfile.TemporaryFile()  # noqa: SIM115  (closed by `end`)
        self._socket, theirs = socket.socketpair()
        try:
            self._process = subprocess.Popen(
                command or (sys.executable, "-P", "-c", _CODE, root),
                stdin=theirs.fileno(),
                stdout=theirs.fileno(),
                stderr=self._complaints,
                env=_environment(),
                start_new_session=True,
            )
        except OSError as error:
            self._socket.close()
            self._complaints.close()
            raise ReportUnavailable(
                f"the process that reads them could not be started ({error.strerror})"
            ) from error
        finally:
            theirs.close()

    def is_ready(self, deadline: float) -> bool:
        """Whether it has said so, or ended, by then."""
        try:
            self._ready = self._ready or self._receive(_READY, deadline) is not None
        except TimeoutError:
            return False
        return True

    def ask(self, request: ReportRequest, deadline: float) -> bytes | None:
        """The answer to a request as it came; None: the process has ended without one.

        Raises:
            TimeoutError: The time is up.
            ReportUnavailable: There is no report, or too long a one.
        """
        self.is_usable = False
        seconds = max(0.001, deadline - time.monotonic())
        asked = {"seconds": seconds, "request": request.model_dump(mode="json")}
        try:
            self._socket.settimeout(seconds)
            self._socket.sendall(json.dumps(asked).encode() + b"\n")
        except ConnectionError:
            return None
        if (received := self._receive(_END, deadline + GRACE_SECONDS)) is None:
            return None
        self.is_usable = True
        answer, _, end = received.rstrip().rpartition(b"\n")
        if answer.startswith(_FAILED):
            self._log()
            words = json.loads(answer)["failed"]
            raise ReportUnavailable(
                f"the process that reads them met an unexpected error ({words}); the server's log has more"
            )
        if answer:
            return answer
        code = end.removeprefix(_END).strip(b" }").decode(errors="replace")
        if code == str(-signal.SIGALRM):
            raise TimeoutError
        self._log()
        raise ReportUnavailable(_ended(code[:10]))

    def _receive(self, last: bytes, deadline: float) -> bytes | None:
        """What comes up to a line that begins so; None: the process has ended."""
        received = bytearray()
        while not received.endswith(b"\n") or not received.splitlines()[-1].startswith(last):
            if (left := deadline - time.monotonic()) <= 0:
                raise TimeoutError
            self._socket.settimeout(left)
            try:
                part = self._socket.recv(1_000_000)
            except ConnectionError:
                return None
            if not part:
                return None
            received += part
            if len(received) > _MOST_BYTES:
                raise ReportUnavailable(
                    f"the answer of the process that reads them is longer than {_MOST_BYTES:,} bytes"
                )
        return bytes(received)

    def how_it_ended(self) -> str:
        """For a reader, once it has."""
        code = self._process.wait()
        self._log()
        return _ended(code)

    def _log(self) -> None:
        size = self._complaints.seek(0, os.SEEK_END)
        self._complaints.seek(max(0, size - 4000))
        log.warning("a data report failed:\n%s", self._complaints.read().decode(errors="replace"))

    def end(self) -> None:
        """Kills the process with whatever it started, and waits for it."""
        self._socket.close()
        if self._process.poll() is None:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(self._process.pid, signal.SIGKILL)
        self._process.wait()
        self._complaints.close()


def _ended(code: object) -> str:
    return f"the process that reads them ended with code {code}; the server's log has more"


def _environment() -> dict[str, str]:
    """Ours, but for the settings: the database's password and the API key are none of its business."""
    ours = {name: value for name, value in os.environ.items() if not name.startswith("NIGHTSWEEP_")}
    return {**ours, "TOKENIZERS_PARALLELISM": "false", "CUDA_VISIBLE_DEVICES": "", "OMP_NUM_THREADS": "1"}
