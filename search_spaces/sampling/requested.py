"""Parameters that a person asks for: checked against the space, and completed to a configuration. Pure."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from search_spaces.errors import Fault, RequestRefusedError
from search_spaces.faults import shown, unknown_keys
from search_spaces.parameters.choices import Choice
from search_spaces.parameters.kinds import Parameter
from search_spaces.recipe import RECIPE_FIELDS, SYNONYMS
from search_spaces.sampling.history import Avoided
from search_spaces.space.search_space import SearchSpace
from search_spaces.values.numbers import significant

Values = dict[str, Any]


@dataclass(frozen=True, kw_only=True)
class Request:
    """What the next trial is to have."""

    id: int
    """By which its trial is known again (`history.ENQUEUED`)."""
    given: Mapping[str, Any]
    """Recipe field -> recipe value; the sampler chooses the others."""


def read_request(
    space: SearchSpace, sent: Mapping[str, Any], *, on_grid: bool, path: str = "params"
) -> tuple[Values, list[Fault]]:
    """Values of the space's parameters as the space holds them, and all that is wrong with them.

    Args:
        space: As `prepared_space` gives it.
        sent: Some of its parameters, or all.
        on_grid: Whether only values of the space's grid count.
        path: Of the parameters, for faults.
    """
    values: Values = {}
    known = list(space.parameters)
    faults = unknown_keys(
        {name: value for name, value in sent.items() if name not in RECIPE_FIELDS},
        known,
        path,
        {name: ours for name, ours in SYNONYMS.items() if ours in known},
        what="parameter",
    )
    for name in [name for name in sent if name in RECIPE_FIELDS]:
        parameter = space.parameters.get(name)
        here = f"{path}.{name}"
        if parameter is None:
            allowed = ", ".join(known)
            message = "is not searched: the study's definition fixes it"
            faults.append(Fault(path=here, value=shown(sent[name]), message=message, allowed=allowed))
            continue
        found = _values_like(parameter, sent[name], on_grid=on_grid)
        if found:
            values[name] = found[0]
        else:
            message = "is not a point of the grid" if on_grid else "is not in the search space"
            allowed = _allowed(parameter, on_grid=on_grid)
            faults.append(Fault(path=here, value=shown(sent[name]), message=message, allowed=allowed))
    if not sent:
        faults.append(Fault(path=path, value={}, message="names no parameter", allowed=", ".join(known)))
    return values, faults or _condition_faults(space, values, path)


def _values_like(parameter: Parameter, sent: Any, *, on_grid: bool) -> list[Any]:
    """The values of a parameter that are written so: at most one."""
    value = tuple(sent) if isinstance(sent, list) else sent
    if isinstance(parameter, Choice):
        return [choice for choice in parameter.choices if _same(choice, value)]
    if isinstance(value, bool) or not isinstance(value, int | float):
        return []
    if on_grid and parameter.points is not None:
        grid = (parameter.grid_value(index) for index in range(parameter.grid_size or 0))
        return [point for point in grid if _same(point, value)]
    return [parameter.snap(value)] if parameter.contains(value) else []


def _same(known: Any, value: Any) -> bool:
    numbers = (int, float)
    if isinstance(known, bool) or isinstance(value, bool):
        return known is value
    if isinstance(known, numbers) and isinstance(value, numbers):
        return abs(value) < float("inf") and significant(float(known)) == significant(float(value))
    if isinstance(known, tuple) and isinstance(value, tuple):
        return all(isinstance(name, str) for name in value) and set(known) == set(value)
    return type(known) is type(value) and bool(known == value)


def _allowed(parameter: Parameter, *, on_grid: bool) -> str:
    if isinstance(parameter, Choice):
        return ", ".join(str(shown(choice)) for choice in parameter.choices[:20])
    words = f"{parameter.min:g} to {parameter.max:g}"
    if on_grid and parameter.points is not None:
        return f"one of {parameter.points} points from {words}"
    return words if parameter.step in (None, 1) else f"{words} in steps of {parameter.step:g}"


def _condition_faults(space: SearchSpace, values: Values, path: str) -> list[Fault]:
    """Of parameters that may not be searched beside the others."""
    active, faults = space.active(values), []
    for name in [name for name in values if name not in active]:
        when = space.parameters[name].when
        needs = " and ".join(
            f"{parent} is {' or '.join(str(shown(value)) for value in allowed)}"
            for parent, allowed in when.items()
        )
        message = f"is searched only where {needs}; give that, too"
        faults.append(Fault(path=f"{path}.{name}", value=shown(values[name]), message=message))
    return faults


def complete(
    space: SearchSpace, given: Mapping[str, Any], draws: Iterable[Mapping[str, Any]], avoided: Avoided
) -> Values:
    """A configuration with the given values, which has had no trial, and else as it is drawn.

    Raises:
        RequestRefusedError: Every draw made one that has had its trial, or a value is not in the space.
    """
    outside = [name for name, value in given.items() if not space.parameters[name].contains(value)]
    if outside:  # a range test has narrowed the space since
        raise RequestRefusedError(f"{outside[0]} {given[outside[0]]} is outside the bounds of the search")
    whole = space.contains(given)
    for drawn in [given] if whole else draws:
        values = space.prune_inactive({**drawn, **given})
        if space.configuration_key(values) not in avoided:
            return values
    if whole:
        raise RequestRefusedError("this configuration has had a trial")
    raise RequestRefusedError("no configuration with these parameters was found that has had no trial")


def grid_entry_like(
    space: SearchSpace, entries: Iterable[Values], given: Mapping[str, Any], handed_out: Callable[[Any], bool]
) -> Values:
    """The first entry of a grid with these values that has had no trial.

    Raises:
        RequestRefusedError: There is none.
    """
    for entry in entries:
        fits = all(name in entry and _same(entry[name], value) for name, value in given.items())
        if fits and not handed_out(space.configuration_key(entry)):
            return entry
    raise RequestRefusedError("every point of the grid with these parameters has had its trial")
