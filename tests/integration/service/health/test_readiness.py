"""/readyz names the part that is missing, on both databases, and costs little."""

from __future__ import annotations

import asyncio
import contextlib
import os
import shutil
import stat
import subprocess
import threading
import zipfile
from collections.abc import Iterator
from datetime import timedelta
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from sqlalchemy import select
from sqlalchemy.exc import OperationalError
from starlette.testclient import TestClient

from service import home_folder
from service.app import create_app
from service.coordinator import outages
from service.coordinator.chores.signs_of_life import ALIVE_FILE
from service.coordinator.loop import Coordinator
from service.db.database import Database, database_now, open_database
from service.db.errors import is_outage
from service.db.models import Coordinator as CoordinatorRow
from service.devices import heartbeats
from service.health import readiness
from service.health.readiness import Part, ReadinessCheck
from service.maintenance import backup
from service.maintenance.schema import upgrade
from service.optuna_store.storage import close_storage, open_storage
from service.settings import Settings
from tests.support.fakes.cluster import FakeCluster
from tests.support.service.api import LOCAL, database_away, expect_problem, on_sqlite


@pytest.fixture(autouse=True)
def fresh(monkeypatch: pytest.MonkeyPatch) -> None:
    """Every question is answered anew, however busy the machine is."""
    monkeypatch.setattr(readiness, "CACHE_SECONDS", 0.0)
    monkeypatch.setattr(readiness, "ANSWER_SECONDS", 120.0)


def missing(client: TestClient) -> dict[str, str]:
    """The parts that are not ready, and what is said of them."""
    problem = expect_problem(client.get("/readyz"), 503)
    assert problem["title"] == "Not ready"
    for fault in problem["faults"]:
        assert f"{fault['path']}: {fault['message']}" in problem["detail"]
    return {fault["path"]: fault["message"] for fault in problem["faults"]}


def beat(database: Database, owner: str = "one", trouble: str | None = None, *, age: float = 0.0) -> None:
    """As if a coordinator had said so many seconds ago that it lives."""
    with database.write() as session:
        heartbeats.beat(session, owner, trouble)
    with database.write() as session:
        row = session.get(CoordinatorRow, owner)
        assert row is not None
        row.seen_at = database_now(session) - timedelta(seconds=age)


def test_ready_means_that_every_part_is(client: TestClient, service_database: Database) -> None:
    beat(service_database)
    answer = client.get("/readyz")
    assert (answer.status_code, answer.json()) == (
        200,
        {"status": "ok", "parts": dict.fromkeys(("database", "optuna", "disk", "coordinator"), "ok")},
    )
    assert client.get("/healthz").json() == {"status": "ok"}


def test_an_api_without_a_coordinator_says_so_and_still_accepts_studies(
    client: TestClient, definition: Any
) -> None:
    assert missing(client) == {"coordinator": "no coordinator is running"}
    answer = client.get("/readyz", params={"exclude": "coordinator"})
    assert (answer.status_code, set(answer.json()["parts"])) == (200, {"database", "optuna", "disk"})
    assert client.post("/v1/studies", json=definition()).status_code == 201


@pytest.mark.parametrize("age", [31.0, 90_000.0, -90_000.0], ids=["killed", "yesterday", "clock set back"])
def test_a_coordinator_that_has_been_silent_is_missing(
    client: TestClient, service_database: Database, age: float
) -> None:
    beat(service_database, age=age)
    words = missing(client)["coordinator"]
    assert words.startswith("no coordinator has written to the database since 20")
    beat(service_database, "another")
    assert client.get("/readyz").status_code == 200


def test_a_coordinator_that_cannot_work_says_why(client: TestClient, service_database: Database) -> None:
    full = "the coordinator's home folder cannot be written: No space left on device"
    beat(service_database, trouble=full)
    assert missing(client) == {"coordinator": full}
    beat(service_database, "a healthy one")
    assert client.get("/readyz").status_code == 200


def test_parts_that_are_unknown_are_refused(client: TestClient) -> None:
    problem = expect_problem(client.get("/readyz", params={"exclude": "coordinators"}), 422)
    assert problem["faults"][0]["nearest"] == "coordinator"


