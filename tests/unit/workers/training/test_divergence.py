"""Divergence: a lasting rise of the smoothed loss, not a noisy batch."""

from __future__ import annotations

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from workers.training.divergence import WINDOW_EXAMPLES, DivergenceWatch


def watch(factor: float = 4.0) -> DivergenceWatch:
    return DivergenceWatch(factor, start_loss_sum=2.0 * 160, start_tokens=160)


def test_one_odd_example_at_batch_size_one_is_not_divergence() -> None:
    assert watch().update(loss_sum=10 * 20.0, tokens=10, examples=1) is False


def test_a_loss_that_stays_high_is_divergence_within_a_few_windows() -> None:
    follow = watch()
    steps = next(n for n in range(1, 1000) if follow.update(loss_sum=10 * 12.0, tokens=10, examples=1))
    assert 1 < steps <= 2 * WINDOW_EXAMPLES


def test_a_large_batch_is_judged_by_itself() -> None:
    assert watch().update(loss_sum=640 * 12.0, tokens=640, examples=64) is True


@given(losses=st.lists(st.floats(0, 7.9), max_size=50), examples=st.integers(1, 64))
def test_losses_below_the_limit_never_diverge(losses: list[float], examples: int) -> None:
    follow = watch()
    assert not any(
        follow.update(loss_sum=loss * 10 * examples, tokens=10 * examples, examples=examples)
        for loss in losses
    )


@given(batch=st.integers(1, 16))
def test_smoothing_counts_examples_so_the_batch_size_hardly_matters(batch: int) -> None:
    follow = watch()
    for _ in range(128 // batch):
        follow.update(loss_sum=6.0 * 10 * batch, tokens=10 * batch, examples=batch)
    assert follow.smoothed == pytest.approx(6.0, abs=0.05)


def test_weights_are_tokens_not_batches() -> None:
    follow = DivergenceWatch(4.0, start_loss_sum=0.0, start_tokens=1)
    follow.update(loss_sum=100.0, tokens=100, examples=WINDOW_EXAMPLES * 50)
    follow.update(loss_sum=9.0, tokens=1, examples=0)
    assert follow.smoothed == pytest.approx(109 / 101)


def test_restored_from_its_state_it_goes_on_bit_for_bit() -> None:
    """The state is plain numbers, which a checkpoint can hold as text."""
    first, other = watch(), DivergenceWatch(9.0, start_loss_sum=1.0, start_tokens=1)
    for loss in (30.1, 28.7):
        first.update(loss_sum=loss, tokens=9, examples=2)
    other.restore(json.loads(json.dumps(first.state())))
    assert (other.start, other.limit, other.smoothed) == (first.start, first.limit, first.smoothed)
    ends = [follow.update(loss_sum=640 * 9.0, tokens=640, examples=16) for follow in (first, other)]
    assert ends == [True, True]
    assert other.smoothed == first.smoothed
