"""The cost of a study, and the part that pruning saved. Pure."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from service.states import AttemptState
from service.trials.records import TrialRecord

_CUT_SHORT = frozenset({AttemptState.PRUNED, AttemptState.DIVERGED})
"""Ended by what was seen of them: their pruner's word, or their loss."""


@dataclass(frozen=True, kw_only=True)
class Examples:
    """Training examples, repeats of an epoch counted."""

    trained: int
    """Of each trial as far as it got; what was done twice after a lost worker counts once."""
    saved_by_pruning: int
    """What pruned trials had left."""
    saved_by_divergence: int
    """What diverged trials had left."""

    @property
    def saved_share(self) -> float | None:
        """Saved by both, of what training every trial to its end would have taken; None before any."""
        saved = self.saved_by_pruning + self.saved_by_divergence
        whole = self.trained + saved
        return saved / whole if whole else None


def count_examples(records: Sequence[TrialRecord]) -> Examples:
    """Examples over all trials of a study."""
    left = dict.fromkeys(_CUT_SHORT, 0)
    for record in records:
        if isinstance(record.state, AttemptState) and record.state in left:
            left[record.state] += max(0, (record.total_examples or 0) - record.examples_seen)
    return Examples(
        trained=sum(_trained(record) for record in records),
        saved_by_pruning=left[AttemptState.PRUNED],
        saved_by_divergence=left[AttemptState.DIVERGED],
    )


def _trained(record: TrialRecord) -> int:
    return max((attempt.examples_seen for attempt in record.attempts), default=0)
