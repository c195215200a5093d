"""PED-ANOVA over a study's trials: what counts, and what is left unsaid."""

from __future__ import annotations

import math
import random
from collections.abc import Callable

import optuna
import pytest
from optuna.storages import InMemoryStorage
from optuna.trial import Trial, TrialState

from search_spaces.sampling.history import REPEAT_OF
from service.analysis.importance import MIN_TRIALS, Importance, read_importance

NAMES = ["learning_rate", "batch_size", "optimizer", "sgd_momentum"]


@pytest.fixture
def storage() -> InMemoryStorage:
    return InMemoryStorage()


def suggest(trial: Trial) -> float:
    """Only the learning rate matters: best near 1e-3."""
    rate = trial.suggest_float("learning_rate", 1e-5, 1e-1, log=True)
    trial.suggest_categorical("batch_size", [4, 8, 16])
    if trial.suggest_categorical("optimizer", ["adamw", "sgd"]) == "sgd":
        trial.suggest_float("sgd_momentum", 0.0, 0.99)
    return abs(math.log10(rate) + 3.0)


def fill(
    storage: InMemoryStorage,
    trials: int,
    value: Callable[[Trial], float] = suggest,
    direction: str = "minimize",
):
    study = optuna.create_study(
        storage=storage, study_name="s", direction=direction, sampler=optuna.samplers.RandomSampler(seed=3)
    )
    for _ in range(trials):
        trial = study.ask()
        study.tell(trial, value(trial))
    return study


def shares(found: Importance) -> dict[str, float | None]:
    return {p.name: p.importance for p in found.parameters}


def test_what_matters_comes_first_and_is_above_chance(storage: InMemoryStorage) -> None:
    fill(storage, 60)
    found = read_importance(storage, "s", NAMES, minimize=True)
    assert (found.trials, found.best_trials) == (60, 6)
    first, *others = found.parameters
    assert (first.name, first.above_chance) == ("learning_rate", True)
    assert first.importance is not None
    assert first.importance > 0.8
    assert not any(p.above_chance for p in others)
    assert sum(p.importance or 0.0 for p in found.parameters) == pytest.approx(1.0)


def test_the_same_trials_give_the_same_answer(storage: InMemoryStorage) -> None:
    fill(storage, 30)
    first = read_importance(storage, "s", NAMES, minimize=True)
    assert read_importance(storage, "s", NAMES, minimize=True) == first


def test_the_direction_counts(storage: InMemoryStorage) -> None:
    fill(storage, 60, lambda trial: -suggest(trial), "maximize")
    found = read_importance(storage, "s", NAMES, minimize=False)
    assert found.parameters[0].name == "learning_rate"
    assert found.parameters[0].above_chance is True


def test_noise_alone_is_hardly_ever_above_chance(storage: InMemoryStorage) -> None:
    dealer = random.Random(1)

    def noise(trial: Trial) -> float:
        suggest(trial)
        return dealer.random()

    fill(storage, 24, noise)
    found = read_importance(storage, "s", NAMES, minimize=True)
    assert sum(bool(p.above_chance) for p in found.parameters) <= 1


def test_repeats_infeasible_and_pruned_trials_do_not_count(storage: InMemoryStorage) -> None:
    study = fill(storage, 20)
    expected = read_importance(storage, "s", NAMES, minimize=True)
    for kind in ("repeat", "infeasible", "pruned"):
        for _ in range(6):
            trial = study.ask()
            suggest(trial)
            if kind == "repeat":
                trial.set_user_attr(REPEAT_OF, 0)
            if kind == "infeasible":
                trial.set_constraint("peak_memory_gb", 1.0)
            if kind == "pruned":
                study.tell(trial, state=TrialState.PRUNED)
            else:
                study.tell(trial, -1.0)
    assert read_importance(storage, "s", NAMES, minimize=True) == expected


@pytest.mark.parametrize("trials", [None, 0, MIN_TRIALS - 1])
def test_few_trials_say_nothing(storage: InMemoryStorage, trials: int | None) -> None:
    if trials is not None:
        fill(storage, trials)
    found = read_importance(storage, "s", NAMES, minimize=True)
    assert shares(found) == dict.fromkeys(NAMES)
    assert found.sentence.startswith(
        f"{trials or 0} trials completed within the constraints; PED-ANOVA needs at least 10."
    )


def test_a_hyperparameter_that_was_hardly_active_is_left_out_with_the_reason(
    storage: InMemoryStorage,
) -> None:
    active = iter([True, True, *[False] * 100])

    def rare(trial: Trial) -> float:
        rate = trial.suggest_float("learning_rate", 1e-5, 1e-1, log=True)
        if next(active):
            trial.suggest_float("sgd_momentum", 0.0, 0.99)
        return abs(math.log10(rate) + 3.0)

    fill(storage, 12, rare)
    found = {p.name: p for p in read_importance(storage, "s", NAMES, minimize=True).parameters}
    assert found["sgd_momentum"].reason == "it was active in 2 of 12 completed trials"
    assert found["batch_size"].reason == "it was active in 0 of 12 completed trials"
    assert found["learning_rate"].importance == 1.0


def test_equal_values_set_nothing_apart(storage: InMemoryStorage) -> None:
    fill(storage, 12, lambda trial: suggest(trial) * 0.0)
    found = read_importance(storage, "s", NAMES, minimize=True)
    assert shares(found) == dict.fromkeys(NAMES)


def test_of_several_objectives_the_first_one_counts(storage: InMemoryStorage) -> None:
    study = optuna.create_study(
        storage=storage,
        study_name="s",
        directions=["minimize", "minimize"],
        sampler=optuna.samplers.RandomSampler(seed=3),
    )
    for _ in range(40):
        trial = study.ask()
        study.tell(trial, [suggest(trial), float(trial.params["batch_size"])])
    assert read_importance(storage, "s", NAMES, minimize=True).parameters[0].name == "learning_rate"
