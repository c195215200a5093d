"""Making, changing, repairing and running schedules. Their firings: `service.schedules.sweeps`."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import datetime, timedelta
from types import MappingProxyType
from typing import Any

from cronsim import CronSimError
from sqlalchemy import ColumnElement, and_, or_, select
from sqlalchemy.exc import IntegrityError
from sqlalchemy.orm import Session, load_only

from search_spaces.errors import Fault
from service.db import reigns
from service.db.database import database_now
from service.db.kinds import Overlap, ScheduleEventKind
from service.db.models import NOBODY, Schedule, Study, new_id
from service.db.rows import insert
from service.definitions.stored import read_definition
from service.errors import Invalid, NameTaken, SweepUnderWay
from service.schedules import history, sweeps, templates, windows
from service.schedules.documents import NewSchedule, ScheduleChange
from service.schedules.sweeps import times_of, with_seed
from service.schedules.templates import Files
from service.studies.limits import UNLIMITED, Limits, require_within_limits

_INSTANT = timedelta(milliseconds=1)
_TIMING = ("cron", "timezone", "start", "end", "enabled")
_CHANGED = (
    *("name", *_TIMING, "overlap", "catch_up", "until", "until_action", "sweep_name"),
    *("repeat_configurations", "champion", "definition", "tags", "note"),
)
"""What a person may change."""


def create(session: Session, new: NewSchedule, now: datetime, *, owner: str = NOBODY) -> Schedule:
    """Store a schedule. Raises `NameTaken`."""
    _require_free(session, new.name)
    schedule = Schedule(
        id=new_id(),
        name=new.name,
        cron=new.cron,
        timezone=new.timezone,
        definition=new.definition.document(),
        enabled=new.enabled,
        start=new.start,
        end=new.end,
        overlap=new.overlap,
        catch_up=new.catch_up,
        until=new.until,
        until_action=new.until_action,
        sweep_name=new.sweep_name,
        repeat_configurations=new.repeat_configurations,
        champion=new.champion,
        tags=new.tags,
        note=new.note,
        owner=owner,
    )
    schedule.next_fire_at = times_of(schedule).next(now) if new.enabled else None
    if not insert(session, schedule):
        raise _taken(new.name)
    history.record(session, schedule, ScheduleEventKind.CREATED, "created", asked_by=owner)
    return schedule


def change(
    session: Session, schedule: Schedule, wanted: ScheduleChange, now: datetime, *, asked_by: str = NOBODY
) -> None:
    """Change a schedule, and note in its history what was changed. Its sweeps stay as they are.

    With other times it fires next after `now`: what it missed while disabled is not made up for. A definition
    that warm starts from the schedule itself follows its name.

    Raises:
        NameTaken: there is a schedule of the new name.
    """
    before = {key: getattr(schedule, key) for key in _CHANGED}
    after = {**before, **wanted.values}
    if wanted.definition is not None:
        after["definition"] = wanted.definition.document()
    if wanted.seed is not None:
        after["definition"] = with_seed(after["definition"], wanted.seed)
    if after["name"] != schedule.name:
        _require_free(session, after["name"])
        after["definition"] = _following(after["definition"], schedule.name, after["name"])
    changes = history.differences(before, after)
    try:
        with session.begin_nested():
            for key in changes:
                column = key.partition(".")[0]
                setattr(schedule, column, after[column])
            if changes.keys() & set(_TIMING):
                schedule.next_fire_at = times_of(schedule).next(now) if schedule.enabled else None
            schedule.revision += 1
    except IntegrityError:
        raise _taken(after["name"]) from None
    if changes:
        message = f"changed: {', '.join(changes)}"
        history.record(
            session, schedule, ScheduleEventKind.CHANGED, message, asked_by=asked_by, changes=changes
        )
    if not schedule.enabled:
        sweeps.drop_waiting(session, schedule, "the schedule was disabled")


def delete(session: Session, schedule: Schedule, *, asked_by: str = NOBODY) -> None:
    """Remove a schedule. Its studies and its history stay; a firing that waits makes none, and its champion
    reigns no more."""
    sweeps.drop_waiting(session, schedule, "the schedule was removed")
    reigns.close(session, schedule, f"the schedule was removed by {asked_by!r}")
    history.record(session, schedule, ScheduleEventKind.REMOVED, "removed", asked_by=asked_by)
    session.delete(schedule)


def note_unchecked(session: Session, schedule: Schedule, why: str | None) -> None:
    """Say in the history that a definition was accepted without a check of its data; None: it was checked."""
    if why is not None:
        message = f"its data and its model were not checked when its definition was sent: {why}"
        history.record(session, schedule, ScheduleEventKind.UNCHECKED, message)


def _require_free(session: Session, name: str) -> None:
    if session.scalars(select(Schedule.id).where(Schedule.name == name)).first() is not None:
        raise _taken(name)


def _taken(name: str) -> NameTaken:
    return NameTaken(f"A schedule named {name!r} already exists; choose another name.")


def _following(definition: Mapping[str, Any], name: str, new_name: str) -> dict[str, Any]:
    """A definition whose warm start from a schedule of this name is from the new one."""
    warm = definition.get("warm_start")
    if not isinstance(warm, Mapping) or warm.get("from") != name:
        return dict(definition)
    return {**definition, "warm_start": {**warm, "from": new_name}}


def fires_too_late(session: Session, now: datetime) -> list[str]:
    """Ids of schedules whose next firing is later than the next time of their cron expression.

    A clock that was ahead has computed it; by the right one they would not fire until then, or, if it was
    ahead of their end, never.
    """
    needed = (Schedule.cron, Schedule.timezone, Schedule.start, Schedule.end, Schedule.next_fire_at)
    times = load_only(*needed)  # definitions may be long
    waiting = select(Schedule).options(times).where(Schedule.enabled, _waits(now))
    return [schedule.id for schedule in session.scalars(waiting) if earlier_firing(schedule, now) is not None]


def repair(session: Session, schedule_id: str) -> None:
    """Set the next firing of a schedule right, if it is too late still, and say so in its history."""
    now = database_now(session)
    wanted = select(Schedule).where(Schedule.id == schedule_id, Schedule.enabled, _waits(now))
    schedule = session.scalars(wanted.with_for_update(skip_locked=True)).one_or_none()
    expected = None if schedule is None else earlier_firing(schedule, now)
    if schedule is None or expected is None:
        return
    was = "to be none" if schedule.next_fire_at is None else str(schedule.next_fire_at)
    message = (
        f"its next firing was {was}, later than its cron expression says: a clock was"
        f" wrong; now it is {expected}"
    )
    schedule.next_fire_at = expected
    history.record(session, schedule, ScheduleEventKind.REPAIRED, message)


def _waits(now: datetime) -> ColumnElement[bool]:
    """Whether it fires later, or has ended."""
    ended = and_(Schedule.next_fire_at.is_(None), Schedule.end.is_not(None))
    return or_(Schedule.next_fire_at > now, ended)


def earlier_firing(schedule: Schedule, now: datetime) -> datetime | None:
    """When a schedule should fire next, where that is earlier than it says; None: it is not, or not known."""
    try:
        expected = times_of(schedule).next(now)
    except (CronSimError, ValueError, KeyError, OSError):  # said when it is to be fired
        return None
    present = schedule.next_fire_at
    return expected if expected is not None and (present is None or expected < present) else None


def run_now(
    session: Session,
    schedule: Schedule,
    *,
    asked_by: str = NOBODY,
    limits: Limits = UNLIMITED,
    files: Files = MappingProxyType({}),
) -> Study:
    """Make a sweep of a schedule at once, whether it is enabled or not. Its next firing stays.

    Args:
        session: a writing transaction; the caller commits it.
        schedule: which, locked.
        asked_by: whose request it is. The sweep is the schedule's owner's, as all of them are.
        limits: how much one owner may have.
        files: of the paths that have fields.

    Raises:
        SweepUnderWay: an earlier sweep is queued or running, and none may overlap.
        Invalid: a file of its data is not there.
        LimitReached: the schedule's owner may not have another study.
        NotLookedAt: `files` lacks some.
    """
    firing = database_now(session)
    running = [study for study in sweeps.under_way(session, schedule) if not windows.is_over(study, firing)]
    if running and schedule.overlap in (Overlap.SKIP, Overlap.QUEUE):
        raise SweepUnderWay(
            f"The sweep {running[0].name!r} of the schedule {schedule.name!r} is {running[0].state}, and its "
            f"sweeps may not overlap. Wait for its end, cancel it, or set the schedule's overlap to "
            f"{Overlap.ALLOW} or {Overlap.CANCEL_RUNNING}."
        )
    paths, refusal = templates.data_paths(schedule, firing, files)
    if refusal is not None:
        raise Invalid("The sweep's definition", [each for each in files.values() if isinstance(each, Fault)])
    leaving = running if schedule.overlap == Overlap.CANCEL_RUNNING else []
    if leaving:
        sweeps.cancel(session, schedule, leaving, firing)
    definition = read_definition(schedule)
    if definition is not None:
        ids = [study.id for study in leaving]
        require_within_limits(session, schedule.owner, definition, limits, leaving=ids)
    why = f"run on request of {asked_by!r} by the schedule {schedule.name!r}"
    while (study := sweeps.make_sweep(session, schedule, firing, why, paths)) is None:
        firing += _INSTANT  # two requests within a tick of the clock
    return study
