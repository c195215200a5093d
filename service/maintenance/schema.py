"""The schemas of both databases: made by migrations, and refused when they are of another version."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path

from alembic import command
from alembic.config import Config
from alembic.migration import MigrationContext
from alembic.script import ScriptDirectory
from sqlalchemy import Connection, Engine, func, select, text
from sqlalchemy.orm import Session

from service.db import sqlite_files
from service.db.connections import WRITES
from service.db.database import make_engine, open_database
from service.errors import SchemaOutOfDate
from service.optuna_store.storage import close_storage, create_tables, open_storage
from service.settings import OPTUNA_SCHEMA, Settings
from service.trials.rebuilding import rebuild_all, rebuild_missing

VERSION_TABLE = "nightsweep_alembic_version"
"""Not `alembic_version`: Optuna has a table of that name."""

_UPGRADE_LOCK = 0x6E69676874  # "night": the advisory lock that two concurrent upgrades meet at


def migrations_dir() -> Path:
    """The Alembic scripts: beside the packages in a checkout, inside the package in a wheel."""
    here = Path(__file__).resolve().parents[1]  # the package `service`
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
            if engine.dialect.name == "postgresql":
                connection.execute(text(f"CREATE SCHEMA IF NOT EXISTS {OPTUNA_SCHEMA}"))
                connection.commit()  # Optuna has its own connection, which must see the schema
            create_tables(settings)
            config = _alembic_config()
            config.attributes["connection"] = connection
            # One transaction: tables of this version without their rows would look as if nothing was missing.
            with nullcontext() if connection.in_transaction() else connection.begin():
                command.upgrade(config, "head")
                _fill_trials(connection, settings)
    finally:
        engine.dispose()


def _fill_trials(connection: Connection, settings: Settings) -> None:
    """Make the rows of trials of studies that earlier versions ran."""
    storage = open_storage(settings)
    try:
        with Session(bind=connection, join_transaction_mode="create_savepoint") as session:
            rebuild_missing(session, storage)
            session.commit()
    finally:
        close_storage(storage)


def rebuild_trials(settings: Settings) -> int:
    """Make the rows of trials again where they differ: how many were written. The service may be running."""
    database, storage = open_database(settings), open_storage(settings)
    try:
        return rebuild_all(database, storage)
    finally:
        close_storage(storage)
        database.dispose()


@contextmanager
def _upgrade_lock(engine: Engine) -> Iterator[Connection]:
    if engine.dialect.name == "sqlite":
        url = engine.url.render_as_string(hide_password=False)
        with sqlite_files.exclusive(url):
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


def newest_revision() -> str:
    """The revision of this version's tables."""
    head = ScriptDirectory.from_config(_alembic_config()).get_current_head()
    assert head is not None
    return head


def check_schema(engine: Engine) -> None:
    """Raise `SchemaOutOfDate` unless the service's tables are of exactly this version."""
    with engine.connect() as connection:
        current = _known_revision(connection)
    head = newest_revision()
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
    close_storage(open_storage(settings))
