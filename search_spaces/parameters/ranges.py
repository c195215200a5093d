"""Ranges of numbers: Float and Int, closed and finite.

`min` and `max` are both possible. With a `step` the points are min, min + step, ..., up to and including
`max` where that is a whole number of steps away. `points` says how many points a grid takes of a range,
evenly on its scale; the other algorithms search the whole of it.

Points are the same on every machine. Linear ones are sums in exact fractions, so 0.1 + 2 x 0.1 is 0.3, as
written. Those on a log scale are computed with `decimal`, whose logarithm is rounded correctly everywhere;
that of a C library may differ in its last digit. So five points from 1e-5 to 1e-1 are 1e-5, 1e-4, 1e-3, 1e-2
and 1e-1.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from decimal import Context, Decimal
from fractions import Fraction
from functools import lru_cache
from typing import Annotated, Literal

from pydantic import Field, model_validator

from search_spaces.errors import Fault
from search_spaces.faults import problems
from search_spaces.parameters.base import Conditional
from search_spaces.values.numbers import Real, Whole, significant

Scale = Literal["linear", "log"]

MAX_STEPS = 1_000_000
"""Points in one stepped range; beyond that a step says nothing, and Optuna's decimals run out of digits."""
MAX_POINTS = 10_000
"""Points that a grid may take of one range."""
Points = Annotated[Whole, Field(ge=2, le=MAX_POINTS)]

_CONTEXT = Context(prec=30)
"""Far more digits than the 17 of a float, so that what is left of the error rounds away."""


def _exact(number: float) -> Fraction:
    """The shortest decimal that reads back as this float: what a person wrote."""
    return Fraction(Decimal(repr(number)))


@lru_cache(maxsize=64)
def _even_floats(low: float, high: float, log: bool, count: int) -> tuple[float, ...]:
    """`count` (at least 2) points from `low` to `high`, both included, ascending."""
    if log:
        start, end = (Decimal(repr(bound)).ln(_CONTEXT) for bound in (low, high))
        step = _CONTEXT.divide(_CONTEXT.subtract(end, start), Decimal(count - 1))
        inner = [
            float(_CONTEXT.add(start, _CONTEXT.multiply(step, Decimal(i))).exp(_CONTEXT))
            for i in range(1, count - 1)
        ]
    else:
        width = _exact(high) - _exact(low)
        inner = [float(_exact(low) + width * i / (count - 1)) for i in range(1, count - 1)]
    return (low, *inner, high)


@lru_cache(maxsize=64)
def _even_ints(low: int, high: int, log: bool, count: int) -> tuple[int, ...]:
    """The same, each rounded to the nearest whole number, and each of these once."""
    return tuple(dict.fromkeys(round(point) for point in _even_floats(low, high, log, count)))


def _range_faults(
    low: float, high: float, scale: Scale, step: float | None, points: int | None
) -> Iterator[Fault]:
    if low > high:
        yield Fault(path="min", value=low, message=f"is above max ({high:g})", allowed="less than max")
    elif low == high:
        yield Fault(
            path="min",
            value=low,
            message="equals max, which leaves nothing to search; a fixed value belongs in recipe "
            "(or in choices, as a list of one)",
            allowed="less than max",
        )
    elif significant(high) == significant(low if step is None else high - step):
        yield Fault(
            path="min" if step is None else "step",
            value=low if step is None else step,
            message="leaves only values that agree in their first 12 digits and so count as one value",
        )
    if scale == "log" and low <= 0:
        yield Fault(
            path="min", value=low, message="must be greater than 0 on a log scale", allowed="greater than 0"
        )
    if step is None:
        return
    if points is not None:
        message = "cannot be combined with step, because both set the points of the range; remove one of them"
        yield Fault(path="points", value=points, message=message, allowed="points or step")
    if step <= 0:
        yield Fault(path="step", value=step, message="must be greater than 0", allowed="greater than 0")
    elif low < high and _exact(step) > _exact(high) - _exact(low):
        yield Fault(
            path="step",
            value=step,
            message="is larger than the range from min to max",
            allowed=f"at most {high - low:g}",
        )
    elif low < high and (high - low) / step > MAX_STEPS:
        yield Fault(
            path="step",
            value=step,
            message=f"divides the range into more than {MAX_STEPS:,} points; remove it",
            allowed=f"at least {(high - low) / MAX_STEPS:g}",
        )
    if scale == "log":
        yield Fault(
            path="step",
            value=step,
            message="cannot be combined with a log scale; list the values in choices",
            allowed="no step",
        )


