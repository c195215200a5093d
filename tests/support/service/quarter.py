"""A quarter of a year of schedules, minute by minute, by a clock that the test sets.

Two coordinators come to the firings in every order: one alone, both after one another with what they found
due before, or both at once in threads. They die in mid firing and are away for hours or days; sweeps last
from minutes to days. What should have fired is known from `fired_by_the_clock`, which knows no cron library.
"""

from __future__ import annotations

import random
import threading
from bisect import bisect_left, bisect_right
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from typing import Any
from zoneinfo import ZoneInfo

import pytest
from sqlalchemy import event, literal, or_, select
from sqlalchemy.orm import Session

from service.coordinator.chores.schedules import close_windows, fire_schedules
from service.db import database as db
from service.db.column_types import UtcDateTime
from service.db.database import Database
from service.db.models import Schedule, ScheduleEvent, Study
from service.db.transitions import advance_study, put_down, start
from service.definitions.stored import read_definition
from service.schedules import sweeps, windows
from service.schedules.firings import GRACE
from service.states import TERMINAL_STUDY_STATES, StudyState
from service.studies.deadlines import deadline_reached

MINUTE = timedelta(minutes=1)
NO_SWEEP = ("skipped", "continued", "failed")


class Killed(BaseException):
    """A coordinator's process ends here. Nothing of the product's catches it."""


def fired_by_the_clock(cron: str, timezone: str, begin: datetime, end: datetime) -> list[datetime]:
    """When a cron expression fires from one instant to another, by a walk over every minute in between.

    A job at fixed hours and minutes fires when the clocks show its time for the first time, or have passed it
    without showing it. A job with a star in either field fires whenever they show it.
    """
    minutes, hours, _, _, weekdays = (_numbers(part) for part in cron.split())
    real_time = cron.startswith("*") or cron.split()[1].startswith("*")
    zone, at, found = ZoneInfo(timezone), begin, []
    shown = (begin - MINUTE).astimezone(zone).replace(tzinfo=None)  # the latest time that the clocks showed
    while at <= end:
        clock = at.astimezone(zone).replace(tzinfo=None)
        passed = [clock] if real_time else _after(shown, clock)
        if any(t.minute in minutes and t.hour in hours and (t.weekday() + 1) % 7 in weekdays for t in passed):
            found.append(at)
        shown, at = max(shown, clock), at + MINUTE
    return found


def _after(shown: datetime, clock: datetime) -> Iterator[datetime]:
    while shown < clock:
        shown += MINUTE
        yield shown


def _numbers(part: str) -> set[int]:
    found: set[int] = set()
    for term in part.split(","):
        span, _, step = term.partition("/")
        low, _, high = ("0-59" if span == "*" else span).partition("-")
        found.update(range(int(low), int(high or low) + 1, int(step or 1)))
    return found


