"""A search space: which recipe fields vary, over what, and when.

Order matters in one place: grid points are enumerated as `itertools.product` does over the parameters
in the order they are written, so the last one varies fastest; ranges ascend, choices come as listed. Where
conditions make points equal, the first of them stands for all.

Values are recipe values throughout (lists of names are tuples); what Optuna's storage holds in their place
(JSON text) is read too.
"""

from __future__ import annotations

import hashlib
from collections.abc import Hashable, Iterator, Mapping
from functools import cached_property
from itertools import compress
from typing import Any

from pydantic import ConfigDict, RootModel, model_validator

from search_spaces.faults import MAX_FAULTS, problems
from search_spaces.parameters.choices import Choice
from search_spaces.parameters.kinds import Parameter
from search_spaces.space.counting import (
    Dimensions,
    activity,
    configuration,
    configurations,
    count,
    dimensions_of,
)
from search_spaces.space.reading import read_parameters
from search_spaces.values.numbers import significant

_NO_GRID = "a search space with a continuous range has no grid points"


class SearchSpace(RootModel[dict[str, Parameter]]):
    """Recipe field -> parameter. Valid by construction: every point makes a recipe.

    A parameter's `type` may be left out: `choices` make a Choice, and otherwise a range is Int where the
    recipe field is whole and Float where it is not. A field that only some values of another searched field
    make use of (`sgd_momentum`, `optimizer: sgd`) is conditional on them by itself.
    """

    model_config = ConfigDict(frozen=True)

    @model_validator(mode="before")
    @classmethod
    def _read(cls, raw: Any) -> Any:
        if isinstance(raw, SearchSpace):
            return raw
        parameters, faults = read_parameters(raw)
        if faults:
            raise problems(*faults[:MAX_FAULTS])
        return parameters

    @property
    def parameters(self) -> dict[str, Parameter]:
        """The parameters by recipe field, in the order they were written."""
        return dict(self.root)

    @property
    def conditional(self) -> bool:
        """Whether any parameter has a condition."""
        return any(parameter.when for parameter in self.root.values())

    def grid_size(self) -> int | None:
        """Number of grid points; None if a continuous range leaves them uncountable."""
        return None if self._grid is None else count(self._grid)

    def grid_point(self, index: int) -> dict[str, Any]:
        """Grid point `index`, counted from 0, without making those before it.

        Raises:
            IndexError: There is no such point.
            ValueError: The space has a continuous range, so no grid.
        """
        size = self.grid_size()
        if self._grid is None or size is None:
            raise ValueError(_NO_GRID)
        if not 0 <= index < size:
            raise IndexError(f"grid point {index} of {size}")
        return self._grid_values(configuration(self._grid, index))

    def grid_points(self) -> Iterator[dict[str, Any]]:
        """All grid points, each configuration once; the last parameter varies fastest.

        Raises:
            ValueError: The space has a continuous range, so no grid.
        """
        if self._grid is None:
            raise ValueError(_NO_GRID)
        return (self._grid_values(digits) for digits in configurations(self._grid))

    def size(self) -> int | None:
        """How many configurations there are to suggest; None if a continuous range leaves them uncountable.

        It differs from the grid's where a range has `points`, which count for a grid only.
        """
        return None if self._all is None else count(self._all)

    def points(self) -> Iterator[dict[str, Any]]:
        """These configurations, each once, in the order of a grid.

        Raises:
            ValueError: The space has a continuous range.
        """
        if self._all is None:
            raise ValueError("a search space with a continuous range has no countable points")
        for digits in configurations(self._all):
            yield {name: self.root[name].value_at(digit) for name, digit in self._active(self._all, digits)}

    def active(self, values: Mapping[str, Any]) -> tuple[str, ...]:
        """The fields that are searched where the others have these values, in the order of the space.

        Those without a condition always are, and those whose condition names a field that `values` lacks
        are not.
        """
        known = self.decode(values)
        verdicts: dict[str, bool] = {}

        def is_active(name: str) -> bool:
            if name not in verdicts:
                when = self.root[name].when
                verdicts[name] = all(
                    parent in known and known[parent] in allowed and is_active(parent)
                    for parent, allowed in when.items()
                )
            return verdicts[name]

        return tuple(name for name in self.root if is_active(name))

    def prune_inactive(self, values: Mapping[str, Any]) -> dict[str, Any]:
        """`values` without those of parameters that are inactive given the others, and of other fields."""
        return {name: values[name] for name in self.active(values) if name in values}

    def contains(self, values: Mapping[str, Any]) -> bool:
        """Whether `values` is a configuration of this space: the active parameters, each in its range."""
        if set(values) != set(self.active(values)):
            return False
        return all(self.root[name].contains(value) for name, value in self.decode(values).items())

    def configuration_key(self, values: Mapping[str, Any]) -> Hashable:
        """What two equal configurations have in common, however they were written, stored or computed.

        Real numbers count as equal when their first 12 digits are.
        """
        known = self.decode(values)
        return tuple((name, _plain(known[name])) for name in self.active(known) if name in known)

    def configuration_digest(self, values: Mapping[str, Any]) -> str:
        """`configuration_key` in 16 characters, to be stored."""
        return key_digest(self.configuration_key(values))

    def narrowed(self, name: str, low: float, high: float) -> SearchSpace:
        """This space with another range for one parameter: its values from `low` to `high`.

        Where the range has steps, the values stay on them. Nothing keeps `low` and `high` inside the old
        range; the bounds of the recipe field hold.

        Raises:
            KeyError: The parameter is not searched.
            ValueError: It is a list of choices, or fewer than two values that the field may have are left.
        """
        parameter = self.root[name]
        if isinstance(parameter, Choice):
            raise ValueError(f"{name} is searched over choices, which have no range to narrow")
        changed = {**parameter.model_dump(), **parameter.bounds_within(low, high)}
        return SearchSpace.model_validate({**self.model_dump(), name: changed})

    def decode(self, params: Mapping[str, Any]) -> dict[str, Any]:
        """Recipe values from what Optuna's storage holds (lists of names are JSON text there)."""
        decoded = dict(params)
        for name, value in params.items():
            parameter = self.root.get(name)
            if isinstance(parameter, Choice):
                decoded[name] = parameter.decode(value)
        return decoded

    @cached_property
    def _grid(self) -> Dimensions | None:
        return dimensions_of(self.root, grid=True)

    @cached_property
    def _all(self) -> Dimensions | None:
        return dimensions_of(self.root, grid=False)

    def _grid_values(self, digits: tuple[int, ...]) -> dict[str, Any]:
        assert self._grid is not None
        return {name: self.root[name].grid_value(digit) for name, digit in self._active(self._grid, digits)}

    def _active(self, dimensions: Dimensions, digits: tuple[int, ...]) -> Iterator[tuple[str, int]]:
        """The fields that are active in a configuration, each with its digit."""
        return compress(zip(self.root, digits, strict=True), activity(dimensions, digits))


def key_digest(key: Hashable) -> str:
    """A `SearchSpace.configuration_key` in 16 characters, the same for equal keys in every process."""
    return hashlib.blake2b(_in_one_spelling(key).encode(), digest_size=8).hexdigest()


def _in_one_spelling(part: Any) -> str:
    if isinstance(part, tuple):
        return "(" + ",".join(map(_in_one_spelling, part)) + ")"
    number = isinstance(part, int | float) and not isinstance(part, bool)
    return repr(float(part)) if number else repr(part)  # 8 and 8.0 are equal


def _plain(value: Any) -> Any:
    return significant(value) if isinstance(value, float) else value
