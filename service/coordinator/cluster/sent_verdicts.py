"""What the live attempts of a study were told, and how long ago: who does not obey, and whom to tell again.

Kept in memory by whoever holds the study's lease. Its successor tells them once more, which changes nothing
for those that have obeyed, and counts from then on.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, replace

from service.coordinator.cluster.ray_workers import Decision
from service.coordinator.policy.snapshot import TrialSnapshot

AGAIN_SECONDS = 5.0
"""A worker that has not obeyed by then is told again: what was sent may not have arrived."""


@dataclass(kw_only=True)
class _Word:
    decision: Decision
    first: float
    last: float


class Told:
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
        self._words: dict[int, _Word] = {}

    def tell(self, attempt_id: int, decision: Decision) -> None:
        """Note that an attempt is told to stop or to pause; a word that is repeated keeps its age."""
        now = self._clock()
        word = self._words.get(attempt_id)
        if word is None or word.decision is not decision:
            self._words[attempt_id] = _Word(decision=decision, first=now, last=now)
        else:
            word.last = now

    def last_word(self, attempt_id: int) -> Decision | None:
        """What an attempt was told; None: nothing."""
        word = self._words.get(attempt_id)
        return None if word is None else word.decision

    def is_to_hear(self, attempt_id: int) -> bool:
        """Whether an attempt was told nothing yet, or may not have heard it."""
        word = self._words.get(attempt_id)
        return word is None or self._clock() - word.last >= AGAIN_SECONDS

    def grace_in_words(self, decision: Decision | None) -> str:
        """How long it was waited for."""
        return "in time" if decision is None else f"within {self._grace[decision]:g} s"

    def mark(self, trial: TrialSnapshot) -> TrialSnapshot:
        """The trial, with what its live attempt was told."""
        word = None if trial.live_attempt_id is None else self._words.get(trial.live_attempt_id)
        if word is None:
            return trial
        now = self._clock()
        return replace(
            trial,
            stop_requested=word.decision is Decision.STOP,
            pause_requested=word.decision is Decision.PAUSE,
            tell_again=now - word.last >= AGAIN_SECONDS,
            overdue=now - word.first >= self._grace[word.decision],
        )
