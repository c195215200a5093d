"""Making, changing and firing schedules."""

from __future__ import annotations

from datetime import datetime
from zoneinfo import ZoneInfo

from cronsim import CronSimError
from pydantic import ValidationError
from sqlalchemy import select
from sqlalchemy.exc import IntegrityError
from sqlalchemy.orm import Session

from search_spaces.definition import StudyDefinition
from service.database import database_now
from service.errors import LimitReached, NameTaken
from service.models import NOBODY, EventRow, Schedule, Study, new_id
from service.owners.limits import UNLIMITED, Limits, require_room
from service.schedules.documents import NewSchedule, ScheduleChange
from service.schedules.firings import latest_firing, next_firing
from service.states import StudyState, advance_study, append_event


def create(session: Session, new: NewSchedule, now: datetime, *, owner: str = NOBODY) -> Schedule:
    """Store a schedule. Raises `NameTaken`."""
    taken = NameTaken(f"There is a schedule {new.name!r} already; choose another name.")
    if session.scalars(select(Schedule.id).where(Schedule.name == new.name)).first() is not None:
        raise taken
    schedule = Schedule(
        id=new_id(),
        name=new.name,
        cron=new.cron,
        timezone=new.timezone,
        definition=new.definition.model_dump(mode="json"),
        enabled=new.enabled,
        owner=owner,
        next_fire_at=next_firing(new.cron, new.timezone, now) if new.enabled else None,
    )
    try:
        with session.begin_nested():
            session.add(schedule)
    except IntegrityError:
        raise taken from None  # by a request that ran beside this one
    return schedule


def change(schedule: Schedule, wanted: ScheduleChange, now: datetime) -> None:
    """Change a schedule. It fires next after `now`: what it missed while disabled is not made up for."""
    if wanted.cron is not None:
        schedule.cron = wanted.cron
    if wanted.timezone is not None:
        schedule.timezone = wanted.timezone
    if wanted.enabled is not None:
        schedule.enabled = wanted.enabled
    schedule.next_fire_at = next_firing(schedule.cron, schedule.timezone, now) if schedule.enabled else None
    schedule.revision += 1


def delete(session: Session, schedule: Schedule) -> None:
    """Remove a schedule. Its studies stay."""
    session.delete(schedule)


def due(session: Session, now: datetime) -> list[str]:
    """Ids of the schedules that are to be fired, the longest due first."""
    found = select(Schedule.id).where(Schedule.enabled, Schedule.next_fire_at <= now)
    return list(session.scalars(found.order_by(Schedule.next_fire_at, Schedule.id)))


def fire(
    session: Session, schedule_id: str, now: datetime | None = None, limits: Limits = UNLIMITED
) -> Study | None:
    """Make the study of a schedule that is due; exactly one per firing, whoever calls, however often.

    When nobody called for a while and several firings were missed, only the latest of them is made: a
    night's sweep that could not run is not run seven times a week later.

    Two coordinators may call at once: on PostgreSQL the other one passes over a schedule that one has
    locked, on SQLite a writing transaction is alone. A unique index on (schedule, firing) stands behind both.

    A sweep over its owner's limits is made as a study that has failed, with the limit as its reason: it is
    listed like any other, nothing of it runs, and a clone of it can be submitted when there is room.

    Args:
        session: a writing transaction; the caller commits it.
        schedule_id: which.
        now: by the database's clock; None: ask it.
        limits: how much one owner may have.

    Returns:
        The new study, or the failed one; None when there is none to be made any more.
    """
    now = now or database_now(session)
    schedule = _lock_due(session, schedule_id, now)
    if schedule is None:
        return None
    assert schedule.next_fire_at is not None
    firing = latest_firing(schedule.cron, schedule.timezone, schedule.next_fire_at, now)
    study = _sweep(session, schedule, firing, limits)
    schedule.last_fired_for = firing
    schedule.next_fire_at = next_firing(schedule.cron, schedule.timezone, now)
    return study


def skip(session: Session, schedule_id: str, reason: str) -> None:
    """Pass over a firing that cannot be made, or it would be tried in every round.

    The schedule fires again at its next time; where that cannot be told either, it is disabled.
    """
    now = database_now(session)
    schedule = _lock_due(session, schedule_id, now)
    if schedule is None:
        return
    what = "this firing was left out"
    try:
        schedule.next_fire_at = next_firing(schedule.cron, schedule.timezone, now)
    except (CronSimError, ValueError, KeyError, OSError) as error:  # its timezone has gone, say
        schedule.enabled = False
        schedule.next_fire_at = None
        what = f"the schedule was disabled ({type(error).__name__}: {error})"
    message = f"the schedule {schedule.name!r} could not be fired: {reason}; {what}"
    session.add(EventRow(kind="schedule_failed", message=message))


def _lock_due(session: Session, schedule_id: str, now: datetime) -> Schedule | None:
    wanted = select(Schedule).where(
        Schedule.id == schedule_id, Schedule.enabled, Schedule.next_fire_at <= now
    )
    return session.scalars(wanted.with_for_update(skip_locked=True)).one_or_none()


def _sweep(session: Session, schedule: Schedule, firing: datetime, limits: Limits) -> Study | None:
    """The study of one firing; None when it has been made already."""
    query = select(Study.id).where(Study.schedule_id == schedule.id, Study.fired_for == firing)
    local = firing.astimezone(ZoneInfo(schedule.timezone))
    stem = f"{schedule.name}-{local:%Y%m%d-%H%M}"
    name, number = stem, 1
    while session.scalars(query).first() is None:
        if session.scalars(select(Study.id).where(Study.name == name)).first() is None:
            study = Study(
                id=new_id(),
                name=name,
                definition={**schedule.definition, "name": name},
                reason="waiting for a coordinator",
                owner=schedule.owner,
                schedule_id=schedule.id,
                fired_for=firing,
            )
            refusal = _refusal(session, schedule, limits)
            try:
                with session.begin_nested():
                    session.add(study)
            except IntegrityError:
                continue  # somebody took the name, or made the firing, a moment ago: look again
            append_event(session, study.id, "study_queued", f"fired by the schedule {schedule.name!r}")
            if refusal is not None:
                advance_study(session, study, StudyState.FAILED, refusal)
            return study
        number += 1
        name = f"{stem}-{number}"
    return None


def _refusal(session: Session, schedule: Schedule, limits: Limits) -> str | None:
    """Why the schedule's owner may not have another study; None: they may."""
    try:
        definition = StudyDefinition.model_validate(schedule.definition)
    except ValidationError:
        return None  # whoever takes the study up says what is wrong with it
    try:
        require_room(session, schedule.owner, definition, limits)
    except LimitReached as error:
        return f"over its owner's limits: {error.detail}"
    return None
