"""Keys with an owner on both databases: who comes in, as whom, and how soon a revoked key stops."""

from __future__ import annotations

import base64
import hashlib
import json
import os
import stat
from collections.abc import Iterator

import pytest
from pydantic import SecretStr
from sqlalchemy import select, text
from starlette.testclient import TestClient
from typer.testing import CliRunner, Result

from service.access.exposure import require_key
from service.access.keys import commands as keys
from service.access.keys import queries
from service.app import create_app
from service.cli.root import app
from service.coordinator.chores.fingerprints import FingerprintReader
from service.coordinator.chores.preparation import advance_stages
from service.db.database import Database
from service.db.kinds import Role
from service.db.models import ApiKey, Study
from service.embedded.supervisor import Supervisor, run_api
from service.errors import Conflict, Invalid, NotFound, Unavailable
from service.optuna_store.storage import close_storage, open_storage
from service.settings import Settings
from tests.support.service.api import LOCAL, Make, database_away, expect_problem, on_sqlite

SERVER_KEY = "correct horse"
EVERYWHERE = (
    "/v1/studies",
    "/v1/schedules",
    "/dashboard",
    "/api/studies",
    "/static/bundle.js",
    "/openapi.json",
    "/x",
)


def _bearer(key: str) -> dict[str, str]:
    return {"authorization": f"Bearer {key}"}


def _add(database: Database, owner: str, role: Role = Role.SUBMITTER) -> str:
    return database.transact(lambda session: keys.add(session, owner, role=role).key)


def _revoke(database: Database, owner: str) -> None:
    database.transact(lambda session: keys.revoke(session, keys.resolve(session, owner)))


@pytest.fixture
def guarded(settings: Settings) -> Iterator[TestClient]:
    """A client of a server that has a key of its own."""
    own = settings.model_copy(update={"api_key": SecretStr(SERVER_KEY)})
    with TestClient(create_app(own), base_url=LOCAL) as client:
        yield client


def test_without_any_key_the_server_is_open_and_studies_are_the_default_owners(
    client: TestClient, definition: Make
) -> None:
    assert client.post("/v1/studies", json=definition()).json()["owner"] == "default"
    assert client.get("/v1/studies", headers=_bearer("whatever")).status_code == 200


def test_the_first_key_closes_the_server_to_everybody_else(
    client: TestClient, service_database: Database
) -> None:
    key = _add(service_database, "alice")
    for path in EVERYWHERE:
        problem = expect_problem(client.get(path), 401)
        assert client.get(path, headers=_bearer("nsk_" + "x" * 43)).json() == problem
        assert client.get(path, headers=_bearer(key)).status_code == (404 if path == "/x" else 200)
    assert [client.get(path).status_code for path in ("/healthz", "/readyz?exclude=coordinator")] == [
        200,
        200,
    ]


def test_what_a_key_makes_is_its_owners_and_everybody_sees_it(
    guarded: TestClient, service_database: Database, definition: Make
) -> None:
    alice, bob = _add(service_database, "alice"), _add(service_database, "bob")
    basic = {"authorization": "Basic " + base64.b64encode(f"any:{bob}".encode()).decode()}
    for name, headers in (("a", _bearer(alice)), ("b", basic), ("s", _bearer(SERVER_KEY))):
        assert guarded.post("/v1/studies", json=definition(name=name), headers=headers).status_code == 201
    schedule = {"name": "nightly", "cron": "0 2 * * *", "definition": definition()}
    assert guarded.post("/v1/schedules", json=schedule, headers=basic).json()["owner"] == "bob"
    assert guarded.post("/v1/range-tests", json=definition(), headers=basic).json()["owner"] == "bob"
    listed = guarded.get("/v1/studies", headers=_bearer(alice)).json()["items"]
    assert {study["name"]: study["owner"] for study in listed} == {"a": "alice", "b": "bob", "s": "default"}
    refused = expect_problem(guarded.post("/v1/studies/b/cancel", headers=_bearer(alice)), 403)
    assert "'bob'" in refused["detail"]
    assert guarded.post("/v1/studies/b/cancel", headers=_bearer(SERVER_KEY)).status_code == 202


def test_a_revoked_key_stops_at_once_and_does_not_open_the_server(
    client: TestClient, service_database: Database, definition: Make
) -> None:
    key = _add(service_database, "alice")
    assert client.post("/v1/studies", json=definition(), headers=_bearer(key)).status_code == 201
    _revoke(service_database, "alice")
    for path in EVERYWHERE:
        expect_problem(client.get(path, headers=_bearer(key)), 401)
        expect_problem(client.get(path), 401)
    again = _add(service_database, "alice")
    assert again != key
    expect_problem(client.get("/v1/studies", headers=_bearer(key)), 401)
    assert [
        study["owner"] for study in client.get("/v1/studies", headers=_bearer(again)).json()["items"]
    ] == ["alice"]


