"""From parameters to the numbers that `search_spaces.space.counting` counts with."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from search_spaces.errors import Fault
from search_spaces.parameters.kinds import Choice, Float, Int
from search_spaces.space.counting import Dimension, Dimensions, TooManyConditionsError, count


def dimensions_of(parameters: Mapping[str, Float | Int | Choice], *, grid: bool) -> Dimensions | None:
    """What a grid takes of the parameters, or all that may be suggested; None if that is uncountable."""
    sizes = [parameter.grid_size if grid else parameter.size for parameter in parameters.values()]
    counted = [size for size in sizes if size is not None]
    return _dimensions(parameters, counted, grid) if len(counted) == len(sizes) else None


def uncountable(parameters: Mapping[str, Float | Int | Choice]) -> Iterator[Fault]:
    """A fault where conditions combine in too many ways, whether or not any range is continuous."""
    try:
        count(_dimensions(parameters, [parameter.size or 1 for parameter in parameters.values()], False))
    except TooManyConditionsError:
        message = "has conditions with too many combinations to count; use fewer or simpler conditions"
        yield Fault(path="", value=None, message=message)


def _dimensions(parameters: Mapping[str, Float | Int | Choice], sizes: list[int], grid: bool) -> Dimensions:
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


def _digits(parameter: Float | Int | Choice, values: tuple[Any, ...], grid: bool) -> frozenset[int]:
    """The numbers of some of a parameter's values, without those that a grid leaves out."""
    if isinstance(parameter, Int) and not (grid and parameter.points is not None):
        return frozenset((int(value) - parameter.min) // parameter.step for value in values)
    size = parameter.grid_size
    assert size is not None  # conditions go by choices and whole numbers
    wanted = frozenset(values)
    return frozenset(index for index in range(size) if parameter.grid_value(index) in wanted)
