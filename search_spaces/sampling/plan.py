"""What is fixed before the first trial: the space that is searched, and the points that come first."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from itertools import islice
from typing import Any

from search_spaces.definition import StudyDefinition
from search_spaces.errors import SearchSpaceExhausted
from search_spaces.parameters.choices import Choice
from search_spaces.preparation import Preparation
from search_spaces.sampling.history import Avoided
from search_spaces.space.search_space import SearchSpace
from search_spaces.wording import counted

LEARNING_RATE = "learning_rate"

Values = dict[str, Any]
"""A configuration: recipe field -> recipe value, of the active parameters."""


def prepared_space(definition: StudyDefinition, preparation: Preparation) -> SearchSpace:
    """The definition's space within the bounds that its preparation gives the learning rate.

    A learning rate that is fixed, or searched over choices, has no bounds to narrow.
    """
    space = definition.search.space
    bounds = preparation.learning_rate_bounds
    parameter = space.parameters.get(LEARNING_RATE)
    if bounds is None or parameter is None or isinstance(parameter, Choice):
        return space
    return space.narrowed(LEARNING_RATE, *bounds)


def enqueued_points(space: SearchSpace, preparation: Preparation, *, on_grid: bool) -> list[Values]:
    """The points that the first trials evaluate: those that lie in the space, each once, in their order.

    Without those that earlier sweeps have evaluated.

    Args:
        space: As `prepared_space` gives it.
        preparation: The study's.
        on_grid: Whether only points of the space's grid count.
    """
    points: dict[Any, Values] = {}
    for given in preparation.enqueued:
        values = space.decode(given)
        if space.contains(values) and (not on_grid or _is_on_grid(space, values)):
            points.setdefault(space.configuration_key(values), values)
    known = Avoided(frozenset(), frozenset(preparation.evaluated))
    return [values for key, values in points.items() if key not in known]


def _is_on_grid(space: SearchSpace, values: Mapping[str, Any]) -> bool:
    key = space.configuration_key(values)
    nearest = {}
    for name, value in values.items():
        parameter = space.root[name]
        if isinstance(parameter, Choice) or parameter.points is None:
            nearest[name] = value
        else:
            grid = (parameter.grid_value(index) for index in range(parameter.grid_size or 0))
            nearest[name] = min(grid, key=lambda point: abs(point - value))
    return space.configuration_key(nearest) == key


def grid_entries(
    space: SearchSpace, enqueued: list[Values], start: int, evaluated: frozenset[str] = frozenset()
) -> Iterator[Values]:
    """A grid study's trials from number `start` on: enqueued points first, then the others in grid order.

    Without those whose digests are in `evaluated`.
    """
    if not enqueued and not evaluated:
        size = space.grid_size() or 0
        return (space.grid_point(number) for number in range(start, size))
    first = Avoided(frozenset(space.configuration_key(point) for point in enqueued), evaluated)
    others = (point for point in space.grid_points() if space.configuration_key(point) not in first)
    return islice((point for points in (enqueued, others) for point in points), start, None)


def grid_entry(
    space: SearchSpace, enqueued: list[Values], number: int, evaluated: frozenset[str] = frozenset()
) -> Values:
    """What trial `number` of a grid study evaluates, counted from 0.

    Raises:
        SearchSpaceExhausted: The grid has no more points.
    """
    entry = next(grid_entries(space, enqueued, number, evaluated), None)
    if entry is None:
        before = f", {len(evaluated)} of them evaluated by earlier sweeps" if evaluated else ""
        raise SearchSpaceExhausted(
            f"trial {number} has no grid point:"
            f" the grid has {counted(space.grid_size() or 0, 'point')}{before}"
        )
    return entry


def planned_trials(definition: StudyDefinition, preparation: Preparation) -> int:
    """Exactly how many trials the search has, if nothing stops it earlier; repeats come on top.

    `search.trials`, but no more than the prepared space has points that earlier sweeps have not evaluated:
    points of its grid for a grid, all there are for the other algorithms. Enqueued points are among them, not
    on top.
    """
    search = definition.search
    space = prepared_space(definition, preparation)
    points = space.grid_size() if search.algorithm == "grid" else space.size()
    left = None if points is None else max(0, points - len(preparation.evaluated))
    known = [number for number in (search.trials, left) if number is not None]
    if not known:
        raise ValueError("the search states no number of trials and its space has no finite grid")
    return min(known)
