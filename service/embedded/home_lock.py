"""One `nightsweep serve` per home folder, and who it is.

Two of them would each start a Ray and a coordinator, write the same logs, and put down each other's trials.
The lock is the operating system's, so that of a process that was killed is gone; the words about who holds it
lie in a file of their own, since nothing may be written into a file that another process has locked. The API
and the coordinator that run by themselves need no lock: many of each may share a home.
"""

from __future__ import annotations

import json
import os
import socket
from contextlib import suppress
from datetime import UTC, datetime
from pathlib import Path

from filelock import FileLock, Timeout

from service.errors import Unavailable

LOCK_FILE = "serve.lock"
HOLDER_FILE = "serve.json"


class HomeInUse(Unavailable):
    title = "Home folder in use"


class HomeLock:
    """The lock of a home folder that exists; held from `acquire` to `release`, or until the process ends."""

    def __init__(self, home: Path) -> None:
        self._home = home
        self._lock = FileLock(home / LOCK_FILE, mode=0o600, thread_local=False)

    def acquire(self, url: str) -> None:
        """Take the lock, and say where this process serves.

        Raises:
            HomeInUse: another process has it; names that process.
        """
        try:
            self._lock.acquire(blocking=False)
        except Timeout:
            raise HomeInUse(
                f"The home folder {self._home} is in use: {_holder(self._home)}. End that process first, or "
                "choose another home with --home."
            ) from None
        words = {
            "pid": os.getpid(),
            "host": socket.gethostname(),
            "since": f"{datetime.now(UTC):%Y-%m-%d %H:%M:%S} UTC",
            "url": url,
        }
        unnamed = self._home / f"{HOLDER_FILE}.new"
        unnamed.unlink(missing_ok=True)
        with open(os.open(unnamed, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "w") as file:
            json.dump(words, file)
        unnamed.replace(self._home / HOLDER_FILE)

    def release(self) -> None:
        """Give the lock back, if this process has it."""
        if self._lock.is_locked:
            with suppress(OSError):  # the folder may be gone
                (self._home / HOLDER_FILE).unlink()
            self._lock.release()


def _holder(home: Path) -> str:
    try:
        words = json.loads((home / HOLDER_FILE).read_text())
        there = "" if words["host"] == socket.gethostname() else f" on {words['host']}"
        return (
            f"a `nightsweep serve` or `demo` with process id {words['pid']}{there} has been running there "
            f"since {words['since']}, at {words['url']}"
        )
    except (OSError, ValueError, KeyError, TypeError):  # it has only just taken the lock
        return "another `nightsweep serve` or `demo` is running there"
