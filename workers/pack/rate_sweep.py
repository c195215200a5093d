"""A learning-rate range test (Smith 2017, arXiv 1506.01186): the rate rises with each step until all is lost.

The loss that each rate left behind is all that comes of it: nothing is evaluated, and no adapter is kept. It
takes part in shared passes like any trial.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import torch

from search_spaces.recipe import Recipe
from workers.contract import OutcomeStatus, Progress, RateSweep, TrialOutcome
from workers.data.examples import AnyExample
from workers.lora.adapters import Adapter
from workers.pack.attempt import Attempt
from workers.plugins import OwnLoss
from workers.training.objectives.base import Evaluation
from workers.training.trial_run import StepResult, TrialEndedError, TrialRun

SMOOTHING = 0.9
"""What the smoothed loss keeps of itself at each step: it is about the mean of the last ten, 0.7 of a decade
where a hundred steps go over seven. (fast.ai's finder keeps 0.98, which lags by half of such a sweep.)"""

DIVERGED_ABOVE = 4.0
"""Multiple of its lowest that ends the sweep when the smoothed loss exceeds it, as in fast.ai's finder."""

CHECKPOINT_STEPS = 10
"""Steps between two checkpoints, since there are no rungs to write them at."""


def sweep_rate(sweep: RateSweep, step: int) -> float:
    """The learning rate of optimizer step `step` (the first is step 0): equal factors from first to last."""
    if sweep.steps == 1:
        return sweep.first
    return float(sweep.first * (sweep.last / sweep.first) ** (step / (sweep.steps - 1)))


class RateSweepRun(TrialRun):
    """One trial on one base whose rate rises exponentially, whatever schedule the recipe has.

    All else is the recipe's: batch size, optimizer, weight decay, clipping, seed and data order, of which as
    many epochs pass as the steps need.

    The smoothed loss is a token-weighted exponential moving average, S / N, with S and N the sums of losses
    and of supervised tokens, kept by `SMOOTHING` at each step. It begins at the untrained adapter's own loss
    (as `DivergenceWatch` does), so it needs no correction for a start from 0, and one odd batch of 1 is
    neither the lowest loss nor the end.

    Attributes:
        curve: Learning rate and train loss, before the step, of each step so far. Every number is finite.
        lowest: Least smoothed loss, in nats per supervised token; infinite without a step.
    """

    def __init__(
        self,
        sweep: RateSweep,
        recipe: Recipe,
        adapter: Adapter,
        examples: Sequence[AnyExample],
        *,
        start: Evaluation,
        micro_batch_size: int | None = None,
        loss_scaled: bool = False,
        class_weights: torch.Tensor | None = None,
        own_loss: OwnLoss | None = None,
    ) -> None:
        """
        Args:
            sweep: The rates.
            recipe: All but the rates.
            adapter: Untrained, on its base.
            examples: One epoch of training examples, each with at least one supervised token.
            start: Loss on `first_examples` before any step.
            micro_batch_size: Most rows it has in one pass; None: any number.
            loss_scaled: Scale the loss, as float16 compute needs it.
            class_weights: As in `TrialRun`.
            own_loss: Likewise.
        """
        self.sweep = sweep
        self.curve: list[tuple[float, float]] = []
        self.lowest = math.inf
        self._smoothed = (start.loss_sum, float(start.tokens))
        super().__init__(
            recipe,
            adapter,
            examples,
            start=start,
            divergence_factor=DIVERGED_ABOVE,
            micro_batch_size=micro_batch_size,
            loss_scaled=loss_scaled,
            steps=sweep.steps,
            class_weights=class_weights,
            own_loss=own_loss,
        )

    @property
    def learning_rate(self) -> float:
        """The rate of the next step."""
        return sweep_rate(self.sweep, self.steps)

    def state(self) -> tuple[dict[str, torch.Tensor], dict[str, Any]]:
        """Everything to go on from, bit for bit."""
        tensors, values = super().state()
        return tensors, values | {
            "curve": [list(point) for point in self.curve],
            "smoothed": list(self._smoothed),
            "lowest": self.lowest if self.curve else None,  # JSON has no infinity
        }

    def restore(self, tensors: Mapping[str, torch.Tensor], values: Mapping[str, Any]) -> None:
        """Goes back to a `state` of the same sweep on the same base and data."""
        super().restore(tensors, values)
        self.curve = [(rate, loss) for rate, loss in values["curve"]]
        loss_sum, tokens = values["smoothed"]
        self._smoothed = (loss_sum, tokens)
        self.lowest = values["lowest"] if self.curve else math.inf

    def _measured_rows(self) -> None:
        """None: what a gradient is at rates that ruin the adapter says nothing of training."""

    def _judge(self, loss_sum: float, tokens: int, rows: int) -> None:
        self.curve.append((self.learning_rate, loss_sum / tokens))
        self._smoothed = (
            self._smoothed[0] * SMOOTHING + loss_sum,
            self._smoothed[1] * SMOOTHING + tokens,
        )
        smoothed = self._smoothed[0] / self._smoothed[1]
        self.lowest = min(self.lowest, smoothed)
        if smoothed > DIVERGED_ABOVE * self.lowest:
            raise self.diverged(
                f"the smoothed train loss is {smoothed:.4g}, above {DIVERGED_ABOVE:g} times its lowest,"
                f" {self.lowest:.4g}."
            )

    def diverged(self, what: str) -> TrialEndedError:
        """To diverge is what a sweep is for; only one that never stepped has failed."""
        where = f"in step {self.steps + 1} of {self.sweep.steps}, at learning rate {self.learning_rate:.3g}"
        if self.curve:
            return TrialEndedError(OutcomeStatus.COMPLETED, f"The range test ended {where}: {what}")
        return TrialEndedError(
            OutcomeStatus.FAILED, f"The range test failed before its first step, {where}: {what}"
        )


class SweepAttempt(Attempt):
    """An attempt at a range test: no rungs, no adapters, and a curve in its outcome."""

    run: RateSweepRun

    @property
    def value(self) -> float:
        """The lowest smoothed loss."""
        return self.run.lowest

    def took(self, step: StepResult) -> Progress:
        """Takes note of an optimizer step, and writes a checkpoint now and then.

        Raises:
            TrialEndedError: It was the last one; the trial is completed.
        """
        run = self.run
        if run.finished:
            sweep = run.sweep
            raise TrialEndedError(
                OutcomeStatus.COMPLETED,
                f"Swept the learning rate from {sweep.first:.3g} to {sweep.last:.3g} in {sweep.steps} steps;"
                f" lowest train loss, smoothed step by step, {run.lowest:.6g}.",
            )
        if run.steps % CHECKPOINT_STEPS == 0:
            self.checkpoint_if_possible()
        return self.progress(step)

    def outcome(self, status: OutcomeStatus, reason: str, device: torch.device) -> TrialOutcome:
        """The outcome as things stand, with the curve so far."""
        return replace(super().outcome(status, reason, device), rate_curve=tuple(self.run.curve))
