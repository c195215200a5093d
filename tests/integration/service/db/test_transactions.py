"""Trouble with a database, for real: what is retried, what is waited for, and what is neither."""

from __future__ import annotations

import shutil
import sqlite3
import threading
from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path

import pytest
from optuna.study import StudyDirection
from sqlalchemy import func, select, text, update
from sqlalchemy.engine import make_url
from sqlalchemy.exc import DBAPIError, IntegrityError, PendingRollbackError
from sqlalchemy.orm import Session

from service.db import connections, database
from service.db.database import Database
from service.db.errors import is_outage, is_transient
from service.db.models import Study
from service.maintenance import schema
from service.optuna_store.storage import StorageInternalError, close_storage, open_storage
from service.settings import Settings
from tests.soak.faults.postgres import Postgres


def add_studies(opened: Database, *names: str) -> None:
    with opened.write() as session:
        session.add_all([Study(id=name * 32, name=name, definition={}) for name in names])


def numbers(opened: Database) -> dict[str, int]:
    with opened.read() as session:
        return {study.name: study.lease_number for study in session.scalars(select(Study))}


def raise_number(session: Session, name: str) -> None:
    session.execute(update(Study).where(Study.name == name).values(lease_number=Study.lease_number + 1))


@pytest.fixture
def no_pauses(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """The pauses between tries, which are not made."""
    pauses: list[float] = []
    monkeypatch.setattr("time.sleep", pauses.append)
    return pauses


@pytest.fixture
def on_postgresql(migrated_postgres: str, tmp_path: Path) -> Iterator[Callable[..., Database]]:
    """Opens the shared PostgreSQL with further options of the server's, which win over the service's."""
    made: list[Database] = []

    def make(**options: object) -> Database:
        words = " ".join(f"-c{name}={value}" for name, value in options.items())
        url = make_url(migrated_postgres).update_query_dict({"options": words} if words else {})
        settings = Settings(home=tmp_path / "home", database_url=url.render_as_string(hide_password=False))
        made.append(database.open_database(settings))
        return made[-1]

    yield make
    with make().write() as session:
        session.execute(text("TRUNCATE studies CASCADE"))
    for opened in made:
        opened.dispose()


# -- retried -----------------------------------------------------------------------------------------


def test_what_is_returned_is_of_the_run_that_was_committed(service_database: Database) -> None:
    runs: list[int] = []

    def work(session: Session) -> int:
        runs.append(len(runs))
        session.add(Study(id=str(len(runs)) * 32, name="a", definition={}))
        session.flush()
        if len(runs) < 3:
            raise_transient(service_database)
        return len(runs)

    assert service_database.transact(work) == 3
    with service_database.read() as session:
        assert session.scalars(select(Study.id)).all() == ["3" * 32]


def raise_transient(opened: Database) -> None:
    """What the driver would say of a lock."""
    if opened.engine.dialect.name == "sqlite":
        error: Exception = sqlite3.OperationalError("database is locked")
        error.sqlite_errorcode = sqlite3.SQLITE_BUSY  # type: ignore[attr-defined]
    else:
        from psycopg.errors import SerializationFailure

        error = SerializationFailure("could not serialize access")
    raise DBAPIError("UPDATE", {}, error)


def test_it_gives_up_after_ten_tries_with_pauses_that_grow(
    service_database: Database, no_pauses: list[float]
) -> None:
    runs: list[int] = []

    def work(_: Session) -> None:
        runs.append(0)
        raise_transient(service_database)

    with pytest.raises(DBAPIError) as raised:
        service_database.transact(work)
    assert is_transient(raised.value)
    assert len(runs) == 10
    assert len(no_pauses) == 9
    assert all(0.0 <= pause <= min(1.0, 0.01 * 2**n) for n, pause in enumerate(no_pauses))


def test_a_mistake_is_not_made_twice(service_database: Database) -> None:
    add_studies(service_database, "a")
    runs: list[int] = []

    def work(session: Session) -> None:
        runs.append(0)
        session.add(Study(id="b" * 32, name="a", definition={}))

    with pytest.raises(IntegrityError) as raised:
        service_database.transact(work)
    assert len(runs) == 1
    assert not is_transient(raised.value)
    assert not is_outage(raised.value)


def test_a_serialization_failure_is_retried(on_postgresql: Callable[..., Database]) -> None:
    opened = on_postgresql(default_transaction_isolation="serializable")
    add_studies(opened, "a")
    runs: list[int] = []

    def work(session: Session) -> None:
        runs.append(0)
        seen = session.scalars(select(Study)).one()
        if len(runs) == 1:
            opened.transact(lambda other: raise_number(other, "a"))
        seen.lease_number += 1

    opened.transact(work)
    assert len(runs) == 2
    assert numbers(opened) == {"a": 2}


def test_a_deadlock_is_retried(
    on_postgresql: Callable[..., Database], monkeypatch: pytest.MonkeyPatch
) -> None:
    opened = on_postgresql(deadlock_timeout="50ms")
    add_studies(opened, "a", "b")
    both_hold_one = threading.Barrier(2, timeout=30)
    one_has_ended = threading.Event()
    runs: list[str] = []
    pauses: list[bool] = []

    def pause(_: float) -> None:
        # By itself the pause is random, and a victim that comes back before the other has woken up takes
        # its row again, and meets it again.
        pauses.append(one_has_ended.wait(30))

    def work(first: str, second: str) -> None:
        met = False

        def transfer(session: Session) -> None:
            nonlocal met
            runs.append(first)
            raise_number(session, first)
            if not met:
                met = True
                both_hold_one.wait()
            raise_number(session, second)

        opened.transact(transfer)
        one_has_ended.set()

    monkeypatch.setattr("time.sleep", pause)
    threads = [threading.Thread(target=work, args=pair) for pair in (("a", "b"), ("b", "a"))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(timeout=60)
    assert pauses == [True]  # one of the two was the victim, once
    assert len(runs) == 3
    assert numbers(opened) == {"a": 2, "b": 2}


def test_a_lock_that_is_waited_for_too_long_is_tried_for_again(
    on_postgresql: Callable[..., Database], monkeypatch: pytest.MonkeyPatch
) -> None:
    opened, other = on_postgresql(lock_timeout="20ms"), on_postgresql()
    add_studies(opened, "a")
    with other.engine.connect() as holder:
        holder.execute(text("SELECT * FROM studies FOR UPDATE"))
        monkeypatch.setattr("time.sleep", lambda _: holder.rollback())
        opened.transact(lambda session: raise_number(session, "a"))
    assert numbers(opened) == {"a": 1}


def test_one_that_slept_within_a_transaction_starts_it_again(on_postgresql: Callable[..., Database]) -> None:
    """Its row locks are gone by then: the server ended its connection."""
    opened, other = on_postgresql(idle_in_transaction_session_timeout="50ms"), on_postgresql()
    add_studies(opened, "a")
    runs: list[int] = []

    def work(session: Session) -> None:
        runs.append(0)
        raise_number(session, "a")
        if len(runs) == 1:
            other.transact(lambda meanwhile: raise_number(meanwhile, "a"))  # waits for the row lock
            raise_number(session, "a")

    opened.transact(work)
    assert len(runs) == 2
    assert numbers(opened) == {"a": 2}


def test_a_sqlite_file_that_is_locked_for_too_long_is_tried_again(
    migrated_sqlite: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(connections, "SQLITE_BUSY_SECONDS", 0.01)
    home = tmp_path / "home"
    shutil.copytree(migrated_sqlite, home)
    opened = database.open_database(Settings(home=home))
    add_studies(opened, "a")
    with closing(sqlite3.connect(home / "nightsweep.db", isolation_level=None)) as holder:
        holder.execute("BEGIN IMMEDIATE")
        with pytest.raises(DBAPIError) as raised, opened.write() as session:
            session.execute(select(1))
        assert is_transient(raised.value)
        monkeypatch.setattr("time.sleep", lambda _: holder.in_transaction and holder.rollback())
        opened.transact(lambda session: raise_number(session, "a"))
    assert numbers(opened) == {"a": 1}
    opened.dispose()


def test_a_locked_storage_of_optunas_is_known_as_such(
    migrated_sqlite: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(connections, "SQLITE_BUSY_SECONDS", 0.01)
    home = tmp_path / "home"
    shutil.copytree(migrated_sqlite, home)
    storage = open_storage(Settings(home=home))
    with closing(sqlite3.connect(home / "optuna.db", isolation_level=None)) as holder:
        holder.execute("BEGIN IMMEDIATE")
        with pytest.raises(StorageInternalError) as raised:
            storage.create_new_study([StudyDirection.MINIMIZE], "a")
        assert is_transient(raised.value)
        assert not is_outage(raised.value)
    close_storage(storage)


# -- waited for --------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def server() -> Iterator[Postgres]:
    """A PostgreSQL that may be stopped."""
    with Postgres() as started:
        yield started


def test_a_server_that_stops_and_starts_is_an_outage_and_then_none(server: Postgres, tmp_path: Path) -> None:
    settings = Settings(home=tmp_path / "home", database_url=server.new_database())
    schema.upgrade(settings)
    opened, storage = database.open_database(settings), open_storage(settings)
    add_studies(opened, "a")
    storage.create_new_study([StudyDirection.MINIMIZE], "a")
    runs: list[int] = []

    def work(session: Session) -> None:
        runs.append(0)
        raise_number(session, "a")
        server.stop()
        raise_number(session, "a")

    errors: list[BaseException] = []
    for attempt in (
        lambda: opened.transact(work),  # cut in the middle
        lambda: opened.transact(lambda session: raise_number(session, "a")),  # refused
        lambda: storage.create_new_study([StudyDirection.MINIMIZE], "b"),
        lambda: open_storage(settings),
    ):
        with pytest.raises(Exception) as raised:  # noqa: PT011  (what it is, is the question)
            attempt()
        errors.append(raised.value)
    assert [is_outage(error) for error in errors] == [True] * 4
    assert [is_transient(error) for error in errors] == [False] * 4
    assert len(runs) == 1  # not repeated: whether it was committed is not known
    server.start()
    opened.transact(lambda session: raise_number(session, "a"))
    storage.create_new_study([StudyDirection.MINIMIZE], "b")
    assert numbers(opened) == {"a": 1}
    assert sorted(study.study_name for study in storage.get_all_studies()) == ["a", "b"]
    close_storage(storage)
    opened.dispose()


def test_a_connection_that_is_ended_from_outside_is_an_outage(on_postgresql: Callable[..., Database]) -> None:
    opened, other = on_postgresql(), on_postgresql()

    def work(session: Session) -> None:
        pid = session.scalar(select(func.pg_backend_pid()))
        with other.read() as outside:
            outside.execute(select(func.pg_terminate_backend(pid)))
        session.execute(select(1))

    with pytest.raises(DBAPIError) as raised:
        opened.transact(work)
    assert is_outage(raised.value)
    opened.transact(lambda session: session.execute(select(1)).one())


def test_the_second_use_of_a_connection_that_was_lost_is_an_outage(
    on_postgresql: Callable[..., Database],
) -> None:
    """Optuna tries another query when one has failed; what it then raises says no word of the connection."""
    opened, other = on_postgresql(), on_postgresql()

    def work(session: Session) -> None:
        pid = session.scalar(select(func.pg_backend_pid()))
        with other.read() as outside:
            outside.execute(select(func.pg_terminate_backend(pid)))
        with pytest.raises(DBAPIError):
            session.execute(select(1))
        session.execute(select(1))

    with pytest.raises(PendingRollbackError) as raised:
        opened.transact(work)
    assert is_outage(raised.value)
    opened.transact(lambda session: session.execute(select(1)).one())


def test_a_full_disk_is_an_outage(migrated_sqlite: Path, tmp_path: Path) -> None:
    home = tmp_path / "home"
    shutil.copytree(migrated_sqlite, home)
    opened = database.open_database(Settings(home=home))
    with opened.writing.connect() as connection:
        pages = connection.exec_driver_sql("PRAGMA page_count").scalar()
        connection.exec_driver_sql(f"PRAGMA max_page_count={pages}")  # of this connection, which is reused
    with pytest.raises(DBAPIError, match="full") as raised:
        opened.transact(lambda session: session.add(Study(id="a", name="a", definition={"x": "y" * 100_000})))
    assert is_outage(raised.value)
    opened.dispose()


def test_a_folder_that_vanished_is_an_outage(migrated_sqlite: Path, tmp_path: Path) -> None:
    home = tmp_path / "home"
    shutil.copytree(migrated_sqlite, home)
    opened = database.open_database(Settings(home=home))
    home.rename(tmp_path / "away")
    with pytest.raises(DBAPIError) as raised:
        numbers(opened)
    assert is_outage(raised.value)
    (tmp_path / "away").rename(home)
    assert numbers(opened) == {}
    opened.dispose()


def test_other_errors_are_neither() -> None:
    for error in (ValueError("x"), sqlite3.OperationalError("no such table: studies"), KeyError("x")):
        assert not is_transient(error)
        assert not is_outage(error)
