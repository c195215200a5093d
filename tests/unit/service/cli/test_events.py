"""Following events and waiting for a study's end, on the command line."""

from __future__ import annotations

import json
from typing import Any

import httpx
import pytest

from service.cli.commands import events
from service.cli.commands.events import wait_for_end
from service.cli.news import News
from service.client import Arrival, Client, RefusedError, UnexpectedAnswerError, UnreachableError
from tests.support.fakes.api import FakeApi, Reply, event_json, problem, refused, study_json

STREAM = "GET /v1/studies/tone/events/stream"
STUDY = "GET /v1/studies/tone"
SSE = {"Content-Type": "text/event-stream; charset=utf-8"}


class Clock:
    """Time that passes only when somebody sleeps."""

    def __init__(self) -> None:
        self.now = 0.0

    def sleep(self, seconds: float) -> None:
        self.now += seconds

    def __call__(self) -> float:
        return self.now


def message(number: int, **fields: Any) -> bytes:
    return f"id: {number}\ndata: {json.dumps(event_json(number, **fields))}\n\n".encode()


def stream(*parts: bytes, breaks: bool = False) -> httpx.Response:
    def pieces() -> Any:
        yield b"retry: 2000\nid: 3\n\n"
        yield from parts
        if breaks:
            raise httpx.ReadError("connection reset")

    return httpx.Response(200, headers=SSE, content=pieces())


def client(api: FakeApi) -> Client:
    return Client("http://sweeps.example", transport=api.transport, sleep=lambda _: None)


def running(**changes: Any) -> httpx.Response:
    return httpx.Response(200, json=study_json(**changes))


def completed() -> httpx.Response:
    return running(state="completed", ended_at="2026-07-01T22:03:05Z")


# -- the client --------------------------------------------------------------------------------------


def test_messages_arrive_in_whatever_pieces_the_network_makes_of_them() -> None:
    whole = message(4) + b": heartbeat\nid: 9\n\n" + message(10, message="\u2028 \u0085 \u00e9")
    pieces = [whole[at : at + 7] for at in range(0, len(whole), 7)]
    found = [
        arrival
        for arrived in client(FakeApi({STREAM: stream(*pieces)})).arrivals("tone", after=3)
        for arrival in arrived
    ]
    assert [arrival.id for arrival in found] == [3, 4, 9, 10]
    assert [None if a.event is None else a.event.id for a in found] == [None, 4, None, 10]
    assert found[-1].event is not None
    assert found[-1].event.message == "\u2028 \u0085 \u00e9"


def test_a_stream_is_taken_up_at_the_last_id_with_its_filters() -> None:
    api = FakeApi({"GET /v1/events/stream": stream()})
    found = list(client(api).arrivals(after=7, kind=["waiting", "starting"], owner="ann"))
    assert found == [[Arrival(3, None)]]
    [request] = api.requests
    assert request.headers["Last-Event-ID"] == "7"
    assert request.headers["Accept"] == "text/event-stream"
    assert request.url.params.multi_items() == [
        ("kind", "waiting"),
        ("kind", "starting"),
        ("owner", "ann"),
        ("heartbeat", "15"),
    ]


@pytest.mark.parametrize(
    ("reply", "error"),
    [
        (stream(breaks=True), UnreachableError),
        (refused(), UnreachableError),
        (problem(404, "Not found", "no such study"), RefusedError),
        (httpx.Response(200, json={}), UnexpectedAnswerError),
        (stream(b"id: x\n\n"), UnexpectedAnswerError),
        (stream(b"data: " + b"x" * 2**21), UnexpectedAnswerError),
    ],
)
def test_a_stream_that_fails_says_how(reply: Reply, error: type[Exception]) -> None:
    with pytest.raises(error):
        list(client(FakeApi({STREAM: reply})).arrivals("tone"))


# -- news --------------------------------------------------------------------------------------------


def test_news_come_with_what_arrives_and_a_second_apart() -> None:
    api = FakeApi({STREAM: [stream(message(4) + message(5), message(6)), stream(message(7))]})
    clock = Clock()
    news = News(client(api), "tone", sleep=clock.sleep, clock=clock)
    seconds = []
    for _ in range(5):  # greeting, two at once, one, the end of the stream, a new greeting
        news.wait(1.0)
        seconds.append(clock.now)
    news.close()
    assert seconds == [1.0, 2.0, 3.0, 4.0, 5.0]
    assert [request.headers.get("Last-Event-ID") for request in api.requests] == [None, "6"]


def test_an_older_server_is_asked_every_second_and_not_for_a_stream_again() -> None:
    api, clock = FakeApi({}), Clock()
    news = News(client(api), "tone", sleep=clock.sleep, clock=clock)
    for _ in range(3):
        news.wait(1.0)
    assert (len(api.requests), clock.now) == (1, 3.0)


@pytest.mark.parametrize("trouble", [refused(), problem(503, "Unavailable", "full"), stream(breaks=True)])
def test_a_stream_that_is_lost_is_asked_for_again(trouble: Reply) -> None:
    api, clock = FakeApi({STREAM: [trouble, stream(message(4))]}), Clock()
    news = News(client(api), "tone", sleep=clock.sleep, clock=clock)
    while len(api.requests) < 2:
        news.wait(1.0)
    news.close()
    assert clock.now <= 3.0


