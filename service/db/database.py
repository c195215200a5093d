"""The service's database: engine, transactions, clock and schema, on SQLite and PostgreSQL alike."""

from __future__ import annotations

import json
import math
import random
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, TypeVar

from alembic import command
from alembic.config import Config
from alembic.migration import MigrationContext
from alembic.script import ScriptDirectory
from sqlalchemy import Connection, Engine, func, select, text
from sqlalchemy.orm import Session, sessionmaker

from service import optuna_store
from service.db import sqlite_files
from service.db.connections import WRITES, open_engine
from service.db.errors import is_outage as is_outage
from service.db.errors import is_transient as is_transient
from service.errors import SchemaOutOfDate
from service.home_folder import make_home
from service.settings import OPTUNA_SCHEMA, Settings

VERSION_TABLE = "nightsweep_alembic_version"
"""Not `alembic_version`: Optuna has a table of that name."""

_UPGRADE_LOCK = 0x6E69676874  # "night": the advisory lock that two concurrent upgrades meet at

_TRIES = 10
_TRY_SECONDS = 30.0  # no further try after this; SQLite's busy timeout alone is longer
_FIRST_PAUSE_SECONDS = 0.01
_LONGEST_PAUSE_SECONDS = 1.0

T = TypeVar("T")


@dataclass(frozen=True)
class Database:
    """Its two kinds of transaction, each with connections of its own: writers that wait for a lock must not
    keep readers waiting. Close it with `dispose()`."""

    engine: Engine
    """The readers'."""
    writing: Engine
    _reader: sessionmaker[Session]
    _writer: sessionmaker[Session]

    @contextmanager
    def read(self) -> Iterator[Session]:
        """One transaction that only reads; never waits for a writer."""
        with self._reader() as session:
            yield session

    @contextmanager
    def write(self) -> Iterator[Session]:
        """One transaction that writes: committed at the end, rolled back on any error.

        On SQLite it takes the write lock at its start. A deferred transaction that reads first and
        writes later cannot wait for another writer (its snapshot is stale) and fails at once, whatever
        the busy timeout is.
        """
        with self._writer.begin() as session:
            yield session

    def transact(self, work: Callable[[Session], T]) -> T:
        """Do some work in a writing transaction, and again from its start when others got in its way.

        Serialization failures, deadlocks and locked files are retried here and nowhere else
        (`is_transient`), after a random pause that doubles; at last the error is raised.

        Args:
            work: reads and writes by the session that it is given. It may be run more than once, so it
                changes nothing but the database; what it returns is of the run that was committed.
        """
        give_up_at = time.monotonic() + _TRY_SECONDS
        pause = _FIRST_PAUSE_SECONDS
        for left in reversed(range(_TRIES)):
            try:
                with self.write() as session:
                    return work(session)
            except Exception as error:
                if left == 0 or time.monotonic() > give_up_at or not is_transient(error):
                    raise
            # Full jitter: those who met once do not meet again.
            time.sleep(random.uniform(0.0, pause))
            pause = min(2 * pause, _LONGEST_PAUSE_SECONDS)
        raise AssertionError("the last try returns or raises")

    def dispose(self) -> None:
        self.engine.dispose()
        self.writing.dispose()


def open_database(settings: Settings) -> Database:
    """Make the engines and the session factories. Nothing is read yet; see `check_schema`."""
    engine, writing = make_engine(settings), make_engine(settings)
    return Database(
        engine=engine,
        writing=writing,
        _reader=sessionmaker(engine, expire_on_commit=False),
        _writer=sessionmaker(writing.execution_options(**{WRITES: True}), expire_on_commit=False),
    )


def make_engine(settings: Settings) -> Engine:
    """The engine of the service's tables. On SQLite: a busy timeout, foreign keys, explicit transactions."""
    make_home(settings)
    return open_engine(settings.database_url, settings, application="nightsweep", json_serializer=_dumps)


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


def database_now(session: Session) -> datetime:
    """The present by the database's clock, in UTC: the one clock that all coordinators share."""
    if session.get_bind().dialect.name == "sqlite":
        now = session.scalar(select(func.strftime("%Y-%m-%dT%H:%M:%f", "now")))
        return datetime.fromisoformat(str(now)).replace(tzinfo=UTC)
    present: datetime = session.scalars(
        select(func.clock_timestamp())
    ).one()  # now() is the transaction's start
    return present.astimezone(UTC)


# -- schema ------------------------------------------------------------------------------------------


