"""The times at which a schedule fires, what is wrong with them, and the seed of a firing. Pure.

Daylight saving follows Debian's cron, as cronsim does: a job at a fixed hour that the clock skips runs
at once after the gap, and one in the repeated hour runs once; jobs of every hour or minute follow real
time.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from datetime import UTC, date, datetime, time, timedelta
from itertools import takewhile
from zoneinfo import ZoneInfo

from cronsim import CronSim, CronSimError

from search_spaces.errors import Fault
from search_spaces.faults import shown
from search_spaces.sampling.uninformed import derive_seed
from search_spaces.values.time_of_day import (
    nearest_timezone,
    next_time_of_day,
    parse_time_of_day,
    timezone_names,
)

CRON_FORM = "five fields: minute, hour, day of month, month, day of week (for example `30 2 * * MON-FRI`)"
BOUND_FORM = "a date such as 2026-12-01, or a date and time such as 2026-12-01T18:00, in its timezone"
GRACE = timedelta(minutes=10)
"""A coordinator that comes to a firing so late, or earlier, has not missed it."""
MOST_COUNTED = 20_000
"""Missed firings that are counted: two weeks of one a minute. Counting them takes under a second."""
_LOOK_BACK = timedelta(days=2)
_BOUND = re.compile(r"(\d{4}-\d\d-\d\d)(?:[T ](\d\d:\d\d))?", re.ASCII)
_TICK = timedelta(microseconds=1)
_SECOND = timedelta(seconds=1)
_DAY_OF_A_CHANGE = timedelta(hours=25)
_NAMED = 3
"""Skipped times that a note names one by one."""


@dataclass(frozen=True, kw_only=True)
class Times:
    """When a schedule fires."""

    cron: str
    timezone: str
    start: str | None = None
    """`2026-12-01` or `2026-12-01T18:00`, by the timezone's clocks; None: no start."""
    end: str | None = None
    """Likewise. A date's whole day is before its end."""

    @property
    def first(self) -> datetime | None:
        """The instant of `start`: nothing fires before."""
        if self.start is None:
            return None
        day, at = _parts(self.start)
        return datetime.combine(day, at or time(), tzinfo=ZoneInfo(self.timezone)).astimezone(UTC)

    @property
    def last(self) -> datetime | None:
        """The instant of `end`: nothing fires after."""
        if self.end is None:
            return None
        zone = ZoneInfo(self.timezone)
        day, at = _parts(self.end)
        if at is None:
            return datetime.combine(day + timedelta(days=1), time(), tzinfo=zone).astimezone(UTC) - _TICK
        # Of a time that comes twice in a night, the second: the first is before it.
        return datetime.combine(day, at, tzinfo=zone).replace(fold=1).astimezone(UTC)

    def next(self, after: datetime) -> datetime | None:
        """The first firing strictly after an instant, in UTC; None when there is none."""
        if self.first is not None:
            after = max(after, self.first - _TICK)
        found = next_firing(self.cron, self.timezone, after)
        return None if found is None or (self.last is not None and found > self.last) else found

    def latest(self, first: datetime, now: datetime) -> datetime:
        """The last firing from `first`, itself one, up to `now`."""
        return latest_firing(
            self.cron, self.timezone, first, now if self.last is None else max(first, min(now, self.last))
        )

    def between(self, first: datetime, last: datetime) -> Iterator[datetime]:
        """The firings from `first`, itself one, up to `last`."""
        at: datetime | None = first
        while at is not None and at <= last:
            yield at
            at = self.next(at)

    def window_end(self, firing: datetime, until: str) -> datetime:
        """When the window of a firing ends: the first such time of day after it."""
        return next_time_of_day(firing, parse_time_of_day(until), self.timezone)

    def has_ended(self, now: datetime) -> bool:
        """Whether nothing fires any more because of `end`."""
        return self.last is not None and self.next(now) is None


