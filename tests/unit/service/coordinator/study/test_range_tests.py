"""Range tests: sweeps in place of trainings, one for each corner of a space."""

from __future__ import annotations

import random
from collections.abc import Callable
from typing import Any

import pytest

from service.optuna_store.studies import load_study
from service.states import StudyState
from tests.support.fakes.training import curve_of
from tests.support.service.coordinator import House
from workers.contract import RateSweep

CORNERS: dict[str, Any] = {
    "search": {
        "algorithm": "grid",
        "space": {"batch_size": {"choices": [4, 32]}, "lora_r": {"choices": [4, 64]}},
    },
    "evaluation": {},
}
SWEEP = {"min": 1e-6, "max": 1.0, "steps": 50}


@pytest.mark.parametrize("deaths", [False, True])
def test_each_corner_is_swept_once_and_its_curve_is_kept(
    make_house: Callable[..., House], monkeypatch: pytest.MonkeyPatch, deaths: bool
) -> None:
    house = make_house(cpus=1, slots=4)
    study_id = house.submit(sweep=SWEEP, **CORNERS)
    if deaths:
        house.run_through_deaths(study_id, random.Random(1), monkeypatch)
    else:
        house.run(study_id)
    assert house.study(study_id).state == StudyState.COMPLETED
    orders = {o.trial_number: o for o in house.cluster.orders}
    corners = {n: (o.recipe.batch_size, o.recipe.lora_r) for n, o in orders.items()}
    assert corners == {0: (4, 4), 1: (4, 64), 2: (32, 4), 3: (32, 64)}
    assert {o.rate_sweep for o in orders.values()} == {RateSweep(first=1e-6, last=1.0, steps=50)}
    ended = [a for a in house.attempts() if a.state == "completed"]
    assert [a.trial_number for a in ended] == [0, 1, 2, 3]
    for attempt in ended:
        curve = [list(point) for point in curve_of(orders[attempt.trial_number])]
        assert (attempt.outcome or {})["rate_curve"] == curve
        assert house.values()[attempt.trial_number][1] == min(loss for _, loss in curve)
    assert (house.rungs(), house.rung_reports()) == ({n: {} for n in range(4)}, [])


def test_a_range_test_s_value_is_a_train_loss_and_is_called_that(make_house: Callable[..., House]) -> None:
    house = make_house()
    study_id = house.submit(sweep=SWEEP, **CORNERS, objective={"metric": "accuracy"})
    house.run(study_id)
    study = load_study(house.storage, "s")
    assert (study.metric_names, study.direction.name) == (["train_loss"], "MINIMIZE")


def test_the_trials_of_a_search_are_trained_though_a_range_test_came_first(
    make_house: Callable[..., House],
) -> None:
    house = make_house()
    search = {**CORNERS["search"], "space": {"learning_rate": {"min": 1e-6, "max": 1.0, "scale": "log"}}}
    search |= {"algorithm": "random", "trials": 6, "learning_rate_range_test": True}
    preparation = {"learning_rate_bounds": [1e-4, 1e-3]}
    house.run(house.submit(search=search, columns={"preparation": preparation}))
    assert {o.rate_sweep for o in house.cluster.orders} == {None}
    assert all(1e-4 <= o.recipe.learning_rate <= 1e-3 for o in house.cluster.orders)
