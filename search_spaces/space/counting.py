"""Counting and listing the distinct configurations of conditional parameters.

To count, a parameter is a *dimension*: a number of values and, for each parameter it depends on, the numbers
of the values with which it is active. A configuration is a tuple of digits, one for each dimension, with 0
for each that is inactive: so each configuration has one tuple. It is the first, in the order of
`itertools.product`, of all tuples that stand for the configuration. So listing these tuples in order gives
the whole product without inactive values and duplicates, and the product is never made.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import lru_cache
from itertools import islice
from typing import Any

from search_spaces.errors import Fault
from search_spaces.parameters.kinds import Parameter
from search_spaces.parameters.ranges import Int

MAX_LISTED = 100_000
"""Configurations kept in memory, to find one by its number."""
MAX_STATES = 5_000
"""Combinations of conditions that counting looks at. What people write needs a few dozen."""


class TooManyConditionsError(Exception):
    """The conditions combine in more ways than can be counted quickly."""


@dataclass(frozen=True)
class Dimension:
    """One parameter."""

    size: int
    when: tuple[tuple[int, frozenset[int]], ...] = ()
    """(index of another dimension, its digits with which this one is active)."""


Dimensions = tuple[Dimension, ...]


def dimensions_of(parameters: Mapping[str, Parameter], *, grid: bool) -> Dimensions | None:
    """What a grid takes of the parameters, or all that may be suggested; None if that is uncountable."""
    sizes = [parameter.grid_size if grid else parameter.size for parameter in parameters.values()]
    finite = [size for size in sizes if size is not None]
    return _dimensions(parameters, finite, grid) if len(finite) == len(sizes) else None


def uncountable(parameters: Mapping[str, Parameter]) -> Iterator[Fault]:
    """A fault where conditions combine in too many ways, whether or not any range is continuous."""
    try:
        count(_dimensions(parameters, [parameter.size or 1 for parameter in parameters.values()], False))
    except TooManyConditionsError:
        message = "has conditions with too many combinations to count; use fewer or simpler conditions"
        yield Fault(path="", value=None, message=message)


def _dimensions(parameters: Mapping[str, Parameter], sizes: list[int], grid: bool) -> Dimensions:
    names = list(parameters)
    return tuple(
        Dimension(
            size,
            tuple(
                (names.index(parent), _digits(parameters[parent], values, grid))
                for parent, values in parameter.when.items()
            ),
        )
        for size, parameter in zip(sizes, parameters.values(), strict=True)
    )


def _digits(parameter: Parameter, values: tuple[Any, ...], grid: bool) -> frozenset[int]:
    """The numbers of some of a parameter's values, without those that a grid leaves out."""
    if isinstance(parameter, Int) and not (grid and parameter.points is not None):
        return frozenset((int(value) - parameter.min) // parameter.step for value in values)
    size = parameter.grid_size
    assert size is not None  # conditions go by choices and whole numbers
    wanted = frozenset(values)
    return frozenset(index for index in range(size) if parameter.grid_value(index) in wanted)


@lru_cache(maxsize=256)
def count(dimensions: Dimensions) -> int:
    """How many configurations there are.

    Raises:
        TooManyConditionsError: More than `MAX_STATES` combinations of conditions would have to be looked at.
    """
    if not any(dimension.when for dimension in dimensions):
        return math.prod(dimension.size for dimension in dimensions)
    order = _parents_first(dimensions)
    children = _children(dimensions)
    alike = [_alike(dimension.size, below) for dimension, below in zip(dimensions, children, strict=True)]
    known: dict[tuple[int, frozenset[int]], int] = {}

    def count_from(place: int, inactive: frozenset[int]) -> int:
        if place == len(order):
            return 1
        state = (place, inactive)
        if state in known:
            return known[state]
        if len(known) >= MAX_STATES:
            raise TooManyConditionsError
        index = order[place]
        if index in inactive:
            total = count_from(place + 1, (inactive - {index}) | {child for child, _ in children[index]})
        else:
            total = 0
            for stopped, digits in alike[index].items():
                total += digits * count_from(place + 1, inactive | stopped)
        known[state] = total
        return total

    return count_from(0, frozenset())


def _alike(size: int, below: list[tuple[int, frozenset[int]]]) -> dict[frozenset[int], int]:
    """The children that a digit makes inactive -> how many digits do just that."""
    groups: dict[frozenset[int], int] = {}
    named = frozenset().union(*(digits for _, digits in below))
    for digit in named:
        stopped = frozenset(child for child, digits in below if digit not in digits)
        groups[stopped] = groups.get(stopped, 0) + 1
    if size > len(named):
        stopped = frozenset(child for child, _ in below)
        groups[stopped] = groups.get(stopped, 0) + size - len(named)
    return groups


def _children(dimensions: Dimensions) -> list[list[tuple[int, frozenset[int]]]]:
    children: list[list[tuple[int, frozenset[int]]]] = [[] for _ in dimensions]
    for index, dimension in enumerate(dimensions):
        for parent, digits in dimension.when:
            children[parent].append((index, digits))
    return children


def _parents_first(dimensions: Dimensions) -> list[int]:
    """An order in which each comes after those it depends on, and as soon as it may.

    The sooner a child is decided, the fewer combinations are open at once.
    """
    children = _children(dimensions)
    left = set(range(len(dimensions)))
    order: list[int] = []
    while left:
        ready = [i for i in left if not any(parent in left for parent, _ in dimensions[i].when)]
        order.append(min(ready, key=lambda i: (len(children[i]), i)))
        left.remove(order[-1])
    return order


def activity(dimensions: Dimensions, digits: tuple[int, ...]) -> list[bool]:
    """Which dimensions are active in a configuration."""
    active = [True] * len(dimensions)
    for index in _order(dimensions):
        active[index] = all(
            active[parent] and digits[parent] in allowed for parent, allowed in dimensions[index].when
        )
    return active


@lru_cache(maxsize=256)
def _order(dimensions: Dimensions) -> tuple[int, ...]:
    return tuple(_parents_first(dimensions))


def configurations(dimensions: Dimensions) -> Iterator[tuple[int, ...]]:
    """All of them, lazily, in the order of their first tuples in the product."""
    needs = [_needs(dimensions, index) for index in range(len(dimensions))]

    def extend(digits: tuple[int, ...], required: dict[int, frozenset[int]]) -> Iterator[tuple[int, ...]]:
        index = len(digits)
        if index == len(dimensions):
            yield digits
            return
        # What an earlier parameter's digit demands of this one; it is then known to be active.
        demanded = required.get(index)
        if demanded is not None:
            for digit in sorted(demanded):
                yield from extend((*digits, digit), required)
            return
        # 0 stands for the first value and for an inactive parameter alike, so it is always possible.
        yield from extend((*digits, 0), required)
        if dimensions[index].size == 1:
            return
        stricter = _with(required, needs[index], digits)
        if stricter is not None:
            for digit in range(1, dimensions[index].size):
                yield from extend((*digits, digit), stricter)

    return extend((), {})


def _with(
    required: dict[int, frozenset[int]], needs: dict[int, frozenset[int]], digits: tuple[int, ...]
) -> dict[int, frozenset[int]] | None:
    """`required` and `needs` together; None where they, or the digits chosen so far, exclude each other."""
    together = dict(required)
    for index, allowed in needs.items():
        if index in together:
            allowed = together[index] & allowed
        if not allowed or (index < len(digits) and digits[index] not in allowed):
            return None
        together[index] = allowed
    return together


def _needs(dimensions: Dimensions, index: int) -> dict[int, frozenset[int]]:
    """The digits that must stand elsewhere for this dimension to be active."""
    needs: dict[int, frozenset[int]] = {}
    waiting = [index]
    while waiting:
        for parent, digits in dimensions[waiting.pop()].when:
            if parent not in needs:
                waiting.append(parent)
            needs[parent] = needs.get(parent, digits) & digits
    return needs


def configuration(dimensions: Dimensions, number: int) -> tuple[int, ...]:
    """The configuration of this number, counted from 0, in the order of `configurations`."""
    if not any(dimension.when for dimension in dimensions):
        digits = []
        for dimension in reversed(dimensions):
            number, digit = divmod(number, dimension.size)
            digits.append(digit)
        return tuple(reversed(digits))
    if count(dimensions) <= MAX_LISTED:
        return _listed(dimensions)[number]
    return next(islice(configurations(dimensions), number, None))


@lru_cache(maxsize=8)
def _listed(dimensions: Dimensions) -> tuple[tuple[int, ...], ...]:
    return tuple(configurations(dimensions))
