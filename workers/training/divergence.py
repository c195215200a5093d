"""Telling a trial that diverges from one that is only noisy. Pure."""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import accumulate

from search_spaces.recipe import Recipe
from search_spaces.trial_length import TrainingPlan
from workers.data.batches import DataOrder
from workers.data.examples import AnyExample

WINDOW_EXAMPLES = 16
"""Examples that the start is measured on, if they are short, and over which the train loss is smoothed.

Counted in examples, not steps: with batch size 1 a step's loss is one example's, and easily several times
the mean; over 16 examples (QLoRA's own batch size, Dettmers et al. 2023, table 9) that noise is averaged
away, and a trial with batch size 16 or more is still judged by its latest steps.
"""

START_TOKENS = 1024
"""Supervised tokens after which the start needs no further examples, so that long ones do not keep a trial
from its first step."""

FEWEST_START_EXAMPLES = 4
"""Examples that the start is measured on however long they are: the tokens of one are much alike."""


def first_examples(recipe: Recipe, examples: Sequence[AnyExample]) -> list[AnyExample]:
    """What the start of a trial is measured on: the first examples of its own order."""
    window = TrainingPlan(len(examples), WINDOW_EXAMPLES, epochs=1)
    first = [examples[index] for index in DataOrder(window, recipe.seed).batch(0)]
    before = accumulate((example.supervised_tokens for example in first), initial=0)
    return [
        example
        for place, (example, tokens) in enumerate(zip(first, before, strict=False))
        if place < FEWEST_START_EXAMPLES or tokens < START_TOKENS
    ]


class DivergenceWatch:
    """Follows the smoothed train loss and compares it with where the trial started.

    The start is the token-weighted mean loss of the *untrained* adapter (LoRA's B is 0, so this is the
    base's own loss) over the first `WINDOW_EXAMPLES` training examples, fewer where they are long, measured
    before the first step: a start taken from the first steps themselves would already be inflated in a trial
    that blows up at once. The smoothed loss is a token-weighted mean whose weights fall by 1/e every
    `WINDOW_EXAMPLES` examples, and it begins at the start, so one odd batch cannot end a trial.
    """

    def __init__(self, factor: float, *, start_loss_sum: float, start_tokens: int) -> None:
        """
        Args:
            factor: Multiple of the start above which the trial has diverged (more than 1).
            start_loss_sum: Loss at the start, summed over its supervised tokens, in nats.
            start_tokens: Those supervised tokens (at least 1).
        """
        self.start = start_loss_sum / start_tokens
        self.limit = factor * self.start
        self._loss_sum = start_loss_sum
        self._tokens = float(start_tokens)

    @property
    def smoothed(self) -> float:
        """The smoothed train loss, in nats per supervised token."""
        return self._loss_sum / self._tokens

    def update(self, *, loss_sum: float, tokens: int, examples: int) -> bool:
        """Takes one effective batch in.

        Args:
            loss_sum: The batch's loss summed over its supervised tokens, in nats.
            tokens: Its supervised tokens.
            examples: Its examples.

        Returns:
            Whether the trial has diverged.
        """
        decay = math.exp(-examples / WINDOW_EXAMPLES)
        self._loss_sum = self._loss_sum * decay + loss_sum
        self._tokens = self._tokens * decay + tokens
        return self.smoothed > self.limit

    def state(self) -> list[float]:
        """What `restore` goes back to."""
        return [self.start, self.limit, self._loss_sum, self._tokens]

    def restore(self, state: Sequence[float]) -> None:
        """Goes back to a `state`."""
        self.start, self.limit, self._loss_sum, self._tokens = state
