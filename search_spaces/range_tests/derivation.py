"""The range test of a definition: which corners it sweeps, as a definition of its own. Pure."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from search_spaces.definition import (
    EvaluationSpec,
    ObjectiveSpec,
    RangeTestSpec,
    SearchSpec,
    StudyDefinition,
    build_recipe,
)
from search_spaces.parameters.choices import Choice
from search_spaces.parameters.kinds import Parameter
from search_spaces.recipe import Recipe
from search_spaces.space.search_space import SearchSpace

RATE = "learning_rate"
CORNER_FIELDS = ("batch_size", "lora_r")
"""Whose smallest and largest values make the corners: the gradient's noise, and the adapter's size."""


def allowed_bounds(definition: StudyDefinition) -> tuple[float, float] | None:
    """The learning rates that a definition's space holds, from the lowest to the highest; None: no range."""
    parameter = definition.search.space.parameters.get(RATE)
    if parameter is None:
        return None
    if isinstance(parameter, Choice):
        return float(min(parameter.choices)), float(max(parameter.choices))
    return float(parameter.min), float(parameter.last)


def derive(definition: StudyDefinition, name: str) -> StudyDefinition:
    """The definition of a study whose trials are sweeps of the learning rate, one at each corner.

    The corners are the smallest and largest batch size with the smallest and largest rank. Where the
    optimizer is searched it makes corners too: rates of one say little of another. Every other searched
    field gets its default, or what the space has nearest to it. Nothing is pruned, evaluated on the way,
    warm-started or repeated.

    Args:
        definition: An accepted one. Without `search.learning_rate_range_test` the test is the usual one.
        name: The range test's.
    """
    search = definition.search
    space = search.space.parameters
    corners: dict[str, Any] = {}
    for field in CORNER_FIELDS:
        corners[field] = {"choices": _ends(definition, field)}
    if "optimizer" in space:
        corners["optimizer"] = {"choices": _optimizers(definition)}
    fixed = {field: _usual(field, parameter) for field, parameter in space.items() if field not in corners}
    fixed = {field: value for field, value in fixed.items() if field != RATE}
    recipe = {key: value for key, value in definition.recipe.items() if key not in corners}
    test = search.learning_rate_range_test or RangeTestSpec()
    if test.within is None:
        test = test.model_copy(update={"within": allowed_bounds(definition)})
    return definition.model_copy(
        update={
            "name": name,
            "search": SearchSpec(
                algorithm="grid",
                seed=search.seed,
                learning_rate_range_test=test,
                space=SearchSpace.model_validate(corners),
            ),
            "recipe": Recipe.build({**recipe, **fixed}).as_json({*recipe, *fixed}),
            "metrics": {},
            "objective": ObjectiveSpec(),
            "pruning": StudyDefinition.model_fields["pruning"].default,
            "evaluation": EvaluationSpec(),
            "budget": definition.budget.model_copy(
                update={"target_value": None, "no_improvement_trials": None, "max_failed_trials": None}
            ),
            "constraints": {},
            "warm_start": None,
            "repeats": None,
        }
    )


def scaling(definition: StudyDefinition, corner: Mapping[str, Any]) -> float:
    """What a recipe's learning rate is multiplied by at a corner, where it follows the batch size."""
    recipe = build_recipe(definition, corner)
    return recipe.peak_learning_rate / recipe.learning_rate


def _ends(definition: StudyDefinition, field: str) -> list[Any]:
    parameter = definition.search.space.parameters.get(field)
    if parameter is None:
        return [definition.recipe.get(field, getattr(Recipe(), field))]
    if isinstance(parameter, Choice):
        low, high = min(parameter.choices), max(parameter.choices)
    else:
        low, high = parameter.min, parameter.last
    return [low] if low == high else [low, high]


def _optimizers(definition: StudyDefinition) -> list[str]:
    """The optimizers with which the learning rate is searched."""
    space = definition.search.space
    parameter = space.parameters["optimizer"]
    assert isinstance(parameter, Choice)  # an optimizer has no range
    rate = space.parameters.get(RATE)
    when = None if rate is None else rate.when.get("optimizer")
    return [choice for choice in parameter.choices if when is None or choice in when]


def _usual(field: str, parameter: Parameter) -> Any:
    """The field's default if the space has it, else what is nearest to it."""
    default = getattr(Recipe(), field)
    if isinstance(parameter, Choice):
        return default if default in parameter.choices else parameter.choices[0]
    if default is None:
        return parameter.min
    return parameter.snap(default)
