"""A database that is locked for a while is still read, and the health check needs nothing of it."""

from __future__ import annotations

import sqlite3
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor, wait
from contextlib import ExitStack, closing, contextmanager
from typing import Any

import httpx
import psycopg
import pytest
from sqlalchemy import event, text
from sqlalchemy.exc import OperationalError
from starlette.testclient import TestClient

from service.app import create_app
from service.db import connections
from service.db.database import Database
from service.db.errors import disk_trouble
from service.rest import dependencies
from service.settings import Settings
from tests.support.service.api import LOCAL, expect_problem

WRITERS = 45
"""More than there are database connections, and than requests that may change something at once."""
Make = Callable[..., dict[str, Any]]


@contextmanager
def locked(settings: Settings) -> Iterator[None]:
    """Nobody else can write to the table of studies meanwhile."""
    with ExitStack() as stack:
        if settings.database_url.startswith("sqlite"):
            path = settings.home / "nightsweep.db"
            raw = stack.enter_context(closing(sqlite3.connect(path, isolation_level=None)))
            raw.execute("BEGIN EXCLUSIVE")
        else:
            url = settings.database_url.replace("+psycopg", "")
            guard = stack.enter_context(psycopg.connect(url))
            guard.execute("LOCK TABLE studies, idempotency_keys IN EXCLUSIVE MODE")
        yield


def test_a_locked_database_is_read_while_writers_wait(
    client: TestClient, settings: Settings, definition: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(dependencies, "CHANGE_SECONDS", 0.5)
    with ThreadPoolExecutor(WRITERS) as pool, locked(settings):
        answers: list[Future[httpx.Response]] = [
            pool.submit(client.post, "/v1/studies", json=definition(name=f"s{number}"))
            for number in range(WRITERS)
        ]
        refused = WRITERS - dependencies.MAX_CHANGES
        done, waiting = _first(answers, refused)
        for answer in done:
            assert "32 other changes" in expect_problem(answer.result(), 503)["detail"]
            assert answer.result().headers["Retry-After"] == "5"
        for path in (
            "/healthz",
            "/readyz?exclude=coordinator",
            "/v1/studies",
            "/v1/schedules",
            "/v1/range-tests",
        ):
            assert client.get(path).status_code == 200
        expect_problem(client.get("/v1/studies/s1"), 404)
        assert not any(answer.done() for answer in waiting)
    assert {answer.result().status_code for answer in waiting} == {201}
    assert len(client.get("/v1/studies?limit=100").json()["items"]) == dependencies.MAX_CHANGES


def _first(
    answers: list[Future[httpx.Response]], number: int
) -> tuple[list[Future[httpx.Response]], list[Future[httpx.Response]]]:
    """Those that are answered while the lock is held: so many, and no more."""
    enough = threading.Event()

    def count(_: object) -> None:
        if sum(answer.done() for answer in answers) >= number:
            enough.set()

    for answer in answers:
        answer.add_done_callback(count)
    assert enough.wait(timeout=60)
    done, waiting = wait(answers, timeout=0)
    return list(done), list(waiting)


@pytest.mark.parametrize("backend", ["sqlite"], indirect=True)
def test_writers_that_get_no_connection_are_answered_with_503(
    settings: Settings, definition: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(connections, "_POOL_SECONDS", 0.1)
    with TestClient(create_app(settings), base_url=LOCAL) as client:
        database: Database = client.app.state.resources.database  # type: ignore[attr-defined]
        with ExitStack() as stack:
            for _ in range(15):
                stack.enter_context(database.writing.connect())
            problem = expect_problem(client.post("/v1/studies", json=definition()), 503)
            assert "database does not answer" in problem["detail"]
            assert client.get("/v1/studies").status_code == 200
        assert client.post("/v1/studies", json=definition()).status_code == 201
        with ExitStack() as stack:
            for _ in range(15):
                stack.enter_context(database.engine.connect()).execute(text("SELECT 1"))
            expect_problem(client.get("/v1/studies"), 503)
            assert client.get("/healthz").status_code == 200


@pytest.mark.parametrize("backend", ["sqlite"], indirect=True)
@pytest.mark.parametrize(
    ("pragma", "cause"),
    [
        ("max_page_count = 1", "cannot write: its disk is full; try again"),
        ("query_only = 1", "cannot write: its file is read-only; try again"),
    ],
)
def test_a_database_that_cannot_write_says_why(
    settings: Settings, definition: Make, pragma: str, cause: str
) -> None:
    with TestClient(create_app(settings), base_url=LOCAL) as client:
        database: Database = client.app.state.resources.database  # type: ignore[attr-defined]

        def limit(connection: sqlite3.Connection, *_: object) -> None:
            connection.execute(f"PRAGMA {pragma}")

        database.writing.dispose()
        event.listen(database.writing, "connect", limit)
        answers = [client.post("/v1/studies", json=definition(name=f"s{number}")) for number in range(40)]
        refused = [answer for answer in answers if answer.status_code != 201]
        assert cause in expect_problem(refused[0], 503)["detail"]
        event.remove(database.writing, "connect", limit)
        database.writing.dispose()
        assert client.post("/v1/studies", json=definition()).status_code == 201


@pytest.mark.parametrize(
    ("error", "cause"),
    [
        (psycopg.errors.DiskFull("no space left on device"), "its disk is full"),
        (psycopg.errors.IoError("could not write"), "its disk reports an error"),
        (psycopg.OperationalError("connection refused"), None),
    ],
)
def test_a_server_that_cannot_write_says_why(error: psycopg.Error, cause: str | None) -> None:
    assert disk_trouble(OperationalError("INSERT", {}, error)) == cause
