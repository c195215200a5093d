"""One parameter as a sampler sees it.

Choices among numbers are given to samplers as positions in ascending order, so that they know that 8 lies
between 4 and 16; other choices as positions without an order. What the study's storage holds stays the
value itself.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from search_spaces.parameters.choices import Choice
from search_spaces.parameters.kinds import Parameter
from search_spaces.parameters.ranges import Int
from search_spaces.space.search_space import SearchSpace


@dataclass(frozen=True)
class Axis:
    """One parameter of a search space."""

    name: str
    parameter: Parameter

    @cached_property
    def ordered(self) -> bool:
        """Whether its values have an order: a range, or choices that are all numbers."""
        return not isinstance(self.parameter, Choice) or all(
            isinstance(value, (int, float)) and not isinstance(value, bool)
            for value in self.parameter.choices
        )

    @cached_property
    def choices(self) -> tuple[Any, ...]:
        """Of a Choice, by position: ascending where they have an order, else as they are listed."""
        assert isinstance(self.parameter, Choice)
        return tuple(sorted(self.parameter.choices)) if self.ordered else self.parameter.choices

    @property
    def size(self) -> int | None:
        """Number of values; None if they are continuous."""
        return self.parameter.size

    @property
    def cells(self) -> int:
        """Number of values that lie evenly in the unit interval; 0 where they do not."""
        if isinstance(self.parameter, Choice) or self.parameter.scale == "linear":
            return self.size or 0
        return 0

    def position(self, value: Any) -> Any:
        """What samplers get in place of a value: a choice's position, any other number as it is."""
        return self.choices.index(value) if isinstance(self.parameter, Choice) else value

    def value(self, position: Any) -> Any:
        """The value that a sampler's number stands for, or the nearest one."""
        if isinstance(self.parameter, Choice):
            return self.choices[int(position)]
        return self.parameter.snap(position)

    def from_unit(self, unit: float) -> Any:
        """The value at a point of the unit interval, on the parameter's scale.

        Values of which there are finitely many take up intervals of equal length; whole numbers on a log
        scale those of their logarithms, half a number further at either end.
        """
        parameter = self.parameter
        if self.cells:
            return self._at(min(int(unit * self.cells), self.cells - 1))
        assert not isinstance(parameter, Choice)
        low, high = self._ends
        number = low + unit * (high - low)
        return parameter.snap(math.exp(number) if parameter.scale == "log" else number)

    def to_unit(self, value: Any) -> float:
        """Where a value lies in the unit interval: of those that take up an interval, its middle."""
        if self.cells:
            return (self._index(value) + 0.5) / self.cells
        low, high = self._ends
        number = math.log(value) if self._log else float(value)
        return min(max((number - low) / (high - low), 0.0), 1.0)

    def neighbours(self, value: Any) -> Iterator[tuple[Any, float]]:
        """The values one step away, with the length of that step: the whole range, or another category, is 1.

        Of finite parameters only.
        """
        size = self.size
        assert size is not None
        if not self.ordered:
            yield from ((other, 1.0) for other in self.choices if other != value)
            return
        index = self._index(value)
        for other in (index - 1, index + 1):
            if 0 <= other < size:
                found = self._at(other)
                yield found, self._distance(value, found, size)

    def _index(self, value: Any) -> int:
        if isinstance(self.parameter, Choice):
            return self.choices.index(value)
        index: int = round((value - self.parameter.min) / (self.parameter.step or 1))
        return index

    def _at(self, index: int) -> Any:
        return self.choices[index] if isinstance(self.parameter, Choice) else self.parameter.value_at(index)

    def _distance(self, one: Any, other: Any, size: int) -> float:
        if self._log:
            assert isinstance(self.parameter, Int)
            return abs(math.log(one / other)) / math.log(self.parameter.last / self.parameter.min)
        return 1 / (size - 1)

    @property
    def _log(self) -> bool:
        return not isinstance(self.parameter, Choice) and self.parameter.scale == "log"

    @cached_property
    def _ends(self) -> tuple[float, float]:
        parameter = self.parameter
        assert not isinstance(parameter, Choice)
        margin = 0.5 if isinstance(parameter, Int) else 0.0
        low, high = parameter.min - margin, parameter.last + margin
        return (math.log(low), math.log(high)) if self._log else (float(low), float(high))


Axes = Mapping[str, Axis]


def axes_of(space: SearchSpace) -> dict[str, Axis]:
    """A space's axes, in its order."""
    return {name: Axis(name, parameter) for name, parameter in space.parameters.items()}
