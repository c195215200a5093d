"""The temporary folder of a Ray head of our own, and what earlier heads left behind.

Not in the home folder: Unix sockets live in it, and their paths must be short. So whoever is killed with -9
leaves one in the system's temporary folder, with Ray's logs in it, and a service that dies every night would
fill that. Each folder is locked by whoever made it, for as long as it lives: the system lets go of the lock,
and the next service that starts removes the folder.
"""

from __future__ import annotations

import fcntl
import logging
import os
import shutil
import tempfile
from pathlib import Path

log = logging.getLogger(__name__)

_PREFIX = "nightsweep-"
_LOCK = "lock"


class RayFolder:
    """A new folder, locked until `remove`. Those of dead services are removed."""

    def __init__(self) -> None:
        _remove_abandoned()
        self.path = Path(tempfile.mkdtemp(prefix=_PREFIX))
        # Locked before it has its name: a lock file that is there has been locked from its beginning.
        unnamed = self.path / f"{_LOCK}.new"
        self._lock = os.open(unnamed, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        fcntl.flock(self._lock, fcntl.LOCK_EX)
        unnamed.rename(self.path / _LOCK)

    def remove(self) -> None:
        shutil.rmtree(self.path, ignore_errors=True)
        os.close(self._lock)


def _remove_abandoned() -> None:
    for folder in Path(tempfile.gettempdir()).glob(f"{_PREFIX}*"):
        try:
            if folder.is_symlink() or folder.stat().st_uid != os.getuid():
                continue  # somebody else's
            lock = os.open(folder / _LOCK, os.O_RDWR | os.O_CLOEXEC)
        except OSError:
            continue  # being made or removed at this moment
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            continue  # its service lives
        else:
            log.info("removing %s, which a service that was killed has left", folder)
            shutil.rmtree(folder, ignore_errors=True)
        finally:
            os.close(lock)
