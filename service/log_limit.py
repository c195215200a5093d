"""Limits repeated log lines: each is written the first time, and then ever more rarely.

A disk that is full or a table of descriptors that is full is the same news each time, and a log that says it
several times a second fills what is left of the disk.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass

FIRST_PAUSE_SECONDS = 60.0
LONGEST_PAUSE_SECONDS = 3600.0
_MOST_CAUSES = 200


@dataclass
class _Cause:
    next_at: float
    pause: float
    suppressed: int = 0


class LogLimit:
    """Decides whether a message is logged: the first of its cause is, then after a minute, two, four, ...

    Thread-safe. A cause that has been away for longer than its present pause starts again at the first one.

    Args:
        clock: Seconds that only grow.
    """

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._causes: dict[str, _Cause] = {}
        self._lock = threading.Lock()

    def suffix(self, cause: str) -> str | None:
        """What to write after the message: how many of the same were left out. None: do not log it now."""
        now = self._clock()
        with self._lock:
            known = self._causes.get(cause)
            if known is not None and now < known.next_at:
                known.suppressed += 1
                return None
            if known is None or now - known.next_at > known.pause:
                if len(self._causes) >= _MOST_CAUSES:
                    self._causes.clear()
                known, left_out = _Cause(0.0, FIRST_PAUSE_SECONDS), 0 if known is None else known.suppressed
            else:
                left_out, known.suppressed = known.suppressed, 0
                known.pause = min(2 * known.pause, LONGEST_PAUSE_SECONDS)
            known.next_at = now + known.pause
            self._causes[cause] = known
            return f" ({left_out} more of the same were not logged)" if left_out else ""


class RepeatFilter(logging.Filter):
    """The same for a library's logger. Messages whose first lines are equal are of one cause."""

    def __init__(self) -> None:
        super().__init__()
        self._limit = LogLimit()

    def filter(self, record: logging.LogRecord) -> bool:
        if record.levelno < logging.WARNING:
            return True
        message = record.getMessage()
        suffix = self._limit.suffix(message.partition("\n")[0][:200])
        if suffix:
            record.msg, record.args = message + suffix, ()
        return suffix is not None


def short(error: BaseException) -> str:
    """The innermost cause's class and first line: the driver's or the system's own words."""
    while error.__cause__ is not None:
        error = error.__cause__
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return f"{type(error).__name__}: {lines[0][:500]}" if lines else type(error).__name__
