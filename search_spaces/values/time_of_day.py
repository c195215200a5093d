"""A time of day in a timezone, and when it comes next: pure.

Two traps are handled here, once. YAML 1.1 reads `22:30` without quotes as 1350, a number in base 60. And a
day may lack a time, or have it twice, where the clocks are changed.
"""

from __future__ import annotations

import difflib
import re
from datetime import UTC, datetime, time, timedelta
from functools import cache
from typing import Annotated, Any
from zoneinfo import ZoneInfo, available_timezones

from pydantic import BeforeValidator
from pydantic_core import PydanticCustomError

TIME_OF_DAY_FORMS = 'a time of day in quotes, from "00:00" to "23:59"'

_LONGEST_NAME = 100
_SHORTEST_PLACE = 4
"""Letters of a place without its region. Shorter words are abbreviations."""
_ALIKE = 0.8
"""Likeness of two spellings of one place: `Tokio` and `Tokyo` have it, `Mumbai` and `Dubai` (0.73) do not."""
_APART = 0.1
"""By how much another place must be less like."""
_CONTINENTS = ("Africa", "America", "Asia", "Atlantic", "Europe", "Indian", "Pacific")

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


def nearest_timezone(text: object) -> str | None:
    """The timezone that a misspelt name most likely means; None where that could be one with other clocks.

    Offsets and abbreviations get no hint: `UTC+2` is two hours ahead of UTC and `Etc/GMT+2` two behind, and
    `IST` is the time of India, Ireland or Israel. A place is the same but for a letter: `America/Boston` is
    not `America/Moncton`, and `Eastern` not `Pacific/Easter`.
    """
    if not isinstance(text, str) or len(text) > _LONGEST_NAME:
        return None
    word = text.strip()
    same = [name for name in timezone_names() if name.lower() == word.lower()]
    if same or re.search(r"\d", word):
        return same[0] if same else None
    region, _, place = word.replace("\\", "/").rpartition("/")
    if not region and (len(place) < _SHORTEST_PLACE or place.isupper()):
        return None
    ranked = sorted(
        (
            (_likeness(place, known_place), name)
            for name in timezone_names()
            for known_region, _, known_place in [name.rpartition("/")]
            if _likeness(region, known_region) >= _ALIKE or (not region and known_region in _CONTINENTS)
        ),
        reverse=True,
    )
    best, name = ranked[0] if ranked else (0.0, "")
    rivals = [other for likeness, other in ranked[1:] if best - likeness < _APART]
    enough = _ALIKE if region else 1.0
    return name if best >= enough and all(_same_clocks(name, other) for other in rivals) else None


def _likeness(one: str, other: str) -> float:
    """From 0 to 1, by letters alone; 0 where the first letters differ."""
    one, other = (re.sub(r"[^a-z]", "", text.lower()) for text in (one, other))
    if one[:1] != other[:1]:
        return 0.0
    return difflib.SequenceMatcher(None, one, other).ratio()


def _same_clocks(one: str, other: str) -> bool:
    days = (datetime(year, month, 1, tzinfo=UTC) for year in (2020, 2025) for month in range(1, 13))
    return all(
        day.astimezone(ZoneInfo(one)).utcoffset() == day.astimezone(ZoneInfo(other)).utcoffset()
        for day in days
    )


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
