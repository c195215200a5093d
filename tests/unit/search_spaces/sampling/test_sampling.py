"""The parts of a suggestion: axes, the translated study, CMA-ES, the nearest untried configuration."""

from __future__ import annotations

import math
import random
from collections.abc import Iterable
from typing import Any

import optuna
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from optuna.distributions import CategoricalDistribution, FloatDistribution, IntDistribution
from optuna.study import StudyDirection
from optuna.trial import FrozenTrial, TrialState, create_trial

from search_spaces.sampling.axes import axes_of
from search_spaces.sampling.cmaes import cmaes_drawer
from search_spaces.sampling.history import REPEAT_OF, History
from search_spaces.sampling.model_based import GP_TRIALS, learned_by_gp
from search_spaces.sampling.nearest import nearest_untried
from search_spaces.sampling.study_copy import PriorResult, StudyCopy, parameter_distribution
from search_spaces.space.search_space import SearchSpace
from tests.support.search_spaces.spaces import conditional_spaces, spaces

SPACE = SearchSpace.model_validate(
    {
        "learning_rate": {"min": 1e-5, "max": 1e-3, "scale": "log"},
        "batch_size": {"choices": [16, 4, 8]},
        "target_modules": {"choices": ["attention", ["q_proj", "v_proj"]]},
        "lora_r": {"choices": [8]},
    }
)


@pytest.fixture(autouse=True)
def _quiet_optuna() -> None:
    optuna.logging.set_verbosity(optuna.logging.WARNING)


def trial(
    rate: float = 1e-4, batch: int = 8, state: TrialState = TrialState.COMPLETE, **told: Any
) -> FrozenTrial:
    """A trial as the study's storage holds it."""
    params = {"learning_rate": rate, "batch_size": batch, "target_modules": "attention", "lora_r": 8}
    held = {name: parameter_distribution(parameter) for name, parameter in SPACE.parameters.items()}
    return create_trial(state=state, params=params, distributions=held, **told)


def study_copy(
    trials: Iterable[FrozenTrial], prior: Iterable[PriorResult] = (), objectives: int = 1
) -> StudyCopy:
    return StudyCopy(
        axes={name: axis for name, axis in axes_of(SPACE).items() if axis.size != 1},
        history=History.read(SPACE, trials),
        prior=tuple(prior),
        directions=[StudyDirection.MINIMIZE] * objectives,
        conditional=False,
    )


# -- axes --------------------------------------------------------------------------------------------


@given(spaces(), st.floats(0, 1, exclude_max=True))
@settings(max_examples=60, deadline=None)
def test_the_unit_interval_covers_each_parameter_and_leads_back(space: SearchSpace, unit: float) -> None:
    for name, axis in axes_of(space).items():
        value = axis.from_unit(unit)
        assert space.parameters[name].contains(value)
        back = axis.from_unit(axis.to_unit(value))
        assert back == value if axis.size is not None else math.isclose(back, value, rel_tol=1e-9)
        assert axis.value(axis.position(value)) == value
        assert abs(axis.to_unit(value) - unit) <= 1 / (axis.cells or 1)


@given(spaces(finite=True))
@settings(max_examples=50, deadline=None)
def test_steps_lead_everywhere_and_back(space: SearchSpace) -> None:
    for axis in axes_of(space).values():
        assert axis.size is not None
        found = {axis.parameter.value_at(0)}
        waiting = list(found)
        while waiting:
            value = waiting.pop()
            for other, length in axis.neighbours(value):
                assert 0 < length <= 1 + 1e-9
                assert value in [back for back, _ in axis.neighbours(other)]
                if other not in found:
                    found.add(other)
                    waiting.append(other)
        assert len(found) == axis.size


def test_each_choice_takes_an_equal_part_of_the_unit_interval() -> None:
    axis = axes_of(SPACE)["batch_size"]
    assert [axis.from_unit(unit) for unit in (0.0, 0.33, 0.34, 0.66, 0.67, 0.99)] == [4, 4, 8, 8, 16, 16]


# -- the study copy --------------------------------------------------------------------------------------


