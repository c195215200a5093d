"""Making, changing and firing schedules."""

from __future__ import annotations

from datetime import datetime
from zoneinfo import ZoneInfo

from sqlalchemy import select
from sqlalchemy.exc import IntegrityError
from sqlalchemy.orm import Session

from service.errors import NameTaken
from service.models import Schedule, Study, new_id
from service.schedules.documents import NewSchedule, ScheduleChange
from service.schedules.firings import latest_firing, next_firing
from service.states import append_event


def create(session: Session, new: NewSchedule, now: datetime) -> Schedule:
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


def delete(session: Session, schedule: Schedule) -> None:
    """Remove a schedule. Its studies stay."""
    session.delete(schedule)


def fire_due(session: Session, now: datetime) -> list[Study]:
    """Make the study of every schedule that is due; exactly one per firing, whoever calls, however often.

    When nobody called for a while and several firings of a schedule were missed, only the latest of
    them is made: a night's sweep that could not run is not run seven times a week later.

    Two coordinators may call at once: on PostgreSQL each takes schedules that the other has not locked,
    on SQLite a writing transaction is alone. A unique index on (schedule, firing) stands behind both.

    Args:
        session: a writing transaction; the caller commits it.
        now: by the database's clock.

    Returns:
        The new studies.
    """
    due = session.scalars(
        select(Schedule)
        .where(Schedule.enabled, Schedule.next_fire_at <= now)
        .order_by(Schedule.next_fire_at, Schedule.id)
        .with_for_update(skip_locked=True)
    ).all()
    fired = []
    for schedule in due:
        assert schedule.next_fire_at is not None
        firing = latest_firing(schedule.cron, schedule.timezone, schedule.next_fire_at, now)
        study = _sweep(session, schedule, firing)
        if study is not None:
            fired.append(study)
        schedule.last_fired_for = firing
        schedule.next_fire_at = next_firing(schedule.cron, schedule.timezone, now)
    return fired


def _sweep(session: Session, schedule: Schedule, firing: datetime) -> Study | None:
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
                schedule_id=schedule.id,
                fired_for=firing,
            )
            try:
                with session.begin_nested():
                    session.add(study)
            except IntegrityError:
                continue  # somebody took the name, or made the firing, a moment ago: look again
            append_event(session, study.id, "study_queued", f"fired by the schedule {schedule.name!r}")
            return study
        number += 1
        name = f"{stem}-{number}"
    return None
