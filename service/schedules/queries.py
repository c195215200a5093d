"""Reading schedules."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from datetime import datetime
from typing import Any

from sqlalchemy import ColumnElement, func, or_, select, tuple_
from sqlalchemy.orm import Session, defer

from service.analysis.gpu_hours import gpu_hours
from service.db.database import database_now
from service.db.kinds import CatchUp, Overlap, ScheduleEventKind, UntilAction
from service.db.models import Attempt, Schedule, ScheduleEvent, Study
from service.db.rows import NAME, find
from service.errors import NotFound
from service.schedules import history
from service.schedules.firings import Times, preview
from service.schedules.schemas import (
    Firings,
    FiringView,
    ListedSchedule,
    Missed,
    ScheduleEventView,
    ScheduleView,
    SkipView,
    SweepPage,
    SweepRun,
    SweepView,
)
from service.states import StudyState
from service.studies import queries as studies
from service.studies.queries import begins_with, page_of


def get_schedule(session: Session, ref: str, *, lock: bool = False) -> Schedule:
    """The schedule of this name or id. Raises `NotFound`."""
    found = find(session, Schedule, ref, lock=lock)
    if found is None:
        raise NotFound(f"There is no schedule {ref[:200]!r}.")
    return found


def list_schedules(
    session: Session, *, prefix: str | None = None, owner: str | None = None, enabled: bool | None = None
) -> Sequence[Schedule]:
    """The schedules that match everything that is given, by name, for `list_view`."""
    query = select(Schedule).options(defer(Schedule.definition, raiseload=True)).order_by(Schedule.name)
    if prefix is not None:
        query = query.where(begins_with(Schedule.name, prefix))
    if owner is not None:
        query = query.where(Schedule.owner == owner)
    if enabled is not None:
        query = query.where(Schedule.enabled.is_(enabled))
    return session.scalars(query).all()


def list_sweeps(session: Session, ref: str, *, limit: int, cursor: str | None) -> SweepPage:
    """One page of the studies that a schedule has made, newest first, also after it was removed.

    By a name: all that were made under it, by whatever schedules had it, and all of the schedule that has it.
    By an id: those of this schedule. Raises `NotFound`.
    """
    page = page_of(session, select(Study).where(_known(session, ref, Study)), limit=limit, cursor=cursor)
    hours = _gpu_hours(session, [study.id for study in page.studies])
    items = [
        SweepRun(**dict(listed), gpu_hours=hours.get(listed.id, 0.0))
        for listed in studies.list_view(session, page.studies)
    ]
    return SweepPage(items=items, next_cursor=page.next_cursor)


def _gpu_hours(session: Session, study_ids: Sequence[str]) -> dict[str, float]:
    """Study id -> GPU-hours, of those that have attempts."""
    columns = (Attempt.study_id, Attempt.worker_id, Attempt.gpus, Attempt.started_at, Attempt.ended_at)
    attempts: dict[str, list[Any]] = {}
    # Rows, not objects: a page of large studies has many.
    for row in session.execute(select(*columns).where(Attempt.study_id.in_(study_ids))):
        attempts.setdefault(row.study_id, []).append(row)
    now = database_now(session)
    return {study_id: gpu_hours(found, now) for study_id, found in attempts.items()}


def next_firings(times: Times, now: datetime, count: int, *, enabled: bool = True) -> Firings:
    """The next `count` firings after `now`, as the API shows them."""
    items = [
        FiringView(
            at=firing.at,
            local=f"{firing.local:%Y-%m-%dT%H:%M}",
            offset=firing.local.isoformat()[-6:],
            note=firing.note,
        )
        for firing in preview(times, now, count)
    ]
    return Firings(timezone=times.timezone, enabled=enabled, items=items)


def fingerprints_of(session: Session, study_ids: Sequence[str]) -> dict[str, Mapping[str, str]]:
    """Study id -> what identified the content of its data and model; nothing of a study that has none."""
    column = Study.preparation["fingerprints"]
    found = session.execute(select(Study.id, column).where(Study.id.in_(study_ids)))
    return {study_id: prints for study_id, prints in found if isinstance(prints, dict)}


def list_history(session: Session, ref: str, *, before: int | None, limit: int) -> list[ScheduleEventView]:
    """What happened to a schedule, newest first, also after it was removed. Raises `NotFound`.

    Args:
        session: reads.
        ref: a name or an id, as for `list_sweeps`.
        before: only events with an id below.
        limit: how many at most.
    """
    query = select(ScheduleEvent).where(_known(session, ref, ScheduleEvent))
    if before is not None:
        query = query.where(ScheduleEvent.id < before)
    return [
        ScheduleEventView(
            id=event.id,
            at=event.at,
            schedule=event.schedule_name,
            schedule_id=event.schedule_id,
            kind=ScheduleEventKind(event.kind),
            asked_by=event.asked_by,
            message=event.message,
            changes=history.shortened_changes(event.changes),
            fired_for=event.fired_for,
            missed=None if event.missed is None else Missed(**event.missed),
        )
        for event in session.scalars(query.order_by(ScheduleEvent.id.desc()).limit(limit))
    ]


def _known(session: Session, ref: str, kind: type[Study] | type[ScheduleEvent]) -> ColumnElement[bool]:
    """Rows of a schedule that is or was there. Raises `NotFound`."""
    if NAME.fullmatch(ref):
        present = select(Schedule.id).where(or_(Schedule.id == ref, Schedule.name == ref))
        removed = select(ScheduleEvent.schedule_id).where(
            ScheduleEvent.kind == ScheduleEventKind.REMOVED, ScheduleEvent.schedule_name == ref
        )
        ids = {ref, *session.scalars(present), *session.scalars(removed)}

        def belongs(table: type[Study] | type[ScheduleEvent]) -> ColumnElement[bool]:
            return or_(table.schedule_id.in_(ids), table.schedule_name == ref)

        if len(ids) > 1 or any(
            session.scalars(select(table.id).where(belongs(table)).limit(1)).first() is not None
            for table in (ScheduleEvent, Study)
        ):
            return belongs(kind)
    raise NotFound(f"There is no schedule {ref[:200]!r}, and none of that name or id was ever made.")


def list_view(session: Session, schedules: Sequence[Schedule]) -> list[ListedSchedule]:
    """Schedules as lists show them, without their definitions."""
    return [ListedSchedule(**fields) for fields in _read_all(session, schedules)]


def show(session: Session, schedules: Sequence[Schedule]) -> list[ScheduleView]:
    """Schedules as the API shows each at its own address."""
    return [
        ScheduleView(**fields, definition=schedule.definition)
        for schedule, fields in zip(schedules, _read_all(session, schedules), strict=True)
    ]


def _read_all(session: Session, schedules: Sequence[Schedule]) -> list[dict[str, Any]]:
    """What lists and a schedule's own address both show."""
    ids = [schedule.id for schedule in schedules]
    rows = session.execute(
        select(Study.schedule_id, func.count().label("studies"), func.max(Study.fired_for).label("latest"))
        .where(Study.schedule_id.in_(ids))
        .group_by(Study.schedule_id)
    ).all()
    made = {row.schedule_id: row.studies for row in rows}
    found = select(Study.schedule_id, Study.name, Study.state, Study.reason).where(
        tuple_(Study.schedule_id, Study.fired_for).in_([(row.schedule_id, row.latest) for row in rows])
    )
    latest = {
        row.schedule_id: SweepView(name=row.name, state=StudyState(row.state), reason=row.reason)
        for row in session.execute(found)
    }
    skips = (
        select(func.max(ScheduleEvent.id))
        .where(ScheduleEvent.schedule_id.in_(ids), ScheduleEvent.kind == ScheduleEventKind.SKIPPED)
        .group_by(ScheduleEvent.schedule_id)
    )
    skipped = {
        event.schedule_id: SkipView(fired_for=event.fired_for, reason=event.message)
        for event in session.scalars(select(ScheduleEvent).where(ScheduleEvent.id.in_(skips)))
    }
    return [
        {
            "id": s.id,
            "name": s.name,
            "cron": s.cron,
            "timezone": s.timezone,
            "enabled": s.enabled,
            "owner": s.owner,
            "tags": s.tags or [],
            "note": s.note,
            "overlap": Overlap(s.overlap),
            "catch_up": CatchUp(s.catch_up),
            "start": s.start,
            "end": s.end,
            "until": s.until,
            "until_action": None if s.until is None else UntilAction(s.until_action),
            "sweep_name": s.sweep_name,
            "repeat_configurations": s.repeat_configurations,
            "champion": s.champion,
            "created_at": s.created_at,
            "next_fire_at": s.next_fire_at,
            "last_fired_for": s.last_fired_for,
            "queued_for": s.queued_for,
            "studies": made.get(s.id, 0),
            "last_sweep": latest.get(s.id),
            "last_skipped": skipped.get(s.id),
        }
        for s in schedules
    ]
