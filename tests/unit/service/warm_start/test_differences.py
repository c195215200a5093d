"""In what two studies differ whose trials are compared."""

from __future__ import annotations

from typing import Any

from search_spaces.definition import StudyDefinition
from search_spaces.parsing.document import parse_definition
from search_spaces.recipe import Recipe
from service.warm_start.recipe_points import point_of, unlike
from service.warm_start.sources import differences
from tests.support.search_spaces.spaces import DOCUMENT


def study(**sections: Any) -> StudyDefinition:
    return parse_definition(DOCUMENT | sections)


def test_keys_that_are_left_out_at_their_default_are_compared_both_ways() -> None:
    plain = study(task="regression")
    model = {"id": "org/base", "dropout": "off"}
    data = {"train": "train.csv", "eval": "eval.jsonl"}
    other = study(task="regression", model=model, data=data)
    assert differences(plain, other) == [
        "model.dropout is keep there and off here",
        "data.train is train.jsonl there and train.csv here",
    ]
    assert differences(other, plain)[0] == "model.dropout is off there and keep here"
    assert differences(plain, plain) == []


def test_another_task_and_other_metrics_are_differences() -> None:
    own = {"metrics": {"profit": "m:f"}, "objective": {"metric": "profit", "direction": "maximize"}}
    changed = own | {"metrics": {"profit": "m:g"}}
    assert differences(study(**own), study(**changed)) == ["metrics.profit is m:f there and m:g here"]
    found = differences(study(), study(task="seq2seq_lm"))
    assert found == ["task is causal_lm there and seq2seq_lm here"]


def test_recipes_are_compared_by_the_loss_in_force_and_by_what_it_uses() -> None:
    there = study(task="preference")
    here = study(task="preference", recipe={"loss": "dpo"})
    assert unlike(Recipe(), there, Recipe(loss="dpo"), here) == []
    assert unlike(Recipe(simpo_gamma=1.0), there, Recipe(loss="dpo"), here) == []
    assert unlike(Recipe(preference_beta=0.5), there, Recipe(loss="dpo"), here) == [
        "preference_beta 0.1 instead of 0.5"
    ]
    assert unlike(Recipe(loss="simpo"), there, Recipe(), there) == ["loss dpo instead of simpo"]


def test_losses_of_a_studys_own_are_compared_by_their_functions() -> None:
    one, renamed, other = (
        {"losses": {name: path}} for name, path in (("a", "m:f"), ("b", "m:f"), ("a", "m:g"))
    )
    there = study(**one)
    assert unlike(Recipe(loss="a"), there, Recipe(loss="b"), study(**renamed)) == []
    assert unlike(Recipe(loss="a"), there, Recipe(loss="a"), study(**other)) == ["loss m:g instead of m:f"]


def test_a_recipe_without_a_loss_is_a_point_with_the_tasks_own() -> None:
    search = DOCUMENT["search"] | {"space": {"loss": {"choices": ["orpo", "dpo"]}}}
    now = study(task="preference", search=search)
    assert point_of(Recipe(), study(task="preference"), now.search.space) == {"loss": "dpo"}
