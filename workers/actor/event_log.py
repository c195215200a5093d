"""The worker's numbered, acknowledged event log.

Training appends and never waits; the coordinator reads when it can. An event is kept until a reader asks
for what comes *after* it, so a coordinator may die at any moment, come back, ask again and lose nothing.
Memory is bounded however long nobody reads: a trial has few reports and one outcome, and of its progress
and of what is done before it starts, as of what the worker says of itself, only the newest is kept.
"""

from __future__ import annotations

import threading
import time

from workers.contract import Event, NumberedEvent, PackCapacity, PassCosts, Preparing, Progress

_Subject = tuple[type[Progress] | type[Preparing], int] | type[PackCapacity] | type[PassCosts]


def _subject(event: Event) -> _Subject | None:
    """What a newer event says anew; None when an event stands for itself."""
    match event:
        case Progress(attempt_id=attempt_id):
            return Progress, attempt_id
        case Preparing(attempt_id=attempt_id):
            return Preparing, attempt_id
        case PackCapacity() | PassCosts():
            return type(event)
    return None


class EventLog:
    """Thread-safe. Numbers start at 1, rise by 1 for each appended event and are never used twice."""

    def __init__(self) -> None:
        self._changed = threading.Condition()
        self._events: dict[int, Event] = {}  # by number, in rising order
        self._newest: dict[_Subject, int] = {}  # number of the newest event on each subject
        self._last = 0

    def append(self, event: Event) -> int:
        """Adds an event, wakes whoever waits, and returns its number.

        A Progress or a Preparing takes the place of the attempt's older one, a PackCapacity or PassCosts that
        of the worker's, which leaves a gap in the numbers.
        """
        with self._changed:
            self._last += 1
            subject = _subject(event)
            if subject is not None:
                older = self._newest.get(subject)
                if older is not None:
                    del self._events[older]
                self._newest[subject] = self._last
            self._events[self._last] = event
            self._changed.notify_all()
            return self._last

    def events(self, after: int, timeout_s: float = 0.0) -> tuple[NumberedEvent, ...]:
        """Acknowledges everything up to `after` and returns what is newer, in order.

        Args:
            after: Number of the last event the reader has dealt with; 0 for none. Events up to it are
                dropped for good.
            timeout_s: How long to wait, in seconds, when there is nothing newer.

        Raises:
            ValueError: `after` is a number that was never given out: the reader has mixed up two logs.
        """
        deadline = time.monotonic() + timeout_s
        with self._changed:
            if not 0 <= after <= self._last:
                raise ValueError(f"cannot acknowledge event {after}: the newest event is {self._last}")
            self._drop(after)
            while not self._events and (remaining := deadline - time.monotonic()) > 0:
                self._changed.wait(remaining)
            return tuple(NumberedEvent(seq=seq, event=event) for seq, event in self._events.items())

    def _drop(self, after: int) -> None:
        for seq in [seq for seq in self._events if seq <= after]:
            subject = _subject(self._events.pop(seq))
            if subject is not None:
                del self._newest[subject]

    def __len__(self) -> int:
        """Events that are not acknowledged yet."""
        with self._changed:
            return len(self._events)
