"""What `decide` does about trials that a person wants to end."""

from __future__ import annotations

from hypothesis import given

from service.coordinator.policy.decide import (
    Ask,
    Dispatch,
    EndStudy,
    EndTrial,
    KillWorker,
    PauseAttempt,
    PauseStudy,
    StopAttempt,
    decide,
    trials_to_come,
)
from service.coordinator.policy.snapshot import Snapshot, TrialPhase
from service.states import AttemptState, StudyState
from tests.support.service.snapshots import ended, limits, live, snapshot, snapshots, waiting

WHY = "stopped on request of 'ada'"


@given(snapshots())
def test_a_trial_that_is_to_end_is_neither_sent_out_nor_paused(given_snapshot: Snapshot) -> None:
    wanted = [t for t in given_snapshot.trials if t.stop_reason is not None]
    numbers, attempts = {t.number for t in wanted}, {t.live_attempt_id for t in wanted}
    for action in decide(given_snapshot):
        assert not (isinstance(action, Dispatch) and action.trial_number in numbers)
        assert not (isinstance(action, PauseAttempt) and action.attempt_id in attempts)


@given(snapshots())
def test_a_trial_that_is_to_end_is_told_or_ended_or_was_told(given_snapshot: Snapshot) -> None:
    actions = decide(given_snapshot)
    told = {a.attempt_id for a in actions if isinstance(a, StopAttempt | KillWorker)}
    ended_now = {a.trial_number for a in actions if isinstance(a, EndTrial)}
    for trial in given_snapshot.trials:
        if trial.stop_reason is None or trial.phase is TrialPhase.ENDED:
            continue
        assert trial.number in ended_now or trial.live_attempt_id in told or trial.stop_requested


def test_a_live_trial_is_stopped_with_the_reason_and_another_is_asked_for_when_it_has_ended() -> None:
    wanted = live(0, stop_reason=WHY)
    stop = StopAttempt(attempt_id=100, reason=WHY)
    assert decide(snapshot(wanted, live(1))) == [stop]
    assert decide(snapshot(live(0, stop_reason=WHY, stop_requested=True), live(1))) == []
    gone = ended(0, AttemptState.CANCELLED, settled=True)
    assert decide(snapshot(gone, live(1))) == [Ask()]


def test_a_waiting_trial_is_ended_and_its_slot_is_free_at_once() -> None:
    end = EndTrial(trial_number=0, outcome=AttemptState.CANCELLED, reason=WHY)
    assert decide(snapshot(waiting(0, stop_reason=WHY), live(1))) == [end, Ask()]
    assert trials_to_come(snapshot(waiting(0, stop_reason=WHY), limits=limits(trials=1))) == 0


def test_a_stopped_trial_is_one_of_the_search_s() -> None:
    stopped = ended(1, AttemptState.CANCELLED, settled=True)
    done = snapshot(ended(0), stopped, limits=limits(trials=2))
    assert decide(done) == [EndStudy(state=StudyState.COMPLETED, reason="all 2 trials ended")]
    cut = snapshot(ended(0), ended(1, AttemptState.CANCELLED), limits=limits(trials=2))
    assert decide(cut) == []


def test_a_stop_comes_before_a_pause_of_the_same_trial() -> None:
    trials = (live(0, stop_reason=WHY), live(1), waiting(2, stop_reason=WHY))
    assert decide(snapshot(*trials, pause_reason="paused on request")) == [
        StopAttempt(attempt_id=100, reason=WHY),
        EndTrial(trial_number=2, outcome=AttemptState.CANCELLED, reason=WHY),
        PauseAttempt(attempt_id=101, reason="paused on request"),
    ]
    waits = snapshot(waiting(0, stop_reason=WHY), pause_reason="paused on request")
    assert not any(isinstance(action, PauseStudy) for action in decide(waits))


def test_the_worker_of_one_that_does_not_stop_is_killed() -> None:
    wedged = live(0, stop_reason=WHY, stop_requested=True, overdue=True)
    assert decide(snapshot(wedged)) == [KillWorker(attempt_id=100, reason=WHY), Ask()]