# -- wait --------------------------------------------------------------------------------------------


def waited(studies: list[Reply], seconds: float | None = None) -> tuple[str, Clock, FakeApi]:
    api, clock = FakeApi({STUDY: studies}), Clock()
    found = wait_for_end(client(api), "tone", seconds, sleep=clock.sleep, clock=clock)
    return found.state, clock, api


def test_waiting_asks_the_server_to_wait() -> None:
    state, _, api = waited([running(), completed()])
    assert state == "completed"
    assert [request.url.params["wait"] for request in api.requests] == ["60", "60"]


def test_waiting_goes_on_over_a_restart_of_the_server() -> None:
    assert waited([refused(), problem(503, "Unavailable", "starting"), completed()])[0] == "completed"


def test_waiting_ends_when_its_time_is_over() -> None:
    state, clock, api = waited([running()], 2.5)
    assert (state, clock.now) == ("running", 2.5)
    assert [request.url.params.get("wait") for request in api.requests] == ["2.5", "1.5", "0.5", None]


def test_an_older_server_is_asked_again_and_again() -> None:
    state, clock, _ = waited([problem(422, "Invalid", "no wait"), running(), running(), completed()])
    assert (state, clock.now) == ("completed", 2.0)


def test_a_study_that_is_gone_ends_the_wait() -> None:
    with pytest.raises(RefusedError, match="no such study"):
        waited([running(), problem(404, "Not found", "no such study")])


EXITS = {"completed": 0, "failed": 1, "cancelled": 1}


@pytest.mark.parametrize("state", EXITS)
def test_the_exit_code_tells_how_the_study_ended(run: Any, state: str) -> None:
    ended = running(state=state, reason="so it was", ended_at="2026-07-01T22:03:05Z")
    result = run({STUDY: ended, f"GET /v1/studies/{'5' * 32}": ended}, "wait", "tone")
    assert result.exit_code == EXITS[state]
    assert result.stdout.startswith(f"Study tone is {state}: so it was (")


def test_a_time_that_is_over_has_its_own_exit_code(run: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(events, "wait_for_end", lambda client, *_: client.study("tone"))
    result = run({STUDY: running()}, "wait", "tone", "--timeout", "1h30m")
    assert (result.exit_code, result.stdout.startswith("Study tone is still running")) == (4, True)


def test_a_time_of_no_known_form_is_wrong_usage(run: Any) -> None:
    result = run({}, "wait", "tone", "--timeout", "soon")
    assert result.exit_code == 2
    assert result.stderr.startswith("Error: --timeout: must be ")


# -- events ------------------------------------------------------------------------------------------


def test_following_a_study_prints_its_events_until_its_end(run: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(events.time, "sleep", lambda _: None)
    replies: dict[str, Reply | list[Reply]] = {
        STUDY: running(),
        STREAM: [
            stream(message(4, message="a"), breaks=True),
            refused(),
            stream(message(5, kind="study_completed", message="done"), message(6, message="never")),
        ],
    }
    api = FakeApi(replies)
    result = run(api, "events", "tone", "--follow", "--json")
    assert result.exit_code == 0
    assert [json.loads(line)["message"] for line in result.stdout.splitlines()] == ["a", "done"]
    assert [line.partition(":")[0] for line in result.stderr.splitlines()] == [
        "trying again",
        "the server answers again",
    ]
    asked = [r.headers["Last-Event-ID"] for r in api.requests if r.url.path.endswith("/stream")]
    assert asked == ["0", "4", "4"]


def test_a_filter_does_not_hide_the_end_from_the_command(run: Any) -> None:
    parts = message(4, kind="starting", message="a"), message(5, kind="study_failed", message="ended")
    api = FakeApi({STUDY: running(), STREAM: stream(*parts)})
    result = run(api, "events", "tone", "--follow", "--kind", "starting")
    assert (result.exit_code, result.stdout.splitlines()[0].endswith("starting: a")) == (0, True)
    assert len(result.stdout.splitlines()) == 1
    kinds = api.requests[-1].url.params.get_list("kind")
    assert kinds == ["starting", "study_cancelled", "study_completed", "study_failed"]


def test_a_study_that_has_ended_is_not_waited_for(run: Any) -> None:
    page = httpx.Response(200, json={"items": [event_json(1)]})
    empty = httpx.Response(200, json={"items": []})
    replies = {STUDY: completed(), "GET /v1/studies/tone/events": [page, empty]}
    result = run(replies, "events", "tone", "--follow", "--json")
    assert (result.exit_code, len(result.stdout.splitlines())) == (0, 1)


def test_the_events_of_everybody_say_whose_they_are(run: Any) -> None:
    page = httpx.Response(
        200, json={"items": [event_json(1, study="tone"), event_json(2, schedule="nightly")]}
    )
    result = run(
        {"GET /v1/events": [page, httpx.Response(200, json={"items": []})]}, "events", "--kind", "waiting"
    )
    assert [line.split()[3] for line in result.stdout.splitlines()] == ["trial", "tone", "nightly"]


def test_filters_of_everybodys_events_need_no_study(run: Any) -> None:
    result = run({}, "events", "tone", "--owner", "ann")
    assert (result.exit_code, "leave out the study" in result.stderr) == (2, True)
