"""What an adapter was made of, and whether it can still be evaluated under a definition. Pure."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from search_spaces.definition import StudyDefinition
from search_spaces.preparation import Preparation
from search_spaces.recipe import Recipe

_OF_THE_BASE = ("id", "revision")


def lineage_of(
    definition: StudyDefinition,
    recipe: Recipe,
    preparation: Preparation,
    *,
    data: str | None = None,
    versions: Mapping[str, str] | None = None,
) -> dict[str, Any]:
    """As a reign keeps it.

    Args:
        definition: of the study that trained it.
        recipe: of the trial.
        preparation: of the study, with the fingerprints of its data and model.
        data: SHA-256 of the eval rows, as the base reads them.
        versions: of the libraries; None: not known.
    """
    return {
        "task": definition.task,
        "model": {name: getattr(definition.model, name) for name in _OF_THE_BASE},
        "recipe": evaluated_recipe(definition, recipe).model_dump(mode="json"),
        "seed": recipe.seed,
        "fingerprints": dict(preparation.fingerprints),
        "eval_rows": data,
        "versions": None if versions is None else dict(versions),
    }


def evaluated_recipe(definition: StudyDefinition, recipe: Recipe) -> Recipe:
    """The recipe with which an adapter is put on its base again, whatever the definition then says.

    Its base is quantized as the one it was trained on. The length that its train rows were cut to says
    nothing of eval rows, which all trials of a study share.
    """
    quantization = recipe.quantization or definition.model.quantization
    return recipe.model_copy(update={"quantization": quantization, "max_length": None})


def misfit(lineage: Mapping[str, Any], definition: StudyDefinition, preparation: Preparation) -> str | None:
    """Why an adapter cannot be evaluated under a definition; None: it can.

    Args:
        lineage: the adapter's.
        definition: of the study that would evaluate it.
        preparation: of that study; an empty one where nothing is known of its files yet.
    """
    if lineage["task"] != definition.task:
        return f"it was trained for {lineage['task']}, and the task is {definition.task} now"
    for name in _OF_THE_BASE:
        then, now = lineage["model"].get(name), getattr(definition.model, name)
        if then != now:
            what = "base model" if name == "id" else "base model's revision"
            return f"its {what} is {then or 'not fixed'}, and the schedule's is {now or 'not fixed'} now"
    prints = lineage["fingerprints"].get("model"), preparation.fingerprints.get("model")
    if None not in prints and prints[0] != prints[1]:
        return "the files of its base model have changed"
    return None
