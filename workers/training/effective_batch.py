"""The effective batch that a trial works on: which of its rows are done, and what they came to."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from workers.data.examples import AnyExample


class EffectiveBatch:
    """The rows of one optimizer step, taken in pass by pass.

    Attributes:
        rows: All of them.
        tokens: Their supervised tokens.
        loss_sum: Over the rows that are done, in nats.
        waiting: Rows that a pass may have, by index, shortest first, so that passes of a part pad little.
            Where a part of the batch is measured by itself, the others follow when that part is done.
    """

    def __init__(
        self, indices: Sequence[int], examples: Sequence[AnyExample], *, part: int | None = None
    ) -> None:
        """
        Args:
            indices: The rows, in the trial's own order; none when the trial is finished.
            examples: What they are indices of.
            part: How many of the first are measured by themselves; None: the batch is one.
        """
        self._examples = examples
        self.rows = len(indices)
        self.tokens = _tokens(indices, examples)
        self.loss_sum = 0.0
        self.part_rows = part or 0
        self._part_tokens = _tokens(indices[: self.part_rows], examples)
        self._part_norm: float | None = None
        self.waiting = self._by_length(indices[: part or self.rows])
        self._later = self._by_length(indices[part:]) if part else []

    @property
    def partial(self) -> bool:
        """Whether some rows are done and some are not."""
        return len(self.waiting) + len(self._later) < self.rows

    @property
    def part_norm(self) -> float:
        """Norm of the mean gradient, over supervised tokens, of the part that was measured by itself."""
        assert self._part_norm is not None
        return self._part_norm * self.tokens / self._part_tokens

    def take(self, indices: Sequence[int], *, loss_sum: float, norm: float) -> bool:
        """Takes in a pass over some of the waiting rows.

        Args:
            indices: Those rows.
            loss_sum: Over them, in nats.
            norm: Of the gradient of all the rows that are done now, as a part of the whole batch's mean.

        Returns:
            Whether the batch is complete.
        """
        done = set(indices)
        self.waiting = [index for index in self.waiting if index not in done]
        self.loss_sum += loss_sum
        if not self.waiting and self._later:
            self.waiting, self._later = self._later, []
            self._part_norm = norm
        return not self.waiting

    def state(self) -> dict[str, Any]:
        """What `restore` goes back to, in plain values."""
        return {
            "waiting": list(self.waiting),
            "later": list(self._later),
            "loss_sum": self.loss_sum,
            "part_norm": self._part_norm,
        }

    def restore(self, state: Mapping[str, Any]) -> None:
        """Goes back to a `state` of the same batch."""
        self.waiting, self._later = list(state["waiting"]), list(state["later"])
        self.loss_sum, self._part_norm = state["loss_sum"], state["part_norm"]

    def _by_length(self, indices: Sequence[int]) -> list[int]:
        return sorted(indices, key=lambda index: self._examples[index].length)


def _tokens(indices: Sequence[int], examples: Sequence[AnyExample]) -> int:
    return sum(examples[index].supervised_tokens for index in indices)
