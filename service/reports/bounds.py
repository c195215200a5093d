"""Whether the best trials gather at an end of a hyperparameter's range. Pure."""

from __future__ import annotations

import math
import statistics
from collections.abc import Sequence
from typing import Any

from search_spaces.errors import SearchSpaceError
from search_spaces.parameters.choices import Choice
from search_spaces.parameters.ranges import Float, Int
from search_spaces.recipe import canonical

AT_END = 0.05
"""The best value lies at an end of its range within this share of it, on the range's scale."""
CROWD = 0.25
"""And the median of the best trials lies in this outer share: one lucky trial at the end is no reason."""
MIN_CHOICES = 3
"""Of two choices each is at an end."""
_STEP = 0.1
"""How far beyond a bound a field is tried, as a share of the range (or, on a log scale, of the bound)."""


def at_an_end(
    name: str,
    parameter: Float | Int | Choice,
    values: Sequence[Any],
    *,
    low: float | None = None,
    high: float | None = None,
) -> str | None:
    """A sentence when the best trials lie at an end that could be moved outwards; None otherwise.

    Args:
        name: the recipe field.
        parameter: what the space says of it.
        values: its values in the best trials, the best first, as recipe values.
        low: the lower bound that was in force, of a range.
        high: the upper bound.
    """
    if isinstance(parameter, Choice):
        return _of_choices(name, parameter, values)
    low, high = float(parameter.min) if low is None else low, float(parameter.max) if high is None else high
    if not low < high:
        return None
    log = parameter.scale == "log"
    places = [_place(float(value), low, high, log=log) for value in values]
    middle = statistics.median(places)
    for upper in (False, True):
        distance, crowd = (1 - places[0], 1 - middle) if upper else (places[0], middle)
        if distance <= AT_END and crowd <= CROWD and _can_go_on(name, low, high, upper=upper, log=log):
            side = "upper" if upper else "lower"
            where = f"{_shown(values[0])} of {_shown(low)}…{_shown(high)}"
            return f"{name}: the best value is at the {side} bound ({where}): widen the range."
    return None


def _of_choices(name: str, parameter: Choice, values: Sequence[Any]) -> str | None:
    """Numbers have an order however they are listed; other choices have none."""
    choices = list(parameter.choices)
    if len(choices) < MIN_CHOICES or not all(_is_number(choice) for choice in choices):
        return None
    ordered = sorted(choices)
    places = [ordered.index(value) / (len(ordered) - 1) for value in values if value in ordered]
    if not places or values[0] not in (ordered[0], ordered[-1]):
        return None
    upper = values[0] == ordered[-1]
    middle = statistics.median(places)
    if (1 - middle if upper else middle) > CROWD:
        return None
    if not _can_go_on(name, float(ordered[0]), float(ordered[-1]), upper=upper, log=ordered[0] > 0):
        return None
    which = "largest" if upper else "smallest"
    where = f"{_shown(values[0])} of {', '.join(_shown(choice) for choice in ordered)}"
    more = "larger" if upper else "smaller"
    return f"{name}: the best value is the {which} choice ({where}): add {more} ones."


def _place(value: float, low: float, high: float, *, log: bool) -> float:
    """Where a value lies between the bounds, 0 to 1."""
    if log:
        value, low, high = math.log(value), math.log(low), math.log(high)
    return min(1.0, max(0.0, (value - low) / (high - low)))


def _can_go_on(name: str, low: float, high: float, *, upper: bool, log: bool) -> bool:
    """Whether the recipe field takes a value beyond the bound."""
    step = _STEP * ((high if upper else low) if log else high - low)
    # A whole number's next one is a whole one away.
    for distance in (step, 1.0):
        beyond = high + distance if upper else low - distance
        try:
            canonical(name, beyond)
        except SearchSpaceError:
            continue
        return True
    return False


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _shown(value: Any) -> str:
    return f"{value:.3g}" if isinstance(value, float) else str(value)
