"""The report on data and model, made in processes of their own: this one never imports torch.

A process gets what it needs on its standard input and answers on its standard output. It holds none of the
service's settings, and its answer is read as one reads a stranger's. It takes seconds to start, so it stays
for the next report, and ends by itself when none comes or its parent is gone.
"""

from __future__ import annotations

import contextlib
import logging
import threading
import time
from collections.abc import Iterator
from importlib.util import find_spec
from types import TracebackType
from typing import Self

from pydantic import ValidationError

from search_spaces.data_report import FilesReport, LoadingLimits, ReportRequest
from service.errors import Unavailable
from service.plans.data_reports.warm_process import ReportUnavailable, WarmProcess

log = logging.getLogger(__name__)

AT_ONCE = 2
"""Reports made at the same time: each takes a core, and half a gigabyte for torch and transformers alone."""
WAITING = 4
"""Plans that may wait for their turn beside them."""
CHECKS = 16
"""Submissions that are checked or wait for it at the same time. Each takes one of the server's 40 threads."""
_NEEDED = ("torch", "transformers", "datasets", "safetensors", "bitsandbytes", "peft")


class ReportProcesses:
    """Makes reports, a few at a time. Close it, or use it as a context manager.

    Args:
        timeout_seconds: A plan's report that takes longer is given up.
        limits: What may be read for any report, and how much memory that may take.
        command: In place of the report's own, for tests; it is given no arguments.
    """

    def __init__(
        self,
        timeout_seconds: float,
        limits: LoadingLimits | None = None,
        *,
        command: tuple[str, ...] | None = None,
    ) -> None:
        self._timeout = timeout_seconds
        self._limits = limits or LoadingLimits()
        self._command = command
        self._running = threading.BoundedSemaphore(AT_ONCE)
        self._planning = threading.BoundedSemaphore(AT_ONCE + WAITING)
        self._checking = threading.BoundedSemaphore(CHECKS)
        self._idle: list[WarmProcess] = []
        self._closed = False
        self._lock = threading.Lock()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """End the processes that wait for a request, and do not keep those that do not."""
        with self._lock:
            self._closed, idle, self._idle = True, self._idle, []
        for process in idle:
            process.end()

    def warm_up(self) -> None:
        """Start a process for the first request, without waiting for it."""
        with contextlib.suppress(ReportUnavailable):
            self._require_packages()
            self._keep(WarmProcess(self._command))

    def make(self, request: ReportRequest) -> FilesReport:
        """The report of a plan. Blocks the calling thread until it is there.

        Raises:
            ReportUnavailable: The worker's packages are not installed here, the time is up, or it failed.
            Unavailable: Too many plans are being made.
        """
        self._require_packages()
        if not self._planning.acquire(blocking=False):
            raise Unavailable(f"{AT_ONCE + WAITING} plans are being made already; ask again in a minute.")
        try:
            with self._running:
                limit = f"{self._timeout:g} s (NIGHTSWEEP_PLAN_TIMEOUT_SECONDS)"
                return self._make(request, time.monotonic() + self._timeout, limit)
        finally:
            self._planning.release()

    def check(self, request: ReportRequest, seconds: float) -> FilesReport:
        """The report for a submission, in so many seconds, those that it waits for its turn included.

        Raises:
            ReportUnavailable: As for a plan, or too many submissions are being checked.
        """
        self._require_packages()
        deadline = time.monotonic() + seconds
        limit = f"{seconds:g} s (NIGHTSWEEP_SUBMISSION_CHECK_SECONDS)"
        with self.waiting():
            if not self._running.acquire(timeout=seconds):
                raise ReportUnavailable(f"the server was busy with others for {limit}")
            try:
                return self._make(request, deadline, limit)
            finally:
                self._running.release()

    @contextlib.contextmanager
    def waiting(self) -> Iterator[None]:
        """Counts a thread that waits for the check of a submission.

        Raises:
            ReportUnavailable: Too many do.
        """
        if not self._checking.acquire(blocking=False):
            raise ReportUnavailable(f"the server was checking {CHECKS} other submissions at that moment")
        try:
            yield
        finally:
            self._checking.release()

    def _require_packages(self) -> None:
        missing = [name for name in _NEEDED if find_spec(name) is None]
        if missing and self._command is None:
            raise ReportUnavailable(
                f"the packages that read data ({', '.join(missing)}) are not installed beside the API"
            )

    def _make(self, request: ReportRequest, deadline: float, limit: str) -> FilesReport:
        """The report by a moment of the monotonic clock; `limit` says in words how long that was."""
        request = request.model_copy(update={"limits": self._limits})
        while True:
            with self._lock:
                process = self._idle.pop() if self._idle else None
            was_idle = process is not None
            process = process or WarmProcess(self._command)
            if not process.is_ready(deadline):
                self._keep(process)  # it goes on starting, for whoever asks next
                raise ReportUnavailable(f"the process that reads them was not ready within {limit}")
            try:
                answer = process.ask(request, deadline)
                if answer is not None:
                    return _read(answer)
                if not was_idle:
                    raise ReportUnavailable(process.how_it_ended())
                # else it ended just now because nobody had asked for long
            except TimeoutError:
                raise ReportUnavailable(f"reading them took longer than {limit}") from None
            finally:
                self._keep(process)

    def _keep(self, process: WarmProcess) -> None:
        """Leave a process for the next request, unless it cannot make another report."""
        with self._lock:
            if process.is_usable and not self._closed:
                self._idle.append(process)
                return
        process.end()


def _read(answer: bytes) -> FilesReport:
    try:
        return FilesReport.model_validate_json(answer)
    except ValidationError as error:
        log.warning("a data report cannot be read: %s", error)
        raise ReportUnavailable(
            "the report cannot be read; do the service and the workers have the same version?"
        ) from None
