"""/v1/schedules"""

from __future__ import annotations

from fastapi import APIRouter, Response

from service.database import database_now
from service.dependencies import Reading, ScheduleRef, ServiceSettings, Writing
from service.documents import Document, request_body
from service.problems import declare
from service.schedules import commands, queries
from service.schedules.documents import CHANGE_SCHEMA, CREATE_SCHEMA, read_change, read_new
from service.schedules.schemas import ScheduleList, ScheduleView

router = APIRouter(prefix="/v1/schedules", tags=["schedules"])


@router.post(
    "",
    status_code=201,
    response_model=ScheduleView,
    responses={
        201: {
            "headers": {"Location": {"description": "The schedule's address", "schema": {"type": "string"}}}
        },
        **declare(400, 409, 413, 415, 422),
    },
    openapi_extra=request_body(CREATE_SCHEMA, "A schedule, as JSON or YAML"),
)
def create(
    document: Document, session: Writing, settings: ServiceSettings, response: Response
) -> ScheduleView:
    """Make a schedule: a study each time its cron expression fires."""
    now = database_now(session)
    schedule = commands.create(session, read_new(document, settings.data_roots, now), now)
    response.headers["Location"] = f"/v1/schedules/{schedule.id}"
    return queries.show(session, [schedule])[0]


@router.get("", response_model=ScheduleList)
def list_schedules(session: Reading) -> ScheduleList:
    """All schedules, by name."""
    return ScheduleList(items=queries.show(session, queries.list_schedules(session)))


@router.get("/{schedule}", response_model=ScheduleView, responses=declare(404))
def get_schedule(schedule: ScheduleRef, session: Reading) -> ScheduleView:
    """One schedule, by id or name."""
    return queries.show(session, [queries.get_schedule(session, schedule)])[0]


@router.patch(
    "/{schedule}",
    response_model=ScheduleView,
    responses=declare(400, 404, 413, 415, 422),
    openapi_extra=request_body(CHANGE_SCHEMA, "What changes, as JSON or YAML"),
)
def change(schedule: ScheduleRef, document: Document, session: Writing) -> ScheduleView:
    """Change when a schedule fires, or whether it does."""
    found = queries.get_schedule(session, schedule, lock=True)
    now = database_now(session)
    commands.change(found, read_change(document, cron=found.cron, timezone=found.timezone, now=now), now)
    return queries.show(session, [found])[0]


@router.delete("/{schedule}", status_code=204, responses=declare(404))
def delete(schedule: ScheduleRef, session: Writing) -> None:
    """Remove a schedule. Its studies stay."""
    commands.delete(session, queries.get_schedule(session, schedule, lock=True))
