"""Waiting for something that another thread or process does."""

from __future__ import annotations

import time
from collections.abc import Callable


def wait_until(
    holds: Callable[[], object], what: str = "the condition", *, seconds: float = 60.0, every: float = 0.01
) -> None:
    """Asks again and again, and leaves the processor to others in between.

    Raises:
        AssertionError: It did not hold in time.
    """
    deadline = time.monotonic() + seconds
    while not holds():
        assert time.monotonic() < deadline, f"{what} did not come true in {seconds:g} s"
        time.sleep(every)
