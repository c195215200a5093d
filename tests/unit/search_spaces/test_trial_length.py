"""How long a trial is, against stepping through it."""

from __future__ import annotations

import itertools

import pytest
from hypothesis import given
from hypothesis import strategies as st

from search_spaces.trial_length import TrainingPlan, count_rungs, rungs, warmup_steps
from workers.training.rungs import rung_reached

plans = st.builds(
    TrainingPlan,
    examples=st.integers(1, 50),
    batch_size=st.integers(1, 60),
    epochs=st.sampled_from([0.1, 0.5, 1.0, 1.5, 2.0, 2.7, 5.0]),
)


def stepped(plan: TrainingPlan, every: int | None) -> list[int]:
    """The rungs that a worker reports at."""
    seen = [plan.examples_seen(step) for step in range(plan.total_steps + 1)]
    found = [
        rung_reached(before, after, every=every, total=plan.total_examples)
        for before, after in itertools.pairwise(seen)
    ]
    return [rung for rung in found if rung is not None]


@given(plan=plans, every=st.none() | st.integers(1, 80))
def test_rungs_are_those_that_a_worker_reports_at(plan: TrainingPlan, every: int | None) -> None:
    assert list(rungs(plan, every)) == stepped(plan, every)


@given(plan=plans, every=st.none() | st.integers(1, 80))
def test_rungs_are_counted_without_making_them(plan: TrainingPlan, every: int | None) -> None:
    assert count_rungs(plan, every) == len(stepped(plan, every))


@given(plan=plans, examples=st.integers(0, 200))
def test_so_many_steps_see_the_examples_and_one_less_does_not(plan: TrainingPlan, examples: int) -> None:
    steps = plan.steps_to_see(examples)
    assert plan.examples_seen(steps) >= examples
    assert steps == 0 or plan.examples_seen(steps - 1) < examples


@pytest.mark.parametrize(
    ("ratio", "steps", "expected"), [(0.1, 19, 2), (0.0, 5, 0), (0.1, 1, 1), (1.0, 3, 3)]
)
def test_warm_up_is_rounded_up_to_whole_steps(ratio: float, steps: int, expected: int) -> None:
    assert warmup_steps(ratio, steps) == expected
