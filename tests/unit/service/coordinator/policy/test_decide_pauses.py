"""What `decide` does about pauses, deadlines and workers that do not obey."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given

from service.coordinator.cluster.sent_verdicts import AGAIN_SECONDS, SentVerdicts
from service.coordinator.policy.decide import (
    Ask,
    AskRepeat,
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
from service.coordinator.policy.limits import Repeats
from service.coordinator.policy.snapshot import Snapshot, TrialPhase
from service.states import AttemptState, StudyState
from tests.support.service.snapshots import ended, limits, live, snapshot, snapshots, waiting
from workers.contract import Decision

PAUSED = "paused on request"


@given(snapshots())
def test_nothing_begins_while_a_study_is_to_be_paused(given_snapshot: Snapshot) -> None:
    if given_snapshot.pause_reason is None:
        return
    actions = decide(given_snapshot)
    assert not [a for a in actions if isinstance(a, Ask | AskRepeat | Dispatch)]
    assert trials_to_come(given_snapshot) == 0


@given(snapshots())
def test_a_study_is_paused_only_when_nothing_is_alive_and_then_nothing_else_is_done(
    given_snapshot: Snapshot,
) -> None:
    actions = decide(given_snapshot)
    pauses = [a for a in actions if isinstance(a, PauseStudy)]
    if pauses:
        assert actions == pauses[:1]
        assert not any(t.phase is TrialPhase.LIVE for t in given_snapshot.trials)
        assert given_snapshot.pause_reason is not None
        assert not given_snapshot.cancel_requested


@given(snapshots())
def test_a_live_attempt_hears_one_thing_at_a_time(given_snapshot: Snapshot) -> None:
    actions = decide(given_snapshot)
    sent = [a.attempt_id for a in actions if isinstance(a, StopAttempt | PauseAttempt | KillWorker)]
    assert len(sent) == len(set(sent))
    by_id = {t.live_attempt_id: t for t in given_snapshot.trials}
    for action in actions:
        if isinstance(action, KillWorker):
            assert by_id[action.attempt_id].overdue
        elif isinstance(action, PauseAttempt):
            assert not by_id[action.attempt_id].stop_requested


def test_a_pause_is_sent_once_to_what_lives_and_what_waits_keeps_its_place() -> None:
    trials = (ended(0), live(1), live(2, pause_requested=True), waiting(3))
    assert decide(snapshot(*trials, pause_reason=PAUSED)) == [PauseAttempt(attempt_id=101, reason=PAUSED)]
    trials = (ended(0), waiting(1), waiting(2), waiting(3))
    assert decide(snapshot(*trials, pause_reason=PAUSED)) == [PauseStudy(reason=PAUSED)]


def test_one_that_has_not_obeyed_is_told_again_and_at_last_killed() -> None:
    slow = live(0, pause_requested=True, send_again=True)
    assert decide(snapshot(slow, pause_reason=PAUSED)) == [PauseAttempt(attempt_id=100, reason=PAUSED)]
    wedged = live(0, pause_requested=True, send_again=True, overdue=True)
    assert decide(snapshot(wedged, pause_reason=PAUSED)) == [KillWorker(attempt_id=100, reason=PAUSED)]


def test_a_cancel_during_a_pause_is_a_stop_with_a_grace_of_its_own() -> None:
    pausing = live(0, pause_requested=True, overdue=True)
    [stop] = decide(snapshot(pausing, pause_reason=PAUSED, cancel_requested=True))
    assert stop == StopAttempt(attempt_id=100, reason="the study ended: cancelled on request")
    wedged = live(0, stop_requested=True, overdue=True)
    [kill] = decide(snapshot(wedged, cancel_requested=True))
    assert kill == KillWorker(attempt_id=100, reason="the study ended: cancelled on request")


def test_a_paused_study_that_is_cancelled_ends_and_closes_what_waits() -> None:
    actions = decide(snapshot(ended(0), waiting(1), state=StudyState.PAUSED, cancel_requested=True))
    assert [type(a) for a in actions] == [EndTrial, EndStudy]


@pytest.mark.parametrize(
    ("changes", "first"),
    [
        ({"cancel_requested": True}, StudyState.CANCELLED),
        ({"limits": limits(max_failed_trials=0)}, StudyState.FAILED),
        ({"limits": limits(trials=2)}, StudyState.COMPLETED),
        ({"limits": limits(target_value=1.0)}, StudyState.COMPLETED),
    ],
    ids=["cancel", "failures", "all trials", "target"],
)
def test_what_ends_the_search_comes_before_a_pause(changes: dict[str, Any], first: StudyState) -> None:
    [end] = decide(snapshot(ended(0), ended(1, AttemptState.FAILED), pause_reason=PAUSED, **changes))
    assert isinstance(end, EndStudy)
    assert end.state is first


@pytest.mark.parametrize(
    "changes",
    [
        {"unplaceable_reason": "no node"},
        {"limits": limits(timeout_seconds=1.0), "running_seconds": 2.0},
        {"deadline_reason": "budget.until has come"},
        {"limits": limits(max_gpu_hours=1.0), "gpu_hours": 2.0},
    ],
    ids=["no worker", "timeout", "until", "GPU-hours"],
)
def test_a_pause_comes_before_what_would_end_it_by_the_clock(changes: dict[str, Any]) -> None:
    assert decide(snapshot(ended(0), pause_reason=PAUSED, **changes)) == [PauseStudy(reason=PAUSED)]


def test_a_time_of_day_that_ends_a_study_does_so_like_a_timeout() -> None:
    reason = "budget.until 06:00 UTC has come"
    stop, close = decide(snapshot(ended(0), live(1), waiting(2), deadline_reason=reason))
    assert stop == StopAttempt(attempt_id=101, reason=f"the study ended: {reason}")
    assert isinstance(close, EndTrial)
    [end] = decide(snapshot(ended(0), deadline_reason=reason))
    assert end == EndStudy(state=StudyState.COMPLETED, reason=reason)


def test_repeats_are_put_down_like_the_search() -> None:
    study = {
        "limits": limits(trials=2, repeats=Repeats(top_k=1, seeds=(43, 44))),
        "pause_reason": PAUSED,
    }
    searched = (ended(0), ended(1))
    assert decide(snapshot(*searched, **study)) == [PauseStudy(reason=PAUSED)]
    again = live(2, repeat_of=0, seed=43)
    assert decide(snapshot(*searched, again, **study)) == [PauseAttempt(attempt_id=102, reason=PAUSED)]
    done = [ended(n, repeat_of=0, seed=n + 41) for n in (2, 3)]
    [end] = decide(snapshot(*searched, *done, **study))
    assert isinstance(end, EndStudy)


def test_a_search_that_has_its_result_closes_before_its_repeats_are_paused() -> None:
    repeats = Repeats(top_k=1, seeds=(43,))
    trials = (ended(0), live(1))
    [stop] = decide(snapshot(*trials, limits=limits(target_value=0.0, repeats=repeats), pause_reason=PAUSED))
    assert isinstance(stop, StopAttempt)


def test_what_was_told_grows_old_and_a_new_word_begins_anew() -> None:
    now = 0.0
    sent = SentVerdicts(stop_grace=10.0, pause_grace=60.0, clock=lambda: now)
    trial = live(0)
    assert sent.mark(trial) == trial
    sent.note(100, Decision.PAUSE)
    assert sent.mark(trial) == live(0, pause_requested=True)
    now = AGAIN_SECONDS
    assert sent.is_due(100)
    assert sent.mark(trial) == live(0, pause_requested=True, send_again=True)
    sent.note(100, Decision.PAUSE)
    assert not sent.is_due(100)
    now = 60.0
    assert sent.mark(trial) == live(0, pause_requested=True, send_again=True, overdue=True)
    sent.note(100, Decision.STOP)
    assert sent.mark(trial) == live(0, stop_requested=True)
    now = 70.0
    assert sent.mark(trial) == live(0, stop_requested=True, send_again=True, overdue=True)
    assert sent.mark(waiting(0)) == waiting(0)
