"""How long a call to a worker may stay unanswered before the worker is given up.

Whatever a worker does, it answers a poll within its time: training runs in a thread of its own. One whose
process was stopped, or that holds Python's global lock in a call that never returns, does not.
"""

from __future__ import annotations

import logging
import os
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from service.settings import Settings

log = logging.getLogger(__name__)

RAY_IS_SILENT = 75
"""The exit status of a coordinator whose Ray does not answer (`EX_TEMPFAIL` of `sysexits.h`)."""

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


class Watched:
    """`Workers` whose calls end this process when Ray does not answer one of them: nothing else can end it.

    Whoever supervises the process starts it again, and what it had begun is repaired from the database.

    Args:
        workers: what is called.
        limit_s: seconds that a call may take.
        end: ends the process; gets the name of the call.
    """

    def __init__(
        self, workers: object, limit_s: float, end: Callable[[str], object] = lambda call: _end(call)
    ) -> None:
        self._workers = workers
        self._limit_s = limit_s
        self._end = end
        self._asked = 0
        self._asking: tuple[int, str] | None = None
        threading.Thread(target=self._watch, name="Ray watch", daemon=True).start()

    def __getattr__(self, name: str) -> Any:
        method = getattr(self._workers, name)

        def call(*arguments: Any, **named: Any) -> Any:
            self._asked += 1
            self._asking = self._asked, name
            try:
                return method(*arguments, **named)
            finally:
                self._asking = None

        return call

    def _watch(self) -> None:
        """Counts its own steps, so that time in which the whole process stood still does not count."""
        step = min(1.0, self._limit_s / 10)
        seen, waited = None, 0.0
        while True:
            time.sleep(step)
            asking = self._asking
            waited = waited + step if asking is not None and asking == seen else 0.0
            seen = asking
            if asking is not None and waited >= self._limit_s:
                self._end(asking[1])
                return


def _end(call: str) -> None:
    log.critical("Ray has not answered the call `%s` in time; this process ends", call)
    logging.shutdown()
    os._exit(RAY_IS_SILENT)
