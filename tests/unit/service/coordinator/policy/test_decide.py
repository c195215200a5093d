"""`decide` is pure, so its promises are checked on every snapshot hypothesis can think of."""

from __future__ import annotations

from hypothesis import given

from service.coordinator.policy.decide import (
    Ask,
    AskRepeat,
    Dispatch,
    EndStudy,
    EndTrial,
    StopAttempt,
    decide,
    starving_bases,
)
from service.coordinator.policy.placement import Placement, WorkerSlots
from service.coordinator.policy.snapshot import Snapshot, TrialPhase
from service.states import AttemptState, StudyState
from tests.support.service.snapshots import ended, limits, live, snapshot, snapshots, waiting


@given(snapshots())
def test_budgets_hold_whatever_is_free(given_snapshot: Snapshot) -> None:
    """Never a trial too many, never more alive or waiting than allowed, never a slot that is not there."""
    actions = decide(given_snapshot)
    limits = given_snapshot.limits
    asks = sum(isinstance(a, Ask) for a in actions)
    repeats = [(a.of, a.seed) for a in actions if isinstance(a, AskRepeat)]
    dispatches = sum(isinstance(a, Dispatch) for a in actions)
    alive = sum(t.phase is TrialPhase.LIVE for t in given_snapshot.trials)
    held = sum(
        t.phase is TrialPhase.WAITING and t.lost_attempts <= limits.max_retries and t.poison is None
        for t in given_snapshot.trials
    )
    made = asks + len(repeats)
    assert len(given_snapshot.search) + asks <= limits.trials
    assert dispatches == 0 or alive + dispatches <= limits.max_parallel_trials
    assert made == 0 or alive + held + made <= limits.max_parallel_trials
    assert made <= given_snapshot.placement.free
    assert asks == 0 or not repeats
    known = {(t.repeat_of, t.seed) for t in given_snapshot.again}
    assert len({*repeats, *known}) == len(repeats) + len(known)
    assert len({seed for _, seed in repeats}) <= 2
    assert len({of for of, _ in repeats}) <= 2


@given(snapshots())
def test_only_trials_with_a_place_are_sent(given_snapshot: Snapshot) -> None:
    """Every dispatch finds the worker that it was counted on, in the order in which they come."""
    placement = given_snapshot.placement
    by_number = {t.number: t for t in given_snapshot.trials}
    for action in decide(given_snapshot):
        if isinstance(action, Dispatch):
            base = by_number[action.trial_number].base
            worker = placement.pick(base)
            assert worker is not None
            assert worker.base in (None, base)
            placement = placement.filled(worker, base)


@given(snapshots())
def test_a_study_ends_only_when_nothing_is_alive_and_nothing_waits(given_snapshot: Snapshot) -> None:
    """The end comes last, after every trial has one of its own."""
    actions = decide(given_snapshot)
    ends = [a for a in actions if isinstance(a, EndStudy)]
    assert len(ends) <= 1
    if ends:
        assert not any(t.phase is TrialPhase.LIVE for t in given_snapshot.trials)
        closed = {a.trial_number for a in actions if isinstance(a, EndTrial)}
        assert closed == {t.number for t in given_snapshot.trials if t.phase is TrialPhase.WAITING}
        assert actions[-1] == ends[0]


@given(snapshots())
def test_no_trial_is_handled_twice_in_one_round(given_snapshot: Snapshot) -> None:
    actions = decide(given_snapshot)
    numbers = [a.trial_number for a in actions if isinstance(a, Dispatch | EndTrial)]
    assert len(numbers) == len(set(numbers))


def test_free_slots_are_filled_with_lost_trials_before_new_ones() -> None:
    actions = decide(snapshot(ended(0), waiting(1, lost=1), free_slots=2))
    assert actions == [Dispatch(trial_number=1), Ask()]


def test_a_trial_whose_worker_was_lost_too_often_fails_without_taking_a_slot() -> None:
    actions = decide(snapshot(waiting(0, lost=2), free_slots=1))
    assert [type(a) for a in actions] == [EndTrial, Ask]
    assert isinstance(actions[0], EndTrial)
    assert actions[0].outcome is AttemptState.FAILED


def test_a_cancel_stops_what_lives_once_and_closes_what_waits() -> None:
    actions = decide(snapshot(live(0), live(1, stop_requested=True), waiting(2), cancel_requested=True))
    assert [type(a) for a in actions] == [StopAttempt, EndTrial]


