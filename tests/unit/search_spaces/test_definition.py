"""Definitions: what is accepted, and every way of being wrong, each named with its path.

One file, because it goes through one door, `parse_definition`, with one example that each case changes.
"""

from __future__ import annotations

import json
import math
import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from search_spaces.definition import StudyDefinition, build_recipe
from search_spaces.errors import Fault, InvalidDefinition, InvalidRecipe
from search_spaces.faults import MAX_FAULTS
from search_spaces.parameters.choices import Choice
from search_spaces.parameters.ranges import Float, Int
from search_spaces.parsing.document import parse_definition
from search_spaces.pruning.specs import AshaPruning, NoPruning
from search_spaces.recipe import Recipe
from search_spaces.space.presets import preset_names, presets
from tests.support.search_spaces.spaces import DOCUMENT

FaultsOf = Callable[[Any], dict[str, Fault]]
Define = Callable[..., StudyDefinition]

STORED = Path(__file__).parent / "stored_definitions.jsonl"
SAMPLE = """
name: support-tone
model: {id: Qwen/Qwen2.5-0.5B-Instruct, quantization: nf4}
task: causal_lm
data: {train: data/train.jsonl, eval: data/eval.jsonl, format: auto, max_length: 512}
search:
  algorithm: tpe
  trials: 40
  seed: 7
  space:
    learning_rate: {min: 1.0e-5, max: 1.0e-3, scale: log}
    batch_size:    {choices: [4, 8, 16, 32]}
    epochs:        {min: 1, max: 3, type: int}
    weight_decay:  {min: 0.0, max: 0.1}
    lora_r:        {choices: [4, 8, 16, 32, 64]}
recipe: {lora_alpha_ratio: 2, lora_dropout: 0.05, lr_scheduler: cosine, warmup_ratio: 0.1}
objective: {metric: eval_loss, direction: minimize}
pruning: {algorithm: asha, min_examples: 500, reduction_factor: 3, n_min_trials: 1}
evaluation: {every_examples: 500}
budget: {max_parallel_trials: 16, max_failed_trials: 5, max_gpu_hours: 8, timeout: 10h}
resources: {workers: auto, gpus_per_worker: 1}
"""


def test_a_complete_study_reads_as_written() -> None:
    definition = parse_definition(yaml.safe_load(SAMPLE))
    assert definition.search.space.parameters == {
        "learning_rate": Float(min=1e-5, max=1e-3, scale="log"),
        "batch_size": Choice(choices=(4, 8, 16, 32)),
        "epochs": Int(min=1, max=3),
        "weight_decay": Float(min=0.0, max=0.1),
        "lora_r": Choice(choices=(4, 8, 16, 32, 64)),
    }
    assert definition.search.total_trials == 40
    assert definition.pruning == AshaPruning(
        algorithm="asha", min_examples=500, reduction_factor=3, n_min_trials=1
    )
    assert definition.budget.timeout_seconds == 36_000
    assert (definition.resources.workers, definition.resources.gpus_per_worker) == ("auto", 1.0)
    assert definition.recipe == {
        "lora_alpha_ratio": 2.0,
        "lora_dropout": 0.05,
        "lr_scheduler": "cosine",
        "warmup_ratio": 0.1,
    }


def test_a_stored_definition_loads_as_it_was_and_may_be_submitted_again() -> None:
    for document in (
        yaml.safe_load(SAMPLE),
        DOCUMENT | {"search": {"preset": "qlora-default", "trials": 5}, "recipe": {"target_modules": ["q"]}},
        DOCUMENT | {"data": {"train": {"hub": "a/b", "split": "train"}, "eval": "e.jsonl"}},
    ):
        definition = parse_definition(document)
        stored = json.loads(json.dumps(definition.model_dump(mode="json")))
        assert StudyDefinition.model_validate(stored) == definition
        assert parse_definition(stored) == definition


def test_what_is_left_out_has_its_default(document: dict[str, Any]) -> None:
    definition = parse_definition(document | {"pruning": None, "recipe": None, "budget": None})
    assert definition.pruning == NoPruning()
    assert definition.recipe == {}
    assert definition.evaluation.every_examples is None
    assert (definition.objective.metric, definition.objective.direction) == ("eval_loss", "minimize")


