"""What may vary: Float | Int | Choice, each frozen and finite.

A range is closed: `min` and `max` are both possible. With a `step` its points are min, min + step, ...,
up to and including `max` where that is a whole number of steps away. Points are computed in decimal, so
that 0.1 + 2 x 0.1 is 0.3, as written.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterator
from decimal import Decimal
from fractions import Fraction
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, field_validator, model_validator

from search_spaces.errors import Fault
from search_spaces.faults import problems, shown
from search_spaces.quantities import Real, Whole

Scale = Literal["linear", "log"]
Scalar = None | bool | int | float | str
"""What Optuna's CategoricalDistribution can hold."""

MAX_STEPS = 1_000_000
"""Points in one stepped range; beyond that a step says nothing, and Optuna's decimals run out of digits."""


class _Parameter(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)


def _exact(number: float) -> Fraction:
    # The shortest decimal that reads back as this float: what a person wrote.
    return Fraction(Decimal(repr(number)))


def _range_faults(low: float, high: float, scale: Scale, step: float | None) -> Iterator[Fault]:
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
    if scale == "log" and low <= 0:
        yield Fault(
            path="min", value=low, message="must be greater than 0 on a log scale", allowed="greater than 0"
        )
    if step is None:
        return
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
            message=f"cuts the range into more than {MAX_STEPS:,} points; leave it out",
            allowed=f"at least {(high - low) / MAX_STEPS:g}",
        )


class Float(_Parameter):
    """A real number between `min` and `max`, both included; on a `log` scale, or in steps."""

    type: Literal["float"] = "float"
    min: Real
    max: Real
    scale: Scale = "linear"
    step: Real | None = None
    """Distance of neighbouring points. Linear scale only. None: continuous."""

    @model_validator(mode="after")
    def _check(self) -> Float:
        faults = list(_range_faults(self.min, self.max, self.scale, self.step))
        if self.scale == "log" and self.step is not None:
            faults.append(
                Fault(
                    path="step",
                    value=self.step,
                    message="does not go with a log scale; list the values in choices",
                    allowed="no step",
                )
            )
        elif self.step is not None and not faults and _exact(self.last) != self._exact_last():
            # Optuna does the same sum in decimal and would drop the last point over a rounding error.
            faults.append(
                Fault(
                    path="step",
                    value=self.step,
                    message="has too many digits to be added to min exactly; round both",
                )
            )
        if faults:
            raise problems(faults)
        return self

    def _exact_last(self) -> Fraction:
        assert self.step is not None
        low, step = _exact(self.min), _exact(self.step)
        return low + (_exact(self.max) - low) // step * step

    @property
    def size(self) -> int | None:
        """Number of points; None for a continuous range."""
        if self.step is None:
            return None
        return (_exact(self.max) - _exact(self.min)) // _exact(self.step) + 1

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

    def contains(self, value: object) -> bool:
        """Whether `value` is one of the parameter's points."""
        if isinstance(value, bool) or not isinstance(value, (int, float)) or not math.isfinite(value):
            return False
        return self.snap(value) == value


class Int(_Parameter):
    """A whole number between `min` and `max`, both included; on a `log` scale, or in steps."""

    type: Literal["int"] = "int"
    min: Whole
    max: Whole
    scale: Scale = "linear"
    step: Whole = 1

    @model_validator(mode="after")
    def _check(self) -> Int:
        # The default step of 1 is no statement about the range.
        step = self.step if self.step != 1 else None
        faults = list(_range_faults(self.min, self.max, self.scale, step))
        if self.scale == "log" and step is not None:
            faults.append(
                Fault(
                    path="step",
                    value=self.step,
                    message="does not go with a log scale; list the values in choices",
                    allowed="no step",
                )
            )
        if faults:
            raise problems(faults)
        return self

    @property
    def size(self) -> int:
        """Number of points."""
        return (self.max - self.min) // self.step + 1

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

    def contains(self, value: object) -> bool:
        """Whether `value` is one of the parameter's points."""
        if isinstance(value, bool) or not isinstance(value, (int, float)) or not math.isfinite(value):
            return False
        return self.snap(value) == value


def encode_choice(value: Any) -> Scalar:
    """A choice as Optuna's storage can hold it: a list becomes its JSON text, the rest stays."""
    return json.dumps(list(value)) if isinstance(value, (list, tuple)) else value


class Choice(_Parameter):
    """One of the listed values, without an order. Values are scalars, or lists of names."""

    type: Literal["choice"] = "choice"
    choices: tuple[Any, ...]

    @field_validator("choices", mode="before")
    @classmethod
    def _check(cls, raw: Any) -> tuple[Any, ...]:
        if not isinstance(raw, (list, tuple)):
            raise problems([Fault(path="", value=shown(raw), message="must be a list", allowed="a list")])
        if not raw:
            raise problems(
                [Fault(path="", value=[], message="must not be empty", allowed="a list of values")]
            )
        values = [tuple(item) if isinstance(item, list) else item for item in raw]
        faults = []
        seen: set[Any] = set()
        for index, value in enumerate(values):
            path = str(index)
            if isinstance(value, tuple):
                fits = bool(value) and all(isinstance(item, str) for item in value)
            else:
                fits = value is None or isinstance(value, (bool, int, float, str))
            if not fits or (isinstance(value, float) and not math.isfinite(value)):
                faults.append(
                    Fault(
                        path=path,
                        value=shown(value),
                        message="must be a finite number, text, true, false, null or a list of names",
                    )
                )
            # Optuna finds a choice by equality, so 1, 1.0 and true are the same choice to it.
            elif value in seen:
                faults.append(Fault(path=path, value=shown(value), message="is listed twice"))
            else:
                seen.add(value)
        if faults:
            raise problems(faults)
        return tuple(values)

    @property
    def size(self) -> int:
        """Number of choices."""
        return len(self.choices)

    @property
    def encoded(self) -> tuple[Scalar, ...]:
        """The choices as Optuna's storage holds them, in order."""
        return tuple(encode_choice(choice) for choice in self.choices)

    def value_at(self, index: int) -> Any:
        """Choice `index`, as listed."""
        return self.choices[index]

    def contains(self, value: object) -> bool:
        """Whether `value` is one of the choices."""
        return any(type(choice) is type(value) and choice == value for choice in self.choices)

    def decode(self, value: Scalar) -> Any:
        """The choice that Optuna holds as `value`; `value` itself if none is."""
        for choice, encoded in zip(self.choices, self.encoded, strict=True):
            if encoded == value:
                return choice
        return value


Parameter = Annotated[Float | Int | Choice, Field(discriminator="type")]
