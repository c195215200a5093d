"""Never one trial too many, at 64 at once and through deaths at any moment."""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Callable
from typing import Any

import pytest

from service.states import AttemptState, StudyState
from tests.support.service.coordinator import CoordinatorLab

SPACE = {
    "learning_rate": {"min": 1e-5, "max": 1e-1, "scale": "log"},
    "lora_r": {"choices": [4, 8]},
}
POINTS = {
    "learning_rate": {"choices": [10.0**-n for n in range(10)]},
    "lora_r": {"choices": [2, 4, 8, 16, 24, 32, 48, 64, 96, 128]},
}
SEARCHES: dict[str, dict[str, Any]] = {
    "tpe": {"algorithm": "tpe", "trials": 100, "space": SPACE},
    "random": {"algorithm": "random", "trials": 100, "space": SPACE},
    "grid": {"algorithm": "grid", "space": POINTS},
}
WIDE = {"max_parallel_trials": 64, "max_retries": 1000}


def check(lab: CoordinatorLab, study_id: str, algorithm: str) -> None:
    """One hundred trials, each ended once and completed; of the grid every point."""
    study = lab.study(study_id)
    assert (study.state, study.reason.split(":")[0]) == (StudyState.COMPLETED, "all 100 trials ended")
    ends = [a for a in lab.attempts() if a.state != AttemptState.LOST]
    assert sorted(a.trial_number for a in ends) == list(range(100))
    assert {a.state for a in ends} == {AttemptState.COMPLETED}
    values = lab.values()
    assert list(values) == list(range(100))
    if algorithm == "grid":
        points = {(params["learning_rate"], params["lora_r"]) for _, _, params in values.values()}
        assert len(points) == 100


@pytest.mark.parametrize("algorithm", ["random"])
def test_64_slots_run_a_hundred_trials_and_no_more(
    make_lab: Callable[..., CoordinatorLab], algorithm: str
) -> None:
    lab = make_lab(cpus=4, slots=16)
    study_id = lab.submit(search=SEARCHES[algorithm], budget=WIDE, evaluation={})
    most = 0

    def look() -> None:
        nonlocal most
        most = max(most, lab.cluster.running)

    lab.run(study_id, each=look)
    check(lab, study_id, algorithm)
    assert most == 64
    assert Counter(o.trial_number for o in lab.cluster.orders) == dict.fromkeys(range(100), 1)


@pytest.mark.parametrize("algorithm", ["tpe", "grid"])
def test_64_slots_run_a_hundred_trials_through_deaths_of_coordinators_and_workers(
    make_lab: Callable[..., CoordinatorLab], monkeypatch: pytest.MonkeyPatch, algorithm: str
) -> None:
    lab = make_lab(cpus=4, slots=16)
    study_id = lab.submit(search=SEARCHES[algorithm], budget=WIDE, evaluation={})
    dice = random.Random(algorithm)
    tick = lab.cluster.poll

    def poll(timeout_s: float) -> Any:
        if lab.cluster.alive and dice.random() < 0.04:
            lab.cluster.kill(dice.choice(lab.cluster.alive))
        assert lab.cluster.running <= 64
        return tick(timeout_s)

    monkeypatch.setattr(lab.cluster, "poll", poll)
    assert lab.run_through_deaths(study_id, dice, monkeypatch, chance=0.003) > 1
    check(lab, study_id, algorithm)