@pytest.mark.parametrize(
    ("metric", "direction"), [("eval_loss", "minimize"), ("perplexity", "minimize"), ("accuracy", "maximize")]
)
def test_the_direction_follows_the_metric(
    document: dict[str, Any], faults_of: FaultsOf, metric: str, direction: str
) -> None:
    document["objective"] = {"metric": metric}
    assert parse_definition(document).objective.direction == direction
    document["objective"]["direction"] = "maximize" if direction == "minimize" else "minimize"
    fault = faults_of(document)["objective.direction"]
    assert fault.allowed == direction


def test_all_faults_are_reported_at_once_with_the_nearest_known_names(faults_of: FaultsOf) -> None:
    document = yaml.safe_load(SAMPLE)
    document["serch"] = 1
    document["model"]["quantisation"] = "nf4"
    document["search"]["algorithm"] = "tpo"
    document["search"]["trials"] = 0
    document["search"]["space"]["learning_rate"] = {"min": 1.0, "max": 1e-3, "scale": "log"}
    document["search"]["space"]["lr"] = {"min": 1e-5, "max": 1e-3}
    document["recipe"]["lora_droput"] = 0.1
    document["objective"]["metric"] = "acuracy"
    document["pruning"]["algorithm"] = "ahsa"
    document["budget"]["timeout"] = 10
    found = faults_of(document)
    assert {path: fault.nearest for path, fault in found.items()} == {
        "serch": "search",
        "model.quantisation": "quantization",
        "search.algorithm": "tpe",
        "search.trials": None,
        "search.space.learning_rate.min": None,
        "search.space.lr": "learning_rate",
        "recipe.lora_droput": "lora_dropout",
        "objective.metric": "accuracy",
        "pruning.algorithm": "asha",
        "budget.timeout": None,
    }
    assert all(fault.allowed for fault in found.values())


def test_a_fault_names_value_message_and_what_is_allowed(
    document: dict[str, Any], faults_of: FaultsOf
) -> None:
    document["search"]["trials"] = -3
    assert faults_of(document) == {
        "search.trials": Fault(
            path="search.trials", value=-3, message="must be at least 1", allowed="at least 1"
        )
    }


