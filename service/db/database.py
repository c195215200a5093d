"""The service's database: engine, transactions and clock, on SQLite and PostgreSQL alike."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import datetime
from typing import Any, TypeVar

from sqlalchemy import Engine, FunctionElement, select
from sqlalchemy.ext.compiler import compiles
from sqlalchemy.orm import Session, sessionmaker
from tenacity import (
    Retrying,
    retry_if_exception,
    retry_if_exception_type,
    stop_after_attempt,
    stop_after_delay,
    wait_random_exponential,
)

from service.db.column_types import UtcDateTime
from service.db.connections import KEPT_OPEN, WRITES, open_engine
from service.db.errors import is_transient
from service.home_folder import make_home
from service.settings import Settings

_RETRYING = Retrying(
    retry=retry_if_exception_type(Exception) & retry_if_exception(is_transient),
    stop=stop_after_attempt(10) | stop_after_delay(30.0),  # seconds; SQLite's busy timeout alone is longer
    wait=wait_random_exponential(multiplier=0.01, max=1.0),  # full jitter: those who met once part ways
    reraise=True,
)

T = TypeVar("T")


@dataclass(frozen=True)
class Database:
    """Its two kinds of transaction, each with connections of its own: writers that wait for a lock must not
    keep readers waiting. Close it with `dispose()`."""

    engine: Engine
    """The readers'."""
    writing: Engine
    writer: sessionmaker[Session]
    """Makes the sessions of writing transactions. `write` and `transact` are for working with them."""
    _reader: sessionmaker[Session]

    @contextmanager
    def read(self) -> Iterator[Session]:
        """Only reads; never waits for a writer.

        On SQLite all of it is of one moment. On PostgreSQL each query is of the moment when it begins, as in
        a transaction (READ COMMITTED), but there is none, which saves two round trips.
        """
        with self._reader() as session:
            yield session

    @contextmanager
    def write(self) -> Iterator[Session]:
        """One transaction that writes: committed at the end, rolled back on any error.

        On SQLite it takes the write lock at its start. A deferred transaction that reads first and
        writes later cannot wait for another writer (its snapshot is stale) and fails at once, whatever
        the busy timeout is.
        """
        with self.writer.begin() as session:
            yield session

    def transact(self, work: Callable[[Session], T]) -> T:
        """Do some work in a writing transaction, and again from its start when others got in its way.

        Serialization failures, deadlocks and locked files are retried here and nowhere else
        (`is_transient`), after a random pause that doubles; at last the error is raised.

        Args:
            work: reads and writes by the session that it is given. It may be run more than once, so it
                changes nothing but the database; what it returns is of the run that was committed.
        """

        def once() -> T:
            with self.write() as session:
                return work(session)

        return _RETRYING(once)

    def dispose(self) -> None:
        self.engine.dispose()
        self.writing.dispose()


def open_database(settings: Settings) -> Database:
    """Make the engines and the session factories. Nothing is read yet."""
    engine, writing = make_engine(settings, **KEPT_OPEN), make_engine(settings)
    return Database(
        engine=engine,
        writing=writing,
        writer=sessionmaker(writing.execution_options(**{WRITES: True}), expire_on_commit=False),
        _reader=sessionmaker(_reading(engine), expire_on_commit=False),
    )


def _reading(engine: Engine) -> Engine:
    sqlite = engine.dialect.name == "sqlite"
    return engine if sqlite else engine.execution_options(isolation_level="AUTOCOMMIT")


def make_engine(settings: Settings, **options: Any) -> Engine:
    """The engine of the service's tables. On SQLite: a busy timeout, foreign keys, explicit transactions.

    Further `options` are `create_engine`'s.
    """
    make_home(settings)
    options["json_serializer"] = _dumps
    return open_engine(settings.database_url, settings, application="nightsweep", **options)


def _dumps(value: Any) -> str:
    """JSON that PostgreSQL takes: it has no infinity, which a perplexity can be; that becomes null."""
    return json.dumps(_finite(value), allow_nan=False)


def _finite(value: Any) -> Any:
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, Mapping):
        return {key: _finite(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(item) for item in value]
    return value


class Clock(FunctionElement[datetime]):
    """The present by the database's clock, in UTC, within a statement: when it runs, not when its transaction
    began."""

    type = UtcDateTime()
    name = "clock"
    inherit_cache = True


@compiles(Clock, "sqlite")
def _in_sqlite(*_: Any, **__: Any) -> str:
    return "strftime('%Y-%m-%d %H:%M:%f', 'now')"  # as columns hold times, but to the millisecond


@compiles(Clock, "postgresql")
def _in_postgresql(*_: Any, **__: Any) -> str:
    return "clock_timestamp()"


_NOW = select(Clock())


def database_now(session: Session) -> datetime:
    """The present by the database's clock, in UTC: the one clock that all coordinators share."""
    return session.scalars(_NOW).one()
