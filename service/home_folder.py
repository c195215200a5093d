"""The home folder and its files, which only their owner may read, whatever the umask is."""

from __future__ import annotations

import logging
import os
import stat
from contextlib import suppress
from pathlib import Path

from sqlalchemy.engine import make_url

from service.errors import Unavailable
from service.settings import Settings

log = logging.getLogger(__name__)

_OTHERS = 0o077
_SECRET_FILES = ("*.db", "*.db-wal", "*.db-shm", "*.lock", "ray_token", "serve.json", "logs/*")
_PROBE = ".writable"


class UnusableHome(Unavailable):
    title = "Home folder not usable"


def make_home(settings: Settings) -> None:
    """Make the home folder and the SQLite files, for their owner alone, where missing.

    What is there and open to other users is closed to them. A file is made before SQLite would, which makes
    it as the umask says; what SQLite keeps beside it (`-wal`, `-shm`) has the rights of the file. One that is
    there is never opened: to close it again would drop all locks of this process on it (POSIX), those of
    SQLite's open connections too. The next process to leave would take itself for the last one and delete the
    `-wal` and `-shm` that they use (https://www.sqlite.org/howtocorrupt.html, 2.2).

    Raises:
        UnusableHome: the folder belongs to another user, or is one that users share, such as /tmp.
    """
    settings.home.mkdir(mode=0o700, parents=True, exist_ok=True)
    _close_home(settings.home)
    for database in sqlite_databases(settings):
        database.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        with suppress(FileExistsError):
            os.close(os.open(database, os.O_RDONLY | os.O_CREAT | os.O_EXCL, 0o600))
        _close(database)


def sqlite_databases(settings: Settings) -> list[Path]:
    """The SQLite files that these settings name; none on PostgreSQL."""
    urls = [make_url(raw) for raw in (settings.database_url, settings.optuna_url)]
    return [Path(url.database) for url in urls if url.get_backend_name() == "sqlite" and url.database]


def trouble_writing(folder: Path) -> str | None:
    """Why nothing can be written in a folder now, in the system's words; None: it can.

    Writes and removes a file of 4 kB: a file system that is full or read-only still says otherwise of itself.
    """
    probe = folder / f"{_PROBE}-{os.getpid()}"
    try:
        try:
            with open(os.open(probe, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600), "wb") as file:
                file.write(bytes(4096))
        finally:
            probe.unlink(missing_ok=True)
    except OSError as error:
        return error.strerror or type(error).__name__
    return None


def _close_home(home: Path) -> None:
    found = home.stat()
    me = os.geteuid()
    if found.st_mode & stat.S_ISVTX:
        raise UnusableHome(
            f"The home folder {home} is one that users share (its sticky bit is set). Choose a folder of the "
            "service's own with --home or NIGHTSWEEP_HOME, such as one inside it."
        )
    if me != 0 and found.st_uid not in (me, 0):  # root has prepared its own for this process
        raise UnusableHome(
            f"The home folder {home} belongs to another user (id {found.st_uid}, and this process has {me}). "
            "Run it as that user, or choose another folder with --home or NIGHTSWEEP_HOME."
        )
    if me not in (found.st_uid, 0) or not stat.S_IMODE(found.st_mode) & _OTHERS:
        return  # it cannot be closed, or is already
    try:
        home.chmod(0o700)
    except OSError as error:  # of a file system that knows no rights, such as exFAT or a network share
        log.warning(
            "the home folder %s is open to other users and cannot be closed: %s", home, error.strerror
        )
        return
    files = [path for pattern in _SECRET_FILES for path in home.glob(pattern)]
    closed = sum([_close(path) for path in files])
    log.warning(
        "the home folder %s was open to other users (mode %o); it now has mode 700%s",
        home,
        stat.S_IMODE(found.st_mode),
        f", and {closed} of its files mode 600" if closed else "",
    )


def _close(path: Path) -> bool:
    """Take a file's rights from everybody but its owner. Whether anything was to be done."""
    with suppress(FileNotFoundError, PermissionError):
        found = path.lstat()
        if stat.S_ISREG(found.st_mode) and found.st_uid == os.geteuid() and found.st_mode & _OTHERS:
            path.chmod(0o600)
            return True
    return False
