"""Reads the parameters of a search space, each fitted to its recipe field, and finds every fault in them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from pydantic import ValidationError

from search_spaces.errors import Fault, InvalidRecipe, join_path
from search_spaces.faults import name_fault, shown, translate, unknown_keys
from search_spaces.parameters.choices import Choice
from search_spaces.parameters.kinds import Parameter
from search_spaces.parameters.ranges import Float, Int
from search_spaces.recipe import (
    CATEGORICAL_FIELDS,
    INT_FIELDS,
    NOT_SEARCHABLE,
    NULL_MEANS_STUDY,
    SEARCHABLE_FIELDS,
    SYNONYMS,
    canonical,
)
from search_spaces.space.conditions import resolve
from search_spaces.space.counting import uncountable

_KINDS: Mapping[str, type[Float] | type[Int] | type[Choice]] = {"float": Float, "int": Int, "choice": Choice}
_FORMS = "{min: ..., max: ...} or {choices: [...]}"


def read_parameters(raw: Any) -> tuple[dict[str, Parameter], list[Fault]]:
    """The valid parameters of a search space, and every fault in the others (paths from the space)."""
    if not isinstance(raw, Mapping):
        message = "must be a mapping of recipe fields to parameters"
        return {}, [Fault(path="", value=shown(raw), message=message, allowed=f"name: {_FORMS}")]
    if not raw:
        return {}, [Fault(path="", value={}, message="is empty: name at least one recipe field to search")]
    faults = [
        fault
        for fault in unknown_keys(raw, SEARCHABLE_FIELDS, "", SYNONYMS, what="recipe field")
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
    faulty = frozenset(name for name in raw if name in SEARCHABLE_FIELDS and name not in parameters)
    before = len(faults)
    parameters = resolve(parameters, faulty, faults)
    if len(faults) == before and not faulty:
        faults += uncountable(parameters)
    return parameters, faults


def _read_parameter(name: str, raw: Any, faults: list[Fault]) -> Parameter | None:
    if not isinstance(raw, Mapping):
        hint = "must be a range or a list of choices"
        if not isinstance(raw, list):
            hint += "; put a fixed value under recipe"
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
    ranged = [key for key in ("min", "max", "step", "scale", "points") if key in raw]
    if "choices" in raw and ranged:
        faults.append(
            Fault(
                path=name,
                value=shown(raw),
                message="has both choices and a range; give one of the two",
                allowed=_FORMS,
            )
        )
        return None
    if stated is None:
        stated = "choice" if "choices" in raw else "int" if name in INT_FIELDS else "float"
        if stated != "choice" and "min" not in raw and "max" not in raw:
            message = "has neither a range nor choices"
            if "value" in raw:
                message += "; put a fixed value under recipe"
            faults += unknown_keys(raw, [*Float.model_fields, "choices"], name) if "value" not in raw else []
            faults.append(Fault(path=name, value=shown(raw), message=message, allowed=_FORMS))
            return None
    if stated != "choice" and name in CATEGORICAL_FIELDS:
        message = "has no order, so it cannot be a range; list its values in choices"
        faults.append(Fault(path=name, value=shown(raw), message=message, allowed="{choices: [...]}"))
        return None
    if stated == "float" and name in INT_FIELDS:
        message = f"must be int or choice, because {name} is a whole number"
        faults.append(Fault(path=f"{name}.type", value=stated, message=message, allowed="int, choice"))
        return None
    return _KINDS[stated]


def _fit(name: str, parameter: Parameter) -> tuple[Parameter, list[Fault]]:
    """The parameter with its values as the recipe field holds them, and what does not fit the field."""
    faults: list[Fault] = []
    if isinstance(parameter, Choice):
        values = []
        for index, choice in enumerate(parameter.choices):
            path = join_path(name, "choices", str(index))
            if choice is None and name in NULL_MEANS_STUDY:
                message = f"is null, which means {NULL_MEANS_STUDY[name]}; list that value instead"
                faults.append(Fault(path=path, value=None, message=message))
                continue
            try:
                values.append(canonical(name, choice))
            except InvalidRecipe as error:
                faults += [fault.below(path) for fault in error.faults]
        if not faults:
            try:
                return Choice(choices=tuple(values), when=parameter.when), []
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
