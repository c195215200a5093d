"""A preset, changed parameter by parameter; and fixed values beside conditional parameters."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st

from search_spaces.definition import StudyDefinition, build_recipe
from search_spaces.errors import Fault, InvalidDefinition
from search_spaces.parameters.choices import Choice
from search_spaces.parameters.ranges import Float
from search_spaces.parsing.document import parse_definition
from search_spaces.recipe import Recipe
from search_spaces.space.presets import get_preset, preset_names
from tests.support.search_spaces.spaces import DOCUMENT, raw_conditional_spaces

FaultsOf = Callable[[Any], dict[str, Fault]]


def with_preset(
    name: str = "qlora-default", space: Any = None, recipe: dict[str, Any] | None = None
) -> dict[str, Any]:
    """A document of a preset with changes."""
    search = {"preset": name, "trials": 10, "space": space}
    return DOCUMENT | {"search": search, "recipe": recipe or {}}


def again(definition: StudyDefinition) -> StudyDefinition:
    """The definition, accepted once more as it was stored."""
    return parse_definition(json.loads(json.dumps(definition.model_dump(mode="json"))))


def test_a_parameter_beside_a_preset_stands_in_its_place() -> None:
    rate = {"min": 1e-4, "max": 1e-2, "scale": "log"}
    definition = parse_definition(
        with_preset(space={"use_rslora": {"choices": [True]}, "learning_rate": rate})
    )
    preset = get_preset("qlora-default").space
    assert list(definition.search.space.root) == [*preset.root, "use_rslora"]
    assert definition.search.space.root == {
        **preset.root,
        "learning_rate": Float(min=1e-4, max=1e-2, scale="log"),
        "use_rslora": Choice(choices=(True,)),
    }
    assert definition.search.preset == "qlora-default"
    assert definition.recipe == get_preset("qlora-default").recipe
    assert again(definition) == definition


def test_null_takes_a_parameter_out_which_then_has_its_default_in_words() -> None:
    definition = parse_definition(with_preset(space={"epochs": None, "batch_size": None}, recipe={"seed": 1}))
    assert list(definition.search.space.root) == ["learning_rate", "weight_decay", "lora_r"]
    preset = get_preset("qlora-default").recipe
    assert definition.recipe == {**preset, "epochs": 1.0, "batch_size": 16, "seed": 1}
    assert again(definition) == definition


def test_a_fixed_value_takes_a_presets_parameter_out() -> None:
    definition = parse_definition(with_preset(recipe={"epochs": 2}))
    assert "epochs" not in definition.search.space.root
    assert definition.recipe["epochs"] == 2.0
    assert again(definition) == definition


def test_a_searched_field_that_the_preset_fixes_is_no_longer_fixed() -> None:
    definition = parse_definition(with_preset(space={"lora_dropout": {"min": 0.0, "max": 0.2}}))
    assert "lora_dropout" in definition.search.space.root
    assert "lora_dropout" not in definition.recipe
    assert again(definition) == definition


def test_a_conditional_parameter_leaves_the_presets_value_for_where_it_is_inactive() -> None:
    dropout = {"min": 0.1, "max": 0.2, "when": {"lora_r": 64}}
    definition = parse_definition(with_preset(space={"lora_dropout": dropout}))
    assert definition.recipe["lora_dropout"] == 0.05
    params = {"learning_rate": 1e-4, "batch_size": 8, "epochs": 1, "weight_decay": 0.0}
    assert build_recipe(definition, params | {"lora_r": 8}).lora_dropout == 0.05
    assert build_recipe(definition, params | {"lora_r": 64, "lora_dropout": 0.15}).lora_dropout == 0.15
    assert again(definition) == definition


@pytest.mark.parametrize("preset", ["qlora-default", "qlora-thorough"])
@pytest.mark.parametrize(
    ("space", "recipe"),
    [({"lora_alpha": {"choices": [16, 32]}}, {}), (None, {"lora_alpha": 16})],
    ids=["searched", "fixed"],
)
def test_an_absolute_alpha_displaces_the_presets_ratio(
    preset: str, space: Any, recipe: dict[str, Any]
) -> None:
    definition = parse_definition(with_preset(preset, space, recipe))
    assert "lora_alpha_ratio" not in definition.search.space.root
    assert "lora_alpha_ratio" not in definition.recipe
    assert again(definition) == definition


def test_a_ratio_stands_in_where_a_conditional_alpha_is_inactive() -> None:
    alpha = {"choices": [16], "when": {"lora_r": [4, 8]}}
    definition = parse_definition(with_preset(space={"lora_alpha": alpha}))
    assert definition.recipe["lora_alpha_ratio"] == 2.0
    params = {"learning_rate": 1e-4, "batch_size": 8, "epochs": 1, "weight_decay": 0.0}
    assert build_recipe(definition, params | {"lora_r": 8, "lora_alpha": 16}).alpha == 16
    assert build_recipe(definition, params | {"lora_r": 32}).alpha == 64
    assert again(definition) == definition


def test_a_conditional_alpha_does_not_displace_a_ratio_that_the_preset_searches(faults_of: FaultsOf) -> None:
    alpha = {"choices": [16], "when": {"use_rslora": False}}
    rslora = {"choices": [False, True]}
    both = {"lora_alpha": alpha, "use_rslora": rslora}
    assert list(faults_of(with_preset("qlora-thorough", both))) == ["search.space.lora_alpha"]
    apart = both | {"lora_alpha_ratio": {"choices": [1, 2], "when": {"use_rslora": True}}}
    definition = parse_definition(with_preset("qlora-thorough", apart))
    assert again(definition) == definition


@pytest.mark.parametrize(
    ("space", "recipe", "path"),
    [
        ({"lora_dropout": None}, {}, "search.space.lora_dropout"),
        ({"lora_droput": None}, {}, "search.space.lora_droput"),
        ({"epochs": {"max": 3}}, {}, "search.space.epochs.min"),
        ({"epochs": {"choices": [1, 2]}}, {"epochs": 2}, "recipe.epochs"),
        (
            {"warmup_ratio": {"choices": [0, 0.1], "when": {"lora_r": 7}}},
            {},
            "search.space.warmup_ratio.when.lora_r",
        ),
        (
            {"warmup_ratio": {"choices": [0, 0.1], "when": {"lora_r": 8}}, "lora_r": None},
            {},
            "search.space.warmup_ratio.when.lora_r",
        ),
        (dict.fromkeys(get_preset("qlora-default").space.root), {}, "search.space"),
        ([], {}, "search.space"),
    ],
)
def test_a_wrong_change_is_refused_at_its_place(
    faults_of: FaultsOf, space: Any, recipe: dict[str, Any], path: str
) -> None:
    assert list(faults_of(with_preset(space=space, recipe=recipe))) == [path]


@given(
    st.sampled_from(preset_names()),
    st.dictionaries(
        st.sampled_from(
            ["learning_rate", "lora_r", "epochs", "lora_alpha", "lora_alpha_ratio", "lora_dropout"]
        ),
        st.sampled_from(
            [
                None,
                {"choices": [0.5, 1.0]},
                {"choices": [1, 2]},
                {"choices": [1, 2], "when": {"batch_size": 8}},
                {"min": 0.25, "max": 0.5, "when": {"lr_scheduler": "cosine"}},
            ]
        ),
    ),
    st.dictionaries(st.sampled_from(["epochs", "lora_alpha", "lora_r", "batch_size"]), st.integers(1, 3)),
)
def test_what_is_accepted_is_accepted_again_as_it_stands(
    preset: str, space: dict[str, Any], recipe: dict[str, Any]
) -> None:
    try:
        definition = parse_definition(with_preset(preset, space, recipe))
    except InvalidDefinition:
        return
    assert again(definition) == definition
    # Every field that the preset speaks of is searched or fixed, but for a ratio that alpha displaced.
    spoken_of = {*get_preset(preset).space.root, *get_preset(preset).recipe} - {"lora_alpha_ratio"}
    assert spoken_of <= {*definition.search.space.root, *definition.recipe}
    for name, parameter in definition.search.space.root.items():
        assert parameter.when or name not in definition.recipe


@settings(max_examples=40)
@given(raw_conditional_spaces())
def test_any_valid_space_makes_a_definition_that_survives_json_and_yaml(raw: dict[str, Any]) -> None:
    sgd = {} if "optimizer" in raw else {"optimizer": "sgd"}
    document = DOCUMENT | {"search": {"trials": 3, "space": raw}, "recipe": sgd}
    definition = parse_definition(document)
    assert list(definition.search.space.root) == list(raw)
    stored = definition.model_dump(mode="json")
    assert StudyDefinition.model_validate(json.loads(json.dumps(stored))) == definition
    assert parse_definition(stored) == definition
    assert parse_definition(yaml.safe_load(yaml.safe_dump(stored, sort_keys=False))) == definition


def test_a_fixed_value_holds_where_a_condition_does_not(document: dict[str, Any]) -> None:
    document["search"]["space"] = {
        "lora_r": {"choices": [8, 64]},
        "lora_dropout": {"min": 0.1, "max": 0.2, "when": {"lora_r": 64}},
        "weight_decay": {"min": 0.1, "max": 0.2, "when": {"lora_r": 64}},
    }
    document["recipe"] = {"lora_dropout": 0.05}
    definition = parse_definition(document)
    assert build_recipe(definition, {"lora_r": 8}) == Recipe(lora_r=8, lora_dropout=0.05)
    active = {"lora_r": 64, "lora_dropout": 0.15, "weight_decay": 0.15}
    assert build_recipe(definition, active) == Recipe(lora_r=64, lora_dropout=0.15, weight_decay=0.15)
    assert again(definition) == definition


def test_the_longest_trial_may_be_one_without_its_conditional_epochs(document: dict[str, Any]) -> None:
    document["search"]["space"]["epochs"] = {"min": 1, "max": 2, "when": {"lora_r": 4}}
    assert parse_definition(document).max_epochs == 2
    document["recipe"] = {"epochs": 5}
    assert parse_definition(document).max_epochs == 5


def test_a_definition_of_an_older_version_loads_and_searches_what_it_did() -> None:
    stored = {
        "name": "old",
        "model": {"id": "org/base"},
        "data": {"train": "a.jsonl", "eval": "b.jsonl"},
        "search": {
            "algorithm": "grid",
            "trials": None,
            "seed": 0,
            "preset": None,
            "space": {
                "lora_alpha": {"type": "choice", "choices": [None, 16.0]},
                "lora_r": {"type": "int", "min": 1, "max": 3, "scale": "linear", "step": 1},
            },
        },
        "recipe": {},
        "objective": {"metric": "eval_loss", "direction": "minimize"},
        "pruning": {"algorithm": "none"},
    }
    definition = StudyDefinition.model_validate(stored)
    assert definition.search.total_trials == 6
    assert definition.search.space.model_dump(mode="json") == stored["search"]["space"]  # type: ignore[index]
    assert (definition.constraints, definition.warm_start, definition.repeats) == ({}, None, None)
