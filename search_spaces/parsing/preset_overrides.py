"""What a preset, a space beside it and a fixed recipe make together.

What the user gives wins, parameter by parameter: a parameter given beside a preset replaces the preset's,
null removes it from the space, and so does a value under `recipe`. A removed field without a value gets its
default, so that an accepted definition states everything and, submitted again, is accepted unchanged.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from search_spaces.errors import Fault
from search_spaces.faults import name_fault, shown
from search_spaces.parameters.kinds import Parameter
from search_spaces.recipe import SEARCHABLE_FIELDS, Recipe
from search_spaces.space.presets import Preset, get_preset, preset_names

_TWINS = {"lora_alpha": "lora_alpha_ratio", "lora_alpha_ratio": "lora_alpha"}
"""Two fields that set the same value: one that the user gives displaces the other one of a preset."""


@dataclass(frozen=True)
class Chosen:
    """The space to read, and where it came from."""

    space: Any
    """Not yet read; None if there is none."""
    preset: Preset | None = None
    removed: tuple[str, ...] = ()
    """Fields that the preset searches and this study does not."""


def choose_space(search: Mapping[str, Any], recipe: Mapping[str, Any], faults: list[Fault]) -> Chosen:
    """The space of a search section, with its preset resolved; faults are appended.

    Args:
        search: The section as submitted.
        recipe: The fixed recipe fields as submitted.
    """
    name, given = search.get("preset"), search.get("space")
    if name is None:
        if given is None:
            allowed = f"a search space, or instead preset: {' | '.join(preset_names())}"
            faults.append(Fault(path="search.space", value=None, message="is required", allowed=allowed))
        return Chosen(given)
    if not isinstance(name, str) or name not in preset_names():
        faults.append(name_fault("search.preset", name, "preset", preset_names()))
        return Chosen(given)
    preset = get_preset(name)
    own = {} if given is None else given
    if not isinstance(own, Mapping):
        return Chosen(given, preset)
    searched = preset.space.model_dump(mode="json")
    for field in own:
        if own[field] is None and field in SEARCHABLE_FIELDS and field not in searched:
            message = f"is not searched by preset {name}, so it cannot be removed"
            allowed = ", ".join(searched)
            path = f"search.space.{field}"
            faults.append(Fault(path=path, value=None, message=message, allowed=allowed))
    kept = {
        field: parameter
        for field, parameter in searched.items()
        if field in own or not (field in recipe or _displaced(field, own, recipe))
    }
    space = {
        field: parameter
        for field, parameter in {**kept, **own}.items()
        if parameter is not None or field not in SEARCHABLE_FIELDS
    }
    return Chosen(space, preset, tuple(field for field in searched if field not in space))


def _displaced(field: str, own: Mapping[str, Any], recipe: Mapping[str, Any]) -> bool:
    twin = _TWINS.get(field)
    if twin is None:
        return False
    searched = own.get(twin)
    always = searched is not None and not (isinstance(searched, Mapping) and searched.get("when"))
    return always or recipe.get(twin) is not None


def fix_recipe(
    chosen: Chosen, parameters: Mapping[str, Parameter], recipe: Mapping[str, Any]
) -> dict[str, Any]:
    """The recipe fields that are fixed: the user's, over those of the preset, as JSON.

    Args:
        chosen: The space and its preset.
        parameters: The space as it was read.
        recipe: The user's own, free of faults.
    """
    under: dict[str, Any] = {}
    if chosen.preset is not None:
        defaults = {field: Recipe.model_fields[field].default for field in chosen.removed}
        under = {
            field: value
            for field, value in {**defaults, **chosen.preset.recipe}.items()
            # A conditional parameter leaves the preset's value for where it is inactive.
            if (field not in parameters or parameters[field].when)
            and not _has_value(_TWINS.get(field), parameters, recipe)
        }
    merged = {**under, **recipe}
    # As the recipe holds them, so that 8 and 8.0 are stored alike.
    return Recipe.build(merged).as_json(merged)


def _has_value(field: str | None, parameters: Mapping[str, Parameter], recipe: Mapping[str, Any]) -> bool:
    """Whether a field has a value of the user's in every trial."""
    if field is None:
        return False
    return recipe.get(field) is not None or (field in parameters and not parameters[field].when)


def doubled_faults(
    recipe: Mapping[str, Any], parameters: Mapping[str, Parameter], faulty: frozenset[str]
) -> list[Fault]:
    """A field is fixed or searched; only one that is not always searched may be both.

    Args:
        recipe: As submitted.
        parameters: The space as it was read.
        faulty: Fields that are searched too, but have faults of their own.
    """
    return [
        Fault(
            path=f"recipe.{name}",
            value=shown(value),
            message="is fixed here and searched in search.space; remove one of the two, or add a condition"
            " (when): the fixed value then applies where the condition does not hold",
        )
        for name, value in recipe.items()
        if (name in parameters and not parameters[name].when) or name in faulty
    ]
