"""Sharing studies and schedules with other owners, and the log of who changed what."""

from __future__ import annotations

import json
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from sqlalchemy import select, update
from starlette.testclient import TestClient

from service.access.keys import commands as keys
from service.db.database import Database
from service.db.models import AuditEntry, Study
from service.rest.authorization import audit
from service.studies import commands as studies
from tests.integration.service.access.conftest import SERVER_KEY
from tests.support.service.api import Make, expect_problem, on_sqlite

ADMIN = {"authorization": f"Bearer {SERVER_KEY}"}
Headers = dict[str, str]


@pytest.fixture
def owner(service_database: Database) -> Callable[[str], Headers]:
    """Gives owners keys, a submitter's each."""

    def headers(name: str) -> Headers:
        made = service_database.transact(lambda session: keys.add(session, name))
        return {"authorization": f"Bearer {made.key}"}

    return headers


def _share(client: TestClient, noun: str, name: str, shared: Any, headers: Headers) -> Any:
    return client.put(f"/v1/{noun}/{name}/access", json={"shared": shared}, headers=headers)


def test_what_is_shared_may_be_changed_by_those_it_is_shared_with(
    closed: TestClient, owner: Callable[[str], Headers], definition: Make
) -> None:
    alice, bob, carol = owner("alice"), owner("bob"), owner("carol")
    closed.post("/v1/studies", json=definition(name="s"), headers=alice)
    for shared, allowed in (("none", []), (["bob"], [bob]), ("team", [bob, carol]), ([], [])):
        assert _share(closed, "studies", "s", shared, alice).json()["shared"] == (shared or "none")
        for headers in (bob, carol):
            for change in ("pause", "resume"):
                answer = closed.post(f"/v1/studies/s/{change}", headers=headers)
                assert answer.status_code == (202 if headers in allowed else 403)
    assert closed.get("/v1/studies/s/access", headers=bob).json() == {"owner": "alice", "shared": "none"}


def test_whom_it_is_shared_with_may_not_share_it_further(
    closed: TestClient, owner: Callable[[str], Headers], definition: Make
) -> None:
    alice, bob = owner("alice"), owner("bob")
    closed.post("/v1/studies", json=definition(name="s"), headers=alice)
    _share(closed, "studies", "s", ["bob"], alice)
    refused = expect_problem(_share(closed, "studies", "s", "team", bob), 403)
    assert refused["detail"] == "The study 's' is 'alice''s. Only its owner and admins may do this."
    assert _share(closed, "studies", "s", "none", ADMIN).status_code == 200


def test_sweeps_are_shared_as_their_schedule(
    closed: TestClient, owner: Callable[[str], Headers], definition: Make
) -> None:
    alice, bob = owner("alice"), owner("bob")
    schedule = {"name": "nightly", "cron": "0 2 * * *", "definition": definition()}
    closed.post("/v1/schedules", json=schedule, headers=alice)
    assert closed.post("/v1/schedules/nightly/run", headers=bob).status_code == 403
    _share(closed, "schedules", "nightly", ["bob"], alice)
    sweep = closed.post("/v1/schedules/nightly/run", headers=bob).json()
    assert sweep["owner"] == "alice"
    assert closed.post(f"/v1/studies/{sweep['id']}/cancel", headers=bob).status_code == 202


@on_sqlite
@pytest.mark.parametrize(
    ("body", "paths"),
    [
        ({"shared": "tema"}, {"shared"}),
        ({"share": "team"}, {"share", "shared"}),
        ({"shared": ["bob", "a b", 3]}, {"shared[1]", "shared[2]"}),
        ({"shared": ["bob"] * 101}, {"shared"}),
        ([], {""}),
    ],
)
def test_what_is_no_sharing_is_refused(
    closed: TestClient, definition: Make, body: Any, paths: set[str]
) -> None:
    closed.post("/v1/studies", json=definition(name="s"), headers=ADMIN)
    problem = expect_problem(closed.put("/v1/studies/s/access", json=body, headers=ADMIN), 422)
    assert {fault["path"] for fault in problem["faults"]} == paths


# -- the audit log -------------------------------------------------------------------------------------


