"""`Idempotency-Key` on both databases: once is once, however often and at whatever moment it is asked."""

from __future__ import annotations

import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from datetime import timedelta
from typing import Any

import httpx
import pytest
from sqlalchemy import func, select, update
from sqlalchemy.orm import Session
from starlette.testclient import TestClient

from service.access.keys import commands as keys
from service.app import create_app
from service.db.database import Database, database_now
from service.db.models import EventRow, IdempotencyKey, Study
from service.rest.idempotency import purge
from service.settings import Settings
from service.studies import commands
from tests.support.service.api import LOCAL, Make, expect_problem, on_sqlite, stored

KEY = "8e03978e-40d5-43e8-bc93-6894a57f9324"


def _post(
    client: TestClient, body: Any, path: str = "/v1/studies", *, key: str = KEY, **headers: str
) -> httpx.Response:
    return client.post(path, json=body, headers={"idempotency-key": key, **headers})


def _kept(database: Database) -> int:
    with database.read() as session:
        return session.scalar(select(func.count()).select_from(IdempotencyKey)) or 0


def test_the_same_request_gets_the_first_answer_again(client: TestClient, definition: Make) -> None:
    first = _post(client, definition())
    again = _post(client, definition())
    assert (first.status_code, again.status_code, stored(client)) == (201, 201, 1)
    assert again.content == first.content
    assert "idempotent-replayed" not in first.headers
    assert again.headers["idempotent-replayed"] == "true"
    for header in ("location", "etag", "content-type"):
        assert again.headers[header] == first.headers[header]


def test_a_key_in_quotes_is_the_key_without_them(client: TestClient, definition: Make) -> None:
    first = _post(client, definition(), key=f'"{KEY}"')
    assert _post(client, definition(), key=KEY).content == first.content
    assert stored(client) == 1


@pytest.mark.parametrize(
    "request_changed",
    [
        lambda client, make: _post(client, make(name="another")),
        lambda client, make: _post(client, make(), "/v1/range-tests"),
        lambda client, make: _post(client, make(), "/v1/studies?dry_run=false"),
    ],
    ids=["body", "path", "query"],
)
def test_another_request_with_the_same_key_is_refused(
    client: TestClient, definition: Make, request_changed: Callable[[TestClient, Make], httpx.Response]
) -> None:
    assert _post(client, definition()).status_code == 201
    problem = expect_problem(request_changed(client, definition), 422)
    assert problem["type"] == "urn:nightsweep:problem:idempotency-key-reused"
    assert KEY in problem["detail"]
    assert stored(client) == 1


def test_every_post_that_changes_something_is_done_once(
    client: TestClient, definition: Make, service_database: Database
) -> None:
    body = definition()
    study = _post(client, body, key="k-study").json()
    schedule = {"name": "nightly", "cron": "0 2 * * *", "definition": body}
    for path, sent in (
        ("/v1/range-tests", body),
        ("/v1/schedules", schedule),
        ("/v1/schedules/nightly/run", None),
        (f"/v1/studies/{study['name']}/cancel", None),
        ("/v1/range-tests/support-tone.range-test/cancel", None),
    ):
        answers = [_post(client, sent, path, key=f"k-{path}") for _ in range(2)]
        assert answers[0].is_success, answers[0].text
        assert answers[0].content == answers[1].content
        assert answers[1].headers["idempotent-replayed"] == "true"
    assert len(client.get("/v1/range-tests").json()["items"]) == 1
    with service_database.read() as session:
        cancels = session.scalars(select(EventRow).where(EventRow.kind == "cancel_requested")).all()
    assert len(cancels) == 2  # one for each study


def test_a_repeated_request_is_answered_though_the_revision_has_moved_on(
    client: TestClient, definition: Make
) -> None:
    tag = client.post("/v1/studies", json=definition()).headers["etag"]
    path = "/v1/studies/support-tone/cancel"
    first = _post(client, None, path, **{"if-match": tag})
    again = _post(client, None, path, **{"if-match": tag})
    assert (first.status_code, again.status_code) == (202, 202)
    assert again.content == first.content
    assert client.post(path, headers={"if-match": tag}).status_code == 412


def test_a_repeated_submission_is_answered_though_its_data_has_gone(
    client: TestClient, definition: Make, settings: Settings
) -> None:
    first = _post(client, definition())
    (settings.data_roots[0] / "train.jsonl").unlink()
    assert _post(client, definition()).content == first.content
    assert _post(client, definition(name="another"), key="another").status_code == 422


def test_refusals_are_not_kept(client: TestClient, definition: Make, service_database: Database) -> None:
    client.post("/v1/studies", json=definition())
    expect_problem(_post(client, definition()), 409)
    assert _post(client, definition(search={}), key="wrong").status_code == 422
    assert _kept(service_database) == 0
    # So the same key may be sent again with what is right.
    assert _post(client, definition(name="another")).status_code == 201


def test_a_dry_run_neither_uses_nor_keeps_a_key(
    settings: Settings, definition: Make, service_database: Database
) -> None:
    hasty = settings.model_copy(update={"plan_timeout_seconds": 0.01})  # its report is not what matters
    with TestClient(create_app(hasty), base_url=LOCAL) as client:
        plan = _post(client, definition(), "/v1/studies?dry_run=true")
        assert (plan.status_code, _kept(service_database)) == (200, 0)
        assert _post(client, definition()).status_code == 201


