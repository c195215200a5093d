"""Making, changing, firing and running schedules."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import datetime, timedelta
from typing import Any
from zoneinfo import ZoneInfo

from cronsim import CronSimError
from sqlalchemy import select
from sqlalchemy.exc import IntegrityError
from sqlalchemy.orm import Session, load_only

from service.db.database import database_now
from service.db.kinds import Overlap, ScheduleEventKind
from service.db.models import NOBODY, Schedule, Study, new_id
from service.db.rows import insert
from service.db.transitions import advance_study, append_event
from service.definitions.stored import read_definition
from service.errors import LimitReached, NameTaken, SweepUnderWay
from service.schedules import history
from service.schedules.documents import NewSchedule, ScheduleChange
from service.schedules.firings import latest_firing, next_firing, sweep_seed
from service.states import StudyState
from service.studies.limits import UNLIMITED, Limits, require_within_limits

UNDER_WAY = (StudyState.QUEUED, StudyState.RUNNING)
"""States of a sweep that another one would overlap with. One that is paused uses nothing and stays so until a
person resumes it."""
_INSTANT = timedelta(milliseconds=1)
_CHANGED = ("name", "cron", "timezone", "enabled", "overlap", "repeat_configurations", "definition")
"""What a person may change."""


def create(session: Session, new: NewSchedule, now: datetime, *, owner: str = NOBODY) -> Schedule:
    """Store a schedule. Raises `NameTaken`."""
    _require_free(session, new.name)
    schedule = Schedule(
        id=new_id(),
        name=new.name,
        cron=new.cron,
        timezone=new.timezone,
        definition=new.definition.model_dump(mode="json"),
        enabled=new.enabled,
        overlap=new.overlap,
        repeat_configurations=new.repeat_configurations,
        owner=owner,
        next_fire_at=next_firing(new.cron, new.timezone, now) if new.enabled else None,
    )
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
    after = before | {key: value for key in _CHANGED if (value := getattr(wanted, key)) is not None}
    if wanted.definition is not None:
        after["definition"] = wanted.definition.model_dump(mode="json")
    if wanted.seed is not None:
        after["definition"] = _with_seed(after["definition"], wanted.seed)
    if after["name"] != schedule.name:
        _require_free(session, after["name"])
        after["definition"] = _following(after["definition"], schedule.name, after["name"])
    changes = history.differences(before, after)
    try:
        with session.begin_nested():
            for key in changes:
                column = key.partition(".")[0]
                setattr(schedule, column, after[column])
            if {"cron", "timezone", "enabled"} & changes.keys():
                schedule.next_fire_at = (
                    next_firing(schedule.cron, schedule.timezone, now) if schedule.enabled else None
                )
            schedule.revision += 1
    except IntegrityError:
        raise _taken(after["name"]) from None
    if changes:
        message = f"changed: {', '.join(changes)}"
        history.record(
            session, schedule, ScheduleEventKind.CHANGED, message, asked_by=asked_by, changes=changes
        )


def delete(session: Session, schedule: Schedule, *, asked_by: str = NOBODY) -> None:
    """Remove a schedule. Its studies and its history stay."""
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


def _with_seed(definition: Mapping[str, Any], seed: int) -> dict[str, Any]:
    return {**definition, "search": {**definition.get("search", {}), "seed": seed}}


def _following(definition: Mapping[str, Any], name: str, new_name: str) -> dict[str, Any]:
    """A definition whose warm start from a schedule of this name is from the new one."""
    warm = definition.get("warm_start")
    if not isinstance(warm, Mapping) or warm.get("from") != name:
        return dict(definition)
    return {**definition, "warm_start": {**warm, "from": new_name}}


def due(session: Session, now: datetime) -> list[str]:
    """Ids of the schedules that are to be fired, the longest due first."""
    found = select(Schedule.id).where(Schedule.enabled, Schedule.next_fire_at <= now)
    return list(session.scalars(found.order_by(Schedule.next_fire_at, Schedule.id)))


def fires_too_late(session: Session, now: datetime) -> list[str]:
    """Ids of schedules whose next firing is later than the next time of their cron expression.

    A clock that was ahead has computed it; by the right one they would not fire until then.
    """
    times = load_only(Schedule.cron, Schedule.timezone, Schedule.next_fire_at)  # definitions may be long
    waiting = select(Schedule).options(times).where(Schedule.enabled, Schedule.next_fire_at > now)
    return [schedule.id for schedule in session.scalars(waiting) if earlier_firing(schedule, now) is not None]


def repair(session: Session, schedule_id: str) -> None:
    """Set the next firing of a schedule right, if it is too late still, and say so in its history."""
    now = database_now(session)
    wanted = select(Schedule).where(Schedule.id == schedule_id, Schedule.enabled, Schedule.next_fire_at > now)
    schedule = session.scalars(wanted.with_for_update(skip_locked=True)).one_or_none()
    expected = None if schedule is None else earlier_firing(schedule, now)
    if schedule is None or expected is None:
        return
    message = (
        f"its next firing was {schedule.next_fire_at}, later than its cron expression says: a clock was"
        f" wrong; now it is {expected}"
    )
    schedule.next_fire_at = expected
    history.record(session, schedule, ScheduleEventKind.REPAIRED, message)


def earlier_firing(schedule: Schedule, now: datetime) -> datetime | None:
    """When a schedule should fire next, where that is earlier than it says; None: it is not, or not known."""
    try:
        expected = next_firing(schedule.cron, schedule.timezone, now)
    except (CronSimError, ValueError, KeyError, OSError):  # said when it is to be fired
        return None
    assert schedule.next_fire_at is not None
    return expected if expected is not None and expected < schedule.next_fire_at else None


def fire(
    session: Session, schedule_id: str, now: datetime | None = None, limits: Limits = UNLIMITED
) -> Study | None:
    """Make the study of a schedule that is due; exactly one per firing, whoever calls, however often.

    When nobody called for a while and several firings were missed, only the latest of them is made: a
    night's sweep that could not run is not run seven times a week later.

    Two coordinators may call at once: on PostgreSQL the other one passes over a schedule that one has
    locked, on SQLite a writing transaction is alone. A unique index on (schedule, firing) stands behind both.

    Where the schedule lets no sweeps overlap and an earlier one is queued or running, none is made, and the
    schedule's history says so.

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
    schedule.next_fire_at = next_firing(schedule.cron, schedule.timezone, now)
    if _was_made(session, schedule, firing):
        return None
    earlier = _in_the_way(session, schedule)
    if earlier is not None:
        message = (
            f"skipped: its sweep {earlier.name!r} is still {earlier.state} (overlap: {schedule.overlap})"
        )
        history.record(session, schedule, ScheduleEventKind.SKIPPED, message, fired_for=firing)
        return None
    refusal = _refusal(session, schedule, limits)
    study = _sweep(session, schedule, firing, f"fired by the schedule {schedule.name!r}")
    if study is not None and refusal is not None:
        advance_study(session, study, StudyState.FAILED, refusal)
    schedule.last_fired_for = firing
    return study


