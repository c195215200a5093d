"""What endpoints ask FastAPI for: settings, sessions, Optuna's storage, the shapes of parameters."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Annotated

from fastapi import Depends, Path, Query, Request
from pydantic import BeforeValidator
from pydantic_core import PydanticCustomError
from sqlalchemy.orm import Session

from service import optuna_store
from service.database import Database
from service.plans.checks import SubmissionChecks
from service.plans.report_process import ReportProcesses
from service.settings import Settings

MAX_ID = 2**31 - 1
"""Ids and trial numbers are 32-bit integers in PostgreSQL."""


@dataclass(frozen=True)
class Resources:
    """What the application opened at its start and closes at its end."""

    settings: Settings
    database: Database
    storage: optuna_store.Storage
    reports: ReportProcesses
    checks: SubmissionChecks


def _resources(request: Request) -> Resources:
    resources: Resources = request.app.state.resources
    return resources


def _settings(resources: Annotated[Resources, Depends(_resources)]) -> Settings:
    return resources.settings


def _storage(resources: Annotated[Resources, Depends(_resources)]) -> optuna_store.Storage:
    return resources.storage


def _owner(request: Request) -> str:
    owner: str = request.state.owner  # where `service.auth` put it
    return owner


def _reading(resources: Annotated[Resources, Depends(_resources)]) -> Iterator[Session]:
    with resources.database.read() as session:
        yield session


ServiceResources = Annotated[Resources, Depends(_resources)]
ServiceSettings = Annotated[Settings, Depends(_settings)]
Owner = Annotated[str, Depends(_owner)]
OptunaStorage = Annotated[optuna_store.Storage, Depends(_storage)]
# scope="function": the transaction ends before the answer is sent. Whoever writes uses `Database.transact`.
Reading = Annotated[Session, Depends(_reading, scope="function")]


def _in_one_spelling(value: object) -> object:
    """`true` or `false`, as JSON has them: pydantic would read "off" and "0", too, unlike the schema."""
    if value not in ("true", "false", True, False):
        raise PydanticCustomError("bool_parsing", "must be true or false", {"expected": "true, false"})
    return value


DryRun = Annotated[
    bool,
    BeforeValidator(_in_one_spelling),
    Query(description="Check the definition and answer what the study would do, without a trace"),
]
StudyRef = Annotated[str, Path(description="The study's id or name")]
ScheduleRef = Annotated[str, Path(description="The schedule's id or name")]
TrialNumber = Annotated[int, Path(ge=0, le=MAX_ID, description="The trial's number, from 0")]