@pytest.mark.parametrize(
    ("section", "value", "path"),
    [
        ("name", "has space", "name"),
        ("name", "line\n", "name"),
        ("name", 3, "name"),
        ("task", "seq2seq", "task"),
        ("task", None, "task"),
        ("task", ["regression"], "task"),
        ("metrics", ["profit"], "metrics"),
        ("metrics", {"profit": "profit"}, "metrics.profit"),
        ("metrics", {"profit": 3}, "metrics.profit"),
        ("metrics", {"net profit": "m:f"}, "metrics.net profit"),
        ("metrics", {"train_loss": "m:f"}, "metrics.train_loss"),
        ("model", {"id": "a", "dropout": 0.1}, "model.dropout"),
        ("data", {"train": "a", "eval": "b", "header": "no"}, "data.header"),
        ("objective", {"metric": "net profit"}, "objective.metric"),
        ("objective", {"metric": None}, "objective.metric"),
        ("evaluation", {"generate": True}, "evaluation.generate"),
        ("evaluation", {"generate": {"max_new_tokens": 0}}, "evaluation.generate.max_new_tokens"),
        ("evaluation", {"generate": {"when": "rung"}}, "evaluation.generate.when"),
        ("evaluation", {"generate": {"answer": "x"}}, "evaluation.generate.answer"),
        ("evaluation", {"generate": {"answer_pattern": "x" * 257}}, "evaluation.generate.answer_pattern"),
        ("recipe", {"loss": "hinge"}, "recipe.loss"),
        ("recipe", {"focal_gamma": -1}, "recipe.focal_gamma"),
        ("recipe", {"focal_gamma": 11}, "recipe.focal_gamma"),
        ("recipe", {"huber_delta": 0}, "recipe.huber_delta"),
        ("recipe", {"label_smoothing": 1}, "recipe.label_smoothing"),
        ("recipe", {"class_weights": "even"}, "recipe.class_weights"),
        ("recipe", {"class_weights": {}}, "recipe.class_weights"),
        ("recipe", {"class_weights": {"yes": 0}}, "recipe.class_weights"),
        ("recipe", {"neftune_alpha": -0.1}, "recipe.neftune_alpha"),
        ("recipe", {"head_learning_rate_ratio": 0}, "recipe.head_learning_rate_ratio"),
        ("recipe", {"preference_beta": 0}, "recipe.preference_beta"),
        ("recipe", {"simpo_gamma": -1}, "recipe.simpo_gamma"),
        ("model", "org/base", "model"),
        ("model", {}, "model.id"),
        ("model", {"id": "a\x00b"}, "model.id"),
        ("model", {"id": "a\ud800"}, "model.id"),
        ("data", {"train": "a", "eval": b"b"}, "data.eval"),
        ("model", {"id": ""}, "model.id"),
        ("model", {"id": "a", "double_quantization": 1}, "model.double_quantization"),
        ("data", {"train": "a"}, "data.eval"),
        ("data", {"train": "a", "eval": 3}, "data.eval"),
        ("data", {"train": "a", "eval": {"hub": "x/y"}}, "data.eval.split"),
        ("data", {"train": "a", "eval": {"hub": "x/y", "split": "t", "splt": 1}}, "data.eval.splt"),
        ("data", {"train": "a", "eval": "b", "format": "alpacca"}, "data.format"),
        ("data", {"train": "a", "eval": "b", "max_length": True}, "data.max_length"),
        ("data", {"train": "a", "eval": "b", "columns": {"prompt": 3}}, "data.columns.prompt"),
        ("data", {"train": "a", "eval": "b", "columns": {"promt": "q"}}, "data.columns.promt"),
        ("recipe", [1], "recipe"),
        ("recipe", {"batch_size": -1}, "recipe.batch_size"),
        ("recipe", {"batch_size": 2.5}, "recipe.batch_size"),
        ("recipe", {"batch_size": True}, "recipe.batch_size"),
        ("recipe", {"epochs": "many"}, "recipe.epochs"),
        ("recipe", {"weight_decay": math.nan}, "recipe.weight_decay"),
        ("recipe", {"target_modules": "q_proj"}, "recipe.target_modules"),
        ("recipe", {"learning_rate": 1e-4}, "recipe.learning_rate"),
        ("recipe", {"lora_alpha": 16, "lora_alpha_ratio": 2}, "recipe.lora_alpha"),
        ("evaluation", {"every_examples": 0}, "evaluation.every_examples"),
        ("evaluation", {"divergence_factor": 1}, "evaluation.divergence_factor"),
        ("budget", {"max_parallel_trials": 0}, "budget.max_parallel_trials"),
        ("budget", {"max_parallel_trials": 2**31}, "budget.max_parallel_trials"),
        ("budget", {"timeout": "10 hours"}, "budget.timeout"),
        ("budget", {"timeout": "0s"}, "budget.timeout"),
        ("resources", {"workers": "atuo"}, "resources.workers"),
        ("resources", {"workers": 0}, "resources.workers"),
        ("resources", {"gpus_per_worker": -1}, "resources.gpus_per_worker"),
        ("resources", {"gpus_per_worker": 1.5}, "resources.gpus_per_worker"),
        ("resources", {"gpus_per_worker": 1e-6}, "resources.gpus_per_worker"),
        ("pruning", "none", "pruning"),
        ("pruning", {"min_examples": 10}, "pruning.algorithm"),
        ("pruning", {"algorithm": ["asha"]}, "pruning.algorithm"),
        ("pruning", {"algorithm": "median"}, "evaluation.every_examples"),
    ],
)
def test_one_wrong_value_is_one_fault_at_its_place(
    document: dict[str, Any], faults_of: FaultsOf, section: str, value: Any, path: str
) -> None:
    assert list(faults_of(document | {section: value})) == [path]


@pytest.mark.parametrize(
    ("search", "paths"),
    [
        ({"trials": None}, ["search.trials"]),
        ({"trials": None, "algorithm": "random"}, ["search.trials"]),
        ({"algorithm": "grid"}, ["search.space.learning_rate"]),
        ({"space": None}, ["search.space"]),
        ({"space": {}}, ["search.space"]),
        ({"preset": "qlora-defualt", "space": None}, ["search.preset"]),
        ({"preset": "qlora-default", "space": 3}, ["search.space"]),
        ({"preset": ["qlora-default"], "space": None}, ["search.preset"]),
        ({"seed": -1}, ["search.seed"]),
        ({"trials": "12x"}, ["search.trials"]),
        ({"space": {"lora_alpha": {"choices": [8]}, "lora_alpha_ratio": {"choices": [2]}}}, None),
    ],
)
def test_a_wrong_search_is_refused(
    document: dict[str, Any], faults_of: FaultsOf, search: dict[str, Any], paths: list[str] | None
) -> None:
    document["search"] |= search
    assert list(faults_of(document)) == (paths or ["search.space.lora_alpha"])