def read_bound(text: object) -> str | None:
    """A `start` or `end` as it is stored; None: it is none."""
    found = _BOUND.fullmatch(text.strip()) if isinstance(text, str) and len(text) <= 32 else None
    if found is None:
        return None
    bound = found[1] if found[2] is None else f"{found[1]}T{found[2]}"
    try:
        day, _ = _parts(bound)
    except ValueError:
        return None
    return bound if 1970 <= day.year < 9999 else None


def _parts(bound: str) -> tuple[date, time | None]:
    day, _, at = bound.partition("T")
    return date.fromisoformat(day), time.fromisoformat(at) if at else None


def check(cron: object, timezone: object, now: datetime) -> list[Fault]:
    """What is wrong with a cron expression and its timezone; paths `cron` and `timezone`."""
    faults = []
    zone = "UTC"
    if not isinstance(timezone, str) or timezone not in timezone_names():
        nearest = nearest_timezone(timezone)
        message, allowed = "unknown timezone", "an IANA name, such as Europe/Berlin or UTC"
        faults.append(
            Fault(path="timezone", value=shown(timezone), message=message, allowed=allowed, nearest=nearest)
        )
    else:
        zone = timezone
    problem = _cron_problem(cron, zone, now)
    if problem is not None:
        faults.append(Fault(path="cron", value=shown(cron), message=problem, allowed=CRON_FORM))
    return faults


def _cron_problem(cron: object, timezone: str, now: datetime) -> str | None:
    if not isinstance(cron, str):
        return "must be text (in quotes in YAML)"
    if len(cron) > 200 or len(cron.split()) != 5:
        # cronsim would read a sixth field as seconds.
        return "must have five fields"
    try:
        first = next_firing(cron, timezone, now)
    except CronSimError as error:
        return f"cannot be read: {str(error)[:1].lower()}{str(error)[1:]}"
    return "never fires" if first is None else None


def next_firing(cron: str, timezone: str, after: datetime) -> datetime | None:
    """The first firing strictly after an instant, in UTC; None when there is none in 50 years."""
    zone = ZoneInfo(timezone)
    found = _simulated(cron, zone, after)
    if found is None or not _follows_real_time(cron):
        return found
    # Where clocks change by half an hour, cronsim's steps of an hour go past a firing: begin again at the
    # change, and at the next whole hour that the clocks show.
    change = _change_between(zone, max(after, found - _DAY_OF_A_CHANGE), found)
    if change is None:
        return found
    whole_hour = change + timedelta(minutes=-change.astimezone(zone).minute % 60)
    again = [_simulated(cron, zone, start - _SECOND) for start in (change, whole_hour)]
    return min([found, *(firing for firing in again if firing is not None)])


def _simulated(cron: str, zone: ZoneInfo, after: datetime) -> datetime | None:
    firings = (each.astimezone(UTC) for each in CronSim(cron, after.astimezone(zone)))
    # In the second pass of an hour that the clock repeats, cronsim begins with the first pass again.
    return next((firing for firing in firings if firing > after), None)


def _follows_real_time(cron: str) -> bool:
    minute, hour = cron.split()[:2]
    return minute.startswith("*") or hour.startswith("*")


def _change_between(zone: ZoneInfo, before: datetime, after: datetime) -> datetime | None:
    """When the clocks change, to the second; None: they show the same offset at both ends."""
    old = before.astimezone(zone).utcoffset()
    if after.astimezone(zone).utcoffset() == old:
        return None
    while after - before > _SECOND:
        middle = before + (after - before) / 2
        if middle.astimezone(zone).utcoffset() == old:
            before = middle
        else:
            after = middle
    return after.replace(microsecond=0)


