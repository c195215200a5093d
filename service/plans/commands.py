"""Planning a study: everything that a submission checks, and nothing that it stores."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from sqlalchemy import select

from search_spaces.data_report import FilesReport
from search_spaces.definition import StudyDefinition
from service.db.models import Study
from service.definitions.acceptance import accept_definition
from service.devices.cluster import latest
from service.errors import Invalid
from service.plans.data_reports.processes import ReportProcesses
from service.plans.data_reports.request import report_request
from service.plans.data_reports.warm_process import ReportUnavailable
from service.plans.history import earlier_trials
from service.plans.plan import make_plan
from service.plans.schemas import PlanView
from service.rest.dependencies import Resources
from service.warm_start.checks import check_warm_start


def dry_run(document: Any, resources: Resources, reports: ReportProcesses) -> PlanView:
    """The plan of a study, which is not stored.

    No transaction is open while the report is made, which takes seconds.

    Raises:
        Invalid: The definition would not be accepted.
        Unavailable: Too many plans are being made.
    """
    settings = resources.settings
    definition = accept_definition(document, settings.data_roots, settings.plugins)
    with resources.database.read() as session:
        if faults := check_warm_start(session, definition):
            raise Invalid("The definition", faults)
        taken = session.scalars(select(Study.id).where(Study.name == definition.name)).first() is not None
        earlier = earlier_trials(session, definition)
        cluster = latest(session)
    report, unknown = _report(reports, definition)
    return make_plan(definition, report, unknown, earlier, name_taken=taken, cluster=cluster)


def local_plan(document: Any, timeout_seconds: float) -> PlanView:
    """The plan of a study on this machine, without a server: no earlier trials are known.

    Raises:
        Invalid: The definition would not be accepted.
    """
    definition = accept_definition(document, [Path.cwd(), Path(Path.cwd().anchor)], None)
    with ReportProcesses(timeout_seconds) as processes:
        report, unknown = _report(processes, definition)
    return make_plan(definition, report, unknown, None, name_taken=False)


def _report(processes: ReportProcesses, definition: StudyDefinition) -> tuple[FilesReport | None, str | None]:
    try:
        return processes.make(report_request(definition)), None
    except ReportUnavailable as error:
        return None, str(error)
