"""The times at which a cron expression fires in its timezone, and the seed of a firing. Pure.

Daylight saving follows Debian's cron, as cronsim does: a job at a fixed hour that the clock skips runs
at once after the gap, and one in the repeated hour runs once; jobs of every hour or minute follow real
time.
"""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from zoneinfo import ZoneInfo

from cronsim import CronSim, CronSimError

from search_spaces.errors import Fault
from search_spaces.faults import shown
from search_spaces.sampling.uninformed import derive_seed
from search_spaces.values.time_of_day import nearest_timezone, timezone_names

CRON_FORM = "five fields: minute, hour, day of month, month, day of week (for example `30 2 * * MON-FRI`)"
_LOOK_BACK = timedelta(days=2)


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
    firings = (each.astimezone(UTC) for each in CronSim(cron, after.astimezone(ZoneInfo(timezone))))
    # In the second pass of an hour that the clock repeats, cronsim begins with the first pass again.
    return next((firing for firing in firings if firing > after), None)


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
