"""What a study says it waits for, and what of it its history keeps."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from service.coordinator.cluster.ray_deaths import without_process
from service.coordinator.policy.placement import WorkerShape
from service.coordinator.policy.waiting import (
    for_a_worker_that_starts,
    for_its_turn,
    for_the_cluster,
    for_workers,
    standing,
)
from service.states import StudyState
from tests.support.service.coordinator import DEFINITION, CoordinatorLab
from workers.contract import Preparing


def search(trials: int) -> dict[str, Any]:
    return {**DEFINITION["search"], "algorithm": "random", "trials": trials}


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        ({"running": 4, "limit": 4}, "waiting: 4 studies are running, which is the limit"),
        ({"running": 1, "limit": 1}, "waiting: 1 study is running, which is the limit"),
        ({"running": 5, "limit": 4}, "waiting: 5 studies are running, and the limit is 4"),
        (
            {"running": 8, "limit": 4, "coordinators": 2},
            "waiting: 8 studies are running, which is the limit of 2 coordinators together",
        ),
        (
            {"running": 2, "limit": 2, "owner": "anna"},
            "waiting: 2 studies of 'anna' are running, which is the limit for one owner",
        ),
        (
            {"running": 1, "limit": 1, "owner": "anna"},
            "waiting: 1 study of 'anna' is running, which is the limit for one owner",
        ),
    ],
)
def test_a_study_that_waits_for_its_turn_names_the_limit(given: dict[str, Any], expected: str) -> None:
    assert for_its_turn(**given) == expected


@pytest.mark.parametrize(
    ("gpus_wanted", "capacity", "gpus", "expected"),
    [
        (2.0, 0, 0.0, "each needs 2 GPUs, but the cluster has 0"),
        (1.0, 0, 0.0, "each needs 1 GPU, but the cluster has 0"),
        (4.0, 0, 2.0, "each needs 4 GPUs, but the cluster has 2"),
        (2.0, 0, 4.0, "no machine of the cluster has 1 CPU and 2 GPUs, which one worker needs"),
        (0.0, 0, 0.0, "no machine of the cluster has 1 CPU, which one worker needs"),
        (1.0, 2, 2.0, "other studies use every machine or GPU that this one could use"),
    ],
)
def test_a_study_without_room_on_the_cluster_says_what_is_missing(
    gpus_wanted: float, capacity: int, gpus: float, expected: str
) -> None:
    shape = WorkerShape(num_cpus=1.0, num_gpus=gpus_wanted)
    assert for_the_cluster(shape, capacity=capacity, gpus=gpus) == f"waiting for a worker: {expected}"


def test_workers_that_start_are_counted() -> None:
    assert for_workers(started=0, starting=2) == (
        "waiting for a worker: 0 of 2 started (each imports its libraries first)"
    )


def test_the_death_of_the_last_worker_is_told_without_what_differs_from_one_to_the_next() -> None:
    deaths = {
        for_a_worker_that_starts(without_process(f"raised in ray::GpuWorker.__init__() (pid={pid}, ip=::1)."))
        for pid in (17, 18)
    }
    assert deaths == {
        "waiting for a worker: another one starts after a pause of up to a minute; the last one died while "
        "starting: raised in ray::GpuWorker.__init__()"
    }


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        ({"training": True, "live": 2}, "training"),
        ({"training": True, "live": 2, "starting": 1}, "training; 1 of 2 workers started"),
        ({"live": 1}, "starting: its trials were sent to their workers"),
        ({"live": 1, "preparing": "loading the base b (nf4)"}, "starting: loading the base b (nf4)"),
        ({"no_worker": "waiting for a worker"}, "waiting for a worker"),
        (
            {"resting": True},
            "waiting: trials whose workers were lost are tried again after a pause of up to a minute",
        ),
        ({"resting": True, "no_worker": "waiting for a worker"}, "waiting for a worker"),
        ({}, None),
    ],
)
def test_the_words_follow_what_goes_on(given: dict[str, Any], expected: str | None) -> None:
    nothing = {
        "training": False,
        "preparing": None,
        "live": 0,
        "started": 1,
        "starting": 0,
        "no_worker": None,
        "resting": False,
    }
    found = standing(**{**nothing, **given})
    assert (None if found is None else found.words) == expected
    assert found is None or found.waits == found.words.startswith("waiting")


def test_a_study_says_how_many_of_its_workers_have_started(make_lab: Callable[..., CoordinatorLab]) -> None:
    lab = make_lab(cpus=2, start_polls={"w1": 5, "w2": 5})
    study_id = lab.submit(search=search(4))
    lab.rounds(lambda: lab.study(study_id).reason.startswith("waiting for a worker"))
    words = "waiting for a worker: 0 of 2 started (each imports its libraries first)"
    assert lab.study(study_id).reason == words
    lab.rounds(lambda: lab.study(study_id).reason == "training")
    lab.run(study_id)
    assert lab.events("waiting") == [words]


def test_while_one_worker_trains_the_other_that_starts_is_still_counted(
    make_lab: Callable[..., CoordinatorLab],
) -> None:
    lab = make_lab(cpus=2, start_polls={"w2": 20}, patience=60.0)
    study_id = lab.submit(search=search(4))
    lab.rounds(lambda: lab.study(study_id).reason == "training; 1 of 2 workers started")


def test_gpus_that_the_cluster_does_not_have_are_named_while_the_study_waits(
    make_lab: Callable[..., CoordinatorLab],
) -> None:
    lab = make_lab(cpus=2, patience=60.0)
    study_id = lab.submit(resources={"gpus_per_worker": 2})
    words = "waiting for a worker: each needs 2 GPUs, but the cluster has 0"
    lab.rounds(lambda: lab.study(study_id).reason == words)
    for _ in range(5):
        lab.coordinator.round()
    assert lab.events("waiting") == [words]


def test_a_study_beyond_the_limit_says_so_once_and_then_runs(make_lab: Callable[..., CoordinatorLab]) -> None:
    lab = make_lab(cpus=1)
    lab.settings = lab.settings.model_copy(update={"max_running_studies": 1})
    lab.coordinator = lab.new_coordinator()
    first, second = lab.submit(name="s"), lab.submit(name="t")
    lab.rounds(lambda: lab.study(second).reason != "")
    words = "waiting: 1 study is running, which is the limit"
    assert (lab.study(second).reason, lab.study(second).revision) == (words, 1)
    lab.run(first, second)
    assert lab.events("waiting").count(words) == 1


def test_a_study_of_an_owner_at_the_limit_says_whose_studies_run(
    make_lab: Callable[..., CoordinatorLab],
) -> None:
    lab = make_lab(cpus=1)
    lab.settings = lab.settings.model_copy(update={"max_running_studies_per_owner": 1})
    lab.coordinator = lab.new_coordinator()
    lab.submit({"owner": "anna"}, name="s")
    second = lab.submit({"owner": "anna"}, name="t")
    lab.rounds(lambda: lab.study(second).reason != "")
    assert lab.study(second).reason == (
        "waiting: 1 study of 'anna' is running, which is the limit for one owner"
    )


def test_a_successor_says_what_the_study_waits_for_and_not_what_was_said_before(
    make_lab: Callable[..., CoordinatorLab],
) -> None:
    lab = make_lab(cpus=1)
    lab.settings = lab.settings.model_copy(update={"max_running_studies": 1})
    lab.coordinator = lab.new_coordinator()
    lab.submit(name="s")
    second = lab.submit(name="t")
    lab.rounds(lambda: lab.study(second).reason != "")
    lab.settings = lab.settings.model_copy(update={"max_running_studies": 2})
    lab.crash()
    lab.rounds(lambda: lab.study(second).state == StudyState.RUNNING)
    assert "limit" not in lab.study(second).reason


def test_what_a_worker_does_before_a_trial_starts_is_told_once_and_is_the_trials_reason(
    make_lab: Callable[..., CoordinatorLab],
) -> None:
    lab = make_lab(cpus=1, start_polls={"w1": 0})
    study_id = lab.submit(search=search(1))
    lab.rounds(lambda: lab.cluster.running == 1)
    [attempt] = lab.attempts()
    [runner] = lab.runners
    for seq, stage in enumerate(("loading the base b (nf4)", "reading the train data"), start=1):
        event = Preparing(attempt_id=attempt.id, stage=stage)
        runner.events.on_preparing(event, seq)
        runner.events.on_preparing(event, seq)
    assert lab.attempts()[0].reason == "reading the train data"
    assert lab.events("starting") == ["loading the base b (nf4)", "reading the train data"]
    lab.coordinator.studies[study_id].advance()
    assert lab.study(study_id).reason == "starting: reading the train data"