def run_now(
    session: Session, schedule: Schedule, *, asked_by: str = NOBODY, limits: Limits = UNLIMITED
) -> Study:
    """Make a sweep of a schedule at once, whether it is enabled or not. Its next firing stays.

    Args:
        session: a writing transaction; the caller commits it.
        schedule: which, locked.
        asked_by: whose request it is. The sweep is the schedule's owner's, as all of them are.
        limits: how much one owner may have.

    Raises:
        SweepUnderWay: an earlier sweep is queued or running, and none may overlap.
        LimitReached: the schedule's owner may not have another study.
    """
    earlier = _in_the_way(session, schedule)
    if earlier is not None:
        raise SweepUnderWay(
            f"The sweep {earlier.name!r} of the schedule {schedule.name!r} is {earlier.state}, and its "
            "sweeps may not overlap. Wait for its end, cancel it, or set the schedule's overlap to allow."
        )
    definition = read_definition(schedule)
    if definition is not None:
        require_within_limits(session, schedule.owner, definition, limits)
    firing = database_now(session)
    why = f"run on request of {asked_by!r} by the schedule {schedule.name!r}"
    while (study := _sweep(session, schedule, firing, why)) is None:
        firing += _INSTANT  # two requests within a tick of the clock
    return study


def skip(session: Session, schedule_id: str, reason: str) -> None:
    """Pass over a firing that cannot be made, or it would be tried in every round.

    The schedule fires again at its next time; where that cannot be told either, it is disabled.
    """
    now = database_now(session)
    schedule = _lock_due(session, schedule_id, now)
    if schedule is None:
        return
    due_at = schedule.next_fire_at
    what = "this firing was left out"
    try:
        schedule.next_fire_at = next_firing(schedule.cron, schedule.timezone, now)
    except (CronSimError, ValueError, KeyError, OSError) as error:  # its timezone has gone, say
        schedule.enabled = False
        schedule.next_fire_at = None
        what = f"the schedule was disabled ({type(error).__name__}: {error})"
    message = f"the schedule {schedule.name!r} could not be fired: {reason}; {what}"
    history.record(session, schedule, ScheduleEventKind.FAILED, message, fired_for=due_at)


