"""When a sweep evaluates its schedule's champion, and when its own winner."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from service.coordinator.policy.decide import (
    Ask,
    AskEvaluation,
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
from service.coordinator.policy.snapshot import TrialSnapshot
from service.db.kinds import Contestant
from service.states import AttemptState, StudyState
from tests.support.service.snapshots import ended, limits, live, snapshot, waiting

BOTH = {"evaluations_due": frozenset(Contestant), "limits": limits(trials=2, max_parallel_trials=3)}
CHAMPION = AskEvaluation(role=Contestant.CHAMPION)
CHALLENGER = AskEvaluation(role=Contestant.CHALLENGER)


def evaluation(number: int, role: Contestant, how: Callable[..., TrialSnapshot] = ended, **more: Any) -> Any:
    return how(number, evaluates=role, **more)


CROWN = evaluation(0, Contestant.CHAMPION)
SEARCHED = (ended(1), ended(2))


def test_the_champion_comes_first_and_the_search_does_not_wait_for_it() -> None:
    assert decide(snapshot(free_slots=3, **BOTH)) == [CHAMPION, Ask(), Ask()]
    assert decide(snapshot(free_slots=1, **BOTH)) == [CHAMPION]
    under_way = evaluation(0, Contestant.CHAMPION, live)
    assert decide(snapshot(under_way, free_slots=3, **BOTH)) == [Ask(), Ask()]


def test_the_winner_comes_last_and_then_the_study_ends() -> None:
    assert decide(snapshot(CROWN, *SEARCHED, **BOTH)) == [CHALLENGER]
    last = evaluation(3, Contestant.CHALLENGER, live)
    assert decide(snapshot(CROWN, *SEARCHED, last, **BOTH)) == []
    end = EndStudy(state=StudyState.COMPLETED, reason="all 2 trials ended")
    assert decide(snapshot(CROWN, *SEARCHED, evaluation(3, Contestant.CHALLENGER), **BOTH)) == [end]


def test_repeats_come_before_the_winners_evaluation() -> None:
    bounds = limits(trials=2, max_parallel_trials=3, repeats=Repeats(top_k=1, seeds=(43,)))
    given = {**BOTH, "limits": bounds}
    assert decide(snapshot(CROWN, *SEARCHED, **given)) == [AskRepeat(of=1, seed=43)]
    repeated = ended(3, repeat_of=1, seed=43)
    assert decide(snapshot(CROWN, *SEARCHED, repeated, **given)) == [CHALLENGER]


@pytest.mark.parametrize("outcome", [AttemptState.FAILED, AttemptState.OUT_OF_MEMORY])
def test_an_evaluation_that_fails_is_neither_repeated_nor_a_reason_for_anything(
    outcome: AttemptState,
) -> None:
    crown = evaluation(0, Contestant.CHAMPION, outcome=outcome, fatal="its data is gone")
    bounds = limits(trials=2, max_parallel_trials=3, max_failed_trials=0)
    given = {**BOTH, "limits": bounds}
    assert decide(snapshot(crown, *SEARCHED, **given)) == [CHALLENGER]
    last = evaluation(3, Contestant.CHALLENGER, outcome=outcome)
    [end] = decide(snapshot(crown, *SEARCHED, last, **given))
    assert isinstance(end, EndStudy)
    assert end.state is StudyState.COMPLETED


def test_a_budget_that_is_spent_ends_the_search_and_not_the_evaluation() -> None:
    given = {**BOTH, "limits": limits(trials=9, timeout_seconds=10.0), "running_seconds": 11.0}
    stopped, closed = decide(snapshot(CROWN, ended(1), live(2), waiting(3), **given))
    assert (type(stopped), type(closed)) == (StopAttempt, EndTrial)
    cut = (ended(2, AttemptState.CANCELLED), ended(3, AttemptState.CANCELLED))
    assert decide(snapshot(CROWN, ended(1), *cut, **given)) == [CHALLENGER]
    assert trials_to_come(snapshot(CROWN, ended(1), *cut, **given)) == 1
    [end] = decide(snapshot(CROWN, ended(1), *cut, evaluation(4, Contestant.CHALLENGER), **given))
    assert end == EndStudy(state=StudyState.COMPLETED, reason="budget.timeout of 10 s reached")


def test_a_search_without_a_result_has_nobody_to_put_up() -> None:
    failed = (ended(1, AttemptState.FAILED), ended(2, AttemptState.FAILED))
    [end] = decide(snapshot(CROWN, *failed, **BOTH))
    assert isinstance(end, EndStudy)
    assert end.state is StudyState.FAILED
    infeasible = (ended(1, feasible=False), ended(2, feasible=False))
    [end] = decide(snapshot(CROWN, *infeasible, **BOTH))
    assert isinstance(end, EndStudy)


def test_a_cancel_ends_evaluations_as_it_ends_the_search() -> None:
    given = {**BOTH, "cancel_requested": True}
    first, second = decide(snapshot(evaluation(0, Contestant.CHAMPION, live), live(1), **given))
    assert (type(first), type(second)) == (StopAttempt, StopAttempt)


def test_without_a_worker_to_be_had_the_study_ends_without_the_evaluation() -> None:
    given = {**BOTH, "unplaceable_reason": "no node has a GPU"}
    [end] = decide(snapshot(CROWN, *SEARCHED, **given))
    assert end == EndStudy(state=StudyState.COMPLETED, reason="all 2 trials ended")


def test_a_pause_puts_an_evaluation_down_and_it_goes_on_afterwards() -> None:
    last = evaluation(3, Contestant.CHALLENGER, live)
    given = {**BOTH, "pause_reason": "paused on request"}
    assert decide(snapshot(CROWN, *SEARCHED, last, **given)) == [
        PauseAttempt(attempt_id=103, reason="paused on request")
    ]
    put_down = evaluation(3, Contestant.CHALLENGER, waiting)
    assert decide(snapshot(CROWN, *SEARCHED, put_down, **given)) == [PauseStudy(reason="paused on request")]
    assert decide(snapshot(CROWN, *SEARCHED, put_down, **BOTH)) == [Dispatch(trial_number=3)]
    overdue = evaluation(3, Contestant.CHALLENGER, live, overdue=True)
    [kill] = decide(snapshot(CROWN, *SEARCHED, overdue, **given))
    assert isinstance(kill, KillWorker)


def test_workers_stay_for_evaluations_that_are_to_come() -> None:
    assert trials_to_come(snapshot(**BOTH)) == 3  # the champion's; nobody knows yet whether there is a winner
    assert trials_to_come(snapshot(CROWN, *SEARCHED, **BOTH)) == 1
    assert trials_to_come(snapshot(CROWN, ended(1), live(2), **BOTH)) == 1
    assert trials_to_come(snapshot(CROWN, *SEARCHED, evaluation(3, Contestant.CHALLENGER), **BOTH)) == 0
