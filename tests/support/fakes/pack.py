"""A pack that trains nothing: it holds what it was given, and a test says what becomes of it."""

from __future__ import annotations

import threading
from collections.abc import Callable

from workers.contract import Event, OutcomeStatus, PackCapacity, TrialOrder, TrialOutcome, Verdict


class FakePack:
    """Keeps the contract of `workers.pack.pack.Pack` for a worker.

    Args:
        emit: receives every event.
        slots: trials it wants at once.
    """

    def __init__(self, emit: Callable[[Event], object], *, slots: int = 1) -> None:
        self.slots = slots
        self.admitted: list[int] = []
        """Every attempt that was ever admitted, in order."""
        self._emit = emit
        self._changed = threading.Condition()
        self._running: dict[int, TrialOrder] = {}
        self._ends: list[TrialOutcome] = []
        self._base: str | None = None

    # -- what a test does to it ----------------------------------------------------------------

    def resize(self, slots: int) -> None:
        """It finds out that it wants another number of trials, and says so."""
        with self._changed:
            self.slots = slots
            self._changed.notify_all()
        self._emit(PackCapacity(slots=slots, reason="as measured"))

    def finish(self, attempt_id: int) -> None:
        """A trial trains to its end."""
        with self._changed:
            self._ends.append(_end(attempt_id, OutcomeStatus.COMPLETED, "trained to the end"))
            self._changed.notify_all()

    # -- Pack ----------------------------------------------------------------------------------

    @property
    def running_attempts(self) -> tuple[int, ...]:
        return tuple(self._running)

    @property
    def base(self) -> str | None:
        return self._base

    def accepts(self, order: TrialOrder) -> bool:
        return len(self._running) < self.slots

    def admit(self, order: TrialOrder) -> None:
        if not self.accepts(order):
            raise RuntimeError(f"no room for attempt {order.attempt_id}")
        self._base = order.model.id
        self._running[order.attempt_id] = order
        self.admitted.append(order.attempt_id)

    def apply(self, verdict: Verdict) -> None:
        with self._changed:
            self._ends.append(_end(verdict.attempt_id, verdict.decision.ends_as, verdict.reason))

    def leave_study(self) -> None:
        """Its slots are a guess again; the base stays."""
        self.slots = 1

    def step(self) -> None:
        """Waits a little for something to do, as a pass takes a little time."""
        with self._changed:
            self._changed.wait_for(lambda: bool(self._ends), timeout=0.01)
            ends, self._ends = self._ends, []
        for outcome in ends:
            if self._running.pop(outcome.attempt_id, None) is not None:
                self._emit(outcome)


def _end(attempt_id: int, status: OutcomeStatus, reason: str) -> TrialOutcome:
    value = 1.0 if status is OutcomeStatus.COMPLETED else None
    return TrialOutcome(attempt_id=attempt_id, status=status, reason=reason, value=value)