def test_a_grid_over_a_continuous_range_says_how_to_mend_it(
    document: dict[str, Any], faults_of: FaultsOf
) -> None:
    document["search"]["algorithm"] = "grid"
    message = faults_of(document)["search.space.learning_rate"].message
    assert "points" in message
    assert "step" in message
    assert "choices" in message


@pytest.mark.parametrize(("points", "fits"), [(10_000, True), (10_001, False)])
def test_a_grid_has_at_most_10_000_points(
    document: dict[str, Any], faults_of: FaultsOf, points: int, fits: bool
) -> None:
    document["search"] = {"algorithm": "grid", "space": {"lora_r": {"min": 1, "max": points}}}
    if fits:
        assert parse_definition(document).search.total_trials == points
    else:
        assert faults_of(document)["search.space"].value == points


@pytest.mark.parametrize(("trials", "total"), [(None, 6), (4, 4), (6, 6)])
def test_a_grid_has_one_trial_per_point_or_the_first_of_them(
    define: Define, trials: int | None, total: int
) -> None:
    space = {"learning_rate": {"choices": [1e-4, 1e-3]}, "lora_r": {"choices": [4, 8, 16]}}
    assert define(algorithm="grid", trials=trials, space=space).search.total_trials == total


def test_a_grid_has_no_more_trials_than_points(document: dict[str, Any], faults_of: FaultsOf) -> None:
    document["search"] = {"algorithm": "grid", "trials": 4, "space": {"lora_r": {"choices": [1, 2, 3]}}}
    assert faults_of(document)["search.trials"].allowed == "at most 3"


def test_asha_may_not_begin_before_the_first_evaluation(
    document: dict[str, Any], faults_of: FaultsOf
) -> None:
    document["evaluation"] = {"every_examples": 500}
    document["pruning"] = {"algorithm": "asha", "min_examples": 499}
    assert faults_of(document)["pruning.min_examples"].allowed == "at least 500"


def test_numbers_written_as_text_are_refused_wherever_they_stand(
    document: dict[str, Any], faults_of: FaultsOf
) -> None:
    document["recipe"] = {"adam_epsilon": "1e-6"}
    document["search"]["trials"] = "1e1"
    document["search"]["space"] = {
        "learning_rate": {"min": "1e-5", "max": 1e-3},
        "batch_size": {"choices": [8, "16"]},
    }
    faults = faults_of(document)
    assert {path: fault.message for path, fault in faults.items()} == {
        "recipe.adam_epsilon": "must be a number, not text: write 1e-06 without quotes",
        "search.trials": "must be a number, not text: write 10 without quotes",
        "search.space.learning_rate.min": "must be a number, not text: write 1e-05 without quotes",
        "search.space.batch_size.choices.1": "must be a number, not text: write 16 without quotes",
    }


@pytest.mark.parametrize("name", preset_names())
def test_a_preset_is_resolved_when_the_definition_is_accepted(name: str) -> None:
    preset = next(preset for preset in presets() if preset.name == name)
    definition = parse_definition(DOCUMENT | {"search": {"preset": name, "trials": 5}})
    assert definition.search.preset == name
    assert definition.search.space == preset.space
    assert definition.recipe == preset.recipe


def test_the_users_recipe_wins_over_the_presets() -> None:
    search = {"preset": "qlora-quick", "trials": 5}
    given_dropout = parse_definition(DOCUMENT | {"search": search, "recipe": {"lora_dropout": 0.2}})
    assert given_dropout.recipe["lora_dropout"] == 0.2
    given_alpha = parse_definition(DOCUMENT | {"search": search, "recipe": {"lora_alpha": 16}})
    assert "lora_alpha_ratio" not in given_alpha.recipe
    assert build_recipe(given_alpha, {"lora_r": 8, "learning_rate": 1e-4}).alpha == 16


def test_a_recipe_is_defaults_under_the_definition_under_the_parameters(define: Define) -> None:
    definition = define(
        space={"lora_r": {"choices": [4, 8]}, "target_modules": {"choices": ["attention", ["q_proj"]]}}
    ).model_copy(update={"recipe": {"epochs": 2, "lora_r": 99}})
    recipe = build_recipe(definition, {"lora_r": 8, "target_modules": '["q_proj"]'})
    assert recipe == Recipe(epochs=2.0, lora_r=8, target_modules=("q_proj",))
    assert type(recipe.lora_r) is int