def test_a_key_is_stored_as_its_digest_only(service_database: Database) -> None:
    key = _add(service_database, "alice")
    with service_database.read() as session:
        row = session.scalars(select(ApiKey)).one()
    assert row.key_sha256 == hashlib.sha256(key.encode()).hexdigest()
    assert key.startswith("nsk_")
    assert len(key) == 4 + 43  # 256 random bits
    for stored in (row.key_sha256, row.key_sha256[:10]):
        with service_database.read() as session:
            assert queries.find_key(session, stored.encode()) is None


def test_an_owner_has_several_keys_each_revoked_by_itself(
    client: TestClient, service_database: Database
) -> None:
    first, second = _add(service_database, "alice"), _add(service_database, "alice")
    with pytest.raises(Conflict, match="has several keys"):
        _revoke(service_database, "alice")
    with service_database.read() as session:
        row = queries.find_key(session, first.encode())
    assert row is not None
    service_database.transact(lambda session: keys.revoke(session, row.id))
    expect_problem(client.get("/v1/studies", headers=_bearer(first)), 401)
    assert client.get("/v1/studies", headers=_bearer(second)).status_code == 200
    _revoke(service_database, "alice")  # the one that is left
    for nobody in ("alice", "bob"):
        with pytest.raises(NotFound, match="has a working key"):
            _revoke(service_database, nobody)


@on_sqlite
@pytest.mark.parametrize("owner", ["", "default", "a b", "-a", "a" * 65, "a\n", "é", "a/b", "'; drop table"])
def test_what_is_no_name_gets_no_key(service_database: Database, owner: str) -> None:
    with pytest.raises(Invalid):
        _add(service_database, owner)


def test_the_servers_own_key_opens_it_while_the_table_of_keys_does_not_answer(
    guarded: TestClient, service_database: Database, backend: str
) -> None:
    key = _add(service_database, "alice")
    with service_database.engine.begin() as connection:
        connection.execute(text("ALTER TABLE api_keys RENAME TO elsewhere"))
    try:
        assert guarded.get("/openapi.json", headers=_bearer(SERVER_KEY)).status_code == 200
        with TestClient(guarded.app, base_url=LOCAL, raise_server_exceptions=False) as calm:
            # Whatever goes wrong while a key is looked up, nobody comes in by it.
            assert calm.get("/openapi.json", headers=_bearer(key)).status_code >= 500
    finally:
        with service_database.engine.begin() as connection:
            connection.execute(text("ALTER TABLE elsewhere RENAME TO api_keys"))


def test_a_database_that_is_away_lets_nobody_in_and_says_so(
    settings: Settings, service_database: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    key = _add(service_database, "alice")
    with TestClient(create_app(settings), base_url=LOCAL) as client:
        engine = client.app.state.resources.database.engine  # type: ignore[attr-defined]
        engine.dispose()

        def refuse(*_: object, **__: object) -> None:
            raise database_away(settings)

        with monkeypatch.context() as patched:
            patched.setattr(engine.dialect, "connect", refuse)
            for headers in ({}, _bearer(key)):
                expect_problem(client.get("/v1/studies", headers=headers), 503)
            assert client.get("/healthz").status_code == 200
        assert client.get("/v1/studies", headers=_bearer(key)).status_code == 200  # by itself


# -- the command line --------------------------------------------------------------------------------


@pytest.fixture
def nightsweep(settings: Settings, monkeypatch: pytest.MonkeyPatch) -> CliRunner:
    for name in [name for name in os.environ if name.startswith("NIGHTSWEEP_")]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("NIGHTSWEEP_HOME", str(settings.home))
    monkeypatch.setenv("NIGHTSWEEP_DATABASE_URL", settings.database_url)
    return CliRunner()


def _run(runner: CliRunner, *arguments: str) -> Result:
    return runner.invoke(app, ["keys", *arguments])


def test_keys_are_added_listed_and_revoked_by_command(nightsweep: CliRunner, client: TestClient) -> None:
    assert _run(nightsweep, "list").stdout == "No keys.\n"
    added = _run(nightsweep, "add", "alice")
    assert (added.exit_code, added.stdout.count("\n")) == (0, 1)  # the key alone, for scripts
    assert "cannot be shown again" in added.stderr
    bob = json.loads(_run(nightsweep, "add", "bob", "--json").stdout)
    assert bob["owner"] == "bob"
    for key in (added.stdout.strip(), bob["key"]):
        assert client.get("/v1/studies", headers=_bearer(key)).status_code == 200
    assert _run(nightsweep, "revoke", "alice").exit_code == 0
    expect_problem(client.get("/v1/studies", headers=_bearer(added.stdout.strip())), 401)
    listed = json.loads(_run(nightsweep, "list", "--json").stdout)
    assert [(key["owner"], key["revoked_at"] is None) for key in listed] == [("alice", False), ("bob", True)]
    assert [key["state"] for key in listed] == ["revoked", "active"]
    shown = _run(nightsweep, "list").stdout
    assert added.stdout.strip() not in shown
    assert bob["key"] not in shown


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("add", "a b"), "not a valid name"),
        (("add", "default"), "NIGHTSWEEP_API_KEY"),
        (("revoke", "nobody"), "nightsweep keys list"),
    ],
)
def test_a_persons_mistake_is_a_sentence(
    nightsweep: CliRunner, arguments: tuple[str, ...], words: str
) -> None:
    result = _run(nightsweep, *arguments)
    assert (result.exit_code, result.stdout) == (1, "")
    assert words in result.stderr
    assert "Traceback" not in result.output