def test_the_log_says_who_changed_what_from_where(
    closed: TestClient, owner: Callable[[str], Headers], definition: Make
) -> None:
    alice, bob = owner("alice"), owner("bob")
    agent = "curl/8 \x1b[31m" + "x" * 500
    made = closed.post(
        "/v1/studies", json=definition(name="s"), headers={**alice, "user-agent": agent}
    ).json()
    closed.post("/v1/studies/s/cancel", headers=bob)
    closed.post("/v1/studies/s/cancel", headers=alice)
    closed.post("/v1/studies/s/cancel?x=1", headers=alice)  # refused as invalid: nothing was changed
    closed.post("/v1/studies?dry_run=true", json=definition(name="t"), headers=alice)
    page = closed.get("/v1/audit?object=s", headers=ADMIN).json()
    shown = [(e["owner"], e["summary"].split(".")[0], e["outcome"], e["object_id"]) for e in page["items"]]
    assert shown == [
        ("alice", "cancel study s", "done", made["id"]),
        ("bob", "The study 's' is 'alice''s", "refused", "s"),
        ("alice", "submit study s", "done", made["id"]),
    ]
    first = page["items"][-1]
    assert (first["address"], first["method"], first["route"]) == ("testclient", "POST", "/v1/studies")
    assert (first["user_agent"].startswith("curl/8 ?[31mx"), len(first["user_agent"])) == (True, 200)
    refused = closed.get("/v1/audit?owner=bob", headers=ADMIN).json()["items"]
    assert [(e["outcome"], e["object_id"]) for e in refused] == [("refused", "s")]
    assert "is 'alice''s" in refused[0]["summary"]


def test_a_change_that_fails_leaves_no_entry_and_one_without_an_entry_is_not_made(
    closed: TestClient, service_database: Database, definition: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    def stored() -> tuple[int, int]:
        with service_database.read() as session:
            return len(session.scalars(select(Study)).all()), len(session.scalars(select(AuditEntry)).all())

    with TestClient(closed.app, base_url=str(closed.base_url), raise_server_exceptions=False) as calm:
        for module, name in ((audit, "write"), (studies, "append_event")):
            with monkeypatch.context() as patched:
                patched.setattr(module, name, _fail)
                assert calm.post("/v1/studies", json=definition(), headers=ADMIN).status_code == 500
            assert stored() == (0, 0)
        assert calm.post("/v1/studies", json=definition(), headers=ADMIN).status_code == 201
        assert stored() == (1, 1)


def _fail(*_: object, **__: object) -> None:
    raise RuntimeError("killed here")


def test_the_log_is_read_in_pages_by_time_and_as_lines(
    closed: TestClient, service_database: Database
) -> None:
    for number in range(5):
        closed.post("/v1/keys", json={"owner": f"owner-{number}"}, headers=ADMIN)
    seen, cursor = [], ""
    while True:
        page = closed.get(f"/v1/audit?limit=2{cursor}", headers=ADMIN).json()
        seen += [entry["id"] for entry in page["items"]]
        if page["next_cursor"] is None:
            break
        cursor = f"&cursor={page['next_cursor']}"
    lines = closed.get("/v1/audit?format=jsonl", headers=ADMIN)
    assert lines.headers["content-type"].startswith("application/jsonl")
    assert [json.loads(line)["id"] for line in lines.text.splitlines()] == seen
    assert (len(seen), seen) == (5, sorted(seen, reverse=True))
    old = datetime.now(UTC) - timedelta(days=2)
    age = update(AuditEntry).where(AuditEntry.id == seen[-1]).values(at=old)
    service_database.transact(lambda session: session.execute(age))
    day = {"since": (old - timedelta(hours=1)).isoformat(), "until": (old + timedelta(hours=1)).isoformat()}
    found = closed.get("/v1/audit", params=day, headers=ADMIN).json()["items"]
    assert [entry["id"] for entry in found] == [seen[-1]]


def test_old_entries_are_removed(closed: TestClient, service_database: Database) -> None:
    for number in range(3):
        closed.post("/v1/keys", json={"owner": f"owner-{number}"}, headers=ADMIN)
    age = update(AuditEntry).values(at=datetime.now(UTC) - timedelta(days=366))
    service_database.transact(lambda session: session.execute(age))
    closed.post("/v1/keys", json={"owner": "last"}, headers=ADMIN)
    assert len(closed.get("/v1/audit", headers=ADMIN).json()["items"]) == 1
