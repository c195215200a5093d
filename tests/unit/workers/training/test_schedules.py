"""Learning-rate multipliers equal those of transformers at every step."""

from __future__ import annotations

import math
from typing import get_args

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from transformers import get_scheduler
from transformers.training_args import TrainingArguments

from search_spaces.recipe import Scheduler
from search_spaces.trial_length import warmup_steps
from workers.training.schedules import learning_rate_multiplier

SCHEDULES = get_args(Scheduler)


@pytest.mark.parametrize("schedule", SCHEDULES)
@pytest.mark.parametrize(("total", "warmup"), [(1, 0), (1, 1), (7, 0), (10, 3), (10, 10), (33, 1)])
def test_every_step_equals_get_scheduler(schedule: Scheduler, total: int, warmup: int) -> None:
    name = "constant_with_warmup" if schedule == "constant" else schedule
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=1.0)
    reference = get_scheduler(name, optimizer, num_warmup_steps=warmup, num_training_steps=total)
    expected, actual = [], []
    for step in range(total + 1):
        expected.append(reference.get_last_lr()[0])
        actual.append(learning_rate_multiplier(schedule, step, warmup=warmup, total=total))
        optimizer.step()
        reference.step()
    assert actual == expected


@given(ratio=st.floats(0, 0.999), total=st.integers(1, 10_000))
def test_warmup_steps_are_rounded_up_as_in_training_arguments(ratio: float, total: int) -> None:
    class Arguments:
        warmup_steps = ratio

    assert warmup_steps(ratio, total) == TrainingArguments.get_warmup_steps(Arguments(), total)


def test_a_warmup_ratio_of_one_warms_up_all_the_way() -> None:
    assert warmup_steps(1.0, 50) == 50


@given(
    schedule=st.sampled_from(SCHEDULES),
    total=st.integers(1, 1000),
    share=st.floats(0, 1),
    position=st.floats(0, 1),
)
def test_a_multiplier_is_never_below_zero_or_above_one(
    schedule: Scheduler, total: int, share: float, position: float
) -> None:
    multiplier = learning_rate_multiplier(
        schedule, math.floor(position * total), warmup=math.floor(share * total), total=total
    )
    assert 0.0 <= multiplier <= 1.0
