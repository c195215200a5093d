"""Keys over REST and by command: their expiry, rotation and last use, and an upgrade of those of before."""

from __future__ import annotations

import json
import os
import threading
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from alembic import command
from sqlalchemy import select, text, update
from sqlalchemy.orm import Session
from starlette.testclient import TestClient
from typer.testing import CliRunner

from service.access.keys import commands as keys
from service.cli.operations import keys as cli
from service.cli.root import app
from service.client import Client
from service.db.database import Database, open_database
from service.db.kinds import Role
from service.db.models import ApiKey, AuditEntry, IdempotencyKey
from service.errors import Conflict
from service.maintenance import schema
from service.settings import Settings
from tests.integration.service.access.conftest import SERVER_KEY
from tests.integration.service.maintenance.test_schema import migrate
from tests.support.service.api import expect_problem, on_sqlite
from tests.support.waiting import wait_until

ADMIN = {"authorization": f"Bearer {SERVER_KEY}"}


def _bearer(key: str) -> dict[str, str]:
    return {"authorization": f"Bearer {key}"}


def _add(client: TestClient, **body: Any) -> dict[str, Any]:
    answer = client.post("/v1/keys", json={"owner": "alice", **body}, headers=ADMIN)
    assert answer.status_code == 201, answer.text
    made: dict[str, Any] = answer.json()
    return made


def _expire(database: Database, key_id: str) -> None:
    past = (
        update(ApiKey).where(ApiKey.id == key_id).values(expires_at=datetime.now(UTC) - timedelta(seconds=1))
    )
    database.transact(lambda session: session.execute(past))


def test_a_key_works_until_it_expires(closed: TestClient, service_database: Database) -> None:
    made = _add(closed, expires_in="90d", label="laptop", role="viewer")
    lifetime = datetime.fromisoformat(made["expires_at"]) - datetime.fromisoformat(made["created_at"])
    assert (lifetime, made["state"]) == (timedelta(days=90), "active")
    me = closed.get("/v1/me", headers=_bearer(made["key"])).json()
    assert (me["owner"], me["role"], me["key"]["label"]) == ("alice", "viewer", "laptop")
    _expire(service_database, made["id"])
    expect_problem(closed.get("/v1/me", headers=_bearer(made["key"])), 401)
    shown = closed.get(f"/v1/keys/{made['id']}", headers=ADMIN).json()
    assert (shown["state"], "key" in shown) == ("expired", False)
    refused = closed.patch(f"/v1/keys/{made['id']}", json={"role": "admin"}, headers=ADMIN)
    assert "is expired" in expect_problem(refused, 409)["detail"]


def test_a_rotated_key_works_for_the_overlap(closed: TestClient, service_database: Database) -> None:
    old = _add(closed, role="viewer", label="night", expires_in="90d")
    rotated = closed.post(f"/v1/keys/{old['id']}/rotate", json={"overlap": "24h"}, headers=ADMIN).json()
    assert (rotated["owner"], rotated["role"], rotated["label"]) == ("alice", "viewer", "night")
    for key in (old["key"], rotated["key"]):
        assert closed.get("/v1/me", headers=_bearer(key)).status_code == 200
    shown = closed.get(f"/v1/keys/{old['id']}", headers=ADMIN).json()
    left = datetime.fromisoformat(shown["expires_at"]) - datetime.now(UTC)
    assert timedelta(hours=23) < left <= timedelta(hours=24)
    assert shown["replaced_by"] == rotated["id"]
    again = closed.post(f"/v1/keys/{old['id']}/rotate", json={}, headers=ADMIN)
    assert rotated["id"] in expect_problem(again, 409)["detail"]
    _expire(service_database, old["id"])
    expect_problem(closed.get("/v1/me", headers=_bearer(old["key"])), 401)
    last = closed.post(f"/v1/keys/{rotated['id']}/rotate", json={}, headers=ADMIN).json()
    expect_problem(closed.get("/v1/me", headers=_bearer(rotated["key"])), 401)
    assert closed.get("/v1/me", headers=_bearer(last["key"])).status_code == 200


