"""The verdicts that a study's live attempts were sent: which have not been obeyed, which are sent again.

Whoever holds the study's lease has them in memory. A successor sends them once more, which changes nothing
for attempts that have obeyed, and counts from then on.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, replace

from service.coordinator.policy.snapshot import TrialSnapshot
from workers.contract import Decision

AGAIN_SECONDS = 5.0
"""A worker that has not obeyed by then is told again: what was sent may not have arrived."""


@dataclass(kw_only=True)
class _Sent:
    decision: Decision
    first: float
    last: float


class SentVerdicts:
    """One study's live attempts and the stops and pauses that they were sent.

    Args:
        stop_grace: seconds after which a stop that is not obeyed is overdue.
        pause_grace: likewise of a pause, which may have a large checkpoint to write.
        clock: seconds, ever growing.
    """

    def __init__(
        self, *, stop_grace: float, pause_grace: float, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._grace = {Decision.STOP: stop_grace, Decision.PAUSE: pause_grace}
        self._clock = clock
        self._sent: dict[int, _Sent] = {}

    def note(self, attempt_id: int, decision: Decision) -> None:
        """Note that an attempt is told to stop or to pause; a verdict that is sent again keeps its age."""
        now = self._clock()
        sent = self._sent.get(attempt_id)
        if sent is None or sent.decision is not decision:
            self._sent[attempt_id] = _Sent(decision=decision, first=now, last=now)
        else:
            sent.last = now

    def last_decision(self, attempt_id: int) -> Decision | None:
        """What an attempt was told last; None: nothing."""
        sent = self._sent.get(attempt_id)
        return None if sent is None else sent.decision

    def is_due(self, attempt_id: int) -> bool:
        """Whether an attempt was told nothing yet, or may not have received it."""
        sent = self._sent.get(attempt_id)
        return sent is None or self._clock() - sent.last >= AGAIN_SECONDS

    def grace_in_words(self, decision: Decision | None) -> str:
        """How long an attempt had to obey."""
        return "in time" if decision is None else f"within {self._grace[decision]:g} s"

    def mark(self, trial: TrialSnapshot) -> TrialSnapshot:
        """The trial, with what its live attempt was told."""
        sent = None if trial.live_attempt_id is None else self._sent.get(trial.live_attempt_id)
        if sent is None:
            return trial
        now = self._clock()
        return replace(
            trial,
            stop_requested=sent.decision is Decision.STOP,
            pause_requested=sent.decision is Decision.PAUSE,
            send_again=now - sent.last >= AGAIN_SECONDS,
            overdue=now - sent.first >= self._grace[sent.decision],
        )
