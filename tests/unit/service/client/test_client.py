"""The REST client against scripted answers."""

from __future__ import annotations

import io
from typing import Any

import httpx
import pytest
from pydantic import ValidationError

from service.answers import Answer
from service.client import Client, RefusedError, UnexpectedAnswerError, UnreachableError
from service.plans.schemas import PlanWarning
from service.studies.schemas import StudyView
from service.trials.schemas import JudgementView, TrialView
from tests.support.fakes.api import (
    FakeApi,
    event_json,
    problem,
    refused,
    schedule_json,
    study_json,
    trial_json,
)


def client_of(api: FakeApi, **options: Any) -> Client:
    return Client("http://sweeps.example:8787/", transport=api.transport, **options)


def test_a_study_is_submitted_as_json_with_the_key_as_a_bearer_token() -> None:
    api = FakeApi({"POST /v1/studies": httpx.Response(201, json=study_json())})
    with client_of(api, api_key="s3cret") as client:
        study = client.submit({"name": "tone"})
    assert api.body() == {"name": "tone"}
    assert api.requests[0].headers["Authorization"] == "Bearer s3cret"
    assert (study.name, study.state, study.trials_requested) == ("tone", "running", 12)


def test_no_key_means_no_authorization_header() -> None:
    api = FakeApi({"GET /v1/studies/tone": httpx.Response(200, json=study_json())})
    with client_of(api) as client:
        client.study("tone")
    assert "Authorization" not in api.requests[0].headers


def test_a_non_finite_number_reaches_the_service_which_can_name_its_key() -> None:
    api = FakeApi({"POST /v1/studies": httpx.Response(201, json=study_json())})
    with client_of(api) as client:
        client.submit({"min": float("inf")})
    assert api.requests[0].content == b'{"min": Infinity}'


def test_studies_are_read_page_by_page() -> None:
    pages = [
        httpx.Response(200, json={"items": [study_json(name="b")], "next_cursor": "after-b"}),
        httpx.Response(200, json={"items": [study_json(name="a")], "next_cursor": None}),
    ]
    api = FakeApi({"GET /v1/studies": [*pages]})
    with client_of(api) as client:
        names = [study.name for study in client.studies(state="running")]
    assert names == ["b", "a"]
    assert [request.url.params.get("cursor") for request in api.requests] == [None, "after-b"]
    assert [request.url.params["state"] for request in api.requests] == ["running", "running"]


def test_lists_are_asked_for_with_the_filters_that_are_given() -> None:
    api = FakeApi(
        {
            "GET /v1/studies": httpx.Response(200, json={"items": [], "next_cursor": None}),
            "GET /v1/schedules": httpx.Response(200, json={"items": []}),
            "GET /v1/studies/tone/trials": httpx.Response(200, json={"items": [], "next_cursor": None}),
        }
    )
    with client_of(api) as client:
        list(client.studies(state=["running", "queued"], prefix="to", owner="alice", schedule="nightly"))
        client.schedules(prefix="n", enabled=False)
        client.trials("tone", state="completed", sort="best", limit=3)
        client.trials("tone")
    assert [request.url.query.decode() for request in api.requests] == [
        "limit=100&state=running&state=queued&prefix=to&owner=alice&schedule=nightly",
        "prefix=n&enabled=false",
        "state=completed&sort=best&limit=3",
        "",
    ]


def test_events_are_read_until_there_are_no_more() -> None:
    pages = [
        httpx.Response(200, json={"items": found})
        for found in ([event_json(4), event_json(6)], [event_json(7)], [])
    ]
    api = FakeApi({"GET /v1/studies/tone/events": [*pages]})
    with client_of(api) as client:
        assert [one.id for one in client.events("tone", after=3)] == [4, 6, 7]
    assert [request.url.params["after"] for request in api.requests] == ["3", "6", "7"]


def test_an_answer_keeps_what_a_newer_server_adds_and_prints_it_again() -> None:
    api = FakeApi({"GET /v1/studies/tone": httpx.Response(200, json=study_json(colour="blue"))})
    with client_of(api) as client:
        assert client.study("tone").document() == study_json(colour="blue")


def test_states_and_verdicts_of_a_newer_server_are_read_and_printed_again() -> None:
    finding = {"verdict": "memorized", "evidence": "0 loss", "rung": None, "since": 4}
    trial = trial_json(0, "hibernating", diagnosis=[finding])
    api = FakeApi({"GET /v1/studies/tone/trials/0": httpx.Response(200, json=trial)})
    with client_of(api) as client:
        found = client.trial("tone", 0)
    assert (found.state, found.diagnosis[0].verdict) == ("hibernating", "memorized")
    assert found.document() == trial


@pytest.mark.parametrize(
    ("kind", "key", "document"),
    [
        (PlanWarning, "code", {"code": "full_moon", "message": "It is night.", "evidence": {}}),
        (
            JudgementView,
            "decided_by",
            {
                "winner": 0,
                "decided_by": "lot",
                "candidates": [],
                "p_value": None,
                "distinguishable": None,
                "sentence": "Nobody knows.",
            },
        ),
    ],
)
def test_other_names_of_a_newer_server_are_read_and_printed_again(
    kind: type[Answer], key: str, document: dict[str, Any]
) -> None:
    found = kind.read(document)
    assert getattr(found, key) == document[key]
    assert found.document() == document
    with pytest.raises(ValidationError, match=document[key]):
        kind.model_validate(document)


