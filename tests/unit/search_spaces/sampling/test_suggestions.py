"""What is suggested: inside the space, never twice, and learned from what was told."""

from __future__ import annotations

import importlib.util
import statistics
from collections.abc import Callable
from typing import Any

import optuna
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from optuna.trial import TrialState

from search_spaces.definition import StudyDefinition, build_recipe
from search_spaces.errors import InvalidDefinition, SearchSpaceExhausted, SuggestionError
from search_spaces.parsing.document import parse_definition
from search_spaces.preparation import Preparation, PriorTrial
from search_spaces.sampling.plan import planned_trials
from search_spaces.sampling.suggest import suggest
from search_spaces.space.search_space import SearchSpace
from tests.support.search_spaces.asked_studies import (
    ALGORITHMS,
    CONDITIONAL,
    FINITE_CONDITIONAL,
    FINITE_NUMBERS,
    NUMBERS,
    SPACE,
    SPACES,
    ask_and_tell,
    loss,
)
from tests.support.search_spaces.spaces import DOCUMENT, conditional_spaces, spaces

Define = Callable[..., StudyDefinition]


@pytest.fixture(autouse=True)
def _quiet_optuna() -> None:
    optuna.logging.set_verbosity(optuna.logging.WARNING)


def keys(study: optuna.Study, space: SearchSpace) -> list[Any]:
    """What makes each trial's configuration."""
    return [space.configuration_key(trial.params) for trial in study.trials]


# -- inside the space --------------------------------------------------------------------------------


def check_suggestions(space: SearchSpace, algorithm: str, count: int) -> None:
    search = {"algorithm": algorithm, "trials": 16, "space": space.model_dump(mode="json")}
    try:
        definition = parse_definition(DOCUMENT | {"search": search})
    except InvalidDefinition:
        assert algorithm in ("gp", "cmaes")  # they refuse some spaces, with a reason
        return
    study = optuna.create_study()
    for number in range(min(count, definition.search.total_trials)):
        trial = suggest(study, definition)
        params = space.decode(trial.params)
        assert space.contains(params), params
        recipe = build_recipe(definition, trial.params)
        assert {name: getattr(recipe, name) for name in params} == params
        study.tell(trial, float(number))
    assert len(set(keys(study, space))) == len(study.trials)


@given(st.one_of(spaces(), conditional_spaces()), st.sampled_from(["random", "qmc", "tpe", "cmaes"]))
@settings(max_examples=40, suppress_health_check=[HealthCheck.too_slow], deadline=None)
def test_suggestions_lie_in_the_space_and_make_recipes(space: SearchSpace, algorithm: str) -> None:
    check_suggestions(space, algorithm, 8)


@given(spaces())
@settings(max_examples=3, suppress_health_check=[HealthCheck.too_slow], deadline=None)
def test_suggestions_of_a_gaussian_process_do_too(space: SearchSpace) -> None:
    check_suggestions(space, "gp", 5)


@pytest.mark.parametrize("algorithm", ALGORITHMS)
def test_a_range_test_narrows_every_draw(define: Define, algorithm: str) -> None:
    definition = define(algorithm=algorithm, trials=8, space=SPACES[algorithm])
    study = optuna.create_study()
    bounds = Preparation(learning_rate_bounds=(1e-4, 2e-4))
    rates = [params["learning_rate"] for params in ask_and_tell(study, definition, 6, bounds)]
    assert all(1e-4 <= rate <= 2e-4 for rate in rates)
    assert max(rates) - min(rates) > 2e-5


def test_the_first_points_of_a_sobol_sequence_divide_every_range_evenly(define: Define) -> None:
    definition = define(algorithm="qmc", trials=16, space={**CONDITIONAL, "lora_r": {"min": 1, "max": 16}})
    study = optuna.create_study()
    ranks = [params["lora_r"] for params in ask_and_tell(study, definition, 16)]
    assert sorted(ranks) == list(range(1, 17))


# -- never twice -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("algorithm", "space"),
    [(algorithm, FINITE_NUMBERS) for algorithm in ALGORITHMS if algorithm != "gp"]
    + [("gp", {name: FINITE_NUMBERS[name] for name in ("learning_rate", "epochs")})]
    + [(algorithm, FINITE_CONDITIONAL) for algorithm in ("random", "qmc", "tpe")],
)
def test_every_configuration_of_a_finite_space_comes_once_and_then_no_more(
    define: Define, algorithm: str, space: dict[str, Any]
) -> None:
    definition = define(algorithm=algorithm, trials=1000, space=space)
    searched = definition.search.space
    size = searched.size()
    assert size is not None
    study = optuna.create_study()
    running: list[optuna.Trial] = []
    for _ in range(size):
        running.append(suggest(study, definition))
        if len(running) == 3:  # three at a time
            trial = running.pop(0)
            study.tell(trial, loss(trial.params))
    points = {searched.configuration_key(point) for point in searched.points()}
    assert set(keys(study, searched)) == points
    with pytest.raises(
        SearchSpaceExhausted, match=rf"every configuration of the search space has been evaluated \({size}\)"
    ):
        suggest(study, definition)


