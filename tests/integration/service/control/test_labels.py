"""Tags and notes of studies and schedules over HTTP, on both databases."""

from __future__ import annotations

import json
from typing import Any

import pytest
from sqlalchemy import select
from starlette.testclient import TestClient

from service.db.database import Database
from service.db.models import Schedule
from service.schedules.commands import run_now
from tests.support.service.api import Make, expect_problem

JSON = {"Content-Type": "application/json"}
STUDY = "/v1/studies/support-tone"


def names(client: TestClient, query: str) -> list[str]:
    return [study["name"] for study in client.get(f"/v1/studies?{query}").json()["items"]]


def test_a_study_shows_the_tags_and_the_note_that_it_was_given(client: TestClient, definition: Make) -> None:
    made = client.post("/v1/studies", json=definition()).json()
    assert (made["tags"], made["note"]) == ([], None)
    answer = client.patch(STUDY, json={"tags": ["b:1", "a"], "note": " first try\n"})
    assert answer.status_code == 200
    assert (answer.json()["tags"], answer.json()["note"]) == (["a", "b:1"], "first try")
    changed = client.patch(STUDY, json={"tags": ["a", "c"]}).json()
    assert (changed["tags"], changed["note"]) == (["a", "c"], "first try")
    assert client.patch(STUDY, json={"note": None}).json()["note"] is None
    [listed] = client.get("/v1/studies").json()["items"]
    assert (listed["tags"], listed["note"]) == (["a", "c"], None)
    events = client.get(f"{STUDY}/events").json()["items"]
    assert [event["message"] for event in events if event["kind"] == "labels_changed"] == [
        "'default' changed its tags: +a +b:1; its note: first try",
        "'default' changed its tags: +c -b:1",
        "'default' changed its note: removed",
    ]


def test_a_change_raises_the_revision_once_and_an_empty_one_does_not(
    client: TestClient, definition: Make
) -> None:
    client.post("/v1/studies", json=definition())
    before = client.get(STUDY).headers["etag"]
    after = client.patch(STUDY, json={"tags": ["a"]}, headers={"If-Match": before}).headers["etag"]
    assert after != before
    assert client.patch(STUDY, json={"tags": ["a"]}, headers={"If-Match": after}).headers["etag"] == after
    expect_problem(client.patch(STUDY, json={"tags": []}, headers={"If-Match": before}), 412)
    assert client.get(STUDY).json()["tags"] == ["a"]


def test_studies_are_listed_by_all_of_the_tags_that_are_given(client: TestClient, definition: Make) -> None:
    for name, tags in (("one", ["a"]), ("two", ["a", "b"]), ("three", ["A", "b"])):
        client.post("/v1/studies", json=definition(name=name))
        client.patch(f"/v1/studies/{name}", json={"tags": tags})
    assert names(client, "tag=a") == ["two", "one"]
    assert names(client, "tag=a&tag=b") == ["two"]
    assert names(client, "tag=c") == []
    assert expect_problem(client.get("/v1/studies?tag=-a"), 422)["faults"][0]["path"] == "query.tag"


@pytest.mark.parametrize(
    ("sent", "faults"),
    [
        ({}, {"": "changes nothing"}),
        ([], {"": "must be a mapping"}),
        ({"tag": ["a"]}, {"tag": "unknown key"}),
        ({"tags": "a", "note": 3}, {"tags": "must be a list", "note": "must be text"}),
        (
            {"tags": ["a", "-b", "a", 3]},
            {
                "tags.1": "is not a valid tag",
                "tags.2": "is listed twice",
                "tags.3": "is not a valid tag",
            },
        ),
        ({"tags": [f"t{n}" for n in range(21)]}, {"tags": "has 21 tags"}),
        ({"note": "x" * 2001}, {"note": "has 2,001 characters"}),
        ({"note": "a\x00b"}, {"note": "contains a control character or half of a surrogate pair"}),
        ({"note": "\ud800"}, {"note": "contains a control character or half of a surrogate pair"}),
    ],
)
def test_every_fault_of_a_change_is_named(
    client: TestClient, definition: Make, sent: Any, faults: dict[str, str]
) -> None:
    client.post("/v1/studies", json=definition())
    problem = expect_problem(client.patch(STUDY, content=json.dumps(sent), headers=JSON), 422)
    assert {fault["path"]: fault["message"] for fault in problem["faults"]} == faults
    assert client.get(STUDY).json()["tags"] == []


def test_sweeps_inherit_the_tags_of_their_schedule(
    client: TestClient, definition: Make, service_database: Database
) -> None:
    schedule = {"cron": "0 22 * * *", "definition": definition(), "tags": ["nightly"], "note": "ours"}
    made = client.post("/v1/schedules", json=schedule).json()
    assert (made["tags"], made["note"]) == (["nightly"], "ours")
    changed = client.patch("/v1/schedules/support-tone", json={"tags": ["b", "a"], "note": ""}).json()
    assert (changed["tags"], changed["note"]) == (["a", "b"], None)
    with service_database.write() as session:
        run_now(session, session.scalars(select(Schedule)).one())
    [sweep] = client.get("/v1/studies?tag=a&tag=b").json()["items"]
    assert (sweep["schedule"], sweep["tags"]) == ("support-tone", ["a", "b"])
    refused = client.post("/v1/schedules", json={**schedule, "name": "other", "tags": ["a b"]})
    assert [fault["path"] for fault in expect_problem(refused, 422)["faults"]] == ["tags.0"]