def test_choices_among_numbers_become_ordered_positions() -> None:
    (translated,) = study_copy([trial(batch=8, value=1.0)]).trials
    assert translated.params == {"learning_rate": 1e-4, "batch_size": 1, "target_modules": 0}
    assert translated.distributions == {
        "learning_rate": FloatDistribution(1e-5, 1e-3, log=True),
        "batch_size": IntDistribution(0, 2),
        "target_modules": CategoricalDistribution((0, 1)),
    }
    assert study_copy([]).values({"batch_size": 2, "target_modules": 1}) == {
        "batch_size": 16,
        "target_modules": ("q_proj", "v_proj"),
    }


def test_failed_trials_and_repeats_are_left_out_and_the_prior_comes_first() -> None:
    study = [
        trial(value=1.0),
        trial(state=TrialState.FAIL),
        trial(value=0.0, user_attrs={REPEAT_OF: 0}),
        trial(state=TrialState.RUNNING),
        trial(state=TrialState.PRUNED, intermediate_values={100: 3.0}, constraints={"out_of_memory": 1.0}),
    ]
    prior = [PriorResult({"learning_rate": 2e-4, "batch_size": 4, "target_modules": "attention"}, 0.5)]
    seen = study_copy(study, prior)
    assert [(t.state.name, t.values) for t in seen.trials] == [
        ("COMPLETE", [0.5]),
        ("COMPLETE", [1.0]),
        ("RUNNING", None),
        ("PRUNED", None),
    ]
    assert seen.trials[3].intermediate_values == {100: 3.0}
    assert seen.trials[3].constraints == {"out_of_memory": 1.0}
    assert seen.finished == 3


def test_a_model_of_values_takes_pruned_trials_for_bad_ones() -> None:
    study = [trial(value=value) for value in (1.0, 2.0, 3.0, 4.0, 5.0)]
    for last in (0.5, 3.5, 90.0, math.nan):
        study.append(trial(state=TrialState.PRUNED, intermediate_values={50: 0.1, 100: last}))
    study.append(trial(state=TrialState.PRUNED, constraints={"out_of_memory": 1.0}))
    study.append(trial(state=TrialState.RUNNING))
    taken = study_copy(study).completed
    assert [t.value for t in taken[5:]] == [3.0, 3.5, 5.0, 5.0, 5.0, None]
    assert [t.constraints.get("out_of_memory") for t in taken] == [-1.0] * 9 + [1.0, None]


def test_a_gaussian_process_of_a_long_study_is_fitted_to_its_best_and_its_latest_trials() -> None:
    study = [trial(value=float(abs(number - 50))) for number in range(3 * GP_TRIALS)]
    study[10] = trial(state=TrialState.RUNNING)
    values = [t.value for t in learned_by_gp(study_copy(study))]
    half = GP_TRIALS // 2
    assert values[-1] is None
    assert values[half:-1] == [float(abs(n - 50)) for n in range(3 * GP_TRIALS - half, 3 * GP_TRIALS)]
    assert sorted(values[:half]) == sorted(float(abs(n - 50)) for n in range(3 * GP_TRIALS) if n != 10)[:half]


# -- CMA-ES ------------------------------------------------------------------------------------------

NUMBERS = SearchSpace.model_validate(
    {
        "learning_rate": {"min": 1e-5, "max": 1e-3, "scale": "log"},
        "batch_size": {"choices": [16, 4, 8]},
        "lora_r": {"min": 1, "max": 64, "scale": "log"},
    }
)


def evolved(told: list[tuple[float, dict[str, Any]]], space: SearchSpace = NUMBERS) -> list[dict[str, Any]]:
    """20 draws after these trials, which have a learning rate each."""
    held = {name: parameter_distribution(parameter) for name, parameter in space.parameters.items()}
    rest = {"batch_size": 8, "lora_r": 8}
    trials = []
    for rate, what in told:
        params = {name: {"learning_rate": rate, **rest}[name] for name in held}
        trials.append(create_trial(params=params, distributions=held, **what))
    seen = StudyCopy(axes_of(space), History.read(space, trials), (), [StudyDirection.MINIMIZE], False)
    draw = cmaes_drawer(seen, 1, 2)
    return [draw(attempt) for attempt in range(20)]


def middle(draws: list[dict[str, Any]]) -> float:
    return sum(math.log10(draw["learning_rate"]) for draw in draws) / len(draws)


RATES = [10 ** (-3 - 2 * (number * 5 % 14) / 14) for number in range(14)]


