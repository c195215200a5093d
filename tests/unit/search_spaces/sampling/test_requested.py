"""Trials that a person asks for: what is refused, and what the sampler makes of the rest."""

from __future__ import annotations

from typing import Any

import optuna
import pytest

from search_spaces.definition import StudyDefinition
from search_spaces.errors import RequestRefusedError
from search_spaces.parsing.document import parse_definition
from search_spaces.preparation import Preparation
from search_spaces.sampling.history import ENQUEUED
from search_spaces.sampling.requested import Request, read_request
from search_spaces.sampling.suggest import suggest
from tests.support.search_spaces.asked_studies import CONDITIONAL, NUMBERS, SPACES
from tests.support.search_spaces.spaces import DOCUMENT

GRID = {"learning_rate": {"choices": [1e-4, 1e-3]}, "lora_r": {"choices": [4, 8]}}
POINTS = [
    {"learning_rate": 1e-4, "lora_r": 4},
    {"learning_rate": 1e-4, "lora_r": 8},
    {"learning_rate": 1e-3, "lora_r": 4},
    {"learning_rate": 1e-3, "lora_r": 8},
]


@pytest.fixture(autouse=True)
def _quiet_optuna() -> None:
    optuna.logging.set_verbosity(optuna.logging.WARNING)


def define(algorithm: str, space: dict[str, Any]) -> StudyDefinition:
    trials = {} if algorithm == "grid" else {"trials": 16}
    search = {"algorithm": algorithm, "seed": 3, "space": space, **trials}
    return parse_definition({**DOCUMENT, "search": search})


def faults(space: dict[str, Any], sent: dict[str, Any], *, on_grid: bool = False) -> dict[str, str]:
    definition = define("grid" if on_grid else "random", space)
    _, found = read_request(definition.search.space, sent, on_grid=on_grid)
    return {fault.path: fault.message for fault in found}


def test_every_fault_is_named_at_once() -> None:
    sent = {"lr": 1e-4, "lora_r": 8, "learning_rate": 1.0, "batch_size": 5, "epochs": 1.5}
    assert faults(NUMBERS, sent) == {
        "params.lr": "unknown parameter",
        "params.lora_r": "is not searched: the study's definition fixes it",
        "params.learning_rate": "is not in the search space",
        "params.batch_size": "is not in the search space",
        "params.epochs": "is not in the search space",
    }
    assert faults(NUMBERS, {}) == {"params": "names no parameter"}
    assert faults(NUMBERS, {"learning_rate": True, "epochs": "2"}) == {
        "params.learning_rate": "is not in the search space",
        "params.epochs": "is not in the search space",
    }
    assert faults(NUMBERS, {"learning_rate": float("nan"), "batch_size": float("inf")}) == {
        "params.learning_rate": "is not in the search space",
        "params.batch_size": "is not in the search space",
    }


def test_a_parameter_is_given_together_with_what_it_depends_on() -> None:
    message = "is searched only where optimizer is sgd; give that, too"
    assert faults(CONDITIONAL, {"sgd_momentum": 0.5}) == {"params.sgd_momentum": message}
    assert faults(CONDITIONAL, {"optimizer": "adamw", "sgd_momentum": 0.5}) == {
        "params.sgd_momentum": message
    }
    assert faults(CONDITIONAL, {"optimizer": "sgd", "sgd_momentum": 0.5}) == {}


def test_values_are_read_as_the_space_holds_them() -> None:
    space = define("random", CONDITIONAL).search.space
    sent = {"epochs": 2.0, "batch_size": 8.0, "target_modules": ["v_proj", "q_proj"], "weight_decay": 0}
    values, found = read_request(space, sent, on_grid=False)
    assert found == []
    assert values == {
        "epochs": 2,
        "batch_size": 8,
        "target_modules": ("q_proj", "v_proj"),
        "weight_decay": 0.0,
    }
    assert (type(values["epochs"]), type(values["batch_size"])) == (int, int)


def test_a_value_off_the_grid_is_refused() -> None:
    space = {"learning_rate": {"min": 1e-5, "max": 1e-1, "scale": "log", "points": 5}}
    assert faults(space, {"learning_rate": 2e-4}, on_grid=True) == {
        "params.learning_rate": "is not a point of the grid"
    }
    assert faults(space, {"learning_rate": 1e-4}, on_grid=True) == {}


@pytest.mark.parametrize("algorithm", SPACES)
def test_the_next_trial_has_what_was_asked_for_and_the_others_are_as_without_it(algorithm: str) -> None:
    definition = define(algorithm, SPACES[algorithm])
    plain, asked = optuna.create_study(), optuna.create_study()
    given = {"learning_rate": 5e-4, "batch_size": 16}
    for number in range(4):
        suggest(plain, definition)
        trial = suggest(asked, definition, request=Request(id=9, given=given) if number == 1 else None)
        if number == 1:
            assert given.items() <= trial.params.items()
            assert trial.user_attrs == {ENQUEUED: 9}
            assert definition.search.space.contains(definition.search.space.decode(trial.params))
    without = [trial.params for trial in plain.trials]
    found = [trial.params for trial in asked.trials]
    if algorithm in ("random", "qmc"):  # which learn nothing from other trials
        assert [found[n] for n in (0, 2, 3)] == [without[n] for n in (0, 2, 3)]
        rest = {name: value for name, value in without[1].items() if name not in given}
        assert {name: value for name, value in found[1].items() if name not in given} == rest


def test_a_configuration_gets_no_second_trial_unless_the_first_has_failed() -> None:
    definition = define("random", GRID)
    study = optuna.create_study()
    request = Request(id=1, given=POINTS[1])
    first = suggest(study, definition, request=request)
    with pytest.raises(RequestRefusedError, match="this configuration has had a trial"):
        suggest(study, definition, request=request)
    study.tell(first, state=optuna.trial.TrialState.FAIL)
    assert suggest(study, definition, request=request).params == POINTS[1]


def test_a_part_of_a_configuration_is_completed_to_one_that_is_left() -> None:
    definition = define("random", GRID)
    study = optuna.create_study()
    request = Request(id=1, given={"lora_r": 8})
    found = [suggest(study, definition, request=request).params for _ in range(2)]
    assert sorted(p["learning_rate"] for p in found) == [1e-4, 1e-3]
    with pytest.raises(RequestRefusedError, match="no configuration with these parameters"):
        suggest(study, definition, request=request)


def test_a_value_that_the_space_has_lost_since_is_refused() -> None:
    definition = define("random", NUMBERS)
    narrowed = Preparation(learning_rate_bounds=(1e-4, 2e-4))
    request = Request(id=1, given={"learning_rate": 5e-4})
    with pytest.raises(RequestRefusedError, match=r"learning_rate 0\.0005 is outside the bounds"):
        suggest(optuna.create_study(), definition, narrowed, request=request)


def test_a_grid_visits_each_point_once_whatever_was_asked_for_first() -> None:
    definition = define("grid", GRID)
    study = optuna.create_study()
    found = [
        suggest(study, definition).params,
        suggest(study, definition, request=Request(id=1, given={"learning_rate": 1e-3})).params,
        suggest(study, definition).params,
        suggest(study, definition).params,
    ]
    assert found == [POINTS[0], POINTS[2], POINTS[1], POINTS[3]]
    with pytest.raises(RequestRefusedError, match="every point of the grid"):
        suggest(study, definition, request=Request(id=2, given=POINTS[0]))
