"""Numbers and durations as people write them in YAML and JSON.

A number is refused where it is written as text (`"1e-5"`), and so is `true`, an integer to Python.
"""

from __future__ import annotations

import math
import re
from typing import Annotated, Any

from pydantic import BeforeValidator, Field
from pydantic_core import PydanticCustomError

LARGEST_WHOLE = 2**31 - 1
"""What every database's INTEGER holds."""

_NUMBER = re.compile(r"[+-]?(\d{1,400}(\.\d{0,400})?|\.\d{1,400})([eE][+-]?\d{1,4})?", re.ASCII)
_PART = re.compile(r"(\d{1,12}(?:\.\d{1,6})?)([dhms])", re.ASCII)
_DURATION = re.compile(r"(\d{1,12}(\.\d{1,6})?[dhms])+", re.ASCII)
_SECONDS = {"s": 1, "m": 60, "h": 3600, "d": 86400}
_LONGEST = 10 * 365 * 86400

DURATION_FORMS = "a number and a unit (s, m, h or d), such as 90s, 30m, 10h, 2d or 1h30m"


def significant(number: float) -> float:
    """The number in its first 12 digits: values that agree in these count as one."""
    return float(f"{number:.12g}")


def read_float(value: Any) -> float:
    """A finite number. Raises PydanticCustomError for anything else: `true`, `nan`, `"1e-5"`."""
    if isinstance(value, str) and _NUMBER.fullmatch(value.strip()) and math.isfinite(float(value)):
        message = "must be a number, not text: write {number} without quotes"
        context = {"number": f"{float(value):.15g}", "allowed": "a number"}
        raise PydanticCustomError("number", message, context)
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        raise PydanticCustomError("number", "must be a number", {"allowed": "a number"})
    try:
        number = float(value)
    except OverflowError:
        number = math.inf
    if not math.isfinite(number):
        raise PydanticCustomError("number", "must be a finite number", {"allowed": "a finite number"})
    return number


def read_int(value: Any) -> int:
    """A whole number: `8` or `8.0`. Raises PydanticCustomError for anything else."""
    if isinstance(value, int) and not isinstance(value, bool):
        return value
    number = read_float(value)
    if number != int(number):
        raise PydanticCustomError("number", "must be a whole number", {"allowed": "a whole number"})
    return int(number)


def parse_duration(text: str) -> float:
    """Seconds in a duration such as `90s`, `30m`, `10h`, `2d` or `1h30m`.

    Raises:
        ValueError: It is not of that form, zero, or longer than ten years.
    """
    if not _DURATION.fullmatch(text):
        raise ValueError(f"must be {DURATION_FORMS}")
    seconds = sum(float(number) * _SECONDS[unit] for number, unit in _PART.findall(text))
    if not 0 < seconds <= _LONGEST:
        raise ValueError("must be longer than 0s and at most 3650d")
    return seconds


def _check_duration(value: Any) -> str:
    if not isinstance(value, str):
        raise PydanticCustomError("duration", "must be {allowed}", {"allowed": DURATION_FORMS})
    text = value.strip()
    try:
        parse_duration(text)
    except ValueError as error:
        raise PydanticCustomError(
            "duration", "{why}", {"why": str(error), "allowed": DURATION_FORMS}
        ) from None
    return text


Real = Annotated[float, BeforeValidator(read_float)]
"""A finite float."""
Whole = Annotated[int, BeforeValidator(read_int), Field(le=LARGEST_WHOLE)]
"""An integer that every database holds."""
Seed = Annotated[int, BeforeValidator(read_int), Field(ge=0, lt=2**32)]
"""What numpy's and torch's generators both take as a seed."""
Duration = Annotated[str, BeforeValidator(_check_duration)]
"""A duration in words; `parse_duration` gives its seconds."""
