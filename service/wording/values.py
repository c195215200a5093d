"""Numbers, settings, times and foreign text as people read them. Pure."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import UTC, datetime
from typing import Any
from zoneinfo import ZoneInfo


def printable(text: str) -> str:
    """The text without control characters, which an error's quoted data could smuggle to a terminal."""
    return "".join(char if char.isprintable() or char in "\n\t" else " " for char in text)


def one_line(text: str) -> str:
    return " ".join(printable(text).split())


def number(value: float | None) -> str:
    """A measured value to four significant digits; `-` for none."""
    return "-" if value is None else f"{value:.4g}"


def setting(value: object) -> str:
    """A hyperparameter's value: floats to three significant digits, `-` for none."""
    if value is None:
        return "-"
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, float):
        return f"{value:.3g}"
    if isinstance(value, list | tuple):
        return "[" + ",".join(setting(item) for item in value) + "]"
    return str(value)


def settings_line(params: Mapping[str, Any]) -> str:
    return ", ".join(f"{name}={setting(value)}" for name, value in params.items())


def duration(seconds: float) -> str:
    """`42s`, `3m 07s` or `2h 05m`."""
    whole = max(0, int(seconds))
    if whole < 60:
        return f"{whole}s"
    if whole < 3600:
        return f"{whole // 60}m {whole % 60:02}s"
    return f"{whole // 3600}h {whole % 3600 // 60:02}m"


def moment(at: datetime | None) -> str:
    """A UTC time to the second; `-` for none."""
    return "-" if at is None else f"{at.astimezone(UTC):%Y-%m-%d %H:%M:%S}Z"


def in_words(at: datetime, zone: str = "UTC") -> str:
    """A time with its zone: `30 Nov 2026, 23:13:05 UTC`."""
    there = at.astimezone(UTC if zone == "UTC" else ZoneInfo(zone))
    return f"{there.day} {_MONTHS[there.month - 1]} {there:%Y, %H:%M:%S} {zone}"


_MONTHS = ("Jan", "Feb", "Mar", "Apr", "May", "Jun", "Jul", "Aug", "Sep", "Oct", "Nov", "Dec")
"""`strftime` has those of the machine's language."""


def share(value: float | None) -> str:
    """A share of a whole as a percentage; `-` for none."""
    return "-" if value is None else f"{value:.0%}"


def difference(first: float, second: float, *, maximizes: bool) -> str:
    """How far the first of two values is from the second: `12.0% lower`, or `0.031 higher`.

    A share only where both are errors: of what is maximized it says little, since that may be a share itself,
    or below 0 as r2 may be.
    """
    apart = abs(first - second)
    errors = not maximizes and min(first, second) >= 0 < second
    how = f"{apart / second:.1%}" if errors else number(apart)
    return f"{how} {'higher' if first > second else 'lower'}"
