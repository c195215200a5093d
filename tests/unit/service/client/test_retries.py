"""The client asks again when an answer was lost, with the same key, and not otherwise."""

from __future__ import annotations

import uuid
from collections.abc import Callable

import httpx
import pytest

from service.client import Client, RefusedError, UnreachableError
from tests.support.fakes.api import FakeApi, Reply, problem, refused, study_json

LOST = httpx.ReadError("connection reset by peer")
TIMED_OUT = httpx.ReadTimeout("timed out")
HUNG_UP = httpx.RemoteProtocolError("server disconnected without sending a response")


def _submitted() -> httpx.Response:
    return httpx.Response(201, json=study_json())


def _client(*replies: Reply, route: str = "POST /v1/studies") -> tuple[Client, FakeApi, list[float]]:
    api, pauses = FakeApi({route: list(replies)}), list[float]()
    return Client("http://sweeps.example", transport=api.transport, sleep=pauses.append), api, pauses


def _keys(api: FakeApi) -> list[str]:
    return [request.headers["Idempotency-Key"] for request in api.requests]


@pytest.mark.parametrize(
    "trouble", [LOST, TIMED_OUT, HUNG_UP, *(problem(status, "Away", "") for status in (502, 503, 504))]
)
def test_a_lost_answer_is_asked_for_again_with_the_same_key(trouble: Reply) -> None:
    client, api, pauses = _client(trouble, trouble, _submitted())
    with client:
        assert client.submit({"name": "tone"}).name == "tone"
    keys = _keys(api)
    assert (len(keys), len(set(keys))) == (3, 1)
    assert uuid.UUID(keys[0]).version == 4
    assert len({request.content for request in api.requests}) == 1
    assert pauses == [0.5, 1.0]


def test_a_server_that_is_starting_again_is_waited_for() -> None:
    client, api, _ = _client(LOST, refused(), refused(), _submitted())
    with client:
        client.submit({})
    assert len(set(_keys(api))) == 1


@pytest.mark.parametrize(
    ("asked", "expected"), [("5", 5.0), ("0", 0.5), ("3600", 30.0), ("Wed, 01 Jul 2026 22:00:00 GMT", 0.5)]
)
def test_a_server_that_says_when_to_come_back_is_asked_again_then(asked: str, expected: float) -> None:
    away = problem(503, "Unavailable", "The database does not answer.")
    away.headers["Retry-After"] = asked
    client, _, pauses = _client(away, _submitted())
    with client:
        client.submit({})
    assert pauses == [expected]


def test_nobody_there_at_all_is_said_at_once() -> None:
    client, api, pauses = _client(refused())
    with client, pytest.raises(UnreachableError):
        client.submit({})
    assert (len(api.requests), pauses) == (1, [])


def test_at_last_it_gives_up_and_says_why() -> None:
    client, api, pauses = _client(LOST)
    with client, pytest.raises(UnreachableError, match="connection reset by peer"):
        client.submit({})
    assert (len(api.requests), sum(pauses)) == (6, 15.5)
    client, _, pauses = _client(problem(503, "Unavailable", "The database does not answer."))
    with client, pytest.raises(RefusedError, match="The database does not answer"):
        client.submit({})
    assert sum(pauses) == 15.5


@pytest.mark.parametrize("status", [400, 401, 409, 412, 422, 429, 500])
def test_what_was_answered_is_not_asked_again(status: int) -> None:
    client, api, pauses = _client(problem(status, "No", "not like this"))
    with client, pytest.raises(RefusedError):
        client.submit({})
    assert (len(api.requests), pauses) == (1, [])


@pytest.mark.parametrize(
    ("route", "call"),
    [
        ("POST /v1/studies/tone/cancel", lambda client: client.cancel("tone")),
        ("POST /v1/studies/tone/pause", lambda client: client.pause("tone")),
        ("POST /v1/studies/tone/resume", lambda client: client.resume("tone")),
    ],
)
def test_every_change_by_post_has_a_key_of_its_own(route: str, call: Callable[[Client], object]) -> None:
    client, api, _ = _client(LOST, httpx.Response(202, json=study_json()), route=route)
    with client:
        call(client)
        call(client)
    first, again, second = _keys(api)
    assert first == again != second


def test_a_key_of_the_callers_own_is_sent_as_it_is() -> None:
    client, api, _ = _client(_submitted())
    with client:
        client.submit({}, idempotency_key="night-of-2026-07-01")
    assert _keys(api) == ["night-of-2026-07-01"]


def test_what_changes_nothing_has_no_key_and_is_not_repeated() -> None:
    client, api, _ = _client(LOST, route="GET /v1/studies/tone")
    with client, pytest.raises(UnreachableError):
        client.study("tone")
    client, planned, _ = _client(LOST)
    with client, pytest.raises(UnreachableError):
        client.plan({})
    for one in (api, planned):
        assert ["Idempotency-Key" in request.headers for request in one.requests] == [False]
