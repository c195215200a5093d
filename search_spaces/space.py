"""A search space: which recipe fields vary, and over what.

Order matters in one place: grid points are enumerated as `itertools.product` does over the parameters
in the order they are written, so the last one varies fastest; ranges ascend, choices come as listed.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from typing import Any

from pydantic import ConfigDict, RootModel, ValidationError, model_validator

from search_spaces.errors import Fault, InvalidRecipe, join_path
from search_spaces.faults import MAX_FAULTS, name_fault, problems, shown, translate, unknown_keys
from search_spaces.parameters import Choice, Float, Int, Parameter
from search_spaces.recipe import (
    CATEGORICAL_FIELDS,
    INT_FIELDS,
    NOT_SEARCHABLE,
    SEARCHABLE_FIELDS,
    SYNONYMS,
    canonical,
)

_KINDS: Mapping[str, type[Float] | type[Int] | type[Choice]] = {"float": Float, "int": Int, "choice": Choice}
_FORMS = "{min: ..., max: ...} or {choices: [...]}"


class SearchSpace(RootModel[dict[str, Parameter]]):
    """Recipe field -> parameter. Valid by construction: every point makes a recipe.

    A parameter's `type` may be left out: `choices` make a Choice, and otherwise a range is Int where the
    recipe field is whole and Float where it is not.
    """

    model_config = ConfigDict(frozen=True)

    @model_validator(mode="before")
    @classmethod
    def _read(cls, raw: Any) -> Any:
        if isinstance(raw, SearchSpace):
            return raw
        parameters, faults = read_parameters(raw)
        if faults:
            raise problems(faults[:MAX_FAULTS])
        return parameters

    @property
    def parameters(self) -> dict[str, Float | Int | Choice]:
        """The parameters by recipe field, in the order they were written."""
        return dict(self.root)

    def grid_size(self) -> int | None:
        """Number of grid points; None if a continuous range leaves them uncountable."""
        sizes = [parameter.size for parameter in self.root.values()]
        return None if None in sizes else math.prod(size for size in sizes if size is not None)

    def grid_point(self, index: int) -> dict[str, Any]:
        """Grid point `index`, counted from 0, without enumerating those before it.

        Raises:
            IndexError: There is no such point.
            ValueError: The space has a continuous range, so no grid.
        """
        size = self.grid_size()
        if size is None:
            raise ValueError("a search space with a continuous range has no grid points")
        if not 0 <= index < size:
            raise IndexError(f"grid point {index} of {size}")
        point: dict[str, Any] = {}
        for name, parameter in reversed(self.root.items()):
            count = parameter.size
            assert count is not None  # grid_size() was not None
            index, digit = divmod(index, count)
            point[name] = parameter.value_at(digit)
        return {name: point[name] for name in self.root}

    def grid_points(self) -> Iterator[dict[str, Any]]:
        """All grid points; the last parameter varies fastest.

        Raises:
            ValueError: The space has a continuous range, so no grid.
        """
        size = self.grid_size()
        if size is None:
            raise ValueError("a search space with a continuous range has no grid points")
        return (self.grid_point(index) for index in range(size))

    def decode(self, params: Mapping[str, Any]) -> dict[str, Any]:
        """Recipe values from what Optuna's storage holds (lists of names are JSON text there)."""
        decoded = dict(params)
        for name, value in params.items():
            parameter = self.root.get(name)
            if isinstance(parameter, Choice):
                decoded[name] = parameter.decode(value)
        return decoded