def latest_firing(cron: str, timezone: str, first: datetime, now: datetime) -> datetime:
    """The last firing from `first`, itself one, up to `now`."""
    latest = first
    # Two days are looked through one by one. Only an expression that fired in none of them is followed
    # from the start, and that one fires too rarely for the walk to be long.
    if now - first > _LOOK_BACK:
        recent = next_firing(cron, timezone, now - _LOOK_BACK)
        if recent is not None and recent <= now:
            latest = recent
    while True:
        following = next_firing(cron, timezone, latest)
        if following is None or following > now:
            return latest
        latest = following


def sweep_seed(base_seed: int, firing: datetime) -> int:
    """The `search.seed` of the sweep of one firing: 32 bits of BLAKE2b of `7/2026-05-01T21:00:00+00:00`.

    Args:
        base_seed: of the schedule's definition.
        firing: the instant that the sweep belongs to.
    """
    return derive_seed(base_seed, firing.astimezone(UTC).isoformat())


# -- previews ----------------------------------------------------------------------------------------


@dataclass(frozen=True, kw_only=True)
class Firing:
    at: datetime
    """In UTC."""
    local: datetime
    """By the clocks of the schedule's timezone."""
    note: str | None
    """What a change of the clock makes of it, in words; None: nothing."""


def preview(times: Times, after: datetime, count: int) -> list[Firing]:
    """The next firings strictly after an instant; fewer than `count` where the schedule ends."""
    found: list[Firing] = []
    before = after
    while len(found) < count and (at := times.next(before)) is not None:
        local = at.astimezone(ZoneInfo(times.timezone))
        found.append(Firing(at=at, local=local, note=_note(times.cron, local, before)))
        before = at
    return found


def _note(cron: str, local: datetime, before: datetime) -> str | None:
    return _of_real_time(cron, local, before) if _follows_real_time(cron) else _of_fixed_time(cron, local)


def _of_fixed_time(cron: str, local: datetime) -> str | None:
    clock = local.replace(tzinfo=None, fold=0)
    skipped = _skipped(cron, local)
    if skipped:
        own = next(CronSim(cron, clock - _SECOND)) == clock
        return f"{'also for' if own else 'moved from'} {_listed(skipped)}, which the clock skips"
    if _comes_twice(local):
        return f"second {clock:%H:%M} left out"
    return None


def _of_real_time(cron: str, local: datetime, before: datetime) -> str | None:
    clock = f"{local:%H:%M}"
    if _comes_twice(local):
        return f"second {clock}: the clock repeats it" if local.fold else f"first {clock}: it comes twice"
    same_clock = before.astimezone(local.tzinfo).utcoffset() == local.utcoffset()
    if same_clock or local - before > timedelta(days=1):
        return None
    at = before.astimezone(UTC)
    while (at := min(at + timedelta(minutes=1), local.astimezone(UTC))) < local.astimezone(UTC):
        if skipped := _skipped(cron, at.replace(second=0, microsecond=0).astimezone(local.tzinfo)):
            return f"{_listed(skipped)} left out before it: the clock skips that"
    skipped = _skipped(cron, local)
    return f"{_listed(skipped)} left out before it: the clock skips that" if skipped else None


def _skipped(cron: str, local: datetime) -> Sequence[datetime]:
    """The cron expression's times that the clock skips right before an instant."""
    earlier = (local.astimezone(UTC) - _SECOND).astimezone(local.tzinfo)
    ahead = (local.utcoffset() or timedelta()) - (earlier.utcoffset() or timedelta())
    if ahead <= timedelta():
        return ()
    clock = local.replace(tzinfo=None, fold=0)
    return list(takewhile(lambda skipped: skipped < clock, CronSim(cron, clock - ahead - _SECOND)))


def _comes_twice(local: datetime) -> bool:
    first, second = (local.replace(fold=fold).utcoffset() or timedelta() for fold in (0, 1))
    return first > second


def _listed(times: Sequence[datetime]) -> str:
    words = [f"{at:%H:%M}" for at in times]
    if len(words) > _NAMED:
        return f"{words[0]} to {words[-1]}"
    return " and ".join([", ".join(words[:-1]), words[-1]] if len(words) > 1 else words)
