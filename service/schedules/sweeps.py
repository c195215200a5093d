"""Making sweeps: what becomes of each firing, exactly once, whoever comes to it.

    due ── missed ── skipped ── queued ── continues a paused sweep ── makes a sweep

Each step is one transaction that locks the schedule. Two coordinators may call at once: on PostgreSQL the
other one passes over a schedule that one has locked, on SQLite a writing transaction is alone. A unique index
on (schedule, firing) stands behind both.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from datetime import datetime, timedelta
from itertools import islice
from typing import Any
from zoneinfo import ZoneInfo

from cronsim import CronSimError
from sqlalchemy import ColumnElement, and_, or_, select
from sqlalchemy.orm import Session

from search_spaces.wording import counted
from service.db.database import database_now
from service.db.kinds import CatchUp, Overlap, ScheduleEventKind, UntilAction
from service.db.models import Schedule, Study, StudyTag, new_id
from service.db.rows import insert
from service.db.transitions import advance_study, append_event
from service.definitions.stored import read_definition
from service.errors import LimitReached
from service.schedules import history, templates, windows
from service.schedules.firings import GRACE, MOST_COUNTED, Times, sweep_seed
from service.schedules.templates import Files, Values
from service.states import StudyState
from service.studies import pauses
from service.studies.limits import UNLIMITED, Limits, require_within_limits

UNDER_WAY = (StudyState.QUEUED, StudyState.RUNNING)
"""States of a sweep that another one would overlap with. One that is paused uses nothing and stays so until a
person or a firing resumes it."""
_INSTANT = timedelta(milliseconds=1)


def times_of(schedule: Schedule) -> Times:
    return Times(cron=schedule.cron, timezone=schedule.timezone, start=schedule.start, end=schedule.end)


# -- what there is to do -----------------------------------------------------------------------------


def due(session: Session, now: datetime) -> list[str]:
    """Ids of the schedules that have something to make, the longest due first."""
    found = select(Schedule.id).where(Schedule.enabled, or_(Schedule.next_fire_at <= now, _can_be_made()))
    return list(session.scalars(found.order_by(Schedule.next_fire_at, Schedule.id)))


def _can_be_made() -> ColumnElement[bool]:
    """Whether a firing waits, and no longer needs to."""
    under_way = select(Study.id).where(Study.schedule_id == Schedule.id, Study.state.in_(UNDER_WAY)).exists()
    beside = and_(Schedule.overlap == Overlap.ALLOW, Schedule.until_action != UntilAction.CONTINUE)
    return and_(Schedule.queued_for.is_not(None), or_(~under_way, beside))


def _lock_due(session: Session, schedule_id: str, now: datetime) -> tuple[Schedule, bool] | None:
    """The schedule, locked, and whether its waiting firing is to be made first; None: nothing is to be."""
    ready = _can_be_made()
    wanted = select(Schedule, ready.label("ready")).where(
        Schedule.id == schedule_id, Schedule.enabled, or_(Schedule.next_fire_at <= now, ready)
    )
    row = session.execute(wanted.with_for_update(skip_locked=True, of=Schedule)).one_or_none()
    return None if row is None else (row[0], bool(row.ready))


# -- firings -----------------------------------------------------------------------------------------


def fire(
    session: Session,
    schedule_id: str,
    now: datetime | None = None,
    limits: Limits = UNLIMITED,
    files: Files | None = None,
) -> Study | None:
    """Make the sweep of a schedule that is due: of the firing that waits, if it need not any longer, else of
    the latest firing that is due. Exactly one comes of a firing, whoever calls, however often.

    Each firing that makes none is said in the schedule's history, with the reason: it was missed, an earlier
    sweep was under way, or it continued a paused sweep.

    A sweep over its owner's limits, or whose files are not there, is made as a study that has failed, with
    the reason: it is listed like any other, and nothing of it runs.

    Args:
        session: a writing transaction; the caller commits it.
        schedule_id: which.
        now: by the database's clock; None: ask it.
        limits: how much one owner may have.
        files: of the paths that have fields.

    Returns:
        The new study, or the failed one; None when none was made.

    Raises:
        FilesUnknown: `files` lacks some.
    """
    now = now or database_now(session)
    found = _lock_due(session, schedule_id, now)
    if found is None:
        return None
    schedule, waits = found
    if waits:
        return _make_waiting(session, schedule, now, limits, files or {})
    firing = _pass_over_missed(session, schedule, now)
    if firing is None:
        return None
    running = under_way(session, schedule)
    if running and all(windows.is_over(study, now) for study in running):
        # They are being put down or ended: in the way of nothing but of what continues them.
        if schedule.until_action == UntilAction.CONTINUE:
            why = "its window has ended, and it is being paused"
            _wait(session, schedule, firing, running[0], why)
            return None
        running = ()
    if running and schedule.overlap == Overlap.SKIP:
        _skipped(session, schedule, firing, f"its sweep {running[0].name!r} is still {running[0].state}")
        return None
    if running and schedule.overlap == Overlap.QUEUE:
        _wait(session, schedule, firing, running[0], f"it is still {running[0].state}")
        return None
    leaving = running if schedule.overlap == Overlap.CANCEL_RUNNING else ()
    return _open(session, schedule, firing, now, limits, files or {}, leaving=leaving)


def _pass_over_missed(session: Session, schedule: Schedule, now: datetime) -> datetime | None:
    """The firing that is to be made now; None: none is. What was missed is said, and the next one is set."""
    times, first = times_of(schedule), schedule.next_fire_at
    assert first is not None
    latest = times.latest(first, now)
    schedule.next_fire_at = times.next(now)
    if schedule.next_fire_at is None and schedule.end is not None:
        message = f"ended: nothing fires after {schedule.end} ({schedule.timezone})"
        history.record(session, schedule, ScheduleEventKind.ENDED, message)
    if _was_made(session, schedule, latest):
        return None
    too_late = now - latest > GRACE and schedule.catch_up == CatchUp.NONE
    closed = _is_closed(schedule, latest, now)
    makes_latest = not (too_late or closed)
    if makes_latest and latest == first:
        return latest
    missed = list(islice(times.between(first, latest), MOST_COUNTED + 1))
    count = len(missed) - 1 if makes_latest else len(missed)
    last = times.latest(first, latest - _INSTANT) if makes_latest else latest
    what = counted(count, "firing") if len(missed) <= MOST_COUNTED else f"at least {MOST_COUNTED:,} firings"
    span = f"of {_clock(schedule, first)}"
    if count > 1:
        span = f"from {_clock(schedule, first)} to {_clock(schedule, last)}"
    if makes_latest:
        then = f"the latest, of {_clock(schedule, latest)}, is made now"
    elif closed:
        then = f"no sweep is made, since the window until {schedule.until} is over"
    else:
        then = f"no sweep is made (catch_up: {schedule.catch_up})"
    message = f"missed {what} {span}: no coordinator was there; {then}"
    data = {"count": min(count, MOST_COUNTED), "first": first.isoformat(), "last": last.isoformat()}
    history.record(session, schedule, ScheduleEventKind.MISSED, message, fired_for=last, missed=data)
    return latest if makes_latest else None


def _make_waiting(
    session: Session, schedule: Schedule, now: datetime, limits: Limits, files: Files
) -> Study | None:
    firing, schedule.queued_for = schedule.queued_for, None
    assert firing is not None
    if _was_made(session, schedule, firing):
        return None
    if _is_closed(schedule, firing, now):
        message = (
            f"missed the firing of {_clock(schedule, firing)}: the sweep that it waited for ended after its "
            f"window, until {schedule.until}"
        )
        data = {"count": 1, "first": firing.isoformat(), "last": firing.isoformat()}
        history.record(session, schedule, ScheduleEventKind.MISSED, message, fired_for=firing, missed=data)
        return None
    return _open(session, schedule, firing, now, limits, files, waited=True)


def _open(
    session: Session,
    schedule: Schedule,
    firing: datetime,
    now: datetime,
    limits: Limits,
    files: Files,
    *,
    waited: bool = False,
    leaving: Sequence[Study] = (),
) -> Study | None:
    """Continue the sweep that the last window's end has paused, or make one. If it can run, `leaving` go."""
    schedule.last_fired_for = firing
    paused = None
    if schedule.until is not None and schedule.until_action == UntilAction.CONTINUE:
        paused = windows.paused_at_its_end(session, schedule)
    if paused is not None:
        cancel(session, schedule, leaving, firing)
        pauses.resume(session, paused, f"continued by the schedule {schedule.name!r}")
        message = f"continued its sweep {paused.name!r}, which its window's end had paused; no other is made"
        history.record(session, schedule, ScheduleEventKind.CONTINUED, message, fired_for=firing)
        return None
    why = f"fired by the schedule {schedule.name!r}"
    if waited:
        why += ", after an earlier sweep had ended"
    elif now - firing > GRACE:
        why += f", {_late(now - firing)} late"
    paths, refusal = templates.data_paths(schedule, firing, files)
    if refusal is None:
        refusal = _refusal(session, schedule, limits, leaving)
    study = make_sweep(session, schedule, firing, why, paths)
    if study is not None and refusal is not None:
        advance_study(session, study, StudyState.FAILED, refusal)
    elif study is not None:
        cancel(session, schedule, leaving, firing)
    return study


