"""When a search is over by itself, and with which words: `stops` as `decide` uses it."""

from __future__ import annotations

from dataclasses import replace

from service.coordinator.policy.decide import Ask, EndStudy, EndTrial, StopAttempt, decide
from service.states import AttemptState, StudyState
from tests.support.service.snapshots import ended, limits, live, snapshot, waiting


def test_the_target_ends_the_search_and_stops_what_runs() -> None:
    trials = [ended(0, value=0.5), ended(1, value=0.0183), live(2), waiting(3)]
    at_target = limits(trials=9, target_value=0.02)
    actions = decide(snapshot(*trials, limits=at_target))
    assert [type(a) for a in actions] == [StopAttempt, EndTrial]
    cancelled = [ended(n, AttemptState.CANCELLED) for n in (2, 3)]
    assert decide(snapshot(*trials[:2], *cancelled, limits=at_target)) == [
        EndStudy(
            state=StudyState.COMPLETED,
            reason="budget.target_value of 0.02 reached: trial 1 has eval_loss 0.0183",
        )
    ]


def test_a_target_is_met_by_what_is_as_good_in_the_direction_of_the_metric() -> None:
    accuracy = limits(trials=9, target_value=0.9, metric="accuracy", minimize=False)
    trials = [ended(0, value=0.89), ended(1, value=0.9)]
    [end] = decide(snapshot(*trials, limits=accuracy))
    assert isinstance(end, EndStudy)
    assert end.reason == "budget.target_value of 0.9 reached: trial 1 has accuracy 0.9"
    assert not any(isinstance(a, EndStudy) for a in decide(snapshot(trials[0], limits=accuracy)))


def test_an_infeasible_value_meets_no_target_and_is_no_improvement() -> None:
    trials = [ended(0, value=5.0), ended(1, value=1.0, feasible=False), ended(2, value=1.0, feasible=False)]
    [end] = decide(snapshot(*trials, limits=limits(trials=9, target_value=2.0, no_improvement_trials=2)))
    assert isinstance(end, EndStudy)
    assert end.reason == (
        "budget.no_improvement_trials of 2 reached: trial 0 has the best eval_loss, 5, "
        "and 2 trials in a row ended after it"
    )


def test_no_improvement_counts_every_end_in_the_order_of_the_ends() -> None:
    trials = [
        ended(0, AttemptState.FAILED, end_order=0),  # before the first value there is nothing to improve
        ended(1, value=3.0, end_order=1),
        ended(2, AttemptState.PRUNED, end_order=4),
        ended(3, value=3.0, end_order=2),  # as good is not better
        ended(4, AttemptState.DIVERGED, end_order=3),
    ]
    wanted = limits(trials=9, no_improvement_trials=3)
    assert [type(a) for a in decide(snapshot(*trials, limits=wanted))] == [EndStudy]
    better_in_time = replace(trials[4], outcome=AttemptState.COMPLETED, value=2.9)
    assert [type(a) for a in decide(snapshot(*trials[:4], better_in_time, limits=wanted))] == [Ask, Ask]


def test_a_stop_that_was_reached_is_not_taken_back_by_what_ends_after_it() -> None:
    """A trial that outran its stop may be the best; the study ends all the same, for the same reason."""
    trials = [ended(0, value=3.0), ended(1, value=4.0), ended(2, value=1.0), ended(3, AttemptState.CANCELLED)]
    [end] = decide(snapshot(*trials, limits=limits(trials=9, no_improvement_trials=1)))
    assert isinstance(end, EndStudy)
    assert "trial 0 has the best eval_loss, 3" in end.reason


def test_a_space_that_is_exhausted_early_ends_the_study_in_order() -> None:
    exhausted = {"limits": limits(trials=9), "exhausted": True}
    assert decide(snapshot(ended(0), live(1), **exhausted)) == []
    assert decide(snapshot(ended(0), ended(1), **exhausted)) == [
        EndStudy(state=StudyState.COMPLETED, reason="all 2 trials ended: the search space is exhausted")
    ]


def test_a_grid_that_was_gone_through_says_so() -> None:
    [end] = decide(snapshot(ended(0), limits=limits(trials=1, exhausts="grid")))
    assert end == EndStudy(state=StudyState.COMPLETED, reason="1 trial ended: the grid is exhausted")


def test_what_the_search_has_reached_comes_before_the_clock() -> None:
    both = {"limits": limits(trials=2, timeout_seconds=60.0), "running_seconds": 61.0}
    [end] = decide(snapshot(ended(0), ended(1), **both))
    assert end == EndStudy(state=StudyState.COMPLETED, reason="all 2 trials ended")


def test_trials_that_the_clock_stopped_do_not_make_a_search_whole() -> None:
    both = {"limits": limits(trials=2, timeout_seconds=60.0), "running_seconds": 61.0}
    [end] = decide(snapshot(ended(0), ended(1, AttemptState.CANCELLED), **both))
    assert end == EndStudy(state=StudyState.COMPLETED, reason="budget.timeout of 60 s reached")


def test_a_search_whose_results_are_all_infeasible_says_so() -> None:
    [end] = decide(snapshot(ended(0, feasible=False), limits=limits(trials=1)))
    assert isinstance(end, EndStudy)
    assert end.reason == "1 trial ended, and no completed trial meets the constraints"
