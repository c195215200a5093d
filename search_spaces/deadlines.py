"""A time of day in a timezone, and when it comes next: pure.

Two traps are handled here, once. YAML 1.1 reads `22:30` without quotes as 1350, a number in base 60. And a
day may lack a time, or have it twice, where the clocks are changed.
"""

from __future__ import annotations

import re
from datetime import UTC, datetime, time, timedelta
from functools import cache
from typing import Annotated, Any
from zoneinfo import ZoneInfo, available_timezones

from pydantic import BeforeValidator
from pydantic_core import PydanticCustomError

TIME_OF_DAY_FORMS = 'a time of day in quotes, from "00:00" to "23:59"'

_TIME_OF_DAY = re.compile(r"([01]?\d|2[0-3]):([0-5]\d)", re.ASCII)


def parse_time_of_day(text: str) -> time:
    """`06:00`, or `6:00`, as a time.

    Raises:
        ValueError: It is no time of day.
    """
    found = _TIME_OF_DAY.fullmatch(text)
    if found is None:
        raise ValueError(f"must be {TIME_OF_DAY_FORMS}")
    return time(int(found[1]), int(found[2]))


def _read_time_of_day(value: Any) -> str:
    if isinstance(value, int | float) and not isinstance(value, bool):
        message = "must be in quotes, because without them YAML may read a time of day as a number"
        raise PydanticCustomError("time_of_day", "{why}", {"why": message, "allowed": TIME_OF_DAY_FORMS})
    try:
        return f"{parse_time_of_day(value.strip() if isinstance(value, str) else ''):%H:%M}"
    except ValueError as error:
        raise PydanticCustomError(
            "time_of_day", "{why}", {"why": str(error), "allowed": TIME_OF_DAY_FORMS}
        ) from None


TimeOfDay = Annotated[str, BeforeValidator(_read_time_of_day)]
"""`HH:MM`, from 00:00 to 23:59."""


@cache
def timezone_names() -> frozenset[str]:
    """All names of the IANA time zone database, as far as this machine has it.

    Without the two that are no place: `localtime`, which is another one on each machine, and `Factory`.
    """
    return frozenset(available_timezones() - {"localtime", "Factory"})


def next_time_of_day(after: datetime, at: time, timezone: str) -> datetime:
    """The first instant after another at which clocks in a timezone show that time.

    A time that the clocks skip comes as long after midnight as on other days, so they show another one by
    then. Of a time that comes twice in a night the first counts (PEP 495, fold 0).

    Args:
        after: Any aware instant.
        at: The time of day.
        timezone: Its IANA name.

    Returns:
        The instant, in UTC.

    Raises:
        zoneinfo.ZoneInfoNotFoundError: This machine does not know the timezone.
    """
    zone = ZoneInfo(timezone)
    day = after.astimezone(zone).date()
    while True:
        found = datetime.combine(day, at, tzinfo=zone).astimezone(UTC)
        if found > after:
            return found
        day += timedelta(days=1)