@on_sqlite
@pytest.mark.parametrize(
    ("error", "words"),
    [
        (OSError(28, "No space left on device"), "No space left on device"),
        (OSError(30, "Read-only file system"), "Read-only file system"),
        (OSError(5, "Input/output error"), "Input/output error"),
    ],
)
def test_a_home_that_cannot_be_written_is_named_and_logged_once(
    client: TestClient,
    service_database: Database,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
    error: OSError,
    words: str,
) -> None:
    def refuse(*_: object, **__: object) -> None:
        raise error

    with monkeypatch.context() as broken:
        broken.setattr(home_folder, "open", refuse, raising=False)
        for _ in range(20):
            beat(service_database)
            assert missing(client) == {"disk": f"the databases' folder cannot be written: {words}"}
    assert len([record for record in caplog.records if "not ready: disk" in record.message]) == 1
    beat(service_database)
    assert client.get("/readyz").status_code == 200


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A real file system of a few megabytes."""
    folder = tmp_path / "disk"
    folder.mkdir()
    mounted = shutil.which("mount") is not None and os.geteuid() == 0
    if mounted:
        command = ["mount", "-t", "tmpfs", "-o", "size=4m,mode=700", "none", str(folder)]
        mounted = subprocess.run(command, check=False, capture_output=True).returncode == 0
    if not mounted:
        pytest.skip("this user may not mount a file system")
    yield folder
    subprocess.run(["umount", str(folder)], check=True)


def fill(folder: Path) -> Path:
    """Leave no byte free."""
    path = folder / "filler"
    with path.open("wb", buffering=0) as file, contextlib.suppress(OSError):
        while True:
            file.write(bytes(4096))
    return path


def test_a_full_file_system_is_named_and_forgotten_when_there_is_room(small_disk: Path) -> None:
    settings = Settings(home=small_disk / "home")
    upgrade(settings)
    with TestClient(create_app(settings), base_url=LOCAL) as client:
        database: Database = client.app.state.resources.database  # type: ignore[attr-defined]
        beat(database)
        assert client.get("/readyz").status_code == 200
        filler = fill(small_disk)
        assert missing(client) == {"disk": "the databases' folder cannot be written: No space left on device"}
        filler.unlink()
        assert client.get("/readyz").status_code == 200


@on_sqlite
def test_answers_are_given_again_and_a_check_that_hangs_keeps_nobody_waiting(
    settings: Settings, service_database: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(readiness, "CACHE_SECONDS", 60.0)
    storage: Any = SimpleNamespace()
    check = ReadinessCheck(settings, service_database, storage)
    monkeypatch.setattr(check, "_optuna_trouble", lambda: None)
    asked = 0

    def count() -> None:
        nonlocal asked
        asked += 1

    monkeypatch.setattr(check, "_database_trouble", count)

    async def ask(times: int) -> list[dict[Part, str | None]]:
        return await asyncio.gather(*(check.troubles() for _ in range(times)))

    answers = asyncio.run(ask(50))
    answers += asyncio.run(ask(50))
    assert (asked, len(answers)) == (1, 100)
    assert all(answer == answers[0] for answer in answers)

    monkeypatch.setattr(readiness, "CACHE_SECONDS", 0.0)
    monkeypatch.setattr(readiness, "ANSWER_SECONDS", 0.05)
    release = threading.Event()
    monkeypatch.setattr(check, "_database_trouble", release.wait)

    async def ask_while_it_hangs() -> list[dict[Part, str | None]]:
        try:
            return await asyncio.gather(*(check.troubles() for _ in range(50)))
        finally:
            release.set()

    assert {answer[Part.DATABASE] for answer in asyncio.run(ask_while_it_hangs())} == {
        "no answer within 0.05 s"
    }
    check.close()


# -- the coordinator ------------------------------------------------------------------------------------


@pytest.fixture
def coordinator(settings: Settings, service_database: Database) -> Iterator[Coordinator]:
    storage = open_storage(settings)
    yield Coordinator(settings, service_database, storage, FakeCluster(cpus=2))
    close_storage(storage)


def rows(database: Database) -> list[CoordinatorRow]:
    with database.read() as session:
        return list(session.scalars(select(CoordinatorRow)))


def test_a_coordinator_beats_from_its_first_round_to_its_end(
    coordinator: Coordinator, client: TestClient, service_database: Database
) -> None:
    beat(service_database, "one of last week", age=7 * 86_400)
    coordinator.round()
    assert client.get("/readyz").status_code == 200
    assert [row.owner for row in rows(service_database)] == [coordinator.owner]
    coordinator.hand_back()
    assert missing(client) == {"coordinator": "no coordinator is running"}


def test_a_coordinator_whose_home_cannot_be_written_goes_on_and_says_so(
    coordinator: Coordinator,
    settings: Settings,
    service_database: Database,
    caplog: pytest.LogCaptureFixture,
) -> None:
    alive = settings.home / ALIVE_FILE
    alive.mkdir()  # so that it cannot be touched as a file, even by root
    blocked = settings.home / f".writable-{os.getpid()}"
    blocked.mkdir()
    for _ in range(3):
        coordinator._life._beat_at = coordinator._chores_at = 0.0
        coordinator.round()
    (row,) = rows(service_database)
    assert row.trouble is not None
    assert row.trouble.startswith("the coordinator's home folder cannot be written: ")
    assert len([record for record in caplog.records if "cannot be written" in record.message]) <= 2
    blocked.rmdir()
    coordinator._life._beat_at = coordinator._chores_at = 0.0
    coordinator.round()
    assert [row.trouble for row in rows(service_database)] == [None]
    assert stat.S_ISDIR(alive.stat().st_mode)


# -- outages ----------------------------------------------------------------------------------------------


@pytest.fixture
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(outages, "FIRST_PAUSE_SECONDS", 0.001)
    monkeypatch.setattr(outages, "LONGEST_PAUSE_SECONDS", 0.01)


@pytest.mark.usefixtures("impatient")
@on_sqlite
def test_an_outage_that_comes_back_is_logged_once(
    settings: Settings, service_database: Database, caplog: pytest.LogCaptureFixture
) -> None:
    storage = open_storage(settings)
    waiting = outages.Outages(service_database, storage, write=partial(heartbeats.beat, owner="one"))
    for _ in range(20):
        waiting.sit_out(database_away(settings), threading.Event(), lambda: None)
    messages = [record.message for record in caplog.records if record.name == outages.log.name]
    assert len([message for message in messages if "a database does not answer" in message]) == 1
    assert len([message for message in messages if "the databases answer again" in message]) == 1
    close_storage(storage)


@pytest.mark.usefixtures("impatient")
def test_a_full_disk_is_sat_out_until_a_row_can_be_written(small_disk: Path) -> None:
    settings = Settings(home=small_disk / "home")
    upgrade(settings)
    database, storage = open_database(settings), open_storage(settings)
    filler = fill(small_disk)
    asked = 0

    def each() -> None:
        nonlocal asked
        asked += 1
        if asked == 5:
            filler.unlink()

    waiting = outages.Outages(database, storage, write=partial(heartbeats.beat, owner="x" * 90))
    waiting.sit_out(database_away(settings), threading.Event(), each)
    assert asked >= 5
    close_storage(storage)
    database.dispose()


@on_sqlite
def test_connections_of_a_time_when_the_file_was_read_only_are_not_used_again(
    service_database: Database,
) -> None:
    with service_database.writing.connect() as connection:
        connection.connection.cursor().execute("PRAGMA query_only=ON")  # as if it had been opened read-only
    write = partial(heartbeats.beat, owner="one")
    with pytest.raises(OperationalError, match="readonly database") as raised:
        service_database.transact(write)
    assert is_outage(raised.value)
    service_database.transact(write)


def test_heartbeats_are_in_no_backup(searched: Settings, tmp_path: Path) -> None:
    database = open_database(searched)
    beat(database)
    database.dispose()
    backup.save(searched, tmp_path / "backup.zip")
    with zipfile.ZipFile(tmp_path / "backup.zip") as archive:
        assert not [name for name in archive.namelist() if "coordinators" in name]
