"""What endpoints that check or plan a definition ask FastAPI for."""

from __future__ import annotations

from typing import Annotated

from fastapi import Depends, Request

from service.plans.checks import SubmissionChecks
from service.plans.data_reports.processes import ReportProcesses


async def _reports(request: Request) -> ReportProcesses:
    reports: ReportProcesses = request.app.state.reports
    return reports


async def _checks(request: Request) -> SubmissionChecks:
    checks: SubmissionChecks = request.app.state.checks
    return checks


DataReports = Annotated[ReportProcesses, Depends(_reports)]
Checks = Annotated[SubmissionChecks, Depends(_checks)]
