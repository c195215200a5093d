"""Losses of a study's own in its definition. Those of metrics are in `test_task_rules`."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from search_spaces.definition import build_recipe
from search_spaces.errors import Fault
from search_spaces.parsing.document import parse_definition
from search_spaces.range_tests.derivation import derive
from search_spaces.tasks import LOSSES, TASKS, Task
from tests.support.search_spaces.spaces import DOCUMENT

FaultsOf = Callable[[Any], dict[str, Fault]]
OWN = {"losses": {"under": "my_losses:under"}}
PLAIN_SPACE = DOCUMENT["search"]["space"]
FORM = "a module and a function in it, such as my_losses:under_predicting"


def searching(**space: Any) -> dict[str, Any]:
    return DOCUMENT["search"] | {"space": PLAIN_SPACE | space}


@pytest.mark.parametrize("task", [task for task, spec in TASKS.items() if spec.no_own_losses is None])
def test_a_loss_of_its_own_is_fixed_or_searched_beside_those_of_the_task(task: Task) -> None:
    document = DOCUMENT | OWN | {"task": task}
    fixed = parse_definition(document | {"recipe": {"loss": "under"}})
    assert fixed.losses == OWN["losses"]
    recipe = build_recipe(fixed, {})
    assert recipe.loss_of(task) == "under"
    assert recipe.in_force(quantization="nf4", max_length=64, task=task)["loss"] == "under"
    choices = [*TASKS[task].losses, "under"]
    searched = parse_definition(document | {"search": searching(loss={"choices": choices})})
    assert build_recipe(searched, {"loss": "under"}).loss == "under"
    assert parse_definition(searched.model_dump(mode="json")) == searched
    assert derive(searched, "test").losses == OWN["losses"]


def test_one_that_no_recipe_uses_is_accepted_as_an_unused_metric_is() -> None:
    assert parse_definition(DOCUMENT | OWN).losses == OWN["losses"]
    assert "losses" not in parse_definition(DOCUMENT | {"losses": None}).model_dump(mode="json")


def test_a_field_of_another_loss_is_searched_only_where_that_one_is() -> None:
    space = {"loss": {"choices": ["focal", "under"]}, "focal_gamma": {"min": 1.0, "max": 3.0}}
    definition = parse_definition(DOCUMENT | OWN | {"search": searching(**space)})
    assert definition.search.space.parameters["focal_gamma"].when == {"loss": ("focal",)}


@pytest.mark.parametrize(
    ("sections", "path", "message", "allowed"),
    [
        (
            {"losses": ["m:f"]},
            "losses",
            "must be a mapping of names to functions",
            f"name: {FORM}",
        ),
        ({"losses": {"under": "under"}}, "losses.under", f"must be {FORM}", FORM),
        ({"losses": {"under": 3}}, "losses.under", f"must be {FORM}", FORM),
        (
            {"losses": {"x y": "m:f"}},
            "losses.x y",
            "is not a valid name of a loss",
            "up to 64 letters, digits and underscores, not beginning with a digit",
        ),
        *(
            ({"losses": {loss: "m:f"}}, f"losses.{loss}", "is the name of a built-in loss", "another name")
            for loss in LOSSES
        ),
        (
            OWN | {"task": "regression", "recipe": {"loss": "undr"}},
            "recipe.loss",
            "is neither a loss of the task regression nor one that losses names",
            "mse, huber, under",
        ),
        (
            {"recipe": {"loss": "under"}},
            "recipe.loss",
            "is neither a loss of the task causal_lm nor one that losses names",
            "cross_entropy, focal",
        ),
        (
            OWN | {"search": searching(loss={"choices": ["focal", "undr"]})},
            "search.space.loss.choices.1",
            "is neither a loss of the task causal_lm nor one that losses names",
            "cross_entropy, focal, under",
        ),
        (
            OWN | {"recipe": {"loss": "mse"}},
            "recipe.loss",
            "is a loss of regression, and the task is causal_lm",
            "cross_entropy, focal, under",
        ),
        ({"recipe": {"loss": 5}}, "recipe.loss", "must be the name of a loss", "the name of a loss"),
        *(
            (
                OWN | {"task": task, "recipe": {"loss": "under"}},
                "losses",
                f"is not possible for the task {task}, whose losses compare two answers, while a loss of"
                " one's own compares an answer with its target; remove this key",
                None,
            )
            for task in ("ranking", "preference")
        ),
    ],
)
def test_what_is_wrong_with_one_is_one_fault(
    faults_of: FaultsOf, sections: dict[str, Any], path: str, message: str, allowed: str | None
) -> None:
    found = faults_of(DOCUMENT | sections)
    assert {where: (fault.message, fault.allowed) for where, fault in found.items()} == {
        path: (message, allowed)
    }


def test_a_name_that_is_nearly_right_is_told_the_right_one(faults_of: FaultsOf) -> None:
    assert faults_of(DOCUMENT | OWN | {"recipe": {"loss": "undre"}})["recipe.loss"].nearest == "under"


def test_an_unknown_loss_is_told_beside_the_other_faults_of_the_recipe(faults_of: FaultsOf) -> None:
    document = DOCUMENT | {"recipe": {"loss": "undr", "weight_decay": -1}}
    assert faults_of(document).keys() == {"recipe.loss", "recipe.weight_decay"}


def test_losses_with_a_fault_leave_the_recipes_name_open(faults_of: FaultsOf) -> None:
    document = DOCUMENT | {"losses": {"under": "nowhere"}, "recipe": {"loss": "under"}}
    assert list(faults_of(document)) == ["losses.under"]