def test_the_server_itself_answers_with_no_name_that_is_not_in_its_document() -> None:
    with pytest.raises(ValidationError, match="hibernating"):
        TrialView.model_validate(trial_json(0, "hibernating"))


def test_a_name_is_one_segment_of_the_path_whatever_is_in_it() -> None:
    api = FakeApi({"GET /v1/studies/a%2Fb%3Fc": httpx.Response(200, json=study_json())})
    with client_of(api) as client:
        assert client.study("a/b?c").name == "tone"


def test_a_problem_is_raised_with_its_faults() -> None:
    fault = {"path": "search.trials", "value": 0, "message": "must be positive", "allowed": ">= 1"}
    api = FakeApi({"POST /v1/studies": problem(422, "Invalid", "The definition has 1 fault.", [fault])})
    with client_of(api) as client, pytest.raises(RefusedError) as caught:
        client.submit({})
    assert (caught.value.status, caught.value.title) == (422, "Invalid")
    assert caught.value.faults[0].path == "search.trials"
    assert caught.value.faults[0].nearest is None


def test_a_refusal_that_is_no_problem_document_is_named_by_its_status() -> None:
    api = FakeApi({"GET /v1/studies/tone": httpx.Response(502, text="<html>Bad Gateway</html>")})
    with client_of(api) as client, pytest.raises(RefusedError, match=r"Bad Gateway \(502\)"):
        client.study("tone")


@pytest.mark.parametrize(
    "error", [refused(), httpx.ReadTimeout("timed out"), httpx.RemoteProtocolError("peer closed connection")]
)
def test_silence_is_unreachable(error: httpx.RequestError) -> None:
    api = FakeApi({"GET /v1/studies/tone": error})
    with client_of(api) as client, pytest.raises(UnreachableError, match=r"sweeps\.example:8787 \("):
        client.study("tone")


@pytest.mark.parametrize(
    ("response", "what"),
    [
        (httpx.Response(200, text="<html>"), "the answer is not JSON"),
        (httpx.Response(200, json=["x"]), "the answer is not a JSON object"),
        (httpx.Response(200, json={"id": "5"}), r"StudyView\.name: Field required"),
        (httpx.Response(307, headers={"Location": "https://login"}), "it redirects to https://login"),
    ],
)
def test_an_answer_of_another_service_is_told_apart(response: httpx.Response, what: str) -> None:
    api = FakeApi({"GET /v1/studies/tone": response})
    with client_of(api) as client, pytest.raises(UnexpectedAnswerError, match=what):
        client.study("tone")


@pytest.mark.parametrize("server", ["localhost:8787", "ftp://host", "http://", "http://host:port", ""])
def test_what_is_no_server_address_is_said_at_once(server: str) -> None:
    with pytest.raises(ValueError, match="is not a server address"):
        Client(server)


def test_an_adapter_is_downloaded_as_it_is() -> None:
    path = "GET /v1/studies/tone/trials/3/adapter"
    api = FakeApi({path: httpx.Response(200, content=b"PK-zip")})
    target = io.BytesIO()
    with client_of(api) as client:
        client.download_adapter("tone", 3, target, which="last")
    assert target.getvalue() == b"PK-zip"
    assert api.requests[0].url.params["which"] == "last"


def test_an_adapter_that_is_not_there_is_a_problem_like_any_other() -> None:
    api = FakeApi({"GET /v1/studies/tone/trials/3/adapter": problem(404, "Not found", "No adapter yet.")})
    with client_of(api) as client, pytest.raises(RefusedError, match="No adapter yet"):
        client.download_adapter("tone", 3, io.BytesIO())


def test_a_schedule_is_changed_by_what_changes() -> None:
    schedule = schedule_json(enabled=False)
    api = FakeApi({"PATCH /v1/schedules/nightly": httpx.Response(200, json=schedule)})
    with client_of(api) as client:
        assert not client.change_schedule("nightly", enabled=False).enabled
    assert api.body() == {"enabled": False}


def test_the_dashboard_address_is_the_studys_page_once_there_is_one() -> None:
    with client_of(FakeApi({})) as client:
        here = "http://sweeps.example:8787/dashboard"
        assert client.dashboard_url(StudyView.model_validate(study_json())) == f"{here}/studies/3"
        assert client.dashboard_url(StudyView.model_validate(study_json(dashboard_path=None))) == here
        assert client.dashboard_url() == here


@pytest.mark.parametrize(
    ("state", "finished"),
    [("waiting", False), ("dispatched", False), ("running", False), ("lost", False)]
    + [
        (state, True) for state in ("completed", "pruned", "diverged", "out_of_memory", "failed", "cancelled")
    ],
)
def test_a_trial_is_finished_unless_another_attempt_may_follow(state: str, finished: bool) -> None:
    assert finished == TrialView.model_validate(trial_json(0, state)).finished
