"""Streams, long polls and waits on a real server."""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Callable
from datetime import UTC, datetime
from typing import Any

import httpx
import pytest
from pydantic import SecretStr
from sqlalchemy.exc import OperationalError

from service.access.keys import commands as keys
from service.db import database
from service.db.models import Study
from service.db.transitions import advance_study
from service.events import broadcaster, stream
from service.settings import Settings
from service.states import StudyState
from tests.support.service.api import database_away, expect_problem, on_sqlite
from tests.support.service.events import (
    SILENCE_SECONDS,
    a_schedule,
    a_study,
    happen,
    happened,
    listening,
    scheduled,
    serving,
)
from tests.support.waiting import wait_until

ODD = "a line\nbreak, a carriage\rreturn, \u2028, \x85, \x0b and an \u00e9"


@pytest.fixture
def study(service_database: database.Database) -> str:
    return a_study(service_database)


def ask(port: int, path: str, **options: Any) -> httpx.Response:
    return httpx.get(f"http://127.0.0.1:{port}{path}", timeout=SILENCE_SECONDS, **options)


def test_a_stream_sends_what_happens_from_now_on(
    settings: Settings, service_database: database.Database, study: str
) -> None:
    schedule = a_schedule(service_database)
    happen(service_database, happened(study, "before"))
    with serving(settings) as server, listening(server.config.port) as heard:
        happen(service_database, happened(study, "a"))
        happen(service_database, scheduled(schedule, "b"))
        first, second = heard.events(2)
    assert (first.message, first.kind, first.study, first.study_id) == ("a", "waiting", "tone", study)
    assert (second.message, second.kind, second.schedule) == ("b", "schedule_skipped", "nightly")
    assert second.owner == "ann"


def test_a_stream_begins_after_the_last_event_that_was_received(
    settings: Settings, service_database: database.Database, study: str
) -> None:
    for word in "abcd":
        happen(service_database, happened(study, word))
    with serving(settings) as server:
        port = server.config.port
        ids = {item["message"]: item["id"] for item in ask(port, "/v1/events").json()["items"]}
        path = f"/v1/studies/tone/events/stream?after={ids['a']}"
        with listening(port, path) as heard:
            assert [event.message for event in heard.events(3)] == ["b", "c", "d"]
        with listening(port, path, Last_Event_ID=str(ids["c"])) as heard:  # a browser sends the same address
            assert [event.message for event in heard.events(1)] == ["d"]
        with listening(port, "/v1/events?after=0", Accept="text/html, Text/Event-Stream;q=0.9") as heard:
            assert [event.message for event in heard.events(4)] == [*"abcd"]


def test_only_what_was_asked_for_is_sent_and_heartbeats_pass_over_the_rest(
    settings: Settings, service_database: database.Database, study: str
) -> None:
    path = "/v1/events/stream?kind=study_failed&kind=schedule_failed&study=tone&heartbeat=1"
    with serving(settings) as server, listening(server.config.port, path) as heard:
        happen(service_database, happened(a_study(service_database, "other"), "other", "study_failed"))
        happen(service_database, happened(study, "other kind"))
        newest = ask(server.config.port, "/v1/events").json()["last_id"]
        while heard.last_id < newest:  # messages with an id and no data: browsers note the id
            message = heard.message()
            assert message is not None
            assert message.data is None
        happen(service_database, happened(study, "ended", "study_failed"))
        assert [event.message for event in heard.events(1)] == ["ended"]


@on_sqlite
def test_a_message_is_one_line_for_every_reader_of_lines(
    settings: Settings, service_database: database.Database, study: str
) -> None:
    happen(service_database, happened(study, ODD))
    with serving(settings) as server, listening(server.config.port, "/v1/events/stream?after=0") as heard:
        message = heard.message()
    assert message is not None
    assert message.data is not None
    assert len(message.data.decode().splitlines()) == 1


