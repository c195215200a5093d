"""Workers that die before their study's first step: whose fault it is, and when the study ends."""

from __future__ import annotations

from collections.abc import Callable

from service.coordinator.study.device_health import devices_aside
from service.db.models import Device
from service.states import LossCause, StudyState
from tests.support.service.coordinator import DEFINITION, CoordinatorLab
from workers.contract import TrialOrder

SEARCH = {**DEFINITION["search"], "algorithm": "random", "trials": 6}
GPU = "n1/GPU-0"


def always(_: TrialOrder) -> bool:
    return True


def aside(lab: CoordinatorLab) -> frozenset[str]:
    with lab.database.read() as session:
        return devices_aside(session)


def test_a_study_that_cannot_be_loaded_ends_and_neither_gpus_nor_trials_are_blamed(
    make_lab: Callable[..., CoordinatorLab],
) -> None:
    lab = make_lab(gpus=3, unloadable=always)
    study_id = lab.submit(search=SEARCH, budget={"max_parallel_trials": 3, "max_retries": 0})
    lab.run(study_id)
    study = lab.study(study_id)
    assert study.state == StudyState.FAILED
    assert "died 3 times before any trial of the study made its first step; the last time: " in study.reason
    assert study.reason.startswith("the workers of trial ")
    assert lab.events("trial_failed") == []
    assert lab.events("device_put_aside") == []
    assert aside(lab) == frozenset()
    assert {a.loss_cause for a in lab.attempts() if a.state == "lost"} == {"worker_died"}
    assert len(lab.attempts()) <= 9


def test_one_death_by_chance_costs_no_retry_and_what_follows_is_checked_first(
    make_lab: Callable[..., CoordinatorLab],
) -> None:
    killed: list[int] = []

    def once(order: TrialOrder) -> bool:
        if not killed:
            killed.append(order.attempt_id)
            return True
        return False

    lab = make_lab(cpus=1, unloadable=once)
    study_id = lab.submit(search=SEARCH, budget={"max_parallel_trials": 1, "max_retries": 0})
    lab.run(study_id)
    assert lab.study(study_id).state == StudyState.COMPLETED
    assert {outcome for outcome, _, _ in lab.values().values()} == {"completed"}
    assert [order.check_loading for order in lab.cluster.orders] == [False, True] + [False] * 5


def test_once_a_trial_has_begun_a_death_before_the_first_step_counts_against_its_trial(
    make_lab: Callable[..., CoordinatorLab],
) -> None:
    lab = make_lab(cpus=1, unloadable=lambda order: order.trial_number == 3)
    study_id = lab.submit(search=SEARCH, budget={"max_parallel_trials": 1})
    lab.run(study_id)
    assert lab.study(study_id).state == StudyState.COMPLETED
    assert {n for n, (outcome, _, _) in lab.values().items() if outcome == "failed"} == {3}
    [reason] = lab.events("trial_failed")
    assert reason.startswith("poisonous: its worker died 2 times in a row")
    assert not any(order.check_loading for order in lab.cluster.orders)


def test_machines_that_go_away_meanwhile_are_not_the_study_s_fault(
    make_lab: Callable[..., CoordinatorLab],
) -> None:
    lab = make_lab(cpus=1)
    lab.cluster._unloadable = lambda order: order.attempt_id <= 5
    kill = lab.cluster.kill
    lab.cluster.kill = lambda worker_id, _=None: kill(worker_id, LossCause.NODE_DIED)  # type: ignore[method-assign]
    study_id = lab.submit(search=SEARCH, budget={"max_parallel_trials": 1, "max_retries": 0})
    lab.run(study_id)
    assert lab.study(study_id).state == StudyState.COMPLETED


def test_a_gpu_on_which_three_studies_cannot_be_loaded_is_put_aside(
    make_lab: Callable[..., CoordinatorLab],
) -> None:
    """No single study can do that to the others."""
    lab = make_lab(gpus=1, unloadable=always)
    for name in ("one", "two"):
        lab.run(lab.submit(name=name, search=SEARCH, budget={"max_parallel_trials": 1}))
        assert aside(lab) == frozenset()
    lab.submit(name="three", search=SEARCH, budget={"max_parallel_trials": 1})
    lab.rounds(lambda: aside(lab) == {GPU})
    with lab.database.read() as session:
        reason = session.get_one(Device, GPU).reason
    assert reason is not None
    assert "one while it loaded" in reason
    assert "three while it loaded" in reason
