"""Checks of a submission's data and model: a study whose trials would all fail is refused.

Only the first rows are read, so that it takes a second whatever the data's size; workers read the others.
What cannot be checked here in time is accepted, and its history says so.
"""

from __future__ import annotations

import hashlib
import os
import threading
import time
from collections import OrderedDict
from concurrent.futures import Future
from dataclasses import dataclass
from typing import Any

from sqlalchemy.orm import Session

from search_spaces.data_report import FilesReport, ReportRequest
from search_spaces.definition import HubData, StudyDefinition
from search_spaces.errors import Fault
from search_spaces.faults import shown
from service.db.models import EventRow
from service.errors import Invalid
from service.plans.data_reports.processes import ReportProcesses
from service.plans.data_reports.request import path_in, report_request
from service.plans.data_reports.warm_process import ReportUnavailable
from service.plans.lengths import rung_fault

FIRST_ROWS = 1_000
"""Rows of each data set that are tokenised."""
_REMEMBERED = 256
"""Reports that are kept, the latest: a script may submit one base and one data set many times."""
_SECONDS, _HUB_SECONDS = 600.0, 60.0
"""How long they are; those of the hub's models and data, whose changes are not seen here, for less."""


@dataclass(frozen=True)
class _Remembered:
    report: Future[FilesReport]
    until: float
    """By the monotonic clock."""


class SubmissionChecks:
    """Checks definitions before they are stored. No transaction may be open meanwhile.

    Args:
        reports: Makes the reports.
        seconds: How long a check may take; 0: none is made.
    """

    def __init__(self, reports: ReportProcesses, seconds: float) -> None:
        self._reports = reports
        self._seconds = seconds
        self._known: OrderedDict[str, _Remembered] = OrderedDict()
        self._lock = threading.Lock()

    def require_sound(
        self, definition: StudyDefinition, *, what: str = "The definition", below: str = ""
    ) -> str | None:
        """Refuse a definition whose trials would all fail.

        Args:
            definition: An accepted one.
            what: The document that is refused.
            below: The path of the definition in that document.

        Returns:
            Why it could not be checked; None: it was, or need not be.

        Raises:
            Invalid: Every trial would fail, with all that is known of why.
        """
        if not self._seconds:
            return None
        try:
            report = self._report(report_request(definition, max_rows=FIRST_ROWS, max_counted=0))
        except ReportUnavailable as error:
            return str(error)
        fatal = [problem for problem in report.problems if problem.every_trial]
        faults = [_fault(problem.path, problem.message, definition) for problem in fatal]
        rungs = rung_fault(definition, report.data)
        if faults := [*faults, *([rungs] if rungs is not None else [])]:
            raise Invalid(what, [fault.below(below) for fault in faults])
        return next((problem.message for problem in report.problems if problem.about == "host"), None)

    def _report(self, request: ReportRequest) -> FilesReport:
        """The report, which is made once for those that ask for the same one while its files are the same."""
        key, now = _key(request), time.monotonic()
        with self._lock:
            found = self._known.get(key)
            mine = found is None or found.until <= now
            if found is None or found.until <= now:
                found = _Remembered(Future(), now + (_HUB_SECONDS if _is_on_hub(request) else _SECONDS))
                self._known[key] = found
                if len(self._known) > _REMEMBERED:
                    self._known.popitem(last=False)
        if not mine:
            return self._of_another(found.report)
        try:
            found.report.set_result(self._reports.check(request, self._seconds))
        except BaseException as error:
            with self._lock:
                if self._known.get(key) is found:
                    del self._known[key]
            found.report.set_exception(error)
            raise
        return found.report.result()

    def _of_another(self, report: Future[FilesReport]) -> FilesReport:
        with self._reports.waiting():
            try:
                return report.result(self._seconds)
            except TimeoutError:
                raise ReportUnavailable(f"another check of the same data took {self._seconds:g} s") from None


def note_unchecked(session: Session, why: str | None, *, study_id: str, what: str) -> None:
    """Say in the history that something was accepted without a check of its data; None: it was checked."""
    if why is not None:
        message = f"the data and the model of {what} were not checked at submission: {why}"
        session.add(EventRow(study_id=study_id, kind="data_unchecked", message=message))


def _fault(path: str, message: str, definition: StudyDefinition) -> Fault:
    message = message.removeprefix(f"{path} ")  # a fault's path is said before its message
    path = path_in(definition, path)
    value: Any = definition.model_dump(mode="json")
    for part in path.split("."):
        value = value.get(part) if isinstance(value, dict) else None
    return Fault(path=path, value=shown(value), message=message)


def _is_on_hub(request: ReportRequest) -> bool:
    sources = (request.data.train, request.data.eval)
    return not os.path.isabs(request.model.id) or any(isinstance(source, HubData) for source in sources)


def _key(request: ReportRequest) -> str:
    """Of what is asked, and of the files that it is asked about as they are now."""
    digest = hashlib.sha256(request.model_dump_json().encode())
    for source in (request.model.id, request.data.train, request.data.eval):
        if isinstance(source, str) and os.path.isabs(source):
            digest.update(repr(_identity(source)).encode("utf-8", "replace"))
    return digest.hexdigest()


def _identity(path: str) -> list[tuple[str, int, int, int]]:
    """Of a file, or of the files in a folder: name, size, time of change, inode."""
    try:
        files = [path, *(entry.path for entry in os.scandir(path))] if os.path.isdir(path) else [path]
        stats = [(file, os.stat(file)) for file in sorted(files)]
    except OSError:
        return []
    return [(file, stat.st_size, stat.st_mtime_ns, stat.st_ino) for file, stat in stats]