def _wait(session: Session, schedule: Schedule, firing: datetime, earlier: Study, why: str) -> None:
    """Remember a firing until no sweep is under way. The one that waited already gives way to it."""
    if schedule.queued_for is not None:
        instead = f"the firing of {_clock(schedule, firing)} waits in its place"
        _skipped(session, schedule, schedule.queued_for, instead)
    schedule.queued_for = firing
    message = f"waits for its sweep {earlier.name!r}: {why} (overlap: {schedule.overlap})"
    history.record(session, schedule, ScheduleEventKind.QUEUED, message, fired_for=firing)


def _skipped(session: Session, schedule: Schedule, firing: datetime, why: str) -> None:
    message = f"skipped: {why} (overlap: {schedule.overlap})"
    history.record(session, schedule, ScheduleEventKind.SKIPPED, message, fired_for=firing)


def drop_waiting(session: Session, schedule: Schedule, why: str) -> None:
    """Have no sweep made of the firing that waits, if there is one, and say so."""
    if schedule.queued_for is not None:
        message = f"skipped: {why} while it waited"
        history.record(session, schedule, ScheduleEventKind.SKIPPED, message, fired_for=schedule.queued_for)
        schedule.queued_for = None


def cancel(session: Session, schedule: Schedule, running: Sequence[Study], firing: datetime) -> None:
    """Ask for the end of sweeps under way, if there are any."""
    if not running:
        return
    for study in running:
        if not study.cancel_requested:
            study.cancel_requested = True
            study.revision += 1
            why = f"the schedule {schedule.name!r} makes its next sweep (overlap: {schedule.overlap})"
            append_event(session, study.id, "cancel_requested", why)
    names = ", ".join(repr(study.name) for study in running)
    message = f"cancelled {names}, still under way, and made the next sweep at once"
    history.record(session, schedule, ScheduleEventKind.CANCELLED_EARLIER, message, fired_for=firing)


