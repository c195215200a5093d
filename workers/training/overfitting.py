"""Telling a trial that overfits from one whose evaluation is only noisy. Pure."""

from __future__ import annotations

from collections.abc import Mapping
from copy import copy
from typing import Any

from search_spaces.wording import counted


class OverfitWatch:
    """Follows the losses from rung to rung: a trial overfits when eval loss rises while train loss falls.

    One such rung may be noise, so the trial goes on until there have been enough of them in a row (criterion
    UP of Prechelt 1998, "Early Stopping - But When?"). An eval loss that rises together with the train loss
    is a trial that has become unstable, which is left to the pruner and the divergence watch.
    """

    def __init__(self, rungs: int | None) -> None:
        """
        Args:
            rungs: How many in a row are enough (at least 1); None: the watch never says so.
        """
        self._enough = rungs
        self._rises = 0
        self._before: tuple[float, float] | None = None
        """Eval and train loss at the rung before the first rise."""
        self._last: tuple[float, float] | None = None

    @property
    def overfits(self) -> bool:
        """Whether the trial need not go on."""
        return self._enough is not None and self._rises >= self._enough

    def update(self, *, eval_loss: float, train_loss: float) -> None:
        """Takes a rung in.

        Args:
            eval_loss: At the rung: the task's plain loss.
            train_loss: Mean since the rung before, likewise.
        """
        last, self._last = self._last, (eval_loss, train_loss)
        if last is None or eval_loss <= last[0] or train_loss >= last[1]:
            self._rises = 0
            return
        if self._rises == 0:
            self._before = last
        self._rises += 1

    def after(self, *, eval_loss: float, train_loss: float) -> OverfitWatch:
        """A watch that has taken in one more rung; this one stays as it is."""
        other = copy(self)
        other.update(eval_loss=eval_loss, train_loss=train_loss)
        return other

    def in_words(self) -> str:
        """The rises so far, of which there must be one."""
        assert self._before is not None
        assert self._last is not None
        (eval_before, train_before), (eval_last, train_last) = self._before, self._last
        at = counted(self._rises, "rung") + " in a row" * (self._rises > 1)
        return (
            f"eval_loss rose at {at}, {eval_before:.4g} → {eval_last:.4g},"
            f" while train loss fell {train_before:.4g} → {train_last:.4g}"
        )

    def state(self) -> dict[str, Any]:
        """What `restore` goes back to: JSON values."""
        return {
            "rises": self._rises,
            "before": None if self._before is None else list(self._before),
            "last": None if self._last is None else list(self._last),
        }

    def restore(self, state: Mapping[str, Any]) -> None:
        """Goes back to a `state`."""
        self._rises = state["rises"]
        before, last = state["before"], state["last"]
        self._before = None if before is None else (before[0], before[1])
        self._last = None if last is None else (last[0], last[1])
