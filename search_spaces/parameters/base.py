"""When a parameter is searched: what every kind of parameter has in common.

`when: {optimizer: [sgd]}` names other searched fields and, for each, the values with which the parameter is
searched. What conditions demand of each other is in `search_spaces.space.conditions`.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Annotated, Any

from pydantic import (
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    SerializerFunctionWrapHandler,
    model_serializer,
)

from search_spaces.errors import Fault
from search_spaces.faults import problems, shown

Values = tuple[Any, ...]

_FORM = "{field: value} or {field: [value, ...]}"


def read_when(raw: Any) -> dict[str, Values]:
    """Field -> values; one value alone stands for a list of one. Raises PydanticCustomError otherwise."""
    if raw is None:
        return {}
    if not isinstance(raw, Mapping):
        message = "must be a mapping of searched fields to their values"
        raise problems(Fault(path="", value=shown(raw), message=message, allowed=_FORM))
    when: dict[str, Values] = {}
    faults = []
    for field, given in raw.items():
        listed = given if isinstance(given, (list, tuple)) else [given]
        values = tuple(tuple(item) if isinstance(item, list) else item for item in listed)
        bad = [value for value in values if not is_value(value)]
        if bad or not isinstance(field, str):
            message = "must be a value of that field, or a list of its values"
            faults.append(Fault(path=str(shown(field)), value=shown(given), message=message, allowed=_FORM))
        elif not values:
            message = "lists no value, so the condition can never hold"
            faults.append(Fault(path=field, value=[], message=message, allowed=_FORM))
        else:
            when[field] = values
    if faults:
        raise problems(*faults)
    return when


def is_value(value: Any) -> bool:
    """Whether a parameter may have this value: a finite scalar, or a tuple of names."""
    if isinstance(value, tuple):
        return bool(value) and all(isinstance(item, str) for item in value)
    if isinstance(value, float):
        return math.isfinite(value)
    return value is None or isinstance(value, (bool, int, str))


When = Annotated[dict[str, Values], BeforeValidator(read_when)]
"""The condition of a parameter; empty where it has none."""


class Conditional(BaseModel):
    """A parameter, which may have a condition."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)

    when: When = Field(default_factory=dict)
    """Another searched field -> its values with which this one is searched. Empty: always."""

    @model_serializer(mode="wrap")
    def _say_no_more_than_needed(self, handler: SerializerFunctionWrapHandler) -> dict[str, Any]:
        # So that a parameter without a condition reads as it was written.
        return {
            key: value
            for key, value in handler(self).items()
            if not (key == "when" and not value) and not (key == "points" and value is None)
        }