class Float(Conditional):
    """A real number between `min` and `max`, both included; on a `log` scale, or in steps."""

    type: Literal["float"] = "float"
    min: Real
    max: Real
    scale: Scale = "linear"
    step: Real | None = None
    """Distance of neighbouring points. Linear scale only. None: continuous."""
    points: Points | None = None
    """How many points a grid takes, evenly on the scale, both ends included."""

    @model_validator(mode="after")
    def _check(self) -> Float:
        faults = list(_range_faults(self.min, self.max, self.scale, self.step, self.points))
        if self.step is not None and not faults and _exact(self.last) != self._exact_last():
            # Optuna does the same sum in decimal and would drop the last point over a rounding error.
            faults.append(
                Fault(
                    path="step",
                    value=self.step,
                    message="has too many digits to be added to min exactly; round both values",
                )
            )
        elif self.points is not None and not faults and len({*map(significant, self._grid)}) < self.points:
            message = "is more than the number of 12-digit values between min and max"
            faults.append(Fault(path="points", value=self.points, message=message))
        if faults:
            raise problems(*faults)
        return self

    @property
    def _grid(self) -> tuple[float, ...]:
        assert self.points is not None
        return _even_floats(self.min, self.max, self.scale == "log", self.points)

    def _exact_last(self) -> Fraction:
        assert self.step is not None
        low, step = _exact(self.min), _exact(self.step)
        return low + (_exact(self.max) - low) // step * step

    @property
    def size(self) -> int | None:
        """Number of values that may be suggested; None for a continuous range."""
        if self.step is None:
            return None
        return (_exact(self.max) - _exact(self.min)) // _exact(self.step) + 1

    @property
    def grid_size(self) -> int | None:
        """Number of values on a grid; None for a continuous range without `points`."""
        return self.size if self.points is None else self.points

    def grid_value(self, index: int) -> float:
        """Value `index` on a grid, counted from 0, ascending."""
        return self.value_at(index) if self.points is None else self._grid[index]

    @property
    def last(self) -> float:
        """The largest point: `max`, or the last step before it."""
        size = self.size
        return self.max if size is None else self.value_at(size - 1)

    def value_at(self, index: int) -> float:
        """Point `index`, counted from 0, ascending."""
        if self.step is None:
            raise ValueError("a continuous range has no numbered points")
        return float(_exact(self.min) + index * _exact(self.step))

    def snap(self, value: float) -> float:
        """The point nearest to `value`: inside the range, and on a step where there are steps."""
        inside = min(max(float(value), self.min), self.last)
        return inside if self.step is None else self.value_at(round((inside - self.min) / self.step))

    def bounds_within(self, low: float, high: float) -> dict[str, float]:
        """`min` and `max` of the part from `low` to `high`; on a step where there are steps."""
        if self.step is None:
            return {"min": low, "max": high}
        start, step = _exact(self.min), _exact(self.step)
        first, last = (math.ceil((_exact(low) - start) / step), math.floor((_exact(high) - start) / step))
        return {"min": float(start + first * step), "max": float(start + last * step)}

    def contains(self, value: object) -> bool:
        """Whether `value` is one of the parameter's points."""
        if isinstance(value, bool) or not isinstance(value, (int, float)) or not math.isfinite(value):
            return False
        return self.snap(value) == value


class Int(Conditional):
    """A whole number between `min` and `max`, both included; on a `log` scale, or in steps."""

    type: Literal["int"] = "int"
    min: Whole
    max: Whole
    scale: Scale = "linear"
    step: Whole = 1
    points: Points | None = None
    """How many points a grid takes, evenly on the scale, both ends included; rounded, and each once."""

    @model_validator(mode="after")
    def _check(self) -> Int:
        # The default step of 1 is no statement about the range.
        step = self.step if self.step != 1 else None
        faults = list(_range_faults(self.min, self.max, self.scale, step, self.points))
        if self.points is not None and not faults and self.points > self.size:
            message = "is more than the number of whole numbers from min to max"
            allowed = f"at most {self.size}"
            faults.append(Fault(path="points", value=self.points, message=message, allowed=allowed))
        if faults:
            raise problems(*faults)
        return self

    @property
    def _grid(self) -> tuple[int, ...]:
        assert self.points is not None
        return _even_ints(self.min, self.max, self.scale == "log", self.points)

    @property
    def size(self) -> int:
        """Number of values that may be suggested."""
        return (self.max - self.min) // self.step + 1

    @property
    def grid_size(self) -> int:
        """Number of values on a grid: at most `points`."""
        return self.size if self.points is None else len(self._grid)

    def grid_value(self, index: int) -> int:
        """Value `index` on a grid, counted from 0, ascending."""
        return self.value_at(index) if self.points is None else self._grid[index]

    @property
    def last(self) -> int:
        """The largest point: `max`, or the last step before it."""
        return self.value_at(self.size - 1)

    def value_at(self, index: int) -> int:
        """Point `index`, counted from 0, ascending."""
        return self.min + index * self.step

    def snap(self, value: float) -> int:
        """The point nearest to `value`."""
        inside = min(max(value, self.min), self.last)
        return self.value_at(round((inside - self.min) / self.step))

    def bounds_within(self, low: float, high: float) -> dict[str, int]:
        """`min` and `max` of the whole numbers from `low` to `high`, on a step."""
        first = math.ceil((low - self.min) / self.step)
        last = math.floor((high - self.min) / self.step)
        return {"min": self.min + first * self.step, "max": self.min + last * self.step}

    def contains(self, value: object) -> bool:
        """Whether `value` is one of the parameter's points."""
        if isinstance(value, bool) or not isinstance(value, (int, float)) or not math.isfinite(value):
            return False
        return self.snap(value) == value
