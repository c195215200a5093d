"""SQLite's files: write-ahead logging, switched on once, by one process.

The mode is a property of the file and stays with it. Two connections that switch it at the same moment
do not wait for each other, whatever the busy timeout is: each holds what the other needs, and SQLite
refuses one of them at once. So nobody switches it on connecting; an upgrade does, behind a file lock.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path

from filelock import FileLock
from sqlalchemy.engine import make_url


@contextmanager
def exclusive(url: str) -> Iterator[None]:
    """A lock on the SQLite file of this URL that one process holds at a time."""
    path = _path(url)
    with FileLock(path.with_name(f"{path.name}.upgrade.lock"), mode=0o600):
        yield


def use_write_ahead_log(url: str) -> None:
    """Let readers and a writer of the file work side by side. The caller holds `exclusive`."""
    with closing(sqlite3.connect(_path(url), timeout=60.0)) as connection:
        connection.execute("PRAGMA journal_mode=WAL")


def _path(url: str) -> Path:
    database = make_url(url).database
    if not database:
        raise ValueError(f"{url!r} does not name a SQLite file")
    return Path(database)