def skip(session: Session, schedule_id: str, reason: str) -> None:
    """Pass over a firing that cannot be made, or it would be tried in every round.

    The schedule fires again at its next time; where that cannot be told either, it is disabled.
    """
    now = database_now(session)
    found = _lock_due(session, schedule_id, now)
    if found is None:
        return
    schedule, waits = found
    what = "this firing was left out"
    if waits:
        due_at, schedule.queued_for = schedule.queued_for, None
    else:
        due_at = schedule.next_fire_at
        try:
            schedule.next_fire_at = times_of(schedule).next(now)
        except (CronSimError, ValueError, KeyError, OSError) as error:  # its timezone has gone, say
            drop_waiting(session, schedule, "the schedule was disabled")
            schedule.enabled = False
            schedule.next_fire_at = None
            what = f"the schedule was disabled ({type(error).__name__}: {error})"
    message = f"the schedule {schedule.name!r} could not be fired: {reason}; {what}"
    history.record(session, schedule, ScheduleEventKind.FAILED, message, fired_for=due_at)


# -- sweeps under way, paused and new ----------------------------------------------------------------


def under_way(session: Session, schedule: Schedule) -> Sequence[Study]:
    """The sweeps that another one would overlap with, locked, the newest first."""
    query = select(Study).where(Study.schedule_id == schedule.id, Study.state.in_(UNDER_WAY))
    query = query.order_by(Study.created_at.desc(), Study.id).with_for_update()
    return session.scalars(query.execution_options(populate_existing=True)).all()


