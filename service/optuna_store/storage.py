"""Opening, checking and closing Optuna's storage, and making its tables."""

from __future__ import annotations

from typing import Any, ClassVar

import optuna
from optuna.storages import RDBStorage
from sqlalchemy import Engine, create_engine, event, inspect, select
from sqlalchemy.engine import make_url

from service.db import sqlite_files
from service.db.connections import engine_options
from service.errors import SchemaOutOfDate
from service.home_folder import make_home
from service.optuna_store import fences
from service.settings import Settings

StorageInternalError = optuna.exceptions.StorageInternalError


class Storage(RDBStorage):
    """What `open_storage` gives: for those who must not know Optuna.

    The versions that the installed Optuna knows are read once in a process, because each time it loads all of
    its migrations; the dashboard asks for them at every page.
    """

    _versions: ClassVar[tuple[str, ...]] = ()
    """The newest first; empty before the first question."""

    def get_all_versions(self) -> list[str]:
        if not Storage._versions:
            Storage._versions = tuple(super().get_all_versions())
        return list(Storage._versions)

    def get_head_version(self) -> str:
        return self.get_all_versions()[0]


# Optuna logs every trial at INFO to its own handler; the events table already tells that story.
optuna.logging.set_verbosity(optuna.logging.WARNING)


def open_storage(settings: Settings) -> Storage:
    """Open Optuna's storage. Its tables must exist already (`nightsweep db upgrade`).

    Raises:
        SchemaOutOfDate: the tables are missing or of another version of Optuna.
    """
    make_home(settings)
    options = _engine_options(settings)
    # Looked at first: the storage's constructor fails without its tables, and leaves a connection behind.
    engine = create_engine(settings.optuna_url, **options)
    try:
        made = inspect(engine).has_table("version_info")
    finally:
        engine.dispose()
    if not made:
        where = make_url(settings.optuna_url).render_as_string(hide_password=True)
        raise SchemaOutOfDate(f"{where} has no Optuna tables. Run `nightsweep db upgrade`.")
    storage = Storage(
        settings.optuna_url, engine_kwargs=options, skip_compatibility_check=True, skip_table_creation=True
    )
    _tune(storage.engine)
    fences.listen(storage.engine)
    try:
        check_storage(storage)
    except SchemaOutOfDate:
        close_storage(storage)
        raise
    return storage


def check_storage(storage: Storage) -> None:
    """Raise `SchemaOutOfDate` unless the storage answers and is of this version of Optuna."""
    if not _is_of_this_version(storage):
        raise SchemaOutOfDate("Optuna's tables are of another version. Run `nightsweep db upgrade`.")
    with storage.engine.connect() as connection:
        fences_made = fences.is_made(connection)
    if not fences_made:
        raise SchemaOutOfDate("Optuna's storage lacks the table of fences. Run `nightsweep db upgrade`.")


def _is_of_this_version(storage: Storage) -> bool:
    """Raises `SchemaOutOfDate` where no upgrade would help."""
    try:
        current = storage.get_current_version()
    except AssertionError:  # Optuna's way to say that its version table is gone
        return False
    if current not in storage.get_all_versions():
        raise SchemaOutOfDate(
            f"Optuna's tables are at revision {current}, which the Optuna {optuna.__version__} of this "
            "installation does not know: a newer one upgraded them. Install that version."
        )
    return current == storage.get_head_version()


def ping(storage: Storage) -> None:
    """Raise what the database says when it does not answer, or cannot be written to."""
    with fences.writing(storage).begin() as connection:
        connection.execute(select(1))


def create_tables(settings: Settings) -> None:
    """Create or upgrade Optuna's own tables and the table of fences. The caller holds the upgrade's lock.

    Raises:
        SchemaOutOfDate: a newer Optuna upgraded them.
    """
    make_home(settings)
    if make_url(settings.optuna_url).get_backend_name() == "sqlite":
        sqlite_files.use_write_ahead_log(settings.optuna_url)
    storage = Storage(
        settings.optuna_url, engine_kwargs=_engine_options(settings), skip_compatibility_check=True
    )
    try:
        if not _is_of_this_version(storage):
            storage.upgrade()
        fences.create_table(storage.engine)
    finally:
        close_storage(storage)


def close_storage(storage: Storage) -> None:
    """Give back every connection. The storage must not be used afterwards."""
    storage.remove_session()
    storage.engine.dispose()


def remove_session(storage: Storage) -> None:
    """Call this from a thread that ends: Optuna keeps one session, so one connection, per thread."""
    storage.remove_session()


def _engine_options(settings: Settings) -> dict[str, Any]:
    return engine_options(settings.optuna_url, settings, application="nightsweep-optuna")


def _tune(engine: Engine) -> None:
    """On SQLite in WAL mode this is safe against a crash of the process, and commits need not wait."""
    if engine.dialect.name != "sqlite":
        return

    def set_up(connection: Any, _record: object) -> None:
        connection.execute("PRAGMA synchronous=NORMAL")

    event.listen(engine, "connect", set_up)
    engine.dispose()  # the connection that checked the schema was opened without them
