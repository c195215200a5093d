"""Sorts errors of a database: try again at once, wait until it is back, or give up.

Optuna wraps the database's errors in its own, so both questions are asked of the whole chain of causes.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Iterator

import psycopg
from sqlalchemy.exc import DBAPIError, PendingRollbackError
from sqlalchemy.exc import TimeoutError as PoolTimeout

_RETRY = frozenset(
    {
        "40001",  # serialization_failure
        "40P01",  # deadlock_detected
        "55P03",  # lock_not_available: `lock_timeout` ran out
        "25P03",  # idle_in_transaction_session_timeout: the process slept within a transaction
    }
)
"""SQLSTATEs (PostgreSQL's appendix A) of transactions that were certainly undone and may work next time."""

_AWAY = frozenset(
    {
        "25006",  # read_only_sql_transaction: a standby that has not been promoted yet
        "57P01",  # admin_shutdown
        "57P02",  # crash_shutdown
        "57P03",  # cannot_connect_now: it starts, stops or recovers
        "57P05",  # idle_session_timeout
        "58030",  # io_error
    }
)
_AWAY_CLASSES = frozenset(
    {
        "08",  # connection_exception
        "53",  # insufficient_resources: disk full, too many connections
    }
)

_CONNECTION_WAS_LOST = "8s2b"
"""SQLAlchemy's code for the second use of a connection that was lost within a transaction. Optuna goes on to
another query when one fails, and then this is the error that is seen."""

_SQLITE_RETRY = frozenset({sqlite3.SQLITE_BUSY, sqlite3.SQLITE_LOCKED})
_SQLITE_AWAY = frozenset(
    {sqlite3.SQLITE_FULL, sqlite3.SQLITE_IOERR, sqlite3.SQLITE_CANTOPEN, sqlite3.SQLITE_READONLY}
)

_SQLITE_DISK = {
    sqlite3.SQLITE_FULL: "its disk is full",
    sqlite3.SQLITE_IOERR: "its disk reports an error, as a full one may",
    sqlite3.SQLITE_READONLY: "its file is read-only",
}
_DISK = {"53100": "its disk is full", "58030": "its disk reports an error"}


def is_transient(error: BaseException) -> bool:
    """Whether the transaction was undone by others at work, so that the same one may do at once.

    Serialization failures, deadlocks, locks waited for too long, and SQLite's "locked" and "busy".
    """
    return any(_is_transient(cause) for cause in _causes(error))


def is_outage(error: BaseException) -> bool:
    """Whether the database is away or cannot write at present: to be waited for, not given up on.

    A lost or refused connection, a server that starts or stops, a full disk, or no free connection for too
    long. What was being committed when a connection was lost may be there or not.
    """
    return not is_transient(error) and any(_is_outage(cause) for cause in _causes(error))


def disk_trouble(error: BaseException) -> str | None:
    """What keeps the database from writing, in words, where its disk does; None: something else."""
    for cause in _causes(error):
        trouble = None
        if isinstance(cause, sqlite3.Error):
            trouble = _SQLITE_DISK.get(_primary_code(cause))
        elif isinstance(cause, psycopg.Error):
            trouble = _DISK.get(cause.sqlstate or "")
        if trouble is not None:
            return trouble
    return None


def _causes(error: BaseException) -> Iterator[BaseException]:
    """The error, the driver's own behind it, what it was raised from, and what was being handled."""
    seen: set[int] = set()
    waiting: list[BaseException | None] = [error]
    while waiting:
        cause = waiting.pop()
        if cause is None or id(cause) in seen:
            continue
        seen.add(id(cause))
        yield cause
        waiting += [cause.__cause__, cause.orig if isinstance(cause, DBAPIError) else None]
        if isinstance(cause, sqlite3.Error) and not cause.__suppress_context__:
            # SQLite undoes a transaction by itself when a disk is full; then its savepoint cannot be undone.
            waiting.append(cause.__context__)


def _is_transient(error: BaseException) -> bool:
    if isinstance(error, psycopg.Error):
        return error.sqlstate in _RETRY
    return isinstance(error, sqlite3.Error) and _primary_code(error) in _SQLITE_RETRY


def _is_outage(error: BaseException) -> bool:
    if isinstance(error, PoolTimeout) or (isinstance(error, DBAPIError) and error.connection_invalidated):
        return True
    if isinstance(error, PendingRollbackError) and error.code == _CONNECTION_WAS_LOST:
        return True
    if isinstance(error, psycopg.OperationalError) and error.sqlstate is None:
        return True  # the driver's own word, not the server's: refused, timed out, closed
    if isinstance(error, psycopg.Error):
        state = error.sqlstate or ""
        return state in _AWAY or state[:2] in _AWAY_CLASSES
    return isinstance(error, sqlite3.Error) and _primary_code(error) in _SQLITE_AWAY


def _primary_code(error: sqlite3.Error) -> int:
    """SQLite's primary result code, without the byte that says more; 0 for the driver's own errors."""
    return getattr(error, "sqlite_errorcode", 0) & 0xFF
