"""The nearest configuration that no trial has had."""

from __future__ import annotations

import heapq
import random
from collections.abc import Container, Hashable, Mapping
from typing import Any

from search_spaces.sampling.axes import Axes
from search_spaces.space.search_space import SearchSpace


def nearest_untried(
    space: SearchSpace, axes: Axes, used: Container[Hashable], start: Mapping[str, Any], seed: int
) -> dict[str, Any] | None:
    """The untried configuration that is the fewest and smallest steps away; None if all have been tried.

    A step moves one active parameter: a number to its neighbour, which costs the step's share of the range,
    or any other choice to another one, which costs 1. The seed decides between equal costs. The search
    (Dijkstra's) goes out from `start` and looks at used configurations and their neighbours only, so its
    cost grows with the number of trials, not with the size of the space.

    Args:
        space: A finite one.
        axes: Its axes.
        used: Keys of the configurations that are taken.
        start: A value for every parameter, inactive ones included: where a step activates one, it has this.
        seed: Decides among equals.
    """
    lots = random.Random(seed)
    start = dict(start)
    seen = {space.configuration_key(start)}
    frontier: list[tuple[float, float, int, dict[str, Any]]] = [(0.0, 0.0, 0, start)]
    while frontier:
        cost, _, _, values = heapq.heappop(frontier)
        if space.configuration_key(values) not in used:
            return values
        for name in space.active(values):
            for value, length in axes[name].neighbours(values[name]):
                moved = {**values, name: value}
                key = space.configuration_key(moved)
                if key not in seen:
                    seen.add(key)
                    # Rounded, so that equal sums of different steps are equal.
                    entry = (round(cost + length, 9), lots.random(), len(seen), moved)
                    heapq.heappush(frontier, entry)
    return None
