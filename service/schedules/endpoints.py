"""/v1/schedules"""

from __future__ import annotations

from datetime import datetime
from functools import partial
from typing import Annotated

from fastapi import APIRouter, Path, Query, Response
from sqlalchemy.orm import Session

from service.db.database import database_now
from service.db.models import Schedule
from service.plans.dependencies import Checks as SubmissionChecks
from service.rest.dependencies import (
    MAX_ID,
    NamePrefix,
    Owner,
    OwnerName,
    Reading,
    ServiceResources,
    TrueOrFalse,
)
from service.rest.documents import Document, request_body
from service.rest.etags import ETAG_HEADER, IfMatch
from service.rest.idempotency import REPLAYED_HEADER, Answer, ChangeOnce, Changing
from service.rest.preconditions import Precondition, etag
from service.rest.problems import declare
from service.schedules import commands, queries
from service.schedules.body_schemas import CHANGE_SCHEMA, CREATE_SCHEMA
from service.schedules.documents import Accepted, Checks, read_change, read_new, read_times
from service.schedules.firings import BOUND_FORM, CRON_FORM
from service.schedules.schemas import Firings, ScheduleHistory, ScheduleList, ScheduleView, SweepPage
from service.schedules.sweeps import times_of
from service.schedules.templates import Files, with_files
from service.settings import Settings
from service.studies import queries as studies
from service.studies.limits import Limits
from service.studies.parameters import Cursor
from service.studies.schemas import StudyView

router = APIRouter(prefix="/v1/schedules", tags=["schedules"])
previews = APIRouter(prefix="/v1/schedule-preview", tags=["schedules"])

ScheduleRef = Annotated[str, Path(description="The schedule's id or name")]
Count = Annotated[int, Query(ge=1, le=100, description="How many firings at most")]
MAX_TEXT = 200
Enabled = Annotated[
    bool,
    TrueOrFalse,
    Query(description="`true`: only enabled schedules; `false`: only disabled ones"),
]


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
def create(
    document: Document,
    resources: ServiceResources,
    checks: SubmissionChecks,
    owner: Owner,
    change: ChangeOnce,
) -> Response:
    """Make a schedule: a study each time its cron expression fires."""
    if (earlier := change.earlier_answer()) is not None:
        return earlier
    with resources.database.read() as session:
        now = database_now(session)
    new = read_new(document, _against(resources.settings, now))
    unchecked = _require_sound(checks, new.definition, "The schedule")

    def work(session: Session) -> Answer:
        schedule = commands.create(session, new, now, owner=owner)
        commands.note_unchecked(session, schedule, unchecked)
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
    """Schedules, by name: all of them, or those that match every filter. Definitions are not listed."""
    found = queries.list_schedules(session, prefix=prefix, owner=owner, enabled=enabled)
    return ScheduleList(items=queries.list_view(session, found))


@router.get(
    "/{schedule}", response_model=ScheduleView, responses={200: {"headers": ETAG_HEADER}, **declare(404)}
)
def get_schedule(schedule: ScheduleRef, session: Reading, response: Response) -> ScheduleView:
    """One schedule, by id or name."""
    found = queries.get_schedule(session, schedule)
    response.headers.update(etag(found.revision))
    return queries.show(session, [found])[0]


@router.get("/{schedule}/studies", response_model=SweepPage, responses=declare(404, 422))
def list_sweeps(
    schedule: ScheduleRef,
    session: Reading,
    limit: Annotated[int, Query(ge=1, le=100)] = 20,
    cursor: Cursor | None = None,
) -> SweepPage:
    """The studies that a schedule has made, newest first, also after it was removed.

    By a name: all that were made under it. By an id: those of this one schedule, under whatever name.
    """
    return queries.list_sweeps(session, schedule, limit=limit, cursor=cursor)


@router.get("/{schedule}/firings", response_model=Firings, responses=declare(404, 422))
def list_firings(schedule: ScheduleRef, session: Reading, count: Count = 10) -> Firings:
    """When a schedule fires next, in UTC and by its clocks, and what changes of the clocks make of it.

    Of a disabled schedule: when it would.
    """
    found = queries.get_schedule(session, schedule)
    return queries.next_firings(times_of(found), database_now(session), count, enabled=found.enabled)


@previews.get("", response_model=Firings, responses=declare(422))
def preview(
    session: Reading,
    cron: Annotated[str, Query(max_length=MAX_TEXT, description=CRON_FORM)],
    timezone: Annotated[str, Query(max_length=MAX_TEXT, description="An IANA name")] = "UTC",
    start: Annotated[str | None, Query(max_length=MAX_TEXT, description=BOUND_FORM)] = None,
    end: Annotated[str | None, Query(max_length=MAX_TEXT, description=BOUND_FORM)] = None,
    count: Count = 10,
) -> Firings:
    """When a schedule would fire that nobody has made yet."""
    now = database_now(session)
    times = read_times(cron=cron, timezone=timezone, start=start, end=end, now=now)
    return queries.next_firings(times, now, count)


