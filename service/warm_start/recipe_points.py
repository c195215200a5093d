"""A recipe of one study as a point of another one's space, and in what two recipes differ."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from search_spaces.definition import StudyDefinition
from search_spaces.parameters.choices import Choice
from search_spaces.parameters.ranges import Int
from search_spaces.recipe import DEPENDENT_FIELDS, TASK_FIELDS, Recipe
from search_spaces.space.search_space import SearchSpace

_NEVER_COMPARED = frozenset({"seed", "lora_alpha_ratio"})
"""Another seed is another draw of the same recipe; the ratio is compared as the alpha it makes."""


def point_of(recipe: Recipe, definition: StudyDefinition, space: SearchSpace) -> dict[str, Any]:
    """A recipe's values of the fields that a space searches."""
    values = _resolved(recipe, definition)
    point = {}
    for name, parameter in space.parameters.items():
        value = values[name]
        whole = isinstance(parameter, Int) and isinstance(value, float) and value.is_integer()
        point[name] = int(value) if whole else value
    return point


def _resolved(recipe: Recipe, definition: StudyDefinition) -> dict[str, Any]:
    """Every field with the value in force: alpha both ways, and what the study gives in a recipe's place."""
    values = {name: getattr(recipe, name) for name in Recipe.model_fields}
    values["lora_alpha"] = recipe.alpha
    values["lora_alpha_ratio"] = recipe.alpha / recipe.lora_r
    values["quantization"] = recipe.quantization or definition.model.quantization
    values["max_length"] = recipe.max_length or definition.data.max_length
    values["loss"] = recipe.loss_of(definition.task)
    return values


def misfit(values: Mapping[str, Any], space: SearchSpace) -> str | None:
    """Why a point is not in a space, in words; None if it is."""
    for name, value in values.items():
        parameter = space.parameters[name]
        if not parameter.contains(value):
            shown = f"{value:.6g}" if isinstance(value, float) else str(value)
            if isinstance(parameter, Choice):
                return f"{name} {shown} is not one of the choices"
            inside = parameter.min <= value <= parameter.max
            where = "between the steps of" if inside else "outside"
            return f"{name} {shown} is {where} {parameter.min:g} to {parameter.max:g}"
    return None if space.contains(values) else "its parameters differ from those of this study"


def unlike(there: Recipe, earlier: StudyDefinition, here: Recipe, now: StudyDefinition) -> list[str]:
    """The fields in which two recipes differ and that matter to what they train, in words."""
    before, after = _resolved(there, earlier), _resolved(here, now)
    for values, study in ((before, earlier), (after, now)):  # two functions may have one name
        values["loss"] = study.losses.get(values["loss"], values["loss"])
    ignored = set(_NEVER_COMPARED)
    ignored |= {name for name, (parent, read) in DEPENDENT_FIELDS.items() if after[parent] not in read}
    ignored |= {name for name, tasks in TASK_FIELDS.items() if now.task not in tasks}
    return [
        f"{name} {after[name]} instead of {before[name]}"
        for name in before
        if name not in ignored and before[name] != after[name]
    ]
