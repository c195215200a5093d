"""How the service connects: the same bounds on waiting for its own tables and for Optuna's.

On PostgreSQL nothing waits forever. A process that was stopped in the middle of a transaction holds its
row locks for no longer than a lease lasts, and those that wait for them give up a little later. A peer that
vanished is noticed within half a minute. Options in the database's URL win over these.
"""

from __future__ import annotations

import sqlite3
from typing import Any

from sqlalchemy import Connection, Engine, ExceptionContext, create_engine, event
from sqlalchemy.engine import make_url

from service.settings import SQLITE_BUSY_SECONDS, Settings

WRITES = "nightsweep_writes"
"""Execution option of an engine whose transactions write: on SQLite they take the write lock at once."""

_CONNECT_SECONDS = 10
_POOL_SECONDS = 15.0
"""How long a thread waits for one of the pool's connections, of which there are 15. It is an outage then."""
KEPT_OPEN = {"pool_size": 15, "max_overflow": 0}
"""Options of an engine on which many read at the same time: the pool opens a connection once, while it would
close all but 5 whenever they are idle. PostgreSQL takes longer to open one than to answer a query."""
_KEEPALIVE_IDLE_SECONDS = 10
_KEEPALIVE_INTERVAL_SECONDS = 5
_KEEPALIVE_COUNT = 3
_UNACKNOWLEDGED_MS = 25_000  # what three unanswered keepalives add up to, for data in flight
_LOCK_MARGIN_SECONDS = 5.0


def engine_options(url: str, settings: Settings, *, application: str) -> dict[str, Any]:
    """Keyword arguments of `create_engine` for one of the two databases.

    Args:
        url: the database's.
        settings: `lease_seconds` bounds how long a transaction may stay idle.
        application: what PostgreSQL's `pg_stat_activity` calls the connections.
    """
    if make_url(url).get_backend_name() == "sqlite":
        arguments = {"timeout": SQLITE_BUSY_SECONDS, "check_same_thread": False}
        return {"pool_timeout": _POOL_SECONDS, "connect_args": arguments}
    return {
        "pool_timeout": _POOL_SECONDS,
        "pool_pre_ping": True,
        "connect_args": _postgresql(url, settings, application),
    }


def open_engine(url: str, settings: Settings, *, application: str, **options: Any) -> Engine:
    """An engine for one of the two databases, on which a transaction begins when SQLAlchemy says so.

    Further `options` are `create_engine`'s.
    """
    engine = create_engine(url, **engine_options(url, settings, application=application), **options)
    if engine.dialect.name == "sqlite":
        event.listen(engine, "connect", _set_up_sqlite)
        event.listen(engine, "begin", _begin_sqlite)
        event.listen(engine, "handle_error", _reopen_read_only)
    return engine


def _set_up_sqlite(connection: Any, _record: object) -> None:
    connection.isolation_level = None  # the driver begins no transaction by itself; `_begin_sqlite` does
    connection.execute("PRAGMA synchronous=NORMAL")  # in WAL mode safe against a crash of the process
    connection.execute("PRAGMA foreign_keys=ON")


def _reopen_read_only(context: ExceptionContext) -> None:
    """Drop connections that were opened while the file could not be written: they stay read-only forever."""
    error = context.original_exception
    if getattr(error, "sqlite_errorcode", 0) & 0xFF == sqlite3.SQLITE_READONLY:
        context.is_disconnect = True


def _begin_sqlite(connection: Connection) -> None:
    writes = connection.get_execution_options().get(WRITES, False)
    connection.exec_driver_sql("BEGIN IMMEDIATE" if writes else "BEGIN")


def _postgresql(url: str, settings: Settings, application: str) -> dict[str, Any]:
    given = make_url(url).query
    still_ms = round(max(1.0, settings.lease_seconds) * 1000)
    lock_ms = round((max(1.0, settings.lease_seconds) + _LOCK_MARGIN_SECONDS) * 1000)
    ours = {
        "application_name": application,
        "connect_timeout": _CONNECT_SECONDS,
        "keepalives": 1,
        "keepalives_idle": _KEEPALIVE_IDLE_SECONDS,
        "keepalives_interval": _KEEPALIVE_INTERVAL_SECONDS,
        "keepalives_count": _KEEPALIVE_COUNT,
        "tcp_user_timeout": _UNACKNOWLEDGED_MS,
    }
    theirs = given.get("options", ())
    bounds = [f"-cidle_in_transaction_session_timeout={still_ms}", f"-clock_timeout={lock_ms}"]
    # Of two values for one setting the server takes the later.
    options = " ".join([*bounds, *((theirs,) if isinstance(theirs, str) else theirs)])
    return {**{name: value for name, value in ours.items() if name not in given}, "options": options}
