"""Rungs are nominal multiples of training examples, and the end."""

from __future__ import annotations

import itertools

from hypothesis import given
from hypothesis import strategies as st

from search_spaces.trial_length import TrainingPlan
from workers.training.rungs import rung_reached


@given(
    examples=st.integers(1, 80),
    batch_size=st.integers(1, 90),
    epochs=st.integers(1, 3),
    every=st.integers(1, 100),
)
def test_a_trial_reports_rising_rungs_and_its_end_exactly_once(
    examples: int, batch_size: int, epochs: int, every: int
) -> None:
    plan = TrainingPlan(examples, batch_size, float(epochs))
    seen = [plan.examples_seen(step) for step in range(plan.total_steps + 1)]
    reached = [
        (rung, after)
        for before, after in itertools.pairwise(seen)
        if (rung := rung_reached(before, after, every=every, total=plan.total_examples)) is not None
    ]
    rungs = [rung for rung, _ in reached]
    assert rungs == sorted(set(rungs))
    assert rungs[-1] == plan.total_examples
    assert all(rung % every == 0 and rung <= after < rung + every for rung, after in reached[:-1])
    # Every multiple that lies in a step of its own is reached.
    if batch_size <= every:
        assert rungs[:-1] == list(range(every, seen[-2] + 1, every))


def test_trials_with_different_batch_sizes_meet_at_the_same_rungs() -> None:
    reports = {}
    for batch_size in (1, 3, 8, 16):
        plan = TrainingPlan(100, batch_size, 1.0)
        seen = [plan.examples_seen(step) for step in range(plan.total_steps + 1)]
        steps = itertools.pairwise(seen)
        found = [rung_reached(a, b, every=25, total=100) for a, b in steps]
        reports[batch_size] = tuple(rung for rung in found if rung is not None)
    assert set(reports.values()) == {(25, 50, 75, 100)}


def test_a_step_that_crosses_several_rungs_reaches_the_highest() -> None:
    assert rung_reached(0, 32, every=10, total=100) == 30


def test_a_rung_that_coincides_with_the_end_is_the_end() -> None:
    assert rung_reached(90, 100, every=10, total=100) == 100


def test_without_rungs_only_the_end_counts() -> None:
    assert [rung_reached(0, 50, every=None, total=100), rung_reached(50, 100, every=None, total=100)] == [
        None,
        100,
    ]
