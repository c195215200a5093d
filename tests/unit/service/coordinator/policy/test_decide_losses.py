"""Trials that lost their worker: which are tried again now, where, and which fail."""

from __future__ import annotations

import pytest
from hypothesis import given

from service.coordinator.policy.decide import (
    Ask,
    Dispatch,
    EndTrial,
    decide,
    starving_bases,
    suspects_waiting,
    trials_to_come,
)
from service.coordinator.policy.placement import Placement, WorkerSlots
from service.coordinator.policy.snapshot import Snapshot
from service.states import AttemptState
from tests.support.service.snapshots import limits, live, snapshot, snapshots, waiting


def worker(number: int, *, trials: int = 0, free: int = 4, reserved: bool = False) -> WorkerSlots:
    return WorkerSlots(
        worker_id=f"w{number}", trials=trials, free=free, reserved=reserved, device_id=f"GPU-{number}"
    )


def placement(*workers: WorkerSlots) -> Placement:
    return Placement(workers=workers, devices=frozenset(p.device_id for p in workers))


LIMITS = limits(trials=8, max_parallel_trials=8)


def test_a_trial_that_rests_is_not_sent_out_and_keeps_its_place() -> None:
    actions = decide(snapshot(waiting(0, lost=1, rested=False), limits=limits(trials=4), free_slots=4))
    assert actions == [Ask()]  # of two at once, the one that rests is one


def test_a_trial_that_rests_still_wants_a_worker() -> None:
    assert trials_to_come(snapshot(waiting(0, lost=1, rested=False), limits=limits(trials=1))) == 1


@pytest.mark.parametrize("lost", [1, 5])
def test_a_poisonous_trial_fails_at_once_with_its_own_reason(lost: int) -> None:
    actions = decide(snapshot(waiting(0, lost=lost, poison="poisonous: twice"), limits=limits(trials=1)))
    assert actions == [EndTrial(trial_number=0, outcome=AttemptState.FAILED, reason="poisonous: twice")]


def test_a_trial_fails_when_its_losses_are_more_than_allowed() -> None:
    reasons = []
    for retries in (0, 1):
        actions = decide(snapshot(waiting(0, lost=retries + 1), limits=limits(trials=1, max_retries=retries)))
        reasons += [a.reason for a in actions if isinstance(a, EndTrial)]
    assert reasons == [
        "its worker was lost once; budget.max_retries allows 0 further attempts",
        "its worker was lost 2 times; budget.max_retries allows 1 further attempt",
    ]


def test_a_suspect_goes_first_and_has_its_worker_for_itself() -> None:
    trials = waiting(0), waiting(1), waiting(2, lost=1, suspect=True)
    actions = decide(snapshot(*trials, limits=LIMITS, placement=placement(worker(1), worker(2, free=1))))
    assert actions == [
        Dispatch(trial_number=2, isolated=True),
        Dispatch(trial_number=0),
    ]


def test_a_suspect_joins_no_pack() -> None:
    trials = live(0), waiting(1, lost=1, suspect=True)
    assert decide(snapshot(*trials, limits=limits(trials=2), placement=placement(worker(1, trials=1)))) == []


def test_a_suspect_avoids_its_gpu_while_there_is_another() -> None:
    trial = waiting(0, lost=1, suspect=True, avoid="GPU-1")

    def sent(*workers: WorkerSlots) -> list[bool]:
        actions = decide(snapshot(trial, limits=limits(trials=1), placement=placement(*workers)))
        return [isinstance(action, Dispatch) and action.avoid == "GPU-1" for action in actions]

    assert sent(worker(1), worker(2)) == [True]
    assert sent(worker(1), worker(2, trials=1)) == []
    assert sent(worker(1)) == [True]


def test_what_is_kept_for_suspects_is_no_room_for_others() -> None:
    reserved = placement(worker(1, reserved=True))
    assert decide(snapshot(waiting(0), limits=limits(trials=4), placement=reserved)) == []
    suspect = waiting(0, lost=1, suspect=True)
    assert decide(snapshot(suspect, limits=limits(trials=1), placement=reserved)) == [
        Dispatch(trial_number=0, isolated=True)
    ]


def test_a_worker_is_emptied_for_a_suspect_once_and_not_for_its_base_as_well() -> None:
    trials = waiting(0, lost=1, suspect=True, base="int8"), *(live(n) for n in range(1, 8))
    busy = snapshot(*trials, limits=limits(trials=8), placement=placement(worker(1, trials=4, free=0)))
    assert starving_bases(busy) == ()
    assert [t.number for t in suspects_waiting(busy)] == [0]


def test_no_worker_is_emptied_for_a_trial_that_will_not_be_tried_again() -> None:
    trials = waiting(0, lost=1, suspect=True, poison="twice"), waiting(1, lost=2, suspect=True)
    assert suspects_waiting(snapshot(*trials, limits=limits(max_retries=1))) == []


@given(snapshots())
def test_suspects_are_alone_and_nothing_that_rests_or_is_poisonous_is_sent(given_snapshot: Snapshot) -> None:
    trials = {t.number: t for t in given_snapshot.trials}
    sent = [a for a in decide(given_snapshot) if isinstance(a, Dispatch)]
    assert all(a.isolated is trials[a.trial_number].suspect for a in sent)
    assert all(trials[a.trial_number].rested and trials[a.trial_number].poison is None for a in sent)
    idle = sum(p.trials == 0 and p.free > 0 for p in given_snapshot.placement.workers)
    assert sum(a.isolated for a in sent) <= idle
