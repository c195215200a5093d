"""Which recipes are run again, when, and what a study with repeats ends with."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

from service.coordinator.policy.decide import (
    AskRepeat,
    Dispatch,
    EndStudy,
    EndTrial,
    StopAttempt,
    decide,
    trials_to_come,
)
from service.coordinator.policy.limits import Repeats
from service.coordinator.policy.snapshot import TrialSnapshot
from service.states import AttemptState, StudyState
from tests.support.service.snapshots import ended, limits, live, snapshot, waiting

TWICE = {"limits": limits(trials=3, max_parallel_trials=3, repeats=Repeats(top_k=2, seeds=(43, 44)))}
SEARCHED = (ended(0, value=3.0), ended(1, value=1.0), ended(2, value=2.0))


def again(number: int, of: int, seed: int, how: Callable[..., TrialSnapshot] = ended, **more: Any) -> Any:
    return how(number, repeat_of=of, seed=seed, **more)


def test_the_best_are_run_again_seed_by_seed() -> None:
    assert decide(snapshot(*SEARCHED, free_slots=9, **TWICE)) == [
        AskRepeat(of=1, seed=43),
        AskRepeat(of=2, seed=43),
        AskRepeat(of=1, seed=44),
    ]


def test_repeats_begin_when_no_trial_of_the_search_is_open() -> None:
    at_target = limits(trials=9, target_value=1.0, repeats=Repeats(top_k=2, seeds=(43, 44)))
    actions = decide(snapshot(*SEARCHED, live(3, stop_requested=True), limits=at_target))
    assert actions == []
    assert trials_to_come(snapshot(*SEARCHED, live(3), limits=at_target)) == 0
    stopped = ended(3, AttemptState.CANCELLED)
    assert decide(snapshot(*SEARCHED, stopped, free_slots=1, limits=at_target)) == [AskRepeat(of=1, seed=43)]
    assert trials_to_come(snapshot(*SEARCHED, stopped, limits=at_target)) == 4


def test_only_repeats_that_are_missing_are_made() -> None:
    present = again(3, 1, 43), again(4, 2, 44, live), again(5, 2, 43, waiting, lost=1)
    actions = decide(snapshot(*SEARCHED, *present, free_slots=9, **TWICE))
    assert actions == [Dispatch(trial_number=5), AskRepeat(of=1, seed=44)]


def test_the_end_tells_of_the_repeats_and_of_those_that_did_not_complete() -> None:
    done = [again(3, 1, 43), again(4, 2, 43), again(5, 1, 44), again(6, 2, 44)]
    [end] = decide(snapshot(*SEARCHED, *done, **TWICE))
    assert end == EndStudy(
        state=StudyState.COMPLETED,
        reason="all 3 trials ended; the 2 best were run again with 2 seeds each",
    )
    done[3] = again(6, 2, 44, outcome=AttemptState.FAILED)
    [end] = decide(snapshot(*SEARCHED, *done, **TWICE))
    assert isinstance(end, EndStudy)
    assert end.reason.endswith("with 2 seeds each, 3 of 4 runs completed")


def test_a_repeat_that_is_better_than_the_best_changes_neither_the_best_nor_the_stops() -> None:
    lucky = again(3, 1, 43, value=0.1)
    actions = decide(snapshot(*SEARCHED, lucky, free_slots=9, **TWICE))
    assert actions == [AskRepeat(of=2, seed=43), AskRepeat(of=1, seed=44), AskRepeat(of=2, seed=44)]


def test_failed_repeats_do_not_fail_the_study() -> None:
    wanted = replace(TWICE["limits"], max_failed_trials=0)
    failed = [again(3 + n, 1 + n % 2, 43 + n // 2, outcome=AttemptState.FAILED) for n in range(4)]
    [end] = decide(snapshot(*SEARCHED, *failed, limits=wanted))
    assert isinstance(end, EndStudy)
    assert end.state is StudyState.COMPLETED
    assert end.reason.endswith(", 0 of 4 runs completed")


def test_a_budget_ends_the_repeats_and_the_search_keeps_its_end() -> None:
    wanted = replace(TWICE["limits"], timeout_seconds=60.0)
    over_time: dict[str, Any] = {"limits": wanted, "running_seconds": 61.0}
    present = again(3, 1, 43), again(4, 2, 43, live), again(5, 1, 44, waiting)
    actions = decide(snapshot(*SEARCHED, *present, **over_time))
    assert [type(a) for a in actions] == [StopAttempt, EndTrial]
    assert trials_to_come(snapshot(*SEARCHED, *present, **over_time)) == 0
    stopped = [again(n, of, seed, outcome=AttemptState.CANCELLED) for n, of, seed in ((4, 2, 43), (5, 1, 44))]
    [end] = decide(snapshot(*SEARCHED, present[0], *stopped, **over_time))
    assert end == EndStudy(
        state=StudyState.COMPLETED,
        reason="all 3 trials ended; the 2 best were run again with 2 seeds each, 1 of 4 runs completed: "
        "budget.timeout of 60 s reached",
    )


def test_a_budget_that_ends_the_search_leaves_no_repeats() -> None:
    wanted = replace(TWICE["limits"], trials=9, max_gpu_hours=1.0)
    [end] = decide(snapshot(*SEARCHED, limits=wanted, gpu_hours=1.5))
    assert end == EndStudy(
        state=StudyState.COMPLETED, reason="budget.max_gpu_hours of 1 reached (1.50 spent)"
    )


def test_a_search_without_a_feasible_result_has_nothing_to_repeat() -> None:
    trials = [ended(n, feasible=False) for n in range(3)]
    assert [type(a) for a in decide(snapshot(*trials, **TWICE))] == [EndStudy]