def test_a_fault_in_model_or_data_fails_the_study_with_its_own_sentence() -> None:
    actions = decide(snapshot(ended(0, AttemptState.FAILED, fatal="train.jsonl:3: no field 'prompt'")))
    assert actions == [EndStudy(state=StudyState.FAILED, reason="train.jsonl:3: no field 'prompt'")]


def test_more_failed_trials_than_allowed_fail_the_study() -> None:
    failed = [ended(n, AttemptState.FAILED) for n in range(2)]
    [end] = decide(snapshot(*failed, limits=limits(max_failed_trials=1)))
    assert end == EndStudy(
        state=StudyState.FAILED, reason="2 trials failed; budget.max_failed_trials allows 1"
    )


def test_all_trials_ended_completes_the_study() -> None:
    trials = [ended(0), ended(1, AttemptState.PRUNED), ended(2, AttemptState.DIVERGED), ended(3)]
    assert decide(snapshot(*trials)) == [EndStudy(state=StudyState.COMPLETED, reason="all 4 trials ended")]


def test_a_study_without_one_completed_trial_has_failed_and_says_how() -> None:
    trials = [ended(0, AttemptState.DIVERGED), *(ended(n, AttemptState.OUT_OF_MEMORY) for n in (1, 2, 3))]
    assert decide(snapshot(*trials)) == [
        EndStudy(
            state=StudyState.FAILED,
            reason="all 4 trials ended, and no trial completed (1 diverged, 3 out of memory)",
        )
    ]


def test_the_wall_clock_completes_a_study_that_has_a_result() -> None:
    actions = decide(snapshot(ended(0), limits=limits(timeout_seconds=60.0), running_seconds=61.0))
    assert actions == [EndStudy(state=StudyState.COMPLETED, reason="budget.timeout of 60 s reached")]


def test_gpu_hours_complete_a_study_that_has_a_result() -> None:
    actions = decide(snapshot(ended(0), limits=limits(max_gpu_hours=1.0), gpu_hours=1.25))
    assert actions == [
        EndStudy(state=StudyState.COMPLETED, reason="budget.max_gpu_hours of 1 reached (1.25 spent)")
    ]


def test_trials_that_a_budget_stops_are_told_of_the_budget_and_not_of_what_came_of_the_others() -> None:
    actions = decide(snapshot(live(0), waiting(1), limits=limits(timeout_seconds=60.0), running_seconds=61.0))
    reasons = [a.reason for a in actions if isinstance(a, StopAttempt | EndTrial)]
    assert reasons == ["the study ended: budget.timeout of 60 s reached"] * 2


def test_one_failed_trial_is_counted_in_the_singular() -> None:
    [end] = decide(snapshot(ended(0, AttemptState.FAILED), limits=limits(max_failed_trials=0)))
    assert end == EndStudy(
        state=StudyState.FAILED, reason="1 trial failed; budget.max_failed_trials allows 0"
    )


# -- bases -------------------------------------------------------------------------------------------


def test_a_trial_that_no_worker_takes_keeps_its_reservation_and_holds_up_no_other() -> None:
    nf4 = Placement(workers=(WorkerSlots(worker_id="w1", base="nf4", loaded="nf4", trials=1, free=3),))
    study = {"limits": limits(trials=9, max_parallel_trials=4), "placement": nf4}
    actions = decide(snapshot(live(0), waiting(1, base="int8"), waiting(2, base="nf4"), **study))
    assert actions == [Dispatch(trial_number=2), Ask()]  # live, waiting, sent, asked: four


def test_a_base_starves_when_as_many_newer_trials_as_may_run_have_overtaken_it() -> None:
    nf4 = Placement(workers=(WorkerSlots(worker_id="w1", base="nf4", loaded="nf4", trials=1, free=3),))
    study = {"limits": limits(trials=9, max_parallel_trials=2), "placement": nf4}
    assert starving_bases(snapshot(waiting(0, base="int8"), live(1), **study)) == ()
    assert starving_bases(snapshot(waiting(0, base="int8"), ended(1), live(2), **study)) == ("int8",)
    assert starving_bases(snapshot(waiting(0, base="nf4"), ended(1), live(2), **study)) == ()
