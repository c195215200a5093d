"""GPUs on which workers die: which are put aside, what becomes of their workers, and how they come back."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from service.coordinator.study.device_health import devices_aside, no_two_explain
from service.db.models import Device
from service.devices.commands import restore_device
from service.states import LossCause, StudyState
from tests.support.service.coordinator import DEFINITION, CoordinatorLab
from workers.contract import TrialOrder


def search(trials: int) -> dict[str, Any]:
    return {**DEFINITION["search"], "algorithm": "random", "trials": trials}


def deaths(*packs: str) -> list[frozenset[tuple[str, int]]]:
    return [frozenset(("s", int(number)) for number in pack) for pack in packs]


@pytest.mark.parametrize(
    ("packs", "bad"),
    [
        ([], False),
        (["1"], False),
        (["1", "2"], False),
        (["1", "1", "2", "2", "1"], False),
        (["1", "2", "3"], True),
        (["1", "1", "2", "3"], True),
        (["1234"], False),
        (["1234", "1"], False),
        (["1234", "1", "2"], False),
        (["1234", "1", "2", "3"], True),
        (["1234", "5678"], False),
        (["1234", "5678", "15"], False),
        (["1234", "5678", "90"], True),
        (["12", "13", "23"], False),
        (["12", "34", "56"], True),
    ],
)
def test_a_gpu_is_bad_when_no_two_trials_explain_its_deaths(packs: list[str], bad: bool) -> None:
    assert no_two_explain(deaths(*packs)) is bad


BAD = "n1/GPU-0"


def on(lab: CoordinatorLab, device_id: str) -> list[str]:
    """The workers on a GPU."""
    return [w.worker_id for w in lab.cluster._workers.values() if w.device_id == device_id]


def aside(lab: CoordinatorLab) -> frozenset[str]:
    with lab.database.read() as session:
        return devices_aside(session)


def break_gpu(lab: CoordinatorLab, device_id: str = BAD, cause: LossCause = LossCause.WORKER_DIED) -> None:
    """Whatever trains on that GPU dies now."""
    for worker_id in on(lab, device_id):
        if lab.cluster._workers[worker_id].pack:
            lab.cluster.kill(worker_id, cause)


def test_a_gpu_that_fails_three_different_trials_is_put_aside_and_the_study_goes_on_elsewhere(
    make_lab: Callable[..., CoordinatorLab],
) -> None:
    lab = make_lab(gpus=2)
    study_id = lab.submit(search=search(8), budget={"max_parallel_trials": 2, "max_retries": 100})
    lab.run(study_id, each=lambda: break_gpu(lab))
    assert lab.study(study_id).state == StudyState.COMPLETED
    assert {outcome for outcome, _, _ in lab.values().values()} == {"completed"}
    died = [a for a in lab.attempts() if a.device_id == BAD]
    assert {a.loss_cause for a in died} == {"worker_died"}
    assert len({a.trial_number for a in died}) == 3
    [said] = lab.events("device_put_aside")
    assert said.startswith(f"the GPU {BAD} gets no more trials: {len(died)} workers died on it")
    assert all(f"s/{a.trial_number}" in said for a in died)
    with lab.database.read() as session:
        device = session.get_one(Device, BAD)
        assert device.put_aside_at is not None
        assert device.reason in said


def test_the_worker_on_a_gpu_that_was_put_aside_stays_and_gets_nothing(
    make_lab: Callable[..., CoordinatorLab],
) -> None:
    lab = make_lab(gpus=2)
    study_id = lab.submit(search=search(30), budget={"max_parallel_trials": 2, "max_retries": 100})
    for _ in range(200):
        break_gpu(lab)
        lab.coordinator.round()
        if aside(lab):
            break
    lab.rounds(lambda: bool(on(lab, BAD)))
    [placeholder] = on(lab, BAD)
    before = len(lab.cluster.started)
    for _ in range(20):
        lab.coordinator.round()
        assert on(lab, BAD) == [placeholder]
        assert lab.cluster.packs[placeholder] == 0
    assert len(lab.cluster.started) == before
    lab.crash()
    for _ in range(20):
        lab.coordinator.round()
        assert on(lab, BAD) == [placeholder]
        assert lab.cluster.packs[placeholder] == 0
    with lab.database.write() as session:
        restore_device(session, BAD)
    lab.rounds(lambda: lab.cluster.packs[placeholder] > 0)
    lab.run(study_id)
    assert lab.cluster.alive == []


def test_deaths_before_it_was_given_back_do_not_count_again(make_lab: Callable[..., CoordinatorLab]) -> None:
    lab = make_lab(gpus=1)
    lab.submit(search=search(8), budget={"max_parallel_trials": 1, "max_retries": 100})

    def die(times: int) -> None:
        for _ in range(times):
            lab.rounds(lambda: any(lab.cluster.packs.values()))
            break_gpu(lab)
            lab.coordinator.round()

    # The first two trials die alone at one place, which is poison; the third is the GPU's.
    die(4)
    assert aside(lab) == frozenset()
    die(1)
    assert aside(lab) == {BAD}
    with lab.database.write() as session:
        restore_device(session, BAD)
    die(2)
    assert aside(lab) == frozenset()


def test_a_trial_that_a_gpu_brings_to_its_end_clears_it(make_lab: Callable[..., CoordinatorLab]) -> None:
    lab = make_lab(gpus=1)
    study_id = lab.submit(search=search(8), budget={"max_parallel_trials": 1, "max_retries": 100})
    died: set[int] = set()

    def first_attempts_of_some_die() -> None:
        for order in lab.cluster.orders[-1:]:
            if order.trial_number % 2 == 0 and order.trial_number not in died and on(lab, BAD):
                died.add(order.trial_number)
                break_gpu(lab)

    lab.run(study_id, each=first_attempts_of_some_die)
    assert len(died) == 4
    assert aside(lab) == frozenset()


def test_a_pack_that_dies_of_one_trial_is_no_evidence_against_the_gpu(
    make_lab: Callable[..., CoordinatorLab],
) -> None:
    def lethal(order: TrialOrder, seen: int) -> bool:
        return order.trial_number == 3 and seen == 50

    lab = make_lab(gpus=1, slots=4, lethal=lethal)
    study_id = lab.submit(search=search(4), budget={"max_parallel_trials": 4})
    lab.run(study_id)
    assert [outcome for outcome, _, _ in lab.values().values()] == ["completed"] * 3 + ["failed"]
    assert aside(lab) == frozenset()


@pytest.mark.parametrize("cause", [LossCause.NODE_DIED, LossCause.UNREACHABLE])
def test_machines_that_go_away_say_nothing_about_their_gpus(
    make_lab: Callable[..., CoordinatorLab], cause: LossCause
) -> None:
    lab = make_lab(gpus=1)
    study_id = lab.submit(search=search(4), budget={"max_parallel_trials": 1, "max_retries": 0})
    for _ in range(4):
        lab.rounds(lambda: any(lab.cluster.packs.values()))
        break_gpu(lab, BAD, cause)
        lab.coordinator.round()
    lab.run(study_id)
    assert aside(lab) == frozenset()


def test_a_cpu_is_never_put_aside(make_lab: Callable[..., CoordinatorLab]) -> None:
    lab = make_lab(cpus=1)
    study_id = lab.submit(search=search(4), budget={"max_parallel_trials": 1, "max_retries": 0})
    for _ in range(4):
        lab.rounds(lambda: any(lab.cluster.packs.values()))
        lab.cluster.kill(lab.cluster.alive[0], LossCause.WORKER_DIED)
        lab.coordinator.round()
    lab.run(study_id)
    assert {a.device_id for a in lab.attempts()} == {None}
    assert aside(lab) == frozenset()


def test_a_study_whose_gpus_are_all_put_aside_is_paused_and_says_what_to_do(
    make_lab: Callable[..., CoordinatorLab],
) -> None:
    lab = make_lab(gpus=1)
    study_id = lab.submit(search=search(8), budget={"max_parallel_trials": 1, "max_retries": 100})
    for _ in range(500):
        break_gpu(lab)
        lab.coordinator.round()
        if lab.study(study_id).state != StudyState.RUNNING:
            break
    study = lab.study(study_id)
    assert (study.state, study.reason) == (
        StudyState.PAUSED,
        f"every GPU that this study could use was put aside ({BAD}): `nightsweep workers` says why, and "
        "`nightsweep workers restore` gives one back",
    )
    assert lab.cluster.alive == []
