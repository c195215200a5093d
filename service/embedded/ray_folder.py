"""The temporary folder of a Ray head of our own, and what earlier heads left behind.

Not in the home folder: Unix sockets live in it, and their paths must be short. So whoever is killed with -9
leaves one in the system's temporary folder, with Ray's logs in it, and a service that dies every night would
fill that. Whoever makes a folder holds a lock on it for as long as it lives. The system lets go of the lock
of a process that has died, and the next service that starts removes the folder; one that is disturbed at
that leaves the rest to the next.
"""

from __future__ import annotations

import fcntl
import logging
import os
import shutil
import stat
import tempfile
from contextlib import suppress
from pathlib import Path

log = logging.getLogger(__name__)

_PREFIX = "nsweep-ray-"


class RayFolder:
    """A new folder of mode 0700, locked until `remove`. Those of dead services are removed.

    Attributes:
        path: The folder. Nobody else can look into it or traverse it.
        ray: Ray's own, inside. Ray gives what it makes to everybody (mode 0777).
    """

    def __init__(self) -> None:
        _remove_abandoned()
        unnamed = Path(tempfile.mkdtemp(prefix="nsweep-new-"))
        self._lock = _locked(unnamed)
        # Named when it is locked, so nobody meets one that is not locked yet.
        self.path = unnamed.rename(unnamed.with_name(unnamed.name.replace("nsweep-new-", _PREFIX)))
        self._seen = False
        self.ray = self.path / "r"  # short, as the paths of Unix sockets must be

    def was_removed(self) -> bool:
        """Whether Ray's folder has gone since the last look. A Ray without it starts no more processes."""
        try:
            there = any(name.startswith("session_") for name in os.listdir(self.ray))
        except FileNotFoundError:
            there = False
        except OSError:
            return False  # no descriptor is left, say, which tells nothing of the folder
        removed, self._seen = self._seen and not there, there
        return removed

    def make(self) -> None:
        """Make it again if somebody removed it.

        Raises:
            OSError: it cannot be made, or somebody else's is there.
        """
        try:
            self.path.mkdir(mode=0o700)
        except FileExistsError:
            found = self.path.lstat()
            if found.st_uid != os.geteuid() or stat.S_IMODE(found.st_mode) & 0o077:
                raise OSError(f"{self.path} is another user's, or open to others") from None
            return
        removed, self._lock = self._lock, _locked(self.path)
        os.close(removed)
        log.warning("%s was removed while Ray was using it, and was made again", self.path)

    def remove(self) -> None:
        shutil.rmtree(self.path, ignore_errors=True)
        os.close(self._lock)


def _locked(folder: Path) -> int:
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC)
    with suppress(OSError):  # a file system without locks: nobody removes anything there
        fcntl.flock(descriptor, fcntl.LOCK_EX)
    return descriptor


def _remove_abandoned() -> None:
    for folder in Path(tempfile.gettempdir()).glob(f"{_PREFIX}*"):
        try:
            lock = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC)
        except OSError:
            continue  # somebody else's, or being removed at this moment
        try:
            if os.fstat(lock).st_uid == os.getuid():
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
                log.info("removing %s, which a service that was killed has left", folder)
                shutil.rmtree(folder, ignore_errors=True)
        except OSError:
            pass  # its service lives
        finally:
            os.close(lock)