def test_parameters_out_of_bounds_make_no_recipe(define: Define) -> None:
    with pytest.raises(InvalidRecipe) as caught:
        build_recipe(define(), {"lora_r": 0, "rank": 3})
    assert [fault.path for fault in caught.value.faults] == ["rank", "lora_r"]


def test_an_invalid_definition_survives_pickling() -> None:
    with pytest.raises(InvalidDefinition) as caught:
        parse_definition({"name": "x"})
    again = pickle.loads(pickle.dumps(caught.value))
    assert again.faults == caught.value.faults
    assert str(again) == str(caught.value)


# What a stranger may send.

anything = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.sampled_from([400, 5000]).map(lambda digits: 10**digits)
    | st.sampled_from([2**63, 1e308, 5e-324, "1e-5", "1e999", "nan", "tpe", "grid"])
    | st.floats()
    | st.text(st.characters(), max_size=5)
    | st.sampled_from(["\ud800", "a\x00b", "x" * 1000, b"bytes", frozenset({1}), object()]),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(st.text(max_size=5) | st.integers() | st.none() | st.booleans(), inner, max_size=3)
        | st.dictionaries(
            st.sampled_from(["min", "max", "step", "points", "scale", "type", "choices", "when"]), inner
        )
    ),
    max_leaves=8,
)


def assert_only_invalid(document: Any) -> None:
    """Parses, or refuses with faults that can be sent as JSON; never anything else."""
    try:
        definition = parse_definition(document)
    except InvalidDefinition as error:
        refused = error
    else:
        stored = json.loads(json.dumps(definition.model_dump(mode="json"), allow_nan=False))
        assert StudyDefinition.model_validate(stored) == definition
        return
    assert 1 <= len(refused.faults) <= MAX_FAULTS
    for fault in refused.faults:
        text = json.dumps(
            [fault.path, fault.value, fault.message, fault.allowed, fault.nearest],
            allow_nan=False,
            ensure_ascii=False,
        )
        assert len(text.encode("utf-8")) < 200_000
    str(refused).encode("utf-8")


@given(anything)
def test_no_document_raises_anything_else(document: Any) -> None:
    assert_only_invalid(document)


def places(value: Any, path: tuple[str, ...] = ()) -> list[tuple[str, ...]]:
    """Every place in a document."""
    below = (
        [place for key in value for place in places(value[key], (*path, key))]
        if isinstance(value, dict)
        else []
    )
    return [path, *below]


PLACES = [
    place
    for place in places(
        yaml.safe_load(SAMPLE)
        | {
            "search": yaml.safe_load(SAMPLE)["search"] | {"learning_rate_range_test": {"min": 1, "max": 2}},
            "constraints": {"peak_memory_gb": {"min": 0, "max": 20}},
            "warm_start": {"from": "tone-1", "top_k": 3, "as": "prior"},
            "repeats": {"top_k": 2, "seeds": 2},
            "data": {
                "train": {"hub": "a", "split": "b", "config": "c"},
                "eval": "e",
                "columns": {"text": "t"},
                "header": "none",
            },
            "metrics": {"profit": "my_metrics:profit"},
            "objective": {"metric": "profit", "direction": "maximize", "costs": []},
            "evaluation": {
                "generate": {"max_new_tokens": 8, "examples": 2, "when": "end", "answer_pattern": "x"}
            },
            "model": {"id": "org/base", "dropout": "off"},
            "recipe": {"loss": "focal", "class_weights": {"yes": 2.0}, "preference_beta": 0.1},
        }
    )
    if place
]


@given(st.lists(st.tuples(st.sampled_from(PLACES), anything), min_size=1, max_size=3))
def test_no_value_at_any_place_raises_anything_else(changes: list[tuple[tuple[str, ...], Any]]) -> None:
    document = yaml.safe_load(SAMPLE)
    for place, value in changes:
        target = document
        for key in place[:-1]:
            if not isinstance(target.get(key), dict):
                target[key] = {}
            target = target[key]
        target[place[-1]] = value
    assert_only_invalid(document)


@given(
    st.dictionaries(
        st.sampled_from(["learning_rate", "lora_r", "optimizer", "sgd_momentum", "seed"]), anything
    )
)
def test_no_search_space_raises_anything_else(space: dict[str, Any]) -> None:
    for algorithm in ("grid", "cmaes"):
        search = {"algorithm": algorithm, "trials": 3, "space": space}
        assert_only_invalid(DOCUMENT | {"search": search})
    search = {"preset": "qlora-quick", "trials": 3, "space": space, "learning_rate_range_test": True}
    assert_only_invalid(DOCUMENT | {"search": search})