@router.get("/{schedule}/history", response_model=ScheduleHistory, responses=declare(404, 422))
def list_history(
    schedule: ScheduleRef,
    session: Reading,
    before: Annotated[int | None, Query(ge=1, le=MAX_ID, description="Only events with an id below")] = None,
    limit: Annotated[int, Query(ge=1, le=1000)] = 100,
) -> ScheduleHistory:
    """What was changed in a schedule, by whom, and which firings made no sweep and why; newest first.

    Of a definition whose data and model could not be checked, `unchecked` says why.

    It stays when the schedule is removed.
    """
    return ScheduleHistory(items=queries.list_history(session, schedule, before=before, limit=limit))


@router.post(
    "/{schedule}/run",
    status_code=201,
    response_model=StudyView,
    responses={
        201: {
            "headers": {
                "Location": {"description": "The sweep's address", "schema": {"type": "string"}},
                **ETAG_HEADER,
                **REPLAYED_HEADER,
            }
        },
        **declare(404, 408, 409, 412, 413, 422, 429),
    },
)
def run(
    schedule: ScheduleRef, resources: ServiceResources, owner: Owner, expected: IfMatch, change: ChangeOnce
) -> Response:
    """Start a sweep of a schedule now, whether it is enabled or not. Its next firing still takes place.

    409 while an earlier sweep is queued or running, unless the schedule's `overlap` is `allow`, or
    `cancel_running`, which cancels the earlier one. A sweep that its window's end has paused stays so.
    """
    limits = Limits.of(resources.settings)

    def work(session: Session, files: Files) -> Answer:
        found = _expected(session, schedule, expected)
        study = commands.run_now(session, found, asked_by=owner, limits=limits, files=files)
        session.flush()
        headers = {**etag(study.revision), "Location": f"/v1/studies/{study.id}"}
        shown = studies.show(session, study)
        return Answer(status=201, body=shown, headers=headers)

    return with_files(lambda files: change.answer(partial(work, files=files)), resources.settings.data_roots)


@router.patch(
    "/{schedule}",
    response_model=ScheduleView,
    responses={200: {"headers": ETAG_HEADER}, **declare(400, 404, 408, 409, 412, 413, 415, 422)},
    openapi_extra=request_body(CHANGE_SCHEMA, "What changes, as JSON or YAML"),
)
def change(
    schedule: ScheduleRef,
    document: Document,
    resources: ServiceResources,
    checks: SubmissionChecks,
    owner: Owner,
    expected: IfMatch,
    response: Response,
    changing: Changing,
) -> ScheduleView:
    """Change a schedule. The sweeps that it has made stay as they are; its history says what was changed.

    A definition that every trial of a sweep would fail at is refused, as when a study is submitted.
    """
    with resources.database.read() as session:
        present = _as_expected(queries.get_schedule(session, schedule), expected)
        now = database_now(session)
    # Before the transaction, which must not wait for files.
    wanted = read_change(document, present, _against(resources.settings, now))
    unchecked = None
    if wanted.definition is not None:
        unchecked = _require_sound(checks, wanted.definition, "The change")

    def work(session: Session) -> tuple[ScheduleView, int]:
        found = _expected(session, schedule, expected)
        commands.change(session, found, wanted, database_now(session), asked_by=owner)
        commands.note_unchecked(session, found, unchecked)
        return queries.show(session, [found])[0], found.revision

    view, revision = changing.transact(work)
    response.headers.update(etag(revision))
    return view


@router.delete("/{schedule}", status_code=204, responses=declare(404, 412, 422))
def delete(schedule: ScheduleRef, owner: Owner, expected: IfMatch, changing: Changing) -> None:
    """Remove a schedule. Its studies and its history stay."""

    def work(session: Session) -> None:
        commands.delete(session, _expected(session, schedule, expected), asked_by=owner)

    changing.transact(work)


def _expected(session: Session, ref: str, expected: Precondition) -> Schedule:
    """The schedule, locked for this transaction. Raises `NotFound` and `PreconditionFailed`."""
    return _as_expected(queries.get_schedule(session, ref, lock=True), expected)


def _as_expected(found: Schedule, expected: Precondition) -> Schedule:
    """Raises `PreconditionFailed`."""
    expected.check(f"The schedule {found.name!r}", found.revision)
    return found


def _against(settings: Settings, now: datetime) -> Checks:
    return Checks(data_roots=settings.data_roots, plugins=settings.plugins, now=now)


def _require_sound(checks: SubmissionChecks, definition: Accepted, what: str) -> str | None:
    """As `SubmissionChecks.require_sound`. Of files that are not there yet nothing can be said."""
    if definition.absent:
        return f"{' and '.join(definition.absent)} not there yet; the next firing looks for it"
    return checks.require_sound(definition.next, what=what, below="definition")
