"""The same definition and seed make the same study, whatever dies on the way."""

from __future__ import annotations

import random
from collections.abc import Callable
from typing import Any

import pytest

from service.states import StudyState
from tests.support.service.coordinator import DEFINITION, GRID, CoordinatorLab

SPACE = {**DEFINITION["search"]["space"], "weight_decay": {"min": 0.0, "max": 0.1}}
SEARCHES: dict[str, tuple[dict[str, Any], int]] = {
    "random": ({"algorithm": "random", "trials": 12, "seed": 5, "space": SPACE}, 3),
    "tpe": ({"algorithm": "tpe", "trials": 14, "seed": 5, "space": SPACE}, 1),
    "grid": (GRID, 3),
    "qmc": ({"algorithm": "qmc", "trials": 12, "seed": 5, "space": SPACE}, 3),
}


@pytest.mark.parametrize("algorithm", SEARCHES)
def test_a_study_that_is_killed_half_way_goes_on_as_it_would_have(
    make_lab: Callable[..., CoordinatorLab], monkeypatch: pytest.MonkeyPatch, algorithm: str
) -> None:
    search, parallel = SEARCHES[algorithm]
    study: dict[str, Any] = {
        "search": search,
        "pruning": {"algorithm": "median", "min_examples": 25, "n_startup_trials": 2},
        "budget": {"max_parallel_trials": parallel, "max_retries": 1000},
    }
    if parallel > 1:  # what is pruned depends on who was faster
        study["pruning"] = {"algorithm": "none"}
    calm, stormy = make_lab(cpus=parallel), make_lab(cpus=parallel)
    calm.run(calm.submit(**study))
    study_id = stormy.submit(**study)
    half = len(calm.values()) // 2
    stormy.rounds(lambda: len(stormy.attempts()) >= half, limit=2000)
    for worker_id in stormy.cluster.alive:
        stormy.cluster.kill(worker_id)
    stormy.crash()
    stormy.run_through_deaths(study_id, random.Random(algorithm), monkeypatch, chance=0.005)
    assert stormy.study(study_id).state == StudyState.COMPLETED
    assert stormy.values() == calm.values()
    assert stormy.rungs() == calm.rungs()
