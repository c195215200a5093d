"""What one section of a definition demands of another."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

import pytest

from search_spaces.definition import Bound, StudyDefinition
from search_spaces.errors import Fault
from search_spaces.parsing.document import parse_definition

FaultsOf = Callable[[Any], dict[str, Fault]]

NUMBERS = {"learning_rate": {"min": 1e-5, "max": 1e-3, "scale": "log"}, "lora_r": {"choices": [4, 8]}}
NAMES = {**NUMBERS, "lr_scheduler": {"choices": ["linear", "cosine"]}}
CONDITIONS = {**NUMBERS, "lora_dropout": {"min": 0.0, "max": 0.1, "when": {"lora_r": 8}}}
ONE_NUMBER = {"lora_r": {"choices": [4, 8]}, "batch_size": {"choices": [8]}}
ALONE = {"resources": {"trials_per_worker": 1}}


def bend(document: dict[str, Any], search: dict[str, Any], sections: dict[str, Any]) -> dict[str, Any]:
    """The document with some keys of `search` and some sections replaced."""
    return document | {"search": document["search"] | search} | sections


@pytest.mark.parametrize(
    ("search", "sections"),
    [
        ({"algorithm": "gp", "space": NAMES}, {}),
        ({"algorithm": "cmaes", "space": NUMBERS}, {}),
        ({"algorithm": "qmc", "space": CONDITIONS}, {}),
        ({"algorithm": "random", "space": CONDITIONS}, {}),
        ({"algorithm": "gp"}, {"objective": {"costs": ["trainable_parameters"]}}),
        ({}, {"objective": {"costs": ["train_seconds", "peak_memory_gb"]}, **ALONE}),
        ({}, {"constraints": {"peak_memory_gb": {"max": 20}}, **ALONE}),
        ({}, {"constraints": {"trainable_parameters": {"max": 1e6}, "accuracy": {"min": 0.5}}}),
        ({"learning_rate_range_test": True}, {}),
        ({"learning_rate_range_test": {"min": 1e-2, "widen": True}}, {}),
        ({"learning_rate_range_test": False}, {}),
        ({}, {"warm_start": {"from": "tone-1", "as": "prior"}}),
        ({"algorithm": "gp"}, {"warm_start": {"from": "tone-1", "as": "prior", "top_k": 3}}),
        ({"algorithm": "random"}, {"warm_start": {"from": "tone-1"}}),
        (
            {"algorithm": "grid", "trials": None, "space": ONE_NUMBER},
            {"warm_start": {"from": "tone-1"}, "budget": {"no_improvement_trials": 1}},
        ),
        ({"trials": 3}, {"repeats": {}}),
        ({}, {"budget": {"target_value": 0.5}, "objective": {"metric": "accuracy"}}),
        ({}, {"evaluation": {"every_examples": 100, "overfit_rungs": 2}}),
        (
            {"space": {**NUMBERS, "quantization": {"choices": ["nf4", "int8"]}}},
            {"model": {"id": "org/base", "quantization": "fp4", "double_quantization": False}},
        ),
        ({"space": {**NUMBERS, "sgd_momentum": {"min": 0, "max": 0.9}}}, {"recipe": {"optimizer": "sgd"}}),
        ({"space": {**NUMBERS, "adam_beta2": {"choices": [0.99]}}}, {}),
    ],
    ids=repr,
)
def test_a_study_of_this_form_is_accepted_and_accepted_again(
    document: dict[str, Any], search: dict[str, Any], sections: dict[str, Any]
) -> None:
    definition = parse_definition(bend(document, search, sections))
    stored = json.loads(json.dumps(definition.model_dump(mode="json")))
    assert StudyDefinition.model_validate(stored) == definition
    assert parse_definition(stored) == definition


@pytest.mark.parametrize(
    ("search", "sections", "path", "words"),
    [
        # The algorithm and the space.
        (
            {"algorithm": "gp", "space": CONDITIONS},
            {},
            "search.algorithm",
            "conditional parameters (lora_dropout)",
        ),
        (
            {"algorithm": "cmaes", "space": CONDITIONS},
            {},
            "search.algorithm",
            "conditional parameters (lora_dropout)",
        ),
        ({"algorithm": "cmaes", "space": NAMES}, {}, "search.algorithm", "not numbers (lr_scheduler)"),
        ({"algorithm": "cmaes", "space": ONE_NUMBER}, {}, "search.algorithm", "at least two"),
        ({"algorithm": "cmaes", "trials": None}, {}, "search.trials", "cmaes does not end by itself"),
        ({"algorithm": "qmc", "trials": None}, {}, "search.trials", "qmc does not end by itself"),
        # Grids.
        (
            {
                "algorithm": "grid",
                "trials": None,
                "space": {
                    "lora_r": {"min": 1, "max": 64, "scale": "log", "points": 7},
                    "use_rslora": {"choices": [True, False], "when": {"lora_r": [3, 5]}},
                },
            },
            {},
            "search.space.use_rslora.when",
            "can never hold on this grid",
        ),
        (
            {
                "algorithm": "grid",
                "trials": 6,
                "space": {
                    "lora_r": {"choices": [4, 8]},
                    "lora_dropout": {"min": 0, "max": 0.3, "points": 4, "when": {"lora_r": 8}},
                },
            },
            {},
            "search.trials",
            "(5 points)",
        ),
        # The range test.
        (
            {"learning_rate_range_test": {"stps": 3}},
            {},
            "search.learning_rate_range_test.stps",
            "unknown key",
        ),
        (
            {"learning_rate_range_test": {"steps": 3}},
            {},
            "search.learning_rate_range_test.steps",
            "at least 20",
        ),
        (
            {"learning_rate_range_test": {"min": 2}},
            {},
            "search.learning_rate_range_test.max",
            "more than min",
        ),
        (
            {"learning_rate_range_test": {"within": [1, 2]}},
            {},
            "search.learning_rate_range_test.within",
            "by the service",
        ),
        ({"learning_rate_range_test": {"min": 1e-2}}, {}, "search.learning_rate_range_test.min", "widen"),
        ({"learning_rate_range_test": {"max": 1e-6}}, {}, "search.learning_rate_range_test.max", "widen"),
        (
            {"learning_rate_range_test": True, "space": {"lora_r": {"choices": [4, 8]}}},
            {},
            "search.learning_rate_range_test",
            "learning_rate is not searched",
        ),
        (
            {"learning_rate_range_test": True, "space": {"learning_rate": {"choices": [1e-4, 1e-3]}}},
            {},
            "search.space.learning_rate",
            "continuous range",
        ),
        (
            {
                "learning_rate_range_test": True,
                "space": {"learning_rate": {"min": 1e-4, "max": 1, "points": 3}},
            },
            {},
            "search.space.learning_rate",
            "continuous range",
        ),
        (
            {"learning_rate_range_test": True, "algorithm": "grid", "trials": None, "space": ONE_NUMBER},
            {},
            "search.learning_rate_range_test",
            "cannot be combined with a grid",
        ),
        # Recipe and space.
        (
            {"space": {**NUMBERS, "sgd_momentum": {"min": 0, "max": 0.9}}},
            {},
            "search.space.sgd_momentum",
            "optimizer is adamw (the default)",
        ),
        (
            {"space": {**NUMBERS, "sgd_momentum": {"min": 0, "max": 0.9}}},
            {"recipe": {"optimizer": "rmsprop"}},
            "search.space.sgd_momentum",
            "optimizer is rmsprop (fixed in recipe)",
        ),
        (
            {"space": {**NUMBERS, "learning_rate_batch_size": {"choices": [8, 16]}}},
            {},
            "search.space.learning_rate_batch_size",
            "only sqrt or linear uses it",
        ),
        ({}, {"recipe": {"lora_r": 8}}, "recipe.lora_r", "fixed here and searched"),
        (
            {"space": {**NUMBERS, "lora_alpha": {"choices": [8]}}},
            {"recipe": {"lora_alpha_ratio": 2}},
            "search.space.lora_alpha",
            "both set alpha",
        ),
        (
            {"space": {**NUMBERS, "lora_alpha_ratio": {"choices": [8], "when": {"lora_r": 4}}}},
            {"recipe": {"lora_alpha": 2}},
            "recipe.lora_alpha",
            "both set alpha",
        ),
        (
            {
                "space": {
                    **NUMBERS,
                    "lora_alpha_ratio": {"choices": [8]},
                    "lora_alpha": {"choices": [8], "when": {"lora_r": 4}},
                }
            },
            {},
            "search.space.lora_alpha",
            "conditions that exclude each other",
        ),
        # Several objectives and constraints.
        (
            {},
            {"objective": {"costs": ["train_secs"]}, **ALONE},
            "objective.costs.0",
            "not one of the allowed",
        ),
        ({}, {"objective": {"costs": "train_seconds"}, **ALONE}, "objective.costs", "must be a list"),
        (
            {},
            {"objective": {"costs": ["trainable_parameters", "trainable_parameters"]}},
            "objective.costs.1",
            "listed twice",
        ),
        (
            {},
            {
                "objective": {"costs": ["trainable_parameters"]},
                "pruning": {"algorithm": "median"},
                "evaluation": {"every_examples": 10},
            },
            "pruning.algorithm",
            "compares one value",
        ),
        ({}, {"objective": {"costs": ["trainable_parameters"]}, "repeats": {}}, "repeats", "Pareto front"),
        (
            {"algorithm": "cmaes"},
            {"objective": {"costs": ["trainable_parameters"]}},
            "search.algorithm",
            "ranks trials by one value",
        ),
        (
            {},
            {"objective": {"costs": ["trainable_parameters"]}, "warm_start": {"from": "a", "as": "prior"}},
            "warm_start.as",
            "only the objective",
        ),
        (
            {},
            {"objective": {"costs": ["train_seconds"]}},
            "resources.trials_per_worker",
            "objective.costs (train_seconds)",
        ),
        (
            {},
            {"constraints": {"peak_memory_gb": {"max": 20}}, "resources": {"trials_per_worker": 4}},
            "resources.trials_per_worker",
            "constraints.peak_memory_gb",
        ),
        (
            {},
            {"constraints": {"peak_memory": {"max": 20}}},
            "constraints.peak_memory",
            "unknown metric or cost",
        ),
        ({}, {"constraints": {"accuracy": {}}}, "constraints.accuracy", "has no bound"),
        ({}, {"constraints": {"accuracy": None}}, "constraints.accuracy", "has no bound"),
        (
            {},
            {"constraints": {"accuracy": {"min": 0.9, "max": 0.1}}},
            "constraints.accuracy.min",
            "above max",
        ),
        ({}, {"constraints": {"accuracy": {"mn": 0.9, "max": 1}}}, "constraints.accuracy.mn", "unknown key"),
        ({}, {"constraints": {"accuracy": 0.9}}, "constraints.accuracy", "must be a mapping"),
        ({}, {"constraints": ["accuracy"]}, "constraints", "must be a mapping"),
        # Rungs.
        ({}, {"evaluation": {"overfit_rungs": 2}}, "evaluation.every_examples", "overfit_rungs"),
        (
            {},
            {"evaluation": {"overfit_rungs": 2}, "pruning": {"algorithm": "median"}},
            "evaluation.every_examples",
            "median pruning",
        ),
        # Warm start, repeats, budget.
        ({}, {"warm_start": {}}, "warm_start.from", "is required"),
        ({}, {"warm_start": {"from": "a", "form": "b"}}, "warm_start.form", "unknown key"),
        ({}, {"warm_start": {"from_": "a", "from": "a"}}, "warm_start.from_", "unknown key"),
        ({}, {"warm_start": {"from": "a", "as": "priors"}}, "warm_start.as", "not one of the allowed"),
        (
            {"algorithm": "random"},
            {"warm_start": {"from": "a", "as": "prior"}},
            "warm_start.as",
            "random does not learn",
        ),
        (
            {"algorithm": "cmaes"},
            {"warm_start": {"from": "a", "as": "prior"}},
            "warm_start.as",
            "cmaes does not learn",
        ),
        ({"trials": 2}, {"repeats": {"top_k": 3}}, "repeats.top_k", "(2 trials)"),
        (
            {"space": {"lora_r": {"choices": [4, 8]}}},
            {"repeats": {"top_k": 3}},
            "repeats.top_k",
            "(2 trials)",
        ),
        (
            {},
            {"repeats": {"seeds": 2}, "recipe": {"seed": 2**32 - 2}},
            "repeats.seeds",
            "above the largest seed",
        ),
        ({}, {"budget": {"target_value": float("inf")}}, "budget.target_value", "finite"),
        ({}, {"budget": {"target_value": -0.1}}, "budget.target_value", "never be reached"),
        (
            {},
            {"budget": {"target_value": 95}, "objective": {"metric": "accuracy"}},
            "budget.target_value",
            "never be reached",
        ),
        ({}, {"budget": {"no_improvement_trials": 0}}, "budget.no_improvement_trials", "at least 1"),
    ],
)
def test_what_does_not_go_together_is_one_fault_with_its_reason(
    document: dict[str, Any],
    faults_of: FaultsOf,
    search: dict[str, Any],
    sections: dict[str, Any],
    path: str,
    words: str,
) -> None:
    found = faults_of(bend(document, search, sections))
    assert list(found) == [path]
    assert words in found[path].message


def test_alpha_and_its_ratio_may_be_searched_where_conditions_keep_them_apart(
    document: dict[str, Any],
) -> None:
    document["search"]["space"] = {
        "use_rslora": {"choices": [False, True]},
        "lora_alpha": {"choices": [8, 16], "when": {"use_rslora": False}},
        "lora_alpha_ratio": {"choices": [1, 2, 4], "when": {"use_rslora": True}},
    }
    assert parse_definition(document).search.space.size() == 5


def test_a_finite_space_has_no_more_trials_than_configurations(document: dict[str, Any]) -> None:
    document["search"]["space"] = {
        "lora_r": {"choices": [4, 8]},
        "use_rslora": {"choices": [False, True], "when": {"lora_r": 8}},
    }
    definition = parse_definition(document)
    assert (definition.search.trials, definition.search.total_trials) == (12, 3)


def test_an_unknown_constraint_names_the_nearest_measured_value(
    document: dict[str, Any], faults_of: FaultsOf
) -> None:
    document["constraints"] = {"peak_memory": {"max": 20}}
    fault = faults_of(document)["constraints.peak_memory"]
    assert fault.nearest == "peak_memory_gb"
    assert "trainable_parameters" in str(fault.allowed)


def test_bounds_are_read_as_numbers(document: dict[str, Any]) -> None:
    document["constraints"] = {"trainable_parameters": {"max": 1e6}}
    assert parse_definition(document).constraints == {"trainable_parameters": Bound(max=1e6)}