def test_a_server_that_stops_ends_streams_polls_and_waits_at_once(
    settings: Settings, service_database: database.Database, study: str
) -> None:
    answers: list[httpx.Response] = []
    with serving(settings) as server, listening(server.config.port) as heard:
        port = server.config.port
        paths = ("/v1/events?wait=120", "/v1/studies/tone?wait=120")
        threads = [threading.Thread(target=lambda p=path: answers.append(ask(port, p))) for path in paths]
        for thread in threads:
            thread.start()
        events = server.config.app.state.broadcaster  # type: ignore[union-attr]
        wait_until(lambda: events._followers == 3, "all of them waiting")
        server.should_exit = True
        assert heard.ends()
        for thread in threads:
            thread.join(60)
    assert [answer.status_code for answer in answers] == [200, 200]


def test_a_long_poll_answers_when_something_happens_and_empty_when_nothing_does(
    settings: Settings, service_database: database.Database, study: str
) -> None:
    with serving(settings) as server:
        port = server.config.port
        empty = ask(port, "/v1/events?wait=0.1").json()
        assert empty == {"items": [], "next_cursor": None, "last_id": 0}
        answers: list[httpx.Response] = []
        poll = f"/v1/studies/{study}/events?kind=study_failed&wait=120"
        thread = threading.Thread(target=lambda: answers.append(ask(port, poll)))
        thread.start()
        events = server.config.app.state.broadcaster  # type: ignore[union-attr]
        wait_until(lambda: events._followers == 1, "the poll waiting")
        happen(service_database, happened(study, "not that"))
        happen(service_database, happened(study, "that", "study_failed"))
        thread.join(60)
        [item] = answers[0].json()["items"]
        assert item["message"] == "that"
        assert answers[0].json()["last_id"] == item["id"]
        at_once = ask(port, f"/v1/events?after={item['id'] - 1}&wait=120").json()
        assert [one["message"] for one in at_once["items"]] == ["that"]


def test_waiting_for_a_study_answers_at_its_end(
    settings: Settings, service_database: database.Database, study: str
) -> None:
    definition = {"objective": {"metric": "eval_loss", "direction": "minimize"}}
    with service_database.write() as session:
        session.get_one(Study, study).definition = definition
    with serving(settings) as server:
        port = server.config.port
        assert ask(port, "/v1/studies/tone?wait=0.1").json()["state"] == "queued"
        answers: list[httpx.Response] = []
        thread = threading.Thread(target=lambda: answers.append(ask(port, "/v1/studies/tone?wait=120")))
        thread.start()
        events = server.config.app.state.broadcaster  # type: ignore[union-attr]
        wait_until(lambda: events._followers == 1, "the request waiting")
        with service_database.write() as session:
            advance_study(session, session.get_one(Study, study), StudyState.CANCELLED, "enough")
        thread.join(60)
        assert answers[0].json()["state"] == "cancelled"
        assert answers[0].headers["etag"] == '"2"'
        assert ask(port, "/v1/studies/tone?wait=120").json()["state"] == "cancelled"  # at once
        assert ask(port, "/v1/studies/gone?wait=120").status_code == 404