def migrations_dir() -> Path:
    """The Alembic scripts: beside the packages in a checkout, inside the package in a wheel."""
    here = Path(__file__).resolve().parents[1]
    for folder in (here / "_migrations", here.parent / "migrations"):
        if (folder / "env.py").is_file():
            return folder
    raise SchemaOutOfDate(
        f"The migrations are missing from this installation (looked in {here / '_migrations'} and "
        f"{here.parent / 'migrations'}). Install nightsweep again."
    )


def _alembic_config() -> Config:
    config = Config()
    config.set_main_option("script_location", str(migrations_dir()).replace("%", "%%"))
    config.set_main_option("path_separator", "os")
    return config


def upgrade(settings: Settings) -> None:
    """Bring both schemas, the service's and Optuna's, to this version. Safe to run twice at once.

    Killed in the middle, it leaves the schema that was there; run again, it ends right.

    Raises:
        SchemaOutOfDate: a newer version upgraded one of them.
    """
    engine = make_engine(settings)
    try:
        with _upgrade_lock(engine) as connection:
            _known_revision(connection)
            config = _alembic_config()
            config.attributes["connection"] = connection
            command.upgrade(config, "head")
            if engine.dialect.name == "postgresql":
                connection.execute(text(f"CREATE SCHEMA IF NOT EXISTS {OPTUNA_SCHEMA}"))
                connection.commit()  # Optuna has its own connection, which must see the schema
            optuna_store.create_tables(settings)
    finally:
        engine.dispose()


@contextmanager
def _upgrade_lock(engine: Engine) -> Iterator[Connection]:
    if engine.dialect.name == "sqlite":
        url = engine.url.render_as_string(hide_password=False)
        with sqlite_files.alone(url):
            sqlite_files.use_write_ahead_log(url)
            with engine.execution_options(**{WRITES: True}).connect() as connection:
                # Alembic changes a table by dropping it for a copy, and its rows' dependants would go along.
                # The pragma does nothing within a transaction, so it comes before one.
                connection.connection.cursor().execute("PRAGMA foreign_keys=OFF")
                with connection.begin():
                    yield connection
                    broken = connection.exec_driver_sql("PRAGMA foreign_key_check").first()
                    if broken is not None:
                        raise RuntimeError(f"the upgrade would leave a row without its parent: {broken}")
                connection.connection.cursor().execute("PRAGMA foreign_keys=ON")
        return
    with engine.connect() as guard, engine.connect() as connection:
        guard.execute(text("SET lock_timeout = 0"))  # another upgrade may take its time
        guard.execute(select(func.pg_advisory_lock(_UPGRADE_LOCK)))
        guard.commit()  # the lock is the session's; a transaction that stands still would be ended
        try:
            yield connection
            connection.commit()
        finally:
            guard.execute(select(func.pg_advisory_unlock(_UPGRADE_LOCK)))
            guard.commit()


def check_schema(engine: Engine) -> None:
    """Raise `SchemaOutOfDate` unless the service's tables are of exactly this version."""
    with engine.connect() as connection:
        current = _known_revision(connection)
    head = ScriptDirectory.from_config(_alembic_config()).get_current_head()
    if current == head:
        return
    where = engine.url.render_as_string(hide_password=True)
    if current is None:
        raise SchemaOutOfDate(f"The database {where} has no Nightsweep tables. Run `nightsweep db upgrade`.")
    raise SchemaOutOfDate(
        f"The database {where} is at revision {current}; this version needs {head}. "
        "Run `nightsweep db upgrade`."
    )


def _known_revision(connection: Connection) -> str | None:
    """The schema's revision; None before the first. Raises `SchemaOutOfDate` for an unknown one."""
    context = MigrationContext.configure(connection, opts={"version_table": VERSION_TABLE})
    current = context.get_current_revision()
    script = ScriptDirectory.from_config(_alembic_config())
    if current is not None and current not in {one.revision for one in script.walk_revisions()}:
        where = connection.engine.url.render_as_string(hide_password=True)
        raise SchemaOutOfDate(
            f"The database {where} is at revision {current}, which this version of Nightsweep does not know: "
            "a newer one upgraded it. Install that version."
        )
    return current


def check_schemas(settings: Settings) -> None:
    """Raise `SchemaOutOfDate` unless the service's tables and Optuna's are of exactly this version."""
    engine = make_engine(settings)
    try:
        check_schema(engine)
    finally:
        engine.dispose()
    optuna_store.close_storage(optuna_store.open_storage(settings))
