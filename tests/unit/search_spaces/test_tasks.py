"""The tasks, and the hyperparameters that come with them."""

from __future__ import annotations

from typing import Any

import pytest

from search_spaces.definition import DATA_FIELDS
from search_spaces.errors import InvalidRecipe
from search_spaces.faults import nearest_name
from search_spaces.recipe import DEPENDENT_FIELDS, RECIPE_FIELDS, SYNONYMS, TASK_FIELDS, Recipe
from search_spaces.tasks import DIRECTIONS, METRICS, TASKS, Task

LATER: dict[str, Any] = {
    "loss": "focal",
    "focal_gamma": 1.0,
    "huber_delta": 0.5,
    "label_smoothing": 0.1,
    "class_weights": {"yes": 2.0, "no": 1.0},
    "neftune_alpha": 5.0,
    "head_learning_rate_ratio": 10.0,
    "preference_beta": 0.5,
    "simpo_gamma": 1.0,
}
"""Fields that earlier versions do not have, each with another value than its default."""


@pytest.mark.parametrize("task", TASKS)
def test_a_task_measures_its_default_and_its_eval_loss_and_names_nothing_twice(task: Task) -> None:
    spec = TASKS[task]
    assert {spec.default_metric, "eval_loss"} <= set(spec.metrics)
    for names in (spec.fields, spec.losses, spec.objectives):
        assert len(set(names)) == len(names) > 0


def test_every_metric_has_a_direction_and_a_task() -> None:
    assert set(DIRECTIONS) == set(METRICS) == {name for spec in TASKS.values() for name in spec.objectives}
    smaller = {name for name, direction in DIRECTIONS.items() if direction == "minimize"}
    assert smaller == {"eval_loss", "perplexity", "mse", "mae"}


def test_a_causal_lm_reads_what_it_read() -> None:
    spec = TASKS["causal_lm"]
    fields = ("text", "prompt", "completion", "messages", "tools", "instruction", "input", "output")
    assert (spec.fields, spec.default_metric, spec.losses[0]) == (fields, "eval_loss", "cross_entropy")
    assert DATA_FIELDS[: len(fields)] == fields


def test_fields_of_some_tasks_are_fields_of_a_recipe_and_their_loss_is_one_of_the_tasks() -> None:
    assert set(TASK_FIELDS) < set(RECIPE_FIELDS)
    for name, tasks in TASK_FIELDS.items():
        parent, losses = DEPENDENT_FIELDS.get(name, ("", ()))
        if parent == "loss":
            assert set(tasks) == {task for task in TASKS if set(TASKS[task].losses) & set(losses)}


@pytest.mark.parametrize("name", LATER)
def test_a_later_field_is_dumped_only_where_it_differs_from_its_default(name: str) -> None:
    assert name not in Recipe().model_dump(mode="json")
    changed = Recipe.build({name: LATER[name]})
    dumped = changed.model_dump(mode="json")
    assert dumped == Recipe().model_dump(mode="json") | {name: LATER[name]}
    assert Recipe.build(dumped) == changed
    assert Recipe().as_json([name]) == {name: Recipe.model_fields[name].default}


@pytest.mark.parametrize(
    ("task", "loss", "read"),
    [
        ("causal_lm", "cross_entropy", {"focal_gamma", "label_smoothing", "neftune_alpha"}),
        ("regression", "mse", {"huber_delta", "neftune_alpha", "head_learning_rate_ratio"}),
        ("preference", "dpo", {"preference_beta", "simpo_gamma", "label_smoothing", "neftune_alpha"}),
    ],
)
def test_the_values_in_force_are_those_of_the_task_with_its_loss(
    task: Task, loss: str, read: set[str]
) -> None:
    found = Recipe().in_force(quantization="nf4", max_length=64, task=task)
    assert found["loss"] == loss
    assert found.keys() & LATER.keys() == {"loss"} | read
    assert set(RECIPE_FIELDS) - LATER.keys() <= found.keys()
    assert Recipe(loss="focal").in_force(quantization="nf4", max_length=64)["loss"] == "focal"


@pytest.mark.parametrize("weights", ["balanced", {"yes": 2, "no": 0.5}])
def test_classes_are_weighted_in_balance_or_by_name(weights: Any) -> None:
    assert Recipe.build({"class_weights": weights}).class_weights == weights


def test_weights_that_are_none_say_what_they_may_be() -> None:
    with pytest.raises(InvalidRecipe) as caught:
        Recipe.build({"class_weights": {"yes": -1}})
    [fault] = caught.value.faults
    allowed = "none, balanced, or a mapping of label names to positive numbers"
    assert (fault.path, fault.allowed) == ("class_weights", allowed)


@pytest.mark.parametrize(
    ("word", "meant"),
    [
        ("beta", "preference_beta"),
        ("label_smoothing_factor", "label_smoothing"),
        ("neftune_noise_alpha", "neftune_alpha"),
        ("focal_loss_gamma", "focal_gamma"),
        ("loss_type", "loss"),
        ("head_lr_ratio", "head_learning_rate_ratio"),
        ("gamma", None),
    ],
)
def test_what_others_call_a_field_names_it(word: str, meant: str | None) -> None:
    assert nearest_name(word, RECIPE_FIELDS, SYNONYMS) == meant