def test_a_key_is_rotated_once_however_many_ask(service_database: Database) -> None:
    made = service_database.transact(lambda session: keys.add(session, "alice"))
    outcomes: list[str] = []

    def rotate() -> None:
        try:
            service_database.transact(
                lambda session: keys.rotate(session, made.row.id, overlap=timedelta(hours=1))
            )
            outcomes.append("rotated")
        except Conflict:
            outcomes.append("refused")

    threads = [threading.Thread(target=rotate) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(outcomes) == ["refused"] * 3 + ["rotated"]


def test_a_repeated_request_does_not_show_the_key_again(
    closed: TestClient, service_database: Database
) -> None:
    headers = {**ADMIN, "idempotency-key": "k1"}
    first, again = (
        closed.post("/v1/keys", json={"owner": "alice"}, headers=headers).json() for _ in range(2)
    )
    assert (again["id"], again["key"]) == (first["id"], None)
    with service_database.read() as session:
        stored = session.scalars(select(IdempotencyKey)).one()
        log = session.scalars(select(AuditEntry)).all()
    assert first["key"] not in json.dumps(stored.body) + str([vars(entry) for entry in log])
    assert len(log) == 1  # what was repeated was not done again


def test_every_fault_of_a_wanted_key_is_said_at_once(closed: TestClient) -> None:
    body = {"owner": "a b", "role": "amin", "label": "a\x00", "expires_in": "soon", "rol": 1}
    problem = expect_problem(closed.post("/v1/keys", json=body, headers=ADMIN), 422)
    assert {fault["path"] for fault in problem["faults"]} == {"owner", "role", "label", "expires_in", "rol"}
    assert {fault["nearest"] for fault in problem["faults"]} >= {"admin", "role"}


def test_the_last_use_is_noted(closed: TestClient) -> None:
    made = _add(closed)
    assert closed.get("/v1/me", headers=_bearer(made["key"])).status_code == 200

    def used() -> bool:
        return closed.get(f"/v1/keys/{made['id']}", headers=ADMIN).json()["last_used_at"] is not None

    wait_until(used)


def test_keys_of_the_version_before_may_do_all_that_they_could(empty_settings: Settings) -> None:
    empty_settings.home.mkdir(exist_ok=True)
    schema.upgrade(empty_settings)
    migrate(empty_settings, command.downgrade, "0008")
    database = open_database(empty_settings)
    insert = (
        "INSERT INTO api_keys (owner, key_sha256, created_at, revoked_at)"
        " VALUES (:owner, :digest, '2026-01-01 00:00:00+00:00', :revoked)"
    )
    with database.engine.begin() as connection:
        for owner, revoked in (("alice", None), ("bob", "2026-02-01 00:00:00+00:00")):
            connection.execute(text(insert), {"owner": owner, "digest": owner * 4, "revoked": revoked})
    database.dispose()
    schema.upgrade(empty_settings)
    database = open_database(empty_settings)
    with database.read() as session:
        rows = session.scalars(select(ApiKey).order_by(ApiKey.owner)).all()
        shown = [
            (row.owner, row.role, row.key_sha256, row.revoked_at is None, row.expires_at) for row in rows
        ]
    assert shown == [("alice", "admin", "alice" * 4, True, None), ("bob", "admin", "bob" * 4, False, None)]
    assert len({row.id for row in rows}) == 2

    def lower(session: Session) -> None:
        keys.add(session, "carol", role=Role.VIEWER)

    database.transact(lower)
    database.dispose()
    migrate(empty_settings, command.downgrade, "0008")
    with (engine := open_database(empty_settings)).engine.connect() as connection:
        left = connection.execute(text("SELECT owner FROM api_keys WHERE revoked_at IS NULL")).scalars().all()
    engine.dispose()
    assert left == ["alice"]  # a viewer's key does not become one for everything


# -- by command ----------------------------------------------------------------------------------------


@pytest.fixture
def over_rest(closed: TestClient, monkeypatch: pytest.MonkeyPatch) -> Callable[..., Any]:
    """Runs `nightsweep keys ... --server` against the application."""

    def invoke(*arguments: str) -> Any:
        transport = closed._transport
        monkeypatch.setattr(
            cli, "connect", lambda server: Client(server, api_key=SERVER_KEY, transport=_Adapter(closed))
        )
        assert transport is not None
        return CliRunner().invoke(app, ["keys", *arguments, "--server", "http://127.0.0.1:8787"])

    return invoke


class _Adapter:
    """The application as the transport of the command line's client."""

    def __init__(self, client: TestClient) -> None:
        self._client = client

    def handle_request(self, request: Any) -> Any:
        import httpx

        answer = self._client.request(
            request.method, str(request.url), headers=dict(request.headers), content=request.read()
        )
        return httpx.Response(answer.status_code, headers=dict(answer.headers), content=answer.content)

    def close(self) -> None:
        pass


@on_sqlite
def test_the_same_commands_work_over_rest(over_rest: Callable[..., Any], closed: TestClient) -> None:
    key = over_rest("add", "alice", "--role", "viewer", "--expires", "90d").stdout.strip()
    assert closed.get("/v1/me", headers=_bearer(key)).json()["role"] == "viewer"
    assert over_rest("change", "alice", "--role", "submitter").stdout.endswith("has the role submitter.\n")
    rotated = over_rest("rotate", "alice", "--overlap", "24h").stdout.strip()
    assert {closed.get("/v1/me", headers=_bearer(k)).status_code for k in (key, rotated)} == {200}
    ambiguous = over_rest("revoke", "alice")
    assert (ambiguous.exit_code, "several keys" in ambiguous.stderr) == (1, True)
    for row in json.loads(over_rest("list", "--json").stdout):
        assert over_rest("revoke", row["id"]).exit_code == 0
    assert {closed.get("/v1/me", headers=_bearer(k)).status_code for k in (key, rotated)} == {401}


@on_sqlite
def test_changes_by_command_are_in_the_audit_log(
    settings: Settings, service_database: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in [name for name in os.environ if name.startswith("NIGHTSWEEP_")]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("NIGHTSWEEP_HOME", str(settings.home))
    for arguments in (["add", "alice"], ["change", "alice", "--role", "admin"], ["rotate", "alice"]):
        assert CliRunner().invoke(app, ["keys", *arguments]).exit_code == 0
    assert CliRunner().invoke(app, ["keys", "revoke", "alice"]).exit_code == 0
    assert CliRunner().invoke(app, ["keys", "revoke", "alice"]).exit_code == 1  # and is not noted
    with service_database.read() as session:
        entries = session.scalars(select(AuditEntry).order_by(AuditEntry.id)).all()
    assert [entry.summary.split()[0] for entry in entries] == ["add", "change", "rotate", "revoke"]
    assert {entry.via for entry in entries} == {"command"}
    assert all("@" in (entry.subject or "") for entry in entries)
