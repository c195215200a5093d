"""How long a call to a worker may stay unanswered before the worker is given up.

Whatever a worker does, it answers a poll within its time: training runs in a thread of its own. One whose
process was stopped, or that holds Python's global lock in a call that never returns, does not.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from service.settings import Settings

LONG_POLL_SECONDS = 5.0
"""How long a worker holds an `events` call open when it has nothing to say."""

_LONGEST_ROUND = 5.0
"""Seconds that one round of the coordinator counts for at most."""


@dataclass(frozen=True, kw_only=True)
class SilenceLimits:
    """Seconds, as in `Settings`."""

    answer_s: float = 60.0
    """For an answer, beyond the time of the poll itself."""
    training_s: float = 300.0
    """For a pass of the training; a worker that knows its passes to be longer waits longer."""
    loading_s: float = 3600.0
    """For getting ready, and for each stage before a trial trains."""

    @classmethod
    def of(cls, settings: Settings) -> SilenceLimits:
        return cls(
            answer_s=settings.worker_silence_seconds,
            training_s=settings.training_silence_seconds,
            loading_s=settings.loading_silence_seconds,
        )


class Attention:
    """Seconds in which this process looked for answers.

    It may itself have been stopped, or have waited for a database, while answers came in. So a round counts
    for a few seconds at most, and silence is only what was listened to.
    """

    def __init__(self, now: float) -> None:
        self._looked_at = now
        self.seconds = 0.0

    def look(self, now: float) -> float:
        """Note another look at `now`, by a clock that never goes back; the seconds so far."""
        self.seconds += min(max(0.0, now - self._looked_at), _LONGEST_ROUND)
        self._looked_at = now
        return self.seconds
