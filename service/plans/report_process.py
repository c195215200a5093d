"""The report on data and model, made in a process of its own: this one never imports torch.

The process gets what it needs on its standard input and answers on its standard output. It holds none of the
service's settings, ends itself at the time limit should its parent be gone, and its answer is read as one
reads a stranger's.
"""

from __future__ import annotations

import contextlib
import logging
import math
import os
import signal
import subprocess
import sys
import threading
from importlib.util import find_spec
from pathlib import Path

from pydantic import ValidationError

from search_spaces.data_report import Report, ReportRequest
from service.errors import Unavailable

log = logging.getLogger(__name__)

AT_ONCE = 2
"""Reports made at the same time: each takes a core, and half a gigabyte for torch and transformers alone."""
WAITING = 4
"""Requests that may wait for their turn beside them."""
_NEEDED = ("torch", "transformers", "datasets", "safetensors", "bitsandbytes", "peft")
_MOST_BYTES = 20_000_000
_CODE = """
import signal, sys
if hasattr(signal, "alarm"):
    signal.alarm(int(sys.argv[2]))
sys.path.append(sys.argv[1])
from workers.data_report import main
main()
"""
# The package's folder comes last in the path, and the current folder not at all (-P): whatever lies there
# must not stand in for a library.


class ReportUnavailable(Exception):  # noqa: N818  (it says what happened)
    """There is no report. The message says why and reads after "there is no report: "."""


class ReportProcesses:
    """Makes reports, a few at a time.

    Args:
        timeout_seconds: A report that takes longer is given up.
        command: In place of the report's own, for tests; it is given no arguments.
    """

    def __init__(self, timeout_seconds: float, *, command: tuple[str, ...] | None = None) -> None:
        self._timeout = timeout_seconds
        self._command = command
        self._running = threading.BoundedSemaphore(AT_ONCE)
        self._admitted = threading.BoundedSemaphore(AT_ONCE + WAITING)

    def make(self, request: ReportRequest) -> Report:
        """The report. Blocks the calling thread until it is there.

        Raises:
            ReportUnavailable: The worker's packages are not installed here, the time is up, or it failed.
            Unavailable: Too many reports are being made.
        """
        missing = [name for name in _NEEDED if find_spec(name) is None]
        if missing and self._command is None:
            raise ReportUnavailable(
                f"the packages that read data ({', '.join(missing)}) are not installed beside the API"
            )
        if not self._admitted.acquire(blocking=False):
            raise Unavailable(f"{AT_ONCE + WAITING} plans are being made already; ask again in a minute.")
        try:
            with self._running:
                return self._run(request)
        finally:
            self._admitted.release()

    def _run(self, request: ReportRequest) -> Report:
        root = str(Path(__file__).resolve().parents[2])
        own = (sys.executable, "-P", "-c", _CODE, root, str(math.ceil(self._timeout) + 5))
        try:
            process = subprocess.Popen(
                self._command or own,
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=subprocess.PIPE,
                env=_environment(),
                start_new_session=True,
            )
        except OSError as error:
            raise ReportUnavailable(f"its process could not be started ({error.strerror})") from error
        try:
            answer, complaints = process.communicate(request.model_dump_json().encode(), self._timeout)
        except subprocess.TimeoutExpired:
            raise ReportUnavailable(
                f"it took longer than {self._timeout:g} s (NIGHTSWEEP_PLAN_TIMEOUT_SECONDS); plan with"
                " data.max_train_examples"
            ) from None
        finally:
            _end(process)
        if process.returncode != 0:
            log.warning("a data report failed:\n%s", complaints.decode(errors="replace")[-4000:])
            raise ReportUnavailable(
                f"its process ended with code {process.returncode}; the server's log has more"
            )
        try:
            if len(answer) > _MOST_BYTES:
                raise ReportUnavailable(f"its answer is longer than {_MOST_BYTES:,} bytes")
            return Report.model_validate_json(answer)
        except ValidationError as error:
            log.warning("a data report cannot be read: %s", error)
            raise ReportUnavailable(
                "its answer cannot be read; are service and workers of one version?"
            ) from None


def _end(process: subprocess.Popen[bytes]) -> None:
    """Kills the process with whatever it started, and waits for it."""
    if process.poll() is None:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
    for stream in (process.stdin, process.stdout, process.stderr):
        if stream is not None:
            with contextlib.suppress(OSError):
                stream.close()
    process.wait()


def _environment() -> dict[str, str]:
    """Ours, but for the settings: the database's password and the API key are none of its business."""
    ours = {name: value for name, value in os.environ.items() if not name.startswith("NIGHTSWEEP_")}
    return {**ours, "TOKENIZERS_PARALLELISM": "false", "CUDA_VISIBLE_DEVICES": "", "OMP_NUM_THREADS": "1"}