def test_a_revoked_key_ends_its_stream_and_no_other(
    settings: Settings,
    service_database: database.Database,
    study: str,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(stream, "CHECK_SECONDS", 0.2)
    guarded = settings.model_copy(update={"api_key": SecretStr("root")})
    with service_database.write() as session:
        ann = keys.add(session, "ann")
    with serving(guarded) as server:
        port = server.config.port
        with listening(port, key=ann.key) as hers, listening(port, key="root") as ours:
            with service_database.write() as session:
                keys.revoke(session, ann.row.id)
            assert hers.ends()
            happen(service_database, happened(study, "still heard"))
            assert [event.message for event in ours.events(1)] == ["still heard"]
        refused = ask(port, "/v1/events/stream", headers={"Authorization": f"Bearer {ann}"})
        expect_problem(refused, 401)


def test_a_stream_goes_on_when_the_database_is_back(
    settings: Settings,
    service_database: database.Database,
    study: str,
    monkeypatch: pytest.MonkeyPatch,
    away: Callable[[], Any],
) -> None:
    with serving(settings) as server, listening(server.config.port, "/v1/events/stream?heartbeat=1") as heard:
        with away():
            happen(service_database, happened(study, "meanwhile"))
            for _ in range(2):
                message = heard.message()
                assert message is not None
                assert message.data is None  # heartbeats
        assert [event.message for event in heard.events(1)] == ["meanwhile"]


@pytest.fixture
def away(settings: Settings, monkeypatch: pytest.MonkeyPatch) -> Callable[[], Any]:
    """Makes new events unreadable for the server, while a block lasts."""

    @contextlib.contextmanager
    def gone() -> Any:
        def fail(*_: Any, **__: Any) -> Any:
            raise OperationalError("SELECT", {}, database_away(settings))

        with monkeypatch.context() as patched:
            patched.setattr(broadcaster, "read_page", fail)
            patched.setattr(broadcaster, "newest", fail)
            yield

    return gone


@on_sqlite
def test_more_followers_than_connections_allow_are_refused(
    settings: Settings, service_database: database.Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(broadcaster, "MAX_FOLLOWERS", 1)
    with serving(settings) as server:
        port = server.config.port
        with listening(port):
            for path in ("/v1/events/stream", "/v1/events?wait=1"):
                problem = expect_problem(ask(port, path), 503)
                assert problem["detail"].startswith("1 requests wait for events already")
        events = server.config.app.state.broadcaster  # type: ignore[union-attr]
        wait_until(lambda: events._followers == 0, "the place to be free again")
        with listening(port):
            pass


WRONG = {
    "?kind=study_complete": ("query.kind", "study_completed"),
    "?after=-1": ("query.after", None),
    "?since=3": ("query.since", "after"),
    "?wait=121": ("query.wait", None),
    "?wait=nan": ("query.wait", None),
    "?study=a%20b": ("query.study", None),
    "?cursor=x": ("query.cursor", None),
}


@on_sqlite
@pytest.mark.parametrize("query", WRONG)
def test_wrong_parameters_are_refused(client: Any, query: str) -> None:
    [fault] = expect_problem(client.get(f"/v1/events{query}"), 422)["faults"]
    assert (fault["path"], fault["nearest"]) == WRONG[query]


@on_sqlite
def test_a_wrong_last_event_id_is_refused_and_so_is_a_study_that_is_not_there(client: Any) -> None:
    wrong = client.get("/v1/events/stream", headers={"Last-Event-ID": "0x10"})
    [fault] = expect_problem(wrong, 422)["faults"]
    assert fault["path"] == "header.last-event-id"
    assert fault["allowed"] == "an id of an event, as it was received"
    expect_problem(client.get("/v1/studies/none/events/stream"), 404)


def test_a_page_says_where_the_next_one_begins(
    client: Any, service_database: database.Database, study: str
) -> None:
    happen(service_database, *(happened(study, str(number)) for number in range(5)))
    for path in ("/v1/events", "/v1/studies/tone/events"):
        found, cursor = [], None
        while cursor is not None or not found:
            page = client.get(path, params={"limit": 2, **({"cursor": cursor} if cursor else {})}).json()
            found += [item["message"] for item in page["items"]]
            cursor = page["next_cursor"]
        assert found == [*"01234"]
        assert page["last_id"] == page["items"][-1]["id"]
    old = client.get("/v1/studies/tone/events", params={"after": page["items"][-1]["id"] - 1}).json()
    assert [item["message"] for item in old["items"]] == ["4"]


def test_studies_are_listed_by_when_they_were_made_and_ended(
    client: Any, service_database: database.Database
) -> None:
    times = [datetime(2026, 11, day, 22, tzinfo=UTC) for day in (1, 2, 3)]
    for number, at in enumerate(times):
        over = {"state": "failed", "ended_at": at} if number else {}
        a_study(service_database, f"s{number}", created_at=at, **over)

    def listed(**query: str) -> list[str]:
        return [item["name"] for item in client.get("/v1/studies", params=query).json()["items"]]

    assert listed(created_after="2026-11-02T22:00:00Z") == ["s2", "s1"]
    assert listed(created_before="2026-11-02T23:00:00+01:00") == ["s0"]
    assert listed(ended_after="2026-11-01T00:00:00Z") == ["s2", "s1"]
    assert listed(ended_before="2026-11-03T22:00:00.000Z", created_after="2026-11-01T22:00:00Z") == ["s1"]
    wrong = ("2026-11-02", "2026-11-02T22:00:00", "1700000000", "0001-01-01T00:00:00+14:00", "yesterday")
    for text in wrong:
        [fault] = expect_problem(client.get("/v1/studies", params={"ended_before": text}), 422)["faults"]
        assert fault["message"] == "must be a time with its offset", text
