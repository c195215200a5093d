"""A trial's data order and batches: every example once an epoch, whatever the batch size."""

from __future__ import annotations

import math
from dataclasses import fields

import torch
from hypothesis import given
from hypothesis import strategies as st

from search_spaces.trial_length import TrainingPlan
from tests.support.workers.trials import random_examples
from workers.data.batches import DataOrder, collate, epoch_order
from workers.device.devices import to_device
from workers.device.generators import derive_seed

counts = st.integers(1, 60)


@given(examples=counts, batch_size=st.integers(1, 70), epochs=st.floats(0.01, 4))
def test_the_plan_counts_exactly_the_examples_of_its_batches(
    examples: int, batch_size: int, epochs: float
) -> None:
    plan = TrainingPlan(examples, batch_size, epochs)
    order = DataOrder(plan, seed=0)
    seen = [0]
    for step in range(plan.total_steps):
        seen.append(seen[-1] + len(order.batch(step)))
    assert seen == [plan.examples_seen(step) for step in range(plan.total_steps + 1)]
    assert plan.total_examples == seen[-1]


@given(examples=counts, batch_size=st.integers(1, 70), epochs=st.integers(1, 3))
def test_whole_epochs_see_every_example_equally_often(examples: int, batch_size: int, epochs: int) -> None:
    plan = TrainingPlan(examples, batch_size, float(epochs))
    order = DataOrder(plan, seed=3)
    seen = [index for step in range(plan.total_steps) for index in order.batch(step)]
    assert sorted(seen) == sorted(list(range(examples)) * epochs)
    assert plan.total_steps == epochs * math.ceil(examples / batch_size)


def test_a_fraction_of_an_epoch_is_rounded_up_to_a_whole_step() -> None:
    plan = TrainingPlan(examples=10, batch_size=4, epochs=1.5)
    assert (plan.steps_per_epoch, plan.total_steps, plan.total_examples) == (3, 5, 18)


@given(seed=st.integers(0, 2**32 - 1), batch_size=st.integers(1, 12))
def test_the_order_does_not_depend_on_the_batch_size(seed: int, batch_size: int) -> None:
    plan = TrainingPlan(12, batch_size, 1.0)
    order = DataOrder(plan, seed)
    assert [i for step in range(plan.total_steps) for i in order.batch(step)] == epoch_order(12, seed, 0)


def test_a_step_can_be_asked_for_in_any_order() -> None:
    plan = TrainingPlan(10, 3, 3.0)
    forward = [DataOrder(plan, 1).batch(step) for step in range(plan.total_steps)]
    order = DataOrder(plan, 1)
    backward = [order.batch(step) for step in reversed(range(plan.total_steps))]
    assert forward == backward[::-1]


def test_orders_differ_between_seeds_and_between_epochs() -> None:
    orders = {tuple(epoch_order(50, seed, epoch)) for seed in (0, 1, 2**31) for epoch in (0, 1)}
    assert len(orders) == 6


def test_derived_seeds_fit_the_32_bits_that_torch_keeps() -> None:
    seeds = {derive_seed(seed, "data order", epoch) for seed in range(100) for epoch in range(10)}
    assert len(seeds) == 1000
    assert max(seeds) < 2**32


@given(count=counts, seed=st.integers(0, 5))
def test_collating_pads_on_the_right_and_keeps_every_target_at_its_place(count: int, seed: int) -> None:
    examples = random_examples(count, seed=seed)
    batch = collate(examples, pad_token_id=7)
    length = max(len(e.input_ids) for e in examples)
    assert batch.input_ids.shape == batch.attention_mask.shape == (count, length)
    assert batch.attention_mask.sum(dim=1).tolist() == [len(e.input_ids) for e in examples]
    targets = []
    for row, example in enumerate(examples):
        tokens = len(example.input_ids)
        assert batch.input_ids[row, :tokens].tolist() == example.input_ids.tolist()
        assert set(batch.input_ids[row, tokens:].tolist()) <= {7}
        targets += [
            (row * length + t - 1, label) for t, label in enumerate(example.labels.tolist()) if label != -100
        ]
    assert list(zip(batch.positions.tolist(), batch.targets.tolist(), strict=True)) == targets
    assert batch.supervised_tokens == len(targets)


def test_moving_to_the_cpu_copies_nothing() -> None:
    batch = collate(random_examples(2), 0)
    moved = batch.to(torch.device("cpu"))
    assert all(getattr(moved, field.name) is getattr(batch, field.name) for field in fields(batch))
    assert to_device(batch.targets, torch.device("cpu")) is batch.targets
