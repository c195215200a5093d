"""Choice: one of several listed values."""

from __future__ import annotations

import json
from functools import cached_property
from typing import Any, Literal

from pydantic import field_validator

from search_spaces.errors import Fault
from search_spaces.faults import problems, shown
from search_spaces.parameters.base import Conditional, is_value
from search_spaces.values.numbers import significant

Scalar = None | bool | int | float | str
"""What Optuna's CategoricalDistribution can hold."""


def encode_choice(value: Any) -> Scalar:
    """A choice as Optuna's storage can hold it: a list becomes its JSON text, the rest stays."""
    return json.dumps(list(value)) if isinstance(value, (list, tuple)) else value


def _identity(value: Any) -> Any:
    """Equal for choices that make equal trials: names in another order, or beyond the digits that count."""
    if isinstance(value, tuple):
        return frozenset(value)
    return significant(value) if isinstance(value, float) else value


class Choice(Conditional):
    """One of the listed values, without an order. Values are scalars, or lists of names."""

    type: Literal["choice"] = "choice"
    choices: tuple[Any, ...]

    @field_validator("choices", mode="before")
    @classmethod
    def _check(cls, raw: Any) -> tuple[Any, ...]:
        if not isinstance(raw, (list, tuple)):
            raise problems(Fault(path="", value=shown(raw), message="must be a list", allowed="a list"))
        if not raw:
            raise problems(Fault(path="", value=[], message="must not be empty", allowed="a list of values"))
        values = [tuple(item) if isinstance(item, list) else item for item in raw]
        faults = []
        seen: set[Any] = set()
        for index, value in enumerate(values):
            path = str(index)
            if not is_value(value):
                message = "must be a finite number, text, true, false, null or a list of names"
                faults.append(Fault(path=path, value=shown(value), message=message))
            # Optuna finds a choice by equality, so 1, 1.0 and true are the same choice to it.
            elif _identity(value) in seen:
                faults.append(Fault(path=path, value=shown(value), message="is listed twice"))
            else:
                seen.add(_identity(value))
        if faults:
            raise problems(*faults)
        return tuple(values)

    @property
    def size(self) -> int:
        """Number of choices."""
        return len(self.choices)

    @property
    def grid_size(self) -> int:
        """Number of choices, on a grid too."""
        return self.size

    def grid_value(self, index: int) -> Any:
        """Choice `index`, as listed."""
        return self.choices[index]

    @cached_property
    def encoded(self) -> tuple[Scalar, ...]:
        """The choices as Optuna's storage holds them, in order."""
        return tuple(encode_choice(choice) for choice in self.choices)

    def value_at(self, index: int) -> Any:
        """Choice `index`, as listed."""
        return self.choices[index]

    def contains(self, value: object) -> bool:
        """Whether `value` is one of the choices."""
        return any(type(choice) is type(value) and choice == value for choice in self.choices)

    def decode(self, value: Any) -> Any:
        """The choice that Optuna holds as `value`; `value` itself if none is. A list is its tuple."""
        if isinstance(value, list):
            return tuple(value)
        return self._by_encoded.get(value, value)

    @cached_property
    def _by_encoded(self) -> dict[Scalar, Any]:
        # Samplers decode every trial of a study at every ask.
        return dict(zip(self.encoded, self.choices, strict=True))