@on_sqlite
@pytest.mark.parametrize("key", ["", " ", '""', "two words", "a,b", '"a', 'a"b', '"a\\"b"', "é", "k" * 201])
def test_what_is_no_key_is_refused(client: TestClient, definition: Make, key: str) -> None:
    answer = client.post(
        "/v1/studies", json=definition(), headers=[(b"idempotency-key", key.encode("latin-1"))]
    )
    problem = expect_problem(answer, 422)
    assert [fault["path"] for fault in problem["faults"]] == ["header.idempotency-key"]
    assert problem["faults"][0]["message"] == "does not have the expected form"
    assert problem["faults"][0]["allowed"].startswith("1 to 200 printable ASCII characters")
    assert stored(client) == 0


@on_sqlite
def test_two_keys_at_once_are_refused(client: TestClient, definition: Make) -> None:
    headers = [("idempotency-key", "one"), ("idempotency-key", "two")]
    expect_problem(client.post("/v1/studies", json=definition(), headers=headers), 422)
    assert stored(client) == 0


@on_sqlite
@pytest.mark.parametrize("key", ["~", "!", "a_b", '" "', '"a, b"', "k" * 200])
def test_what_is_a_key_is_taken(client: TestClient, definition: Make, key: str) -> None:
    assert _post(client, definition(), key=key).status_code == 201
    assert _post(client, definition(), key=key).headers["idempotent-replayed"] == "true"


def test_a_key_is_its_owners(client: TestClient, definition: Make, service_database: Database) -> None:
    tokens = [
        service_database.transact(lambda session, o=owner: keys.add(session, o).key) for owner in ("a", "b")
    ]
    answers = [
        _post(client, definition(name=f"study-{n}"), authorization=f"Bearer {token}")
        for n, token in enumerate(tokens)
    ]
    assert [answer.status_code for answer in answers] == [201, 201]
    assert [answer.json()["owner"] for answer in answers] == ["a", "b"]


def test_identical_requests_at_once_make_one_study(client: TestClient, definition: Make) -> None:
    body, together = definition(), threading.Barrier(6)

    def send(_: int) -> httpx.Response:
        together.wait(timeout=30)
        return _post(client, body)

    with ThreadPoolExecutor(6) as pool:
        answers = list(pool.map(send, range(6)))
    assert {answer.status_code for answer in answers} == {201}
    assert len({answer.content for answer in answers}) == 1
    assert sorted("idempotent-replayed" in answer.headers for answer in answers) == [False] + 5 * [True]
    assert stored(client) == 1


def test_a_request_waits_for_the_one_that_makes_its_change(
    settings: Settings, client: TestClient, definition: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The first is held in the middle of its transaction, after everything but the commit."""
    inside, go_on = threading.Event(), threading.Event()
    submit = commands.submit

    def slow(session: Session, *args: Any, **options: Any) -> Study:
        study = submit(session, *args, **options)
        if not inside.is_set():
            inside.set()
            assert go_on.wait(timeout=30)
        return study

    monkeypatch.setattr(commands, "submit", slow)
    with ThreadPoolExecutor(2) as pool, TestClient(create_app(settings), base_url=LOCAL) as other:
        first = pool.submit(_post, client, definition())
        assert inside.wait(timeout=30)
        second = pool.submit(_post, other, definition())
        with pytest.raises(TimeoutError):
            second.result(timeout=0.5)  # it waits, neither refused nor done
        go_on.set()
        assert first.result(timeout=30).status_code == 201
        assert second.result(timeout=30).content == first.result().content
    assert stored(client) == 1


def test_a_change_that_is_not_committed_leaves_no_answer(
    client: TestClient, definition: Make, service_database: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    def dies(session: Session, *args: Any, **options: Any) -> Study:
        submit(session, *args, **options)
        raise ConnectionError("the process ends here")

    submit = commands.submit
    with monkeypatch.context() as patched:
        patched.setattr(commands, "submit", dies)
        with pytest.raises(ConnectionError):
            _post(client, definition())
    assert (stored(client), _kept(service_database)) == (0, 0)
    again = _post(client, definition())
    assert (again.status_code, "idempotent-replayed" in again.headers) == (201, False)


def test_an_answer_is_forgotten_after_its_hours(
    client: TestClient, definition: Make, service_database: Database, settings: Settings
) -> None:
    _post(client, definition())
    _post(client, definition(name="second"), key="second")

    def age(session: Session) -> None:
        old = database_now(session) - timedelta(hours=settings.idempotency_hours, seconds=1)
        session.execute(update(IdempotencyKey).values(created_at=old))

    service_database.transact(age)
    # The key is free again: the request is a new one, and its name is taken.
    expect_problem(_post(client, definition()), 409)
    assert _post(client, definition(name="third")).status_code == 201
    assert _kept(service_database) == 1  # the others were purged with it


def test_purging_leaves_what_is_young_enough(
    client: TestClient, definition: Make, service_database: Database
) -> None:
    _post(client, definition())
    service_database.transact(lambda session: purge(session, timedelta(hours=1)))
    assert _kept(service_database) == 1
    service_database.transact(lambda session: purge(session, timedelta(0)))
    assert _kept(service_database) == 0