def _lock_due(session: Session, schedule_id: str, now: datetime) -> Schedule | None:
    wanted = select(Schedule).where(
        Schedule.id == schedule_id, Schedule.enabled, Schedule.next_fire_at <= now
    )
    return session.scalars(wanted.with_for_update(skip_locked=True)).one_or_none()


def _was_made(session: Session, schedule: Schedule, firing: datetime) -> bool:
    query = select(Study.id).where(Study.schedule_id == schedule.id, Study.fired_for == firing)
    return session.scalars(query).first() is not None


def _in_the_way(session: Session, schedule: Schedule) -> Study | None:
    """An earlier sweep that another one would overlap with, where that is not allowed."""
    if schedule.overlap == Overlap.ALLOW:
        return None
    query = select(Study).where(Study.schedule_id == schedule.id, Study.state.in_(UNDER_WAY))
    return session.scalars(query.order_by(Study.created_at.desc(), Study.id)).first()


def _sweep(session: Session, schedule: Schedule, firing: datetime, why: str) -> Study | None:
    """The study of one firing, queued; None when it has been made already."""
    local = firing.astimezone(ZoneInfo(schedule.timezone))
    stem = f"{schedule.name}-{local:%Y%m%d-%H%M}"
    name, number = stem, 1
    definition = schedule.definition
    base_seed = definition.get("search", {}).get("seed", 0)
    seed = sweep_seed(base_seed, firing)
    why += f"; its search.seed {seed} follows from the schedule's {base_seed} and {firing.isoformat()}"
    while not _was_made(session, schedule, firing):
        if session.scalars(select(Study.id).where(Study.name == name)).first() is None:
            study = Study(
                id=new_id(),
                name=name,
                definition=_with_seed({**definition, "name": name}, seed),
                reason="waiting for a coordinator",
                owner=schedule.owner,
                schedule_id=schedule.id,
                schedule_name=schedule.name,
                fired_for=firing,
                base_seed=base_seed,
            )
            if not insert(session, study):
                continue  # another transaction took the name, or made the firing: look again
            append_event(session, study.id, "study_queued", why)
            return study
        number += 1
        name = f"{stem}-{number}"
    return None


def _refusal(session: Session, schedule: Schedule, limits: Limits) -> str | None:
    """Why the schedule's owner may not have another study; None: they may."""
    definition = read_definition(schedule)
    if definition is None:
        return None  # the coordinator that takes the study says what is wrong with it
    try:
        require_within_limits(session, schedule.owner, definition, limits)
    except LimitReached as error:
        return f"over its owner's limits: {error.detail}"
    return None