def test_cmaes_moves_to_where_trials_are_good_whatever_their_values_are_in() -> None:
    low, high = (evolved([(rate, {"value": sign * rate}) for rate in RATES]) for sign in (1.0, -1.0))
    assert middle(low) < middle(evolved([])) < middle(high)
    assert evolved([(rate, {"value": math.log(rate)}) for rate in RATES]) == low


def test_cmaes_takes_a_pruned_trial_for_worse_than_a_completed_one_and_a_violation_for_the_worst() -> None:
    def told(rate: float) -> dict[str, Any]:
        if rate > 3e-4:
            return {"value": 0.0, "constraints": {"peak_memory_gb": rate}}
        if rate > 1e-4:
            return {"state": TrialState.PRUNED, "intermediate_values": {100: -5.0 + rate}}
        return {"value": rate}

    ranked = evolved([(rate, told(rate)) for rate in RATES])
    assert ranked == evolved([(rate, {"value": rate}) for rate in RATES])


def test_cmaes_can_search_one_parameter_alone() -> None:
    alone = SearchSpace.model_validate({"learning_rate": {"min": 1e-5, "max": 1e-3, "scale": "log"}})
    draws = evolved([(rate, {"value": rate}) for rate in RATES], alone)
    assert middle(draws) < middle(evolved([], alone))
    assert all(set(draw) == {"learning_rate"} for draw in draws)


# -- the nearest untried configuration ---------------------------------------------------------------


@given(conditional_spaces(finite=True), st.integers(0, 2**32 - 1))
@settings(max_examples=60, deadline=None)
def test_all_configurations_are_reached_one_after_the_other(space: SearchSpace, seed: int) -> None:
    size = space.size()
    if size is None:  # a range with points, of which only a grid has finitely many
        return
    axes = axes_of(space)
    start = {name: axis.from_unit(random.Random(seed).random()) for name, axis in axes.items()}
    used: set[Any] = set()
    for number in range(min(size, 20)):
        found = nearest_untried(space, axes, used, start, number)
        assert found is not None
        assert space.contains(space.prune_inactive(found))
        key = space.configuration_key(found)
        assert key not in used
        used.add(key)
    everything = {space.configuration_key(point) for point in space.points()} if size <= 200 else set()
    if everything:
        (last,) = random.Random(seed).sample(sorted(everything, key=repr), 1)
        found = nearest_untried(space, axes, everything - {last}, start, seed)
        assert found is not None
        assert space.configuration_key(found) == last
        assert nearest_untried(space, axes, everything, start, seed) is None


def test_the_nearest_is_as_near_as_brute_force_finds_it() -> None:
    space = SearchSpace.model_validate(
        {
            "learning_rate": {"choices": [1e-5, 1e-4, 1e-3, 1e-2]},
            "epochs": {"min": 1, "max": 3, "type": "int"},
            "lr_scheduler": {"choices": ["linear", "cosine", "constant"]},
        }
    )
    axes = axes_of(space)
    points = list(space.points())

    def distance(one: dict[str, Any], other: dict[str, Any]) -> float:
        rates = axes["learning_rate"].choices
        return (
            abs(rates.index(one["learning_rate"]) - rates.index(other["learning_rate"])) / 3
            + abs(one["epochs"] - other["epochs"]) / 2
            + (one["lr_scheduler"] != other["lr_scheduler"])
        )

    lots = random.Random(7)
    for seed in range(50):
        start = lots.choice(points)
        free = lots.sample(points, lots.randint(1, 12))
        used = {space.configuration_key(point) for point in points if point not in free}
        found = nearest_untried(space, axes, used, start, seed)
        assert found in free
        assert math.isclose(distance(start, found), min(distance(start, point) for point in free))


def test_a_huge_space_is_not_enumerated() -> None:
    space = SearchSpace.model_validate(
        {name: {"min": 1, "max": 10_000} for name in ("batch_size", "lora_r", "max_length")}
        | {"max_length": {"min": 8, "max": 10_000}}
    )
    start = {"batch_size": 5000, "lora_r": 5000, "max_length": 5000}
    used = {space.configuration_key(start)}
    asked = []

    class Counted(set[Any]):
        def __contains__(self, key: object) -> bool:
            asked.append(key)
            return super().__contains__(key)

    found = nearest_untried(space, axes_of(space), Counted(used), start, 3)
    assert found is not None
    assert sum(abs(found[name] - start[name]) for name in start) == 1
    assert len(asked) == 2