def test_a_document_nested_too_deeply_or_containing_itself_is_refused(faults_of: FaultsOf) -> None:
    deep: Any = 1
    for _ in range(100_000):
        deep = [deep]
    assert list(faults_of(DOCUMENT | {"recipe": {"epochs": deep}}))
    loop: list[Any] = []
    loop.append(loop)
    assert list(faults_of(DOCUMENT | {"recipe": loop}))
    # Unravelled by hand: freeing 100,000 nested lists at once may exhaust the C stack.
    while isinstance(deep, list):
        deep = deep[0]


def test_a_document_that_aliases_make_astronomic_is_refused_quickly(faults_of: FaultsOf) -> None:
    bomb: Any = "x"
    for _ in range(10):
        bomb = [bomb] * 10
    assert [fault.message for fault in faults_of({"name": bomb}).values()] == ["contains too many values"]


def test_a_hundred_thousand_unknown_keys_are_not_all_reported() -> None:
    with pytest.raises(InvalidDefinition) as caught:
        parse_definition({f"key{i}": i for i in range(40_000)})
    assert len(caught.value.faults) == MAX_FAULTS


@pytest.mark.parametrize("gpus", ["auto", 0, 0.25, 1, 2])
def test_a_worker_may_have_a_share_of_a_gpu_or_whole_ones(document: dict[str, Any], gpus: Any) -> None:
    definition = parse_definition(document | {"resources": {"gpus_per_worker": gpus}})
    assert definition.resources.gpus_per_worker == gpus


def test_a_wrong_name_is_told_what_a_name_is_in_words(document: dict[str, Any], faults_of: FaultsOf) -> None:
    fault = faults_of(document | {"name": "a/b"})["name"]
    assert (fault.value, fault.message) == ("a/b", f"must be {fault.allowed}")
    assert "letters, digits" in str(fault.allowed)


LONG = "a" * 900_000


@pytest.mark.parametrize(
    ("path", "sections", "longest"),
    [
        ("data.columns.prompt", {"data": {"columns": {"prompt": LONG}}}, "256"),
        ("data.columns." + "a" * 200 + "…", {"data": {"columns": {LONG: "prompt"}}}, "256"),
        ("data.train", {"data": {"train": LONG}}, "4,096"),
        ("data.eval.revision", {"data": {"eval": {"hub": "a/b", "split": "x", "revision": LONG}}}, "256"),
        ("model.revision", {"model": {"revision": "a" * 257}}, "256"),
        ("warm_start.from", {"warm_start": {"from": LONG}}, "256"),
        ("recipe.target_modules.1", {"recipe": {"target_modules": ["q_proj", LONG]}}, "256"),
        (
            "search.space.target_modules.choices.0.0",
            {"search": {"space": {"target_modules": {"choices": [[LONG]]}}}},
            "256",
        ),
        ("budget.until_timezone", {"budget": {"until": "06:00", "until_timezone": LONG}}, "256"),
    ],
)
def test_every_text_is_bounded(
    document: dict[str, Any], faults_of: FaultsOf, path: str, sections: dict[str, Any], longest: str
) -> None:
    for section, changes in sections.items():
        document[section] = {**document.get(section, {}), **changes}
    fault = faults_of(document)[path]
    assert fault.message.startswith("is too long, with ")
    assert fault.allowed == f"at most {longest} characters"
    assert len(str(fault)) < 1000


@pytest.mark.parametrize("line", range(5))
def test_a_definition_stored_by_an_earlier_version_is_read_as_it_was(line: int) -> None:
    # Stored by the last version that read numbers written as text, from documents with many of them.
    stored = json.loads(STORED.read_text(encoding="utf-8").splitlines()[line])
    definition = StudyDefinition.model_validate(stored)
    assert json.dumps(definition.model_dump(mode="json")) == json.dumps(stored)
    assert parse_definition(stored) == definition


def test_a_stored_definition_with_a_longer_text_can_be_read(document: dict[str, Any]) -> None:
    stored = parse_definition(document).model_dump(mode="json")
    stored["data"]["columns"] = {"prompt": LONG}
    assert StudyDefinition.model_validate(stored).data.columns == {"prompt": LONG}
