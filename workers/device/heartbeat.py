"""Whether the training thread still gets on: what it is doing, since when, and how long that may take.

The training thread says what it begins and ends; another thread of the worker asks. A library call that never
returns is found by it, while the worker goes on answering the coordinator.
"""

from __future__ import annotations

import math
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

_FACTOR = 20.0
"""How many times the longest pass so far another one may take: rows differ in length, machines in load."""

_BUSY_BYTES_PER_S = 10_000.0
"""Who writes files, or reads from a disk, faster than this is downloading or loading, however long it takes.
Logs are far slower."""


class Heartbeat:
    """Used by the training thread, except for `stalled`, which another thread calls again and again.

    Whatever is not a pass (loading a base, tokenising, measuring, writing a checkpoint to a remote storage)
    has the limit of loading, and so has the first pass of each kind, in which a GPU compiles its kernels.
    """

    def __init__(
        self,
        *,
        training_s: float,
        loading_s: float,
        clock: Callable[[], float] = time.monotonic,
        bytes_moved: Callable[[], int] | None = None,
    ) -> None:
        """
        Args:
            training_s: Seconds that a pass may always take, however short the others were.
            loading_s: Seconds that anything else may take without a sign of life.
            clock: Ever-growing seconds.
            bytes_moved: What the process has written to files and read from disks; None: as Linux counts it.
        """
        self._training_s = training_s
        self._loading_s = loading_s
        self._clock = clock
        self._bytes_moved = bytes_moved or _bytes_moved
        self._lock = threading.Lock()
        self._since: float | None = None
        """When the last sign of life came; None: the thread waits for work."""
        self._pass: str | None = None
        self._longest: dict[str, float] = {}
        """Seconds of the longest pass so far, by kind."""
        self._asked_at = clock()
        self._moved = self._bytes_moved()

    def beat(self) -> None:
        """A sign of life, between two pieces of work."""
        with self._lock:
            self._since = self._clock()

    @contextmanager
    def waiting(self) -> Iterator[None]:
        """While there is nothing to do, nothing can be late."""
        with self._lock:
            self._since = None
        try:
            yield
        finally:
            self.beat()

    @contextmanager
    def passing(self, kind: str) -> Iterator[None]:
        """While one pass runs, whose time is measured.

        Args:
            kind: `training` or `evaluation`; each has its own longest time.
        """
        began = self._clock()
        with self._lock:
            self._since, self._pass = began, kind
        try:
            yield
        finally:
            with self._lock:
                now = self._clock()
                self._longest[kind] = max(self._longest.get(kind, 0.0), now - began)
                self._since, self._pass = now, None

    def stalled(self) -> str | None:
        """Why the training thread counts as hung; None: it does not.

        Time in which the asking thread stood still itself, because the process or the machine did, does not
        count.
        """
        now, moved = self._clock(), self._bytes_moved()
        with self._lock:
            slept, self._asked_at = now - self._asked_at, now
            lately, self._moved = moved - self._moved, moved
            if self._since is None:
                return None
            longest = self._longest.get(self._pass or "")
            limit = self._loading_s
            if self._pass is not None and longest is not None:
                limit = max(self._training_s, _FACTOR * longest)
            is_busy = self._pass is None and lately > _BUSY_BYTES_PER_S * max(1.0, slept)
            if is_busy or slept > limit / 2:
                self._since = now
                return None
            silent = now - self._since
            if silent <= limit:
                return None
            if self._pass is None:
                return f"the training thread made no progress for {silent:.0f} s outside a pass"
            what = f"no {self._pass} pass ended for {silent:.0f} s"
            return what if longest is None else f"{what}; the longest before took {longest:.3g} s"

    @property
    def asking_interval_s(self) -> float:
        """How often `stalled` should be called."""
        return min(10.0, self._training_s / 10, self._loading_s / 10)


def _bytes_moved() -> int:
    """Written to files of whatever kind, and read from disks, by this process; 0 where no system says so.

    Not what it reads in all: Ray's threads read 300 kB/s of /proc. Weights that are mapped count.
    """
    with suppress(OSError, ValueError):
        counts = dict(line.split(": ") for line in Path("/proc/self/io").read_text().splitlines())
        return sum(int(counts.get(name, 0)) for name in ("wchar", "read_bytes"))
    return 0


UNWATCHED = Heartbeat(training_s=math.inf, loading_s=math.inf)
"""Of passes that nobody waits for."""
