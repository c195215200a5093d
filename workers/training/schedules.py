"""Learning-rate multipliers as pure functions of the step.

Equal to `transformers.get_scheduler` at every step (a test holds them together), but with no state of
their own: a trial that is resumed at step k needs k and nothing else.
"""

from __future__ import annotations

import math

from search_spaces.recipe import Scheduler
from search_spaces.trial_length import warmup_steps as warmup_steps  # for those who import it from here


def learning_rate_multiplier(schedule: Scheduler, step: int, *, warmup: int, total: int) -> float:
    """What the peak learning rate is multiplied by in optimizer step `step`.

    Args:
        schedule: The shape after warm-up: `linear` falls to 0 at `total`, `cosine` likewise along half a
            cosine, `constant` stays at 1.
        step: Optimizer steps already taken; the first step has number 0 (and, with warm-up, rate 0).
        warmup: Optimizer steps of linear warm-up from 0.
        total: Optimizer steps of the whole trial, warm-up included.

    Returns:
        A number in [0, 1].
    """
    if step < warmup:
        return step / warmup
    if schedule == "constant":
        return 1.0
    if schedule == "linear":
        return max(0.0, (total - step) / max(1, total - warmup))
    progress = (step - warmup) / max(1, total - warmup)
    return max(0.0, 0.5 * (1.0 + math.cos(math.pi * progress)))
