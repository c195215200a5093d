"""When a parameter is searched: `when: {optimizer: [sgd]}`.

A condition names other searched fields and the values of each with which it holds. A parameter is *active*
in a configuration when every field that its condition names is itself active and has one of these values;
so conditions may be chained. An inactive parameter is not part of the configuration: the recipe takes the
study's fixed value for it, or the default.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from search_spaces.errors import Fault, InvalidRecipe
from search_spaces.faults import nearest_name, shown
from search_spaces.parameters.base import Values
from search_spaces.parameters.kinds import Parameter
from search_spaces.parameters.ranges import Float, Int
from search_spaces.recipe import DEPENDENT_FIELDS, SYNONYMS, canonical


def resolve(
    parameters: Mapping[str, Parameter], faulty: frozenset[str], faults: list[Fault]
) -> dict[str, Parameter]:
    """The parameters with their conditions as they hold, appending a fault for each that cannot.

    Values become what the recipe field holds, and a field that only some values of another make use of
    (`search_spaces.recipe.DEPENDENT_FIELDS`) gets its implied condition.

    Args:
        parameters: All that were read, by field.
        faulty: Fields that are searched too, but have faults of their own.
        faults: Found so far; paths are relative to the space.
    """
    found: list[Fault] = []
    resolved: dict[str, Parameter] = {}
    for name, parameter in parameters.items():
        when: dict[str, Values] = {}
        for parent, values in parameter.when.items():
            checked = _check(name, parent, values, parameters, faulty, found)
            if checked is not None:
                when[parent] = checked
        _imply(name, when, parameters, found)
        resolved[name] = parameter if when == parameter.when else parameter.model_copy(update={"when": when})
    if not found:
        found += _cycles(resolved)
    if not found and not faulty:
        found += _impossible(resolved)
    faults += found
    return resolved


def _check(
    name: str,
    parent: str,
    values: Values,
    parameters: Mapping[str, Parameter],
    faulty: frozenset[str],
    faults: list[Fault],
) -> Values | None:
    """The values as the parent's field holds them; None, with a fault, where they cannot be."""

    def fault(message: str, allowed: str | None = None, nearest: str | None = None) -> None:
        value = shown(values[0] if len(values) == 1 else values)
        path = f"{name}.when.{parent}"
        faults.append(Fault(path=path, value=value, message=message, allowed=allowed, nearest=nearest))

    if parent == name:
        fault("makes the parameter depend on itself", "other searched fields")
        return None
    if parent in faulty:
        return None
    if parent not in parameters:
        others = [field for field in parameters if field != name]
        nearest = nearest_name(parent, others, SYNONYMS)
        fault(
            "is not searched, so a condition on it has no effect; search it, or remove the condition",
            ", ".join(others) or None,
            nearest if nearest in others else None,
        )
        return None
    searched = parameters[parent]
    if searched.type == "float":
        fault("is searched as a range of real numbers, but a condition needs single values; use choices")
        return None
    read: dict[Any, None] = {}
    misfits = []
    choices = frozenset(searched.choices) if searched.type == "choice" else None
    for value in values:
        try:
            stored = canonical(parent, value)
        except InvalidRecipe:
            misfits.append(value)
            continue
        if stored in choices if choices is not None else searched.contains(stored):
            read[stored] = None
        else:
            misfits.append(value)
    if misfits:
        if searched.type == "choice":
            known = [shown(choice) for choice in searched.choices]
            allowed = ", ".join(str(choice) for choice in known)
            nearest = nearest_name(misfits[0], [choice for choice in known if isinstance(choice, str)])
        else:
            allowed, nearest = _range_in_words(searched), None
        words = ", ".join(str(shown(value)) for value in misfits[:5])
        fault(f"lists values that {parent} never has: {words}", allowed, nearest)
        return None
    return tuple(read)


def _range_in_words(parameter: Float | Int) -> str:
    step = f" in steps of {parameter.step}" if parameter.step not in (None, 1) else ""
    return f"{parameter.min} to {parameter.max}{step}"


def _imply(
    name: str, when: dict[str, Values], parameters: Mapping[str, Parameter], faults: list[Fault]
) -> None:
    """Adds the implied condition of a field, where the field that it depends on is searched."""
    if name not in DEPENDENT_FIELDS:
        return
    parent, users = DEPENDENT_FIELDS[name]
    searched = parameters.get(parent)
    if searched is None or searched.type != "choice":
        return
    possible = tuple(choice for choice in searched.choices if choice in users)
    words = " or ".join(users)
    if not possible:
        message = f"is used only if {parent} is {words}, which is not among its choices"
        faults.append(Fault(path=name, value=shown(parameters[name]), message=message))
    elif any(value not in users for value in when.get(parent, ())):
        message = f"includes values of {parent} with which {name} has no effect"
        value = shown(when[parent])
        path = f"{name}.when.{parent}"
        faults.append(Fault(path=path, value=value, message=message, allowed=words))
    elif parent not in when and (len(possible) < len(searched.choices) or searched.when):
        when[parent] = possible


def _cycles(parameters: Mapping[str, Parameter]) -> Iterator[Fault]:
    """One fault for each circle of conditions, at its first parameter."""
    reported: set[str] = set()
    for name in parameters:
        circle = _circle_from(name, parameters)
        if circle and name not in reported:
            reported.update(circle)
            path = f"{name}.when"
            message = f"depends on itself in a circle: {' -> '.join([*circle, name])}"
            yield Fault(path=path, value=shown(parameters[name].when), message=message)


def _circle_from(start: str, parameters: Mapping[str, Parameter]) -> list[str]:
    """The fields on the way from `start` along its conditions back to itself; empty if none leads back."""
    came_from: dict[str, str] = {}
    waiting = [start]
    while waiting:
        field = waiting.pop()
        for parent in parameters[field].when:
            if parent == start:
                circle = [field]
                while circle[-1] != start:
                    circle.append(came_from[circle[-1]])
                return circle[::-1]
            if parent in parameters and parent not in came_from:
                came_from[parent] = field
                waiting.append(parent)
    return []


def _impossible(parameters: Mapping[str, Parameter]) -> Iterator[Fault]:
    for name, parameter in parameters.items():
        for field, values in needs(parameters, name).items():
            # Only where every condition on the way can hold does the fault lie with this one.
            if not values and all(all(needs(parameters, parent).values()) for parent in parameter.when):
                message = f"can never hold: it requires {field} to have two values at once"
                yield Fault(path=f"{name}.when", value=shown(parameter.when), message=message)
                break


def needs(parameters: Mapping[str, Parameter], name: str) -> dict[str, frozenset[Any]]:
    """What must hold for `name` to be active, through all conditions on the way.

    The values of one field do not depend on another's, so all of it can hold at once if no set is empty.
    The conditions must not form a circle.
    """
    required: dict[str, frozenset[Any]] = {}
    waiting = [name]
    while waiting:
        for parent, values in parameters[waiting.pop()].when.items():
            if parent not in required:
                waiting.append(parent)
            allowed = frozenset(values)
            required[parent] = required.get(parent, allowed) & allowed
    return required


def never_together(parameters: Mapping[str, Parameter], one: str, other: str) -> bool:
    """Whether two fields are never active together."""
    first, second = needs(parameters, one), needs(parameters, other)
    return any(not first[field] & second[field] for field in first.keys() & second.keys())
