"""Whose trials a worker trains: those of one study, or of none while it waits in the pool."""

from __future__ import annotations

import time

from workers.contract import OutcomeStatus, TrialOrder, TrialOutcome

FORSAKEN_SECONDS = 60.0
"""An idle worker that no coordinator has asked for its study's events for so long waits in the pool again."""

_FAULTS = (OutcomeStatus.FAILED, OutcomeStatus.OUT_OF_MEMORY)
"""Ends of trials after which nothing is sure of the process in which they came about."""


class Assignment:
    """The study that a worker was given to, and whether it may be given to another one after it.

    The first study that asks for a waiting worker gets it, until it is given back. Nothing here locks: the
    worker calls it with its own lock held.

    Args:
        study_id: whose it is from the start; None: it waits.
        keep_base_s: seconds for which a base is kept that no study uses.
    """

    def __init__(self, study_id: str | None, *, keep_base_s: float) -> None:
        self.study_id = study_id
        """None while it waits in the pool."""
        self.reusable = True
        """Nothing that a study did here can reach the next one."""
        self._keep_base_s = keep_base_s
        self._waits_since = time.monotonic()

    def take(self, study_id: str) -> bool:
        """Whether the worker is this study's now. Asking again changes nothing."""
        if self.study_id is None:
            self.study_id = study_id
        return self.study_id == study_id

    def give_back(self) -> None:
        """The worker waits again."""
        self.study_id = None
        self._waits_since = time.monotonic()

    def note_order(self, order: TrialOrder) -> None:
        """A study's own functions may leave anything behind; so may data that a worker died of."""
        if order.metrics or order.losses or order.check_loading:
            self.reusable = False

    def note_outcome(self, outcome: TrialOutcome) -> None:
        """A trial that ended by a fault ends the worker with its study."""
        if outcome.status in _FAULTS or outcome.storage_fault:
            self.reusable = False

    def base_left_s(self, base: str | None) -> float:
        """Seconds until a base that nobody has used since the worker waits is given up; infinite: none is."""
        if self.study_id is not None or base is None:
            return float("inf")
        return self._waits_since + self._keep_base_s - time.monotonic()