@on_sqlite
def test_keys_of_a_database_without_tables_say_what_to_run(
    nightsweep: CliRunner, monkeypatch: pytest.MonkeyPatch, settings: Settings
) -> None:
    elsewhere = settings.home.parent / "elsewhere"
    monkeypatch.delenv("NIGHTSWEEP_DATABASE_URL")
    result = _run(nightsweep, "add", "alice", "--home", str(elsewhere))
    assert result.exit_code == 1
    assert "nightsweep db upgrade" in result.stderr
    assert stat.S_IMODE(elsewhere.stat().st_mode) == 0o700


def test_a_range_test_stage_is_its_studys_owners(
    client: TestClient, service_database: Database, settings: Settings, definition: Make
) -> None:
    key = _add(service_database, "alice")
    body = definition()
    body["search"]["learning_rate_range_test"] = True
    assert client.post("/v1/studies", json=body, headers=_bearer(key)).status_code == 201
    storage = open_storage(settings)
    advance_stages(service_database, storage, FingerprintReader())
    close_storage(storage)
    with service_database.read() as session:
        owners = {study.name: study.owner for study in session.scalars(select(Study))}
    assert owners == {"support-tone": "alice", "support-tone.range-test": "alice"}


OTHERS_REACH = [
    "0.0.0.0",
    "::",
    "192.0.2.7",
    "build-box",
    "0",
    "",
    "10.0.0.1",
    "fe80::1",
    "localhost.example",
]


@on_sqlite
@pytest.mark.parametrize("host", OTHERS_REACH)
def test_the_api_does_not_listen_where_others_reach_it_while_nobody_needs_a_key(
    settings: Settings, host: str
) -> None:
    with pytest.raises(Unavailable) as refused:
        require_key(settings.model_copy(update={"host": host}))
    for words in (
        host,
        "NIGHTSWEEP_API_KEY",
        "nightsweep keys add",
        "127.0.0.1",
        "NIGHTSWEEP_ALLOW_OPEN_API",
    ):
        assert words in refused.value.detail


@on_sqlite
@pytest.mark.parametrize("host", ["127.0.0.1", "127.0.0.2", "localhost", "LOCALHOST", "::1"])
def test_this_machine_alone_needs_no_key(settings: Settings, host: str) -> None:
    require_key(settings.model_copy(update={"host": host}))


def test_an_admins_key_that_works_is_needed_to_listen_where_others_reach_the_api(
    settings: Settings, service_database: Database
) -> None:
    everywhere = settings.model_copy(update={"host": "0.0.0.0"})
    require_key(everywhere.model_copy(update={"api_key": SecretStr(SERVER_KEY)}))
    require_key(everywhere.model_copy(update={"allow_open_api": True}))
    with pytest.raises(Unavailable):
        require_key(everywhere)
    _add(service_database, "alice")
    with pytest.raises(Unavailable, match="none is an admin's"):
        require_key(everywhere)
    _add(service_database, "bob", Role.ADMIN)
    require_key(everywhere)
    for owner in ("alice", "bob"):
        _revoke(service_database, owner)
    with pytest.raises(Unavailable, match="have expired or were revoked"):
        require_key(everywhere)


@on_sqlite
def test_neither_the_api_nor_the_whole_service_starts_open_to_others(settings: Settings) -> None:
    everywhere = settings.model_copy(update={"host": "0.0.0.0"})
    with pytest.raises(Unavailable, match="NIGHTSWEEP_API_KEY"):
        run_api(everywhere)
    with pytest.raises(Unavailable, match="NIGHTSWEEP_API_KEY"):
        Supervisor(everywhere).__enter__()
    assert not (settings.home / "logs").exists()


@on_sqlite
@pytest.mark.parametrize("home", [".", "that-is-new"])
def test_the_command_says_what_to_set(settings: Settings, home: str) -> None:
    home = str(settings.home / home)
    result = CliRunner().invoke(app, ["api", "--home", home, "--host", "0.0.0.0"])
    assert (result.exit_code, result.stdout, result.stderr.count("\n")) == (1, "", 1)
    assert result.stderr.startswith("Error: The API would listen on 0.0.0.0, where others may reach it")