def read_parameters(raw: Any) -> tuple[dict[str, Float | Int | Choice], list[Fault]]:
    """The valid parameters of a search space, and every fault in the others (paths from the space)."""
    if not isinstance(raw, Mapping):
        message = "must be a mapping of recipe fields to parameters"
        return {}, [Fault(path="", value=shown(raw), message=message, allowed=f"name: {_FORMS}")]
    if not raw:
        return {}, [Fault(path="", value={}, message="is empty: name at least one recipe field to search")]
    faults = [
        fault
        for fault in unknown_keys(raw, SEARCHABLE_FIELDS, "", SYNONYMS, what="searchable recipe field")
        if fault.path not in NOT_SEARCHABLE
    ]
    faults += [
        Fault(path=name, value=shown(raw[name]), message=f"cannot be searched: {why}")
        for name, why in NOT_SEARCHABLE.items()
        if name in raw
    ]
    parameters = {}
    for name in raw:
        if name in SEARCHABLE_FIELDS:
            parameter = _read_parameter(name, raw[name], faults)
            if parameter is not None:
                parameters[name] = parameter
    return parameters, faults


def _read_parameter(name: str, raw: Any, faults: list[Fault]) -> Float | Int | Choice | None:
    if isinstance(raw, (Float, Int, Choice)):
        raw = raw.model_dump()
    if not isinstance(raw, Mapping):
        hint = "must be a range or a list of choices"
        if not isinstance(raw, list):
            hint += "; a fixed value belongs in recipe"
        faults.append(Fault(path=name, value=shown(raw), message=hint, allowed=_FORMS))
        return None
    kind = _kind_of(name, raw, faults)
    if kind is None:
        return None
    found = unknown_keys(raw, list(kind.model_fields), name)
    try:
        parameter = kind.model_validate({key: raw[key] for key in raw if key in kind.model_fields})
    except ValidationError as error:
        faults += found + translate(error, name)
        return None
    fitted, misfits = _fit(name, parameter)
    found += misfits
    faults += found
    return None if found else fitted


def _kind_of(name: str, raw: Mapping[str, Any], faults: list[Fault]) -> type[Float | Int | Choice] | None:
    stated = raw.get("type")
    if stated is not None and (not isinstance(stated, str) or stated not in _KINDS):
        faults.append(name_fault(f"{name}.type", stated, "parameter type", list(_KINDS)))
        return None
    ranged = [key for key in ("min", "max", "step", "scale") if key in raw]
    if "choices" in raw and ranged:
        faults.append(
            Fault(path=name, value=shown(raw), message="has both choices and a range", allowed=_FORMS)
        )
        return None
    if stated is None:
        stated = "choice" if "choices" in raw else "int" if name in INT_FIELDS else "float"
        if stated != "choice" and "min" not in raw and "max" not in raw:
            message = "has neither a range nor choices"
            if "value" in raw:
                message += "; a fixed value belongs in recipe"
            faults += unknown_keys(raw, [*Float.model_fields, "choices"], name) if "value" not in raw else []
            faults.append(Fault(path=name, value=shown(raw), message=message, allowed=_FORMS))
            return None
    if stated != "choice" and name in CATEGORICAL_FIELDS:
        message = "has no order, so no range; list its values in choices"
        faults.append(Fault(path=name, value=shown(raw), message=message, allowed="{choices: [...]}"))
        return None
    if stated == "float" and name in INT_FIELDS:
        message = f"{name} is a whole number"
        faults.append(Fault(path=f"{name}.type", value=stated, message=message, allowed="int, choice"))
        return None
    return _KINDS[stated]


def _fit(name: str, parameter: Float | Int | Choice) -> tuple[Float | Int | Choice, list[Fault]]:
    """The parameter with its values as the recipe field holds them, and what does not fit the field."""
    faults: list[Fault] = []
    if isinstance(parameter, Choice):
        values = []
        for index, choice in enumerate(parameter.choices):
            path = join_path(name, "choices", str(index))
            try:
                values.append(canonical(name, choice))
            except InvalidRecipe as error:
                faults += [fault.below(path) for fault in error.faults]
        if not faults:
            try:
                return Choice(choices=tuple(values)), []
            except ValidationError as error:
                faults += translate(error, name)
        return parameter, faults
    # Every bound of a recipe field is an interval, so a range fits if its ends do.
    for end, value in (("min", parameter.min), ("max", parameter.max)):
        try:
            canonical(name, value)
        except InvalidRecipe as error:
            faults += [fault.below(f"{name}.{end}") for fault in error.faults]
    return parameter, faults
