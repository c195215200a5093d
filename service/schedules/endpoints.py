"""/v1/schedules"""

from __future__ import annotations

from fastapi import APIRouter, Response
from sqlalchemy.orm import Session

from service.database import database_now
from service.dependencies import Enabled, NamePrefix, Owner, OwnerName, Reading, ScheduleRef, ServiceResources
from service.documents import Document, request_body
from service.idempotency import REPLAYED_HEADER, Answer, ChangeOnce
from service.models import Schedule
from service.plans.checks import note_unchecked
from service.preconditions import ETAG_HEADER, IfMatch, Precondition, etag
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
            "headers": {
                "Location": {"description": "The schedule's address", "schema": {"type": "string"}},
                **ETAG_HEADER,
                **REPLAYED_HEADER,
            }
        },
        **declare(400, 408, 409, 413, 415, 422),
    },
    openapi_extra=request_body(CREATE_SCHEMA, "A schedule, as JSON or YAML"),
)
def create(document: Document, resources: ServiceResources, owner: Owner, change: ChangeOnce) -> Response:
    """Make a schedule: a study each time its cron expression fires."""
    if (kept := change.kept()) is not None:
        return kept
    with resources.database.read() as session:
        now = database_now(session)
    new = read_new(document, resources.settings.data_roots, now)
    unchecked = resources.checks.require_sound(new.definition, what="The schedule", below="definition")

    def work(session: Session) -> Answer:
        schedule = commands.create(session, new, now, owner=owner)
        note_unchecked(session, unchecked, what=f"the schedule {schedule.name!r}")
        session.flush()
        headers = {**etag(schedule.revision), "Location": f"/v1/schedules/{schedule.id}"}
        return Answer(status=201, body=queries.show(session, [schedule])[0], headers=headers)

    return change.answer(work)


@router.get("", response_model=ScheduleList)
def list_schedules(
    session: Reading,
    prefix: NamePrefix | None = None,
    owner: OwnerName | None = None,
    enabled: Enabled | None = None,
) -> ScheduleList:
    """Schedules, by name: all of them, or those that match every filter."""
    found = queries.list_schedules(session, prefix=prefix, owner=owner, enabled=enabled)
    return ScheduleList(items=queries.show(session, found))


@router.get(
    "/{schedule}", response_model=ScheduleView, responses={200: {"headers": ETAG_HEADER}, **declare(404)}
)
def get_schedule(schedule: ScheduleRef, session: Reading, response: Response) -> ScheduleView:
    """One schedule, by id or name."""
    found = queries.get_schedule(session, schedule)
    response.headers.update(etag(found.revision))
    return queries.show(session, [found])[0]


@router.patch(
    "/{schedule}",
    response_model=ScheduleView,
    responses={200: {"headers": ETAG_HEADER}, **declare(400, 404, 408, 412, 413, 415, 422)},
    openapi_extra=request_body(CHANGE_SCHEMA, "What changes, as JSON or YAML"),
)
def change(
    schedule: ScheduleRef,
    document: Document,
    resources: ServiceResources,
    expected: IfMatch,
    response: Response,
) -> ScheduleView:
    """Change when a schedule fires, or whether it does."""

    def work(session: Session) -> tuple[ScheduleView, int]:
        found = _expected(session, schedule, expected)
        now = database_now(session)
        wanted = read_change(document, cron=found.cron, timezone=found.timezone, now=now)
        commands.change(found, wanted, now)
        return queries.show(session, [found])[0], found.revision

    view, revision = resources.database.transact(work)
    response.headers.update(etag(revision))
    return view


@router.delete("/{schedule}", status_code=204, responses=declare(404, 412, 422))
def delete(schedule: ScheduleRef, resources: ServiceResources, expected: IfMatch) -> None:
    """Remove a schedule. Its studies stay."""

    def work(session: Session) -> None:
        commands.delete(session, _expected(session, schedule, expected))

    resources.database.transact(work)


def _expected(session: Session, ref: str, expected: Precondition) -> Schedule:
    """The schedule, locked for this transaction. Raises `NotFound` and `PreconditionFailed`."""
    found = queries.get_schedule(session, ref, lock=True)
    expected.check(f"The schedule {found.name!r}", found.revision)
    return found