def test_a_failed_configuration_comes_again_once_nothing_else_is_left(define: Define) -> None:
    definition = define(algorithm="tpe", trials=1000, space=FINITE_NUMBERS)
    study = optuna.create_study()
    for number in range(18):
        trial = suggest(study, definition)
        if number == 5:
            study.tell(trial, state=TrialState.FAIL)
        else:
            study.tell(trial, loss(trial.params))
    assert suggest(study, definition).params == study.trials[5].params
    with pytest.raises(SearchSpaceExhausted):
        suggest(study, definition)


def test_a_finite_corner_of_an_infinite_space_is_not_tried_again(define: Define) -> None:
    space = {"optimizer": {"choices": ["adamw", "sgd"]}, "sgd_momentum": {"min": 0.0, "max": 0.9}}
    definition = define(algorithm="tpe", trials=40, space=space)
    study = optuna.create_study()
    for _ in range(20):
        trial = suggest(study, definition)
        study.tell(trial, 0.0 if trial.params["optimizer"] == "adamw" else 1.0)
    assert [trial.params["optimizer"] for trial in study.trials].count("adamw") == 1


@pytest.mark.parametrize("algorithm", ["random", "tpe"])
def test_enqueued_points_come_first_in_their_order(define: Define, algorithm: str) -> None:
    definition = define(algorithm=algorithm, trials=1000, space=FINITE_CONDITIONAL)
    space = definition.search.space
    points = list(space.points())
    outside = {**points[0], "learning_rate": 5e-4}
    inactive = {**points[0], "optimizer": "adamw", "sgd_momentum": 0.5}
    preparation = Preparation(enqueued=(points[9], outside, points[2], inactive, points[9]))
    preparation = Preparation.model_validate_json(preparation.model_dump_json())
    assert planned_trials(definition, preparation) == 16
    study = optuna.create_study()
    ask_and_tell(study, definition, 2, preparation)
    assert [space.decode(trial.params) for trial in study.trials] == [points[9], points[2]]
    for _ in range(14):
        study.tell(suggest(study, definition, preparation), 1.0)
    assert len(set(keys(study, space))) == 16


@pytest.mark.parametrize(
    ("search", "bounds", "planned"),
    [
        ({"algorithm": "grid", "trials": None, "space": FINITE_NUMBERS}, None, 18),
        ({"algorithm": "tpe", "trials": 12, "space": FINITE_NUMBERS}, None, 12),
        ({"algorithm": "tpe", "trials": 30, "space": FINITE_NUMBERS}, None, 18),
        ({"algorithm": "tpe", "trials": 30, "space": NUMBERS}, (1e-4, 2e-4), 30),
        (
            {"algorithm": "tpe", "trials": 30, "space": {"learning_rate": {"min": 1, "max": 10, "step": 1}}},
            (2.0, 5.0),
            4,
        ),
    ],
)
def test_the_number_of_trials_is_known_before_the_first(
    define: Define, search: dict[str, Any], bounds: tuple[float, float] | None, planned: int
) -> None:
    assert planned_trials(define(**search), Preparation(learning_rate_bounds=bounds)) == planned


# -- learning ----------------------------------------------------------------------------------------


def best_of(definition: StudyDefinition, trials: int) -> float:
    study = optuna.create_study()
    for _ in range(trials):
        trial = suggest(study, definition)
        study.tell(trial, loss(trial.params) + abs(trial.params["batch_size"] - 8) / 4)
    return study.best_value


@pytest.mark.parametrize(("algorithm", "trials"), [("tpe", 40), ("cmaes", 40), ("gp", 14)])
def test_what_learns_finds_better_than_random_search(define: Define, algorithm: str, trials: int) -> None:
    seeds = range(3 if algorithm == "gp" else 7)
    random, learned = (
        statistics.median(
            best_of(define(algorithm=one, trials=trials, seed=seed, space=NUMBERS), trials) for seed in seeds
        )
        for one in ("random", algorithm)
    )
    assert learned < 0.5 * random


def test_tpe_maximizes_when_the_study_does(define: Define) -> None:
    definition = define(algorithm="tpe", trials=60, space=SPACE)
    study = optuna.create_study(direction="maximize")
    losses = []
    for _ in range(60):
        trial = suggest(study, definition)
        losses.append(loss(trial.params))
        study.tell(trial, -losses[-1])
    assert sum(losses[40:]) / 20 < 0.5 * sum(losses[:10]) / 10


@pytest.mark.parametrize("algorithm", ["tpe", "gp"])
def test_what_does_not_fit_in_memory_is_avoided(define: Define, algorithm: str) -> None:
    trials = {"tpe": 60, "gp": 24}[algorithm]
    definition = define(algorithm=algorithm, trials=trials, space=SPACE)
    study = optuna.create_study()
    too_large = []
    for _ in range(trials):
        trial = suggest(study, definition)
        too_large.append(trial.params["batch_size"] == 16)
        if too_large[-1]:
            trial.set_constraint("out_of_memory", 1.0)
            study.tell(trial, state=TrialState.PRUNED)
        else:
            study.tell(trial, loss(trial.params))
    third = trials // 3
    assert sum(too_large[:third]) >= 2
    assert sum(too_large[2 * third :]) < sum(too_large[:third])


