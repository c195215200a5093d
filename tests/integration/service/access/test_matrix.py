"""Every route of the API, asked by callers of every kind: the answers are those of a written table."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from pydantic import SecretStr
from sqlalchemy import update
from starlette.testclient import TestClient

from service.access.keys import commands as keys
from service.app import create_app
from service.db.database import Database
from service.db.kinds import Role
from service.db.models import ApiKey, Device, Study
from service.rest.authorization import permissions
from service.settings import Settings
from service.states import StudyState
from tests.support.checkout import ROOT
from tests.support.service.access import CALLERS, TABLE, written_out
from tests.support.service.api import LOCAL, Make, on_sqlite

PAGE = ROOT / "docs/reference/access.md"
SERVER_KEY = "correct horse"
_ORDER = (*CALLERS[:4], "other submitter", "owner", "admin")
"""The owner comes after those who are refused: what they ask for is there still."""


class Server:
    """A server with a key of each kind, and objects of the submitter `owner`."""

    def __init__(self, client: TestClient, database: Database, definition: Make) -> None:
        self.client, self.database, self.definition = client, database, definition
        self._numbers = itertools.count()
        roles = {"viewer": Role.VIEWER, "admin": Role.ADMIN}
        self.keys: dict[str, str | None] = {"nobody": None}
        for caller in CALLERS[1:]:
            owner = caller.replace(" ", "-")
            role = roles.get(caller, Role.SUBMITTER)
            if caller in ("expired", "revoked"):
                role = Role.ADMIN  # it would open everything
            made = database.transact(lambda session, o=owner, r=role: keys.add(session, o, role=r))
            self.keys[caller] = made.key
            if caller == "revoked":
                database.transact(lambda session, made=made: keys.revoke(session, made.row.id))
            if caller == "expired":
                past = datetime.now(UTC) - timedelta(seconds=1)
                expire = update(ApiKey).where(ApiKey.id == made.row.id).values(expires_at=past)
                database.transact(lambda session, expire=expire: session.execute(expire))

    def headers(self, caller: str) -> dict[str, str]:
        key = self.keys[caller]
        return {} if key is None else {"authorization": f"Bearer {key}"}

    def fresh(self) -> dict[str, Any]:
        return self.definition(name=f"study-{next(self._numbers)}")

    def parameters(self, route: str) -> dict[str, str]:
        """What the path of a request names: made anew where the request changes it."""
        headers = self.headers("owner")
        found = {"number": "0", "name": "qlora-quick", "device": "GPU-0"}
        if "{study}" in route:
            found["study"] = self.client.post("/v1/studies", json=self.fresh(), headers=headers).json()["id"]
        if route == "DELETE /v1/studies/{study}":
            over = {"state": StudyState.CANCELLED, "ended_at": datetime.now(UTC)}
            end = update(Study).where(Study.id == found["study"]).values(**over)
            self.database.transact(lambda session: session.execute(end))
        if "{range_test}" in route:
            made = self.client.post("/v1/range-tests", json=self.fresh(), headers=headers)
            found["range_test"] = made.json()["id"]
        if "{schedule}" in route:
            body = self.fresh()
            schedule = {"name": body["name"], "cron": "0 2 * * *", "definition": body}
            made = self.client.post("/v1/schedules", json=schedule, headers=headers)
            found["schedule"] = made.json()["id"]
        if "{key}" in route:
            found["key"] = self.database.transact(lambda session: keys.add(session, "dora")).row.id
        return found


@pytest.fixture
def server(settings: Settings, service_database: Database, definition: Make) -> Iterator[Server]:
    own = settings.model_copy(update={"api_key": SecretStr(SERVER_KEY)})
    with service_database.write() as session:
        session.add(Device(id="GPU-0", put_aside_at=datetime.now(UTC), reason="three trials failed"))
    with TestClient(create_app(own), base_url=LOCAL) as client:
        client.app.state.broadcaster.close()  # streams end at once
        yield Server(client, service_database, definition)


def operations(client: TestClient) -> set[str]:
    document = client.get("/openapi.json", headers={"authorization": f"Bearer {SERVER_KEY}"}).json()
    return {f"{method.upper()} {path}" for path, found in document["paths"].items() for method in found}


def test_every_route_answers_every_caller_as_the_table_says(server: Server) -> None:
    assert operations(server.client) == set(TABLE)
    wrong = []
    for route, row in TABLE.items():
        method, _, path = route.partition(" ")
        parameters = server.parameters(route)
        for caller in sorted(CALLERS, key=_ORDER.index):
            if caller == "admin" and method in ("DELETE", "POST", "PATCH", "PUT"):
                parameters = server.parameters(route)  # the owner has changed or removed the first
            body = None if row.body is None else row.body({"definition": server.fresh()})
            answer = server.client.request(
                method, path.format(**parameters), json=body, headers=server.headers(caller)
            )
            if answer.status_code != row.expected(caller):
                wrong.append((route, caller, row.expected(caller), answer.status_code, answer.text[:200]))
            if answer.status_code == 403:
                detail = answer.json()["detail"]
                assert "needs the role" in detail or "'owner'" in detail, detail
    assert wrong == []


def test_the_session_of_a_browser_may_do_what_its_key_may(server: Server) -> None:
    for caller in CALLERS[3:]:
        with TestClient(server.client.app, base_url=LOCAL) as browser:
            page = browser.get("/login").text
            token = page.split('name="csrf_token" value="')[1].split('"')[0]
            form = {"key": server.keys[caller], "csrf_token": token, "next": "/v1/me"}
            me = browser.post("/login", data=form).json()
            assert me["via"] == "session"
            csrf = {"x-csrf-token": me["csrf_token"]}
            for route in ("POST /v1/studies/{study}/cancel", "GET /v1/keys", "GET /v1/studies"):
                method, _, path = route.partition(" ")
                where = path.format(**server.parameters(route))
                assert browser.request(method, where, headers=csrf).status_code == TABLE[route].expected(
                    caller
                )


@on_sqlite
@pytest.mark.parametrize("change", ["missing", "stale"])
def test_an_application_with_a_route_that_nobody_has_declared_is_not_made(
    settings: Settings, monkeypatch: pytest.MonkeyPatch, change: str
) -> None:
    needs = dict(permissions.NEEDS)
    if change == "missing":
        del needs["GET /v1/workers"]
    else:
        needs["GET /v1/nothing"] = permissions.READ
    monkeypatch.setattr(permissions, "NEEDS", needs)
    with pytest.raises(permissions.UndeclaredRouteError, match=r"/v1/(workers|nothing)"):
        create_app(settings)


@on_sqlite
def test_every_route_that_changes_something_writes_to_the_audit_log(server: Server) -> None:
    silent = []
    for route in TABLE:
        method, _, path = route.partition(" ")
        if method == "GET" or TABLE[route].outcomes[3] >= 400:
            continue  # it changes nothing here
        admin = server.headers("admin")
        body = None if TABLE[route].body is None else TABLE[route].body({"definition": server.fresh()})  # type: ignore[misc]
        server.client.request(method, path.format(**server.parameters(route)), json=body, headers=admin)
        newest = server.client.get("/v1/audit?limit=1", headers=admin).json()["items"][0]
        written = newest["route"].replace(":path", "")
        if (newest["method"], written, newest["outcome"], newest["owner"]) != (method, path, "done", "admin"):
            silent.append((route, newest))
    assert silent == []


def test_the_table_is_written_out() -> None:
    """`docs/reference/access.md` has it; where this fails, its text is `written_out()`."""
    assert written_out() in PAGE.read_text()