@dataclass
class Quarter:
    """Schedules that are there already, and what becomes of them.

    Args:
        database: the service's.
        begin: when the schedules were made.
        days: how long it lasts.
        seed: of everything that is random.
    """

    database: Database
    begin: datetime
    days: int
    seed: int
    patch: pytest.MonkeyPatch
    made_at: dict[str, datetime] = field(default_factory=dict)
    """Sweep's id -> when it was there."""
    lasts: dict[str, timedelta] = field(default_factory=dict)
    """Sweep's id -> how long it runs still."""
    running_since: dict[str, datetime] = field(default_factory=dict)
    happened: Counter[str] = field(default_factory=Counter)

    def __post_init__(self) -> None:
        self.dice = random.Random(self.seed)
        self.end = self.begin + timedelta(days=self.days)
        self.due: dict[str, list[datetime]] = {}
        self._looked_at = datetime(2000, 1, 1, tzinfo=UTC)
        if self.database.writing.dialect.name == "sqlite":
            event.listen(self.database.writing, "connect", _without_waiting_for_the_disk)
        self.set_clock(self.begin)

    def set_clock(self, at: datetime) -> None:
        """The clock of the database, for every transaction from now on."""
        self.now = at
        self.patch.setattr(db, "_NOW", select(literal(at, UtcDateTime())))

    def run(self) -> None:
        """All of it, up to a moment when everything that is due has been looked at."""
        known: dict[tuple[str, str], list[datetime]] = {}
        for schedule in self._schedules():
            key = (schedule.cron, schedule.timezone)
            if key not in known:
                known[key] = fired_by_the_clock(*key, self.begin + MINUTE, self.end)
            times = sweeps.times_of(schedule)
            first, last = times.first or self.begin, times.last or self.end
            self.due[schedule.id] = [at for at in known[key] if first <= at <= last]
        self._make_mortal()
        for at in self._rounds():
            self.set_clock(at)
            self._round()
            self._look()
        for _ in range(3):  # nobody dies any more; what a death has put off is done
            fire_schedules(self.database)
            self._look()

    def _schedules(self) -> list[Schedule]:
        with self.database.read() as session:
            return list(session.scalars(select(Schedule).order_by(Schedule.name)))

    def _rounds(self) -> Iterator[datetime]:
        """When somebody looks: minutes after each firing, at random, and not while all are away."""
        instants = {at for due in self.due.values() for at in due}
        looks = {at + timedelta(seconds=self.dice.uniform(0, 480)) for at in instants}
        looks |= {
            self.begin + timedelta(hours=self.dice.uniform(0, 24 * self.days)) for _ in range(2 * self.days)
        }
        away: list[tuple[datetime, datetime]] = []
        for hours in (0.3, 2, 5, 9, 20, 30, 50, 80, 220):
            gone = self.begin + timedelta(hours=self.dice.uniform(0, 24 * self.days - hours))
            away.append((gone, gone + timedelta(hours=hours)))
        for look in sorted(looks):
            if not any(gone <= look < back for gone, back in away):
                yield look
        yield self.end + MINUTE

    def _make_mortal(self) -> None:
        for module, name in ((sweeps, "make_sweep"), (sweeps.history, "record")):
            self.patch.setattr(module, name, self._mortal(getattr(module, name)))

    def _mortal(self, function: Callable[..., object]) -> Callable[..., object]:
        def call(*args: object, **kwargs: object) -> object:
            result = function(*args, **kwargs)
            if self.now < self.end and self.dice.random() < 0.02:
                self.happened["deaths in mid firing"] += 1
                raise Killed
            return result

        return call

    def _round(self) -> None:
        self.happened["rounds"] += 1
        self._train()
        kind = self.dice.choice(("one", "one", "both", "threads"))
        if kind == "one":
            self._coordinator()
        elif kind == "both":
            # Both have seen the same firings before either makes one.
            with self.database.read() as session:
                seen = sweeps.due(session, self.now)
            for schedule_id in [each for each in seen for _ in range(2)]:
                self._alive(lambda due=schedule_id: self.database.transact(lambda s: sweeps.fire(s, due)))
            self._coordinator()
        else:
            threads = [threading.Thread(target=self._coordinator) for _ in range(2)]
            for thread in threads:
                thread.start()
            for thread in threads:
                thread.join(timeout=120)

    def _coordinator(self) -> None:
        self._alive(lambda: (close_windows(self.database), fire_schedules(self.database)))

    def _alive(self, work: Callable[[], object]) -> None:
        try:
            work()
        except Killed:
            return

    # -- studies ------------------------------------------------------------------------------

    def _train(self) -> None:
        """What the coordinator of a sweep does for it, as far as schedules notice."""

        def work(session: Session) -> None:
            active = select(Study).where(Study.state.in_((StudyState.QUEUED, StudyState.RUNNING)))
            for study in session.scalars(active.with_for_update()):
                self._move(session, study)

        self.database.transact(work)

    def _move(self, session: Session, study: Study) -> None:
        definition = read_definition(study)
        assert definition is not None
        closed = deadline_reached(study, definition.budget, self.now) if study.window_from else None
        if study.cancel_requested:
            advance_study(session, study, StudyState.CANCELLED, "cancelled on request")
        elif study.state == StudyState.QUEUED:
            if closed is None and self.dice.random() < 0.9:
                start(session, study, "a coordinator has started it")
                self.running_since[study.id] = self.now
        elif self.now - self.running_since[study.id] >= self.lasts[study.id]:
            advance_study(session, study, StudyState.COMPLETED, "all trials ended")
        elif closed is not None and definition.budget.until_action == "end":
            advance_study(session, study, StudyState.COMPLETED, closed)
        elif closed is not None:
            self.lasts[study.id] -= self.now - self.running_since[study.id]
            put_down(session, study, closed)

    def _look(self) -> None:
        """Note new sweeps; and no schedule that lets none overlap has two under way."""
        with self.database.read() as session:
            columns = (Study.id, Study.schedule_id, Study.state, Study.cancel_requested)
            recent = or_(Study.state.in_(sweeps.UNDER_WAY), Study.created_at >= self._looked_at)
            self._looked_at = datetime.now(UTC) - MINUTE
            rows = session.execute(select(*columns).where(recent).order_by(Study.created_at)).all()
            for row in rows:
                if row.id not in self.made_at:
                    self.made_at[row.id] = self.now
                    hours = self.dice.choice((0.2, 3, 8, 30, 70))
                    self.lasts[row.id] = timedelta(hours=hours * self.dice.uniform(0.5, 1.5))
            under_way = Counter(
                row.schedule_id
                for row in rows
                if row.state in sweeps.UNDER_WAY
                and not row.cancel_requested
                and not windows.is_over(session.get_one(Study, row.id), self.now)
            )
            overlapping = [each for each, count in under_way.items() if count > 1]
            allowed = select(Schedule.id).where(Schedule.overlap == "allow")
            assert set(overlapping) <= set(session.scalars(allowed)), f"two sweeps at {self.now}"

    # -- the verdict --------------------------------------------------------------------------

    def wrong(self) -> Iterable[str]:
        """Every firing that was not answered exactly once, and every sweep that came at a wrong time."""
        with self.database.read() as session:
            for schedule in session.scalars(select(Schedule).order_by(Schedule.name)):
                yield from self._wrong_of(session, schedule)

    def _wrong_of(self, session: Session, schedule: Schedule) -> Iterator[str]:
        due, name = self.due[schedule.id], schedule.name
        made = session.scalars(select(Study).where(Study.schedule_id == schedule.id)).all()
        events = session.scalars(select(ScheduleEvent).where(ScheduleEvent.schedule_id == schedule.id)).all()
        said = [(study.fired_for, "made") for study in made]
        queued = {one.fired_for for one in events if one.kind == "queued"}
        for one in events:
            self.happened[f"{_row(schedule)}/{one.kind}"] += 1
            if one.kind in NO_SWEEP:
                said.append((one.fired_for, one.kind))
            if one.kind == "missed":
                first, last = (datetime.fromisoformat(one.missed[end]) for end in ("first", "last"))
                span = due[bisect_left(due, first) : bisect_right(due, last)]
                said += [(at, "missed") for at in span]
                self.happened[f"{_row(schedule)}/firings missed"] += len(span)
                if (len(span), last) != (one.missed["count"], one.fired_for):
                    yield f"{name}: {one.message}: {one.missed} of {len(span)}"
        if schedule.queued_for is not None:
            said.append((schedule.queued_for, "waits"))
        self.happened[f"{_row(schedule)}/due"] += len(due)
        self.happened[f"{_row(schedule)}/made"] += len(made)
        self.happened[f"{_row(schedule)}/waiting at the end"] += schedule.queued_for is not None
        times = Counter(at for at, _ in said)
        yield from (f"{name}: {at} came {times[at]} times: {said}" for at in due if times[at] != 1)
        yield from (f"{name}: {at} was no firing" for at in times.keys() - set(due))
        if [(s.state in TERMINAL_STUDY_STATES) == (s.ended_at is not None) for s in made].count(False):
            yield f"{name}: ends without a time"
        for study in made:
            at, there = study.fired_for, self.made_at[study.id]
            assert at is not None
            if at in queued:
                continue
            if schedule.catch_up == "none" and there - at > GRACE:
                yield f"{name}: {at} was made at {there}"
            if due[bisect_right(due, there) - 1] != at:
                yield f"{name}: {at} was made at {there}, though a later one was due"

    def table(self) -> list[str]:
        """How often what became of firings, by overlap, catch-up and window."""
        columns = (
            *("due", "made", "skipped", "firings missed", "continued", "waiting at the end", "queued"),
            *("cancelled_earlier", "ended"),
        )
        rows = sorted({key.partition("/")[0] for key in self.happened if "/" in key})
        lines = [f"{'overlap, catch-up, window':<40}" + "".join(f"{name:>20}" for name in columns)]
        for row in rows:
            cells = "".join(f"{self.happened[f'{row}/{name}']:>20}" for name in columns)
            lines.append(f"{row:<40}{cells}")
        return lines


def _without_waiting_for_the_disk(connection: Any, _: object) -> None:
    """Nothing here has to outlive the machine."""
    connection.execute("PRAGMA synchronous = OFF")


def _row(schedule: Schedule) -> str:
    window = "" if schedule.until is None else f", {schedule.until_action}"
    return f"{schedule.overlap}, {schedule.catch_up}{window}"