@pytest.mark.parametrize("algorithm", ["tpe", "gp"])
def test_an_earlier_studys_results_stand_in_for_the_first_random_trials(
    define: Define, algorithm: str
) -> None:
    definition = define(algorithm=algorithm, trials=40, space=SPACES[algorithm])
    earlier = optuna.create_study()
    ask_and_tell(earlier, define(algorithm="qmc", trials=40, seed=1, space=SPACES[algorithm]), 40)
    space = definition.search.space
    prior = tuple(
        PriorTrial(params=space.decode(trial.params), value=trial.value)
        for trial in earlier.trials
        if trial.state is TrialState.COMPLETE
    )
    first = []
    for preparation in (Preparation(prior=prior), Preparation()):
        study = optuna.create_study()
        first.append(statistics.median(map(loss, ask_and_tell(study, definition, 8, preparation))))
    assert first[0] < 0.5 * first[1]


@pytest.mark.parametrize("algorithm", ["tpe", "gp", "random", "qmc"])
def test_several_objectives_can_be_searched(define: Define, algorithm: str) -> None:
    definition = define(algorithm=algorithm, trials=16, space=SPACE)
    study = optuna.create_study(directions=["minimize", "minimize"])
    for number in range(8):
        trial = suggest(study, definition)
        trial.storage.set_trial_intermediate_value(trial._trial_id, 100, 1.0)
        if number % 5 == 4:
            trial.set_constraint("out_of_memory", 1.0)
            study.tell(trial, state=TrialState.PRUNED)
        else:
            study.tell(trial, (loss(trial.params), float(trial.params["epochs"])))
    assert len(set(keys(study, definition.search.space))) == 8
    assert len(study.best_trials) >= 1


def test_gp_without_pytorch_says_what_to_install(define: Define, monkeypatch: pytest.MonkeyPatch) -> None:
    definition = define(algorithm="gp", trials=16, space=SPACE)
    study = optuna.create_study()
    ask_and_tell(study, definition, 6)
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(
        SuggestionError, match="gp needs PyTorch where the coordinator runs: pip install torch"
    ):
        suggest(study, definition)


# -- what earlier sweeps have evaluated --------------------------------------------------------------


@pytest.mark.parametrize("algorithm", ALGORITHMS)
def test_what_earlier_sweeps_have_evaluated_is_not_suggested(define: Define, algorithm: str) -> None:
    definition = define(algorithm=algorithm, trials=1000, space=FINITE_NUMBERS)
    space = definition.search.space
    points = list(space.points())
    evaluated = tuple(space.configuration_digest(point) for point in points[:12])
    enqueued = (points[14], points[3])
    preparation = Preparation(evaluated=evaluated, enqueued=enqueued)
    preparation = Preparation.model_validate_json(preparation.model_dump_json())
    assert planned_trials(definition, preparation) == 6
    study = optuna.create_study()
    ask_and_tell(study, definition, 4, preparation)
    for _ in range(2):
        study.tell(suggest(study, definition, preparation), 1.0)
    assert space.decode(study.trials[0].params) == points[14]
    assert set(keys(study, space)) == {space.configuration_key(point) for point in points[12:]}
    with pytest.raises(SearchSpaceExhausted, match="12 of them in earlier sweeps"):
        suggest(study, definition, preparation)


def test_a_grid_leaves_out_what_earlier_sweeps_have_evaluated(define: Define) -> None:
    definition = define(algorithm="grid", trials=None, space=FINITE_CONDITIONAL)
    space = definition.search.space
    points = list(space.grid_points())
    evaluated = tuple(space.configuration_digest(points[number]) for number in (0, 5, 15))
    preparation = Preparation(evaluated=evaluated, enqueued=(points[5], points[9]))
    assert planned_trials(definition, preparation) == 13
    study = optuna.create_study()
    ask_and_tell(study, definition, 13, preparation)
    rest = [points[number] for number in range(16) if number not in (0, 5, 9, 15)]
    assert [space.decode(trial.params) for trial in study.trials] == [points[9], *rest]
    with pytest.raises(SearchSpaceExhausted, match="3 of them evaluated by earlier sweeps"):
        suggest(study, definition, preparation)


def test_a_digest_is_the_same_however_a_configuration_is_written(define: Define) -> None:
    space = define(
        trials=9, space={"lora_r": {"choices": [4, 8]}, "weight_decay": {"min": 0, "max": 1}}
    ).search.space
    digests = {
        space.configuration_digest({"lora_r": rank, "weight_decay": decay})
        for rank in (8, 8.0)
        for decay in (0.3, 0.1 + 0.2)
    }
    assert digests == {space.configuration_digest({"weight_decay": 0.3, "lora_r": 8})}
    assert digests != {space.configuration_digest({"lora_r": 4, "weight_decay": 0.3})}
