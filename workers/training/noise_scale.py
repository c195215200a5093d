"""The gradient noise scale of a trial: McCandlish et al. 2018, arXiv 1812.06162, appendix A.1.

The gradient that an optimizer step uses is a noisy one: over batches of B rows its squared norm is on average

    E |G_B|^2 = |G|^2 + S / B,

with G the gradient without noise and S the sum of the variances of one row's gradient. The squared norms of
a whole batch and of a part of it, b of its B rows, give unbiased estimates of both:

    |G|^2 = (B |G_B|^2 - b |G_b|^2) / (B - b)        S = (|G_b|^2 - |G_B|^2) / (1 / b - 1 / B)

Each is averaged by itself over all measured steps since the beginning of the trial, with equal weights, and
B_simple = S / |G|^2, in rows, is the noise scale: the batch size at which noise and signal are level. A batch
far below it averages too little, one far above it wastes examples. The ratio of two averages is not unbiased,
and with few steps it scatters widely.

The averages are those of squared norms, so the steps with large gradients decide: mostly early ones. The
noise scale itself grows as the loss falls. In one quickstart fine-tune of 114 steps of 16 rows it was, from
the gradients of all 600 rows, 1.7 after 3 steps, 4.0 after 38 and 30 after 112; what this reports at the end
is 3.1. A batch above it wastes examples early in training, and need not do so later.

What exactly is estimated: G_b and G_B are gradients as this trainer takes them, means over supervised tokens.
Where rows differ in length they are ratios of two sums over rows, and E |G_b|^2 follows the formula to order
1 / b^2. The part is of the first rows of the batch in the trial's own shuffled order, not of one of its
passes: passes gather rows of like length, which would not be a fair sample, and they depend on the pack.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

from search_spaces.trial_length import TrainingPlan

MEASURED_EVERY = 8
"""Optimizer steps from one measured to the next. A measured step takes one pass more where its batch would
have fitted into one."""

FIRST_MEASURED = 3
"""The first one, counted from 0: at the very beginning half of an adapter has no gradient, as B is 0."""

PART = 4
"""A batch has so many times the rows of its measured part. Smaller parts scatter less: with small signal the
variance of |G|^2 goes as 1 / (1 - b / B), that of S as (B + b) / (B - b). Larger ones make fuller passes."""


def measured_rows(plan: TrainingPlan, step: int) -> int | None:
    """Rows of the batch's part whose gradient is measured by itself in optimizer step `step`.

    Args:
        plan: The trial's.
        step: The first step is step 0.

    Returns:
        None where the step is not measured: most are not, nor is the smaller batch at an epoch's end (but
        the step after it), and no batch of one row can be.
    """
    rows = _rows(plan, step)
    whole = min(plan.batch_size, plan.examples)
    turn = step % MEASURED_EVERY - FIRST_MEASURED
    due = turn == 0 or (turn == 1 and _rows(plan, step - 1) < whole)
    return max(1, rows // PART) if due and rows == whole and rows > 1 else None


def _rows(plan: TrainingPlan, step: int) -> int:
    return plan.examples_seen(step + 1) - plan.examples_seen(step)


class NoiseScale:
    """The two averages."""

    def __init__(self) -> None:
        self._signal = 0.0
        self._noise = 0.0
        self._steps = 0

    def update(self, *, part: int, part_norm: float, whole: int, whole_norm: float) -> None:
        """Takes one measured step in.

        Args:
            part: Rows of the part.
            part_norm: Norm of the mean gradient over the part, before clipping.
            whole: Rows of the whole batch, more than `part`.
            whole_norm: Norm of the mean gradient over the whole batch.
        """
        small, big = part_norm**2, whole_norm**2
        self._signal += (whole * big - part * small) / (whole - part)
        self._noise += (small - big) / (1 / part - 1 / whole)
        self._steps += 1

    @property
    def value(self) -> float | None:
        """B_simple, in rows; None where nothing was measured or, by chance, an average is not positive.

        An average |G|^2 of 0 or less says that there was no signal to be seen in the noise.
        """
        if self._steps == 0 or self._signal <= 0 or self._noise <= 0:
            return None
        value = self._noise / self._signal
        return value if math.isfinite(value) else None

    def state(self) -> list[float]:
        """What `restore` goes back to."""
        return [self._signal, self._noise, float(self._steps)]

    def restore(self, state: Sequence[float]) -> None:
        """Goes back to a `state`."""
        self._signal, self._noise = state[0], state[1]
        self._steps = int(state[2])
