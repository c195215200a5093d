"""Range tests: sweeps in place of trainings, one for each corner of a space."""

from __future__ import annotations

import random
from collections.abc import Callable
from typing import Any

import pytest

from service.optuna_store.studies import load_study
from service.states import StudyState
from tests.support.fakes.training import curve_of
from tests.support.service.coordinator import CoordinatorLab
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
    make_lab: Callable[..., CoordinatorLab], monkeypatch: pytest.MonkeyPatch, deaths: bool
) -> None:
    lab = make_lab(cpus=1, slots=4)
    study_id = lab.submit(sweep=SWEEP, **CORNERS)
    if deaths:
        lab.run_through_deaths(study_id, random.Random(1), monkeypatch)
    else:
        lab.run(study_id)
    assert lab.study(study_id).state == StudyState.COMPLETED
    orders = {o.trial_number: o for o in lab.cluster.orders}
    corners = {n: (o.recipe.batch_size, o.recipe.lora_r) for n, o in orders.items()}
    assert corners == {0: (4, 4), 1: (4, 64), 2: (32, 4), 3: (32, 64)}
    assert {o.rate_sweep for o in orders.values()} == {RateSweep(first=1e-6, last=1.0, steps=50)}
    ended = [a for a in lab.attempts() if a.state == "completed"]
    assert [a.trial_number for a in ended] == [0, 1, 2, 3]
    for attempt in ended:
        curve = [list(point) for point in curve_of(orders[attempt.trial_number])]
        assert (attempt.outcome or {})["rate_curve"] == curve
        assert lab.values()[attempt.trial_number][1] == min(loss for _, loss in curve)
    assert (lab.rungs(), lab.rung_reports()) == ({n: {} for n in range(4)}, [])


def test_a_range_test_s_value_is_a_train_loss_and_is_called_that(
    make_lab: Callable[..., CoordinatorLab],
) -> None:
    lab = make_lab()
    study_id = lab.submit(sweep=SWEEP, **CORNERS, objective={"metric": "accuracy"})
    lab.run(study_id)
    study = load_study(lab.storage, "s")
    assert (study.metric_names, study.direction.name) == (["train_loss"], "MINIMIZE")


def test_the_trials_of_a_search_are_trained_though_a_range_test_came_first(
    make_lab: Callable[..., CoordinatorLab],
) -> None:
    lab = make_lab()
    search = {**CORNERS["search"], "space": {"learning_rate": {"min": 1e-6, "max": 1.0, "scale": "log"}}}
    search |= {"algorithm": "random", "trials": 6, "learning_rate_range_test": True}
    preparation = {"learning_rate_bounds": [1e-4, 1e-3]}
    lab.run(lab.submit(search=search, columns={"preparation": preparation}))
    assert {o.rate_sweep for o in lab.cluster.orders} == {None}
    assert all(1e-4 <= o.recipe.learning_rate <= 1e-3 for o in lab.cluster.orders)