def _is_closed(schedule: Schedule, firing: datetime, now: datetime) -> bool:
    """Whether the window of a firing is over."""
    return schedule.until is not None and times_of(schedule).window_end(firing, schedule.until) <= now


def _was_made(session: Session, schedule: Schedule, firing: datetime) -> bool:
    query = select(Study.id).where(Study.schedule_id == schedule.id, Study.fired_for == firing)
    return session.scalars(query).first() is not None


def make_sweep(
    session: Session, schedule: Schedule, firing: datetime, why: str, paths: Mapping[str, str]
) -> Study | None:
    """The study of one firing, queued; None when it has been made already."""
    values = Values.of(firing, schedule.timezone, schedule.sweeps_made + 1)
    stem = f"{schedule.name}-{values.local:%Y%m%d-%H%M}"
    if schedule.sweep_name is not None:
        stem = values.fill(schedule.sweep_name)
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
                definition=with_seed(_its_own(schedule, name, paths), seed),
                reason="waiting for a coordinator",
                owner=schedule.owner,
                schedule_id=schedule.id,
                shared=schedule.shared,
                schedule_name=schedule.name,
                fired_for=firing,
                base_seed=base_seed,
                window_from=None if schedule.until is None else firing,
            )
            if not insert(session, study):
                continue  # another transaction took the name, or made the firing: look again
            schedule.sweeps_made += 1
            session.add_all(StudyTag(study_id=study.id, tag=tag) for tag in schedule.tags or ())
            append_event(session, study.id, "study_queued", why)
            return study
        number += 1
        name = f"{stem}-{number}"
    return None


def with_seed(definition: Mapping[str, Any], seed: int) -> dict[str, Any]:
    return {**definition, "search": {**definition.get("search", {}), "seed": seed}}


def _its_own(schedule: Schedule, name: str, paths: Mapping[str, str]) -> dict[str, Any]:
    """The schedule's definition with a sweep's name, paths of data and window."""
    definition = {**schedule.definition, "name": name}
    if paths:
        definition["data"] = {**definition["data"], **paths}
    if schedule.until is not None:
        action = "end" if schedule.until_action == UntilAction.END else "pause"
        window = {"until": schedule.until, "until_timezone": schedule.timezone, "until_action": action}
        definition["budget"] = {**definition.get("budget", {}), **window}
    return definition


def _refusal(session: Session, schedule: Schedule, limits: Limits, leaving: Sequence[Study]) -> str | None:
    """Why the schedule's owner may not have another study; None: they may."""
    definition = read_definition(schedule)
    if definition is None:
        return None  # the coordinator that takes the study says what is wrong with it
    ids: Collection[str] = [study.id for study in leaving]
    try:
        require_within_limits(session, schedule.owner, definition, limits, leaving=ids)
    except LimitReached as error:
        return f"over its owner's limits: {error.detail}"
    return None


def _clock(schedule: Schedule, at: datetime) -> str:
    """An instant by the clocks of the schedule's timezone."""
    return f"{at.astimezone(ZoneInfo(schedule.timezone)):%Y-%m-%d %H:%M %Z}"


def _late(by: timedelta) -> str:
    minutes = int(by.total_seconds() // 60)
    return counted(minutes, "minute") if minutes < 120 else counted(minutes // 60, "hour")
