"""Extending studies over HTTP, on both databases."""

from __future__ import annotations

from typing import Any

import pytest
from starlette.testclient import TestClient

from service.db.database import Database
from service.db.transitions import advance_study, start
from service.maintenance import integrity
from service.optuna_store.storage import Storage
from service.settings import Settings
from service.states import StudyState
from service.studies.queries import get_study
from tests.support.service.api import Make, expect_problem
from tests.support.service.database_lab import Lab

STUDY = "/v1/studies/support-tone"
EXTEND = f"{STUDY}/extend"


@pytest.fixture
def over(client: TestClient, definition: Make, service_database: Database, storage: Storage) -> Lab:
    """A study whose only trial has completed, and which has ended."""
    document = definition(search={**definition()["search"], "trials": 1})
    made = Lab(client.post("/v1/studies", json=document).json(), service_database, storage)
    with service_database.write() as session:
        start(session, get_study(session, "support-tone"), "taken up")
    made.complete(1.5)
    made.advance(StudyState.COMPLETED)
    return made


def test_an_ended_study_is_queued_again_with_what_it_was_given(client: TestClient, over: Lab) -> None:
    before = client.get(STUDY)
    answer = client.post(EXTEND, json={"trials": "+2"}, headers={"If-Match": before.headers["etag"]})
    assert answer.status_code == 202
    shown = answer.json()
    assert (shown["state"], shown["ended_at"], shown["trials_requested"]) == ("queued", None, 3)
    assert shown["reason"] == "'default' extended it: search.trials is 3 now; waiting for a coordinator"
    assert shown["definition"]["search"]["trials"] == 3
    [extension] = shown["extensions"]
    assert (extension["trials"], extension["asked_by"], extension["since"]) == (3, "default", 1)
    assert shown["best"]["value"] == 1.5
    expect_problem(client.post(EXTEND, json={"trials": 1}, headers={"If-Match": before.headers["etag"]}), 412)
    kinds = [event["kind"] for event in client.get(f"{STUDY}/events").json()["items"]]
    assert kinds[-2:] == ["study_extended", "study_queued"]


def test_a_study_is_extended_once_for_one_key(client: TestClient, over: Lab) -> None:
    headers = {"Idempotency-Key": "one"}
    first = client.post(EXTEND, json={"trials": 1}, headers=headers)
    again = client.post(EXTEND, json={"trials": 1}, headers=headers)
    assert (again.content, again.headers["Idempotent-Replayed"]) == (first.content, "true")
    assert client.get(STUDY).json()["trials_requested"] == 2


@pytest.mark.parametrize(
    ("body", "faults"),
    [
        ({}, {"": "extends nothing"}),
        ([], {"": "must be a mapping"}),
        (
            {"trails": 3, "trials": 0, "timeout": "2 hours", "max_gpu_hours": -1, "max_failed_trials": "2"},
            {
                "trails": "unknown key",
                "trials": "is not a valid amount to add",
                "timeout": "is not a valid amount to add",
                "max_gpu_hours": "is not a valid amount to add",
                "max_failed_trials": "is not a valid amount to add",
            },
        ),
        (
            {"timeout": "2h", "max_gpu_hours": "+1.5"},
            {
                "timeout": "has no bound in this study, so there is nothing to extend",
                "max_gpu_hours": "has no bound in this study, so there is nothing to extend",
            },
        ),
        ({"trials": 100_000}, {"trials": "makes search.trials 100001, which must be at most 100000"}),
    ],
)
def test_every_fault_of_an_extension_is_named(
    client: TestClient, over: Lab, body: Any, faults: dict[str, str]
) -> None:
    problem = expect_problem(client.post(EXTEND, json=body), 422)
    assert {fault["path"]: fault["message"] for fault in problem["faults"]} == faults
    assert client.get(STUDY).json()["state"] == "completed"


def test_a_deleted_study_is_not_extended(client: TestClient, over: Lab) -> None:
    client.delete(STUDY)
    refused = expect_problem(client.post(EXTEND, json={"trials": 1}), 409)
    assert refused["detail"] == "The study 'support-tone' is deleted; restore it before it is extended."
    client.post(f"{STUDY}/restore")
    client.post(EXTEND, json={"trials": 1})
    assert "it is queued; cancel it first" in expect_problem(client.delete(STUDY), 409)["detail"]


def test_rows_of_an_extended_study_keep_the_rules(
    client: TestClient, over: Lab, settings: Settings, service_database: Database
) -> None:
    client.post(EXTEND, json={"trials": 1})
    over.definition = over.definition.model_copy(
        update={"search": over.definition.search.model_copy(update={"trials": 2})}
    )
    with service_database.write() as session:
        start(session, get_study(session, "support-tone"), "taken up")
    assert over.complete(1.0) == 1
    with service_database.write() as session:
        advance_study(session, get_study(session, "support-tone"), StudyState.COMPLETED, "done")
    broken = {found.rule for found in integrity.find_violations(settings)}
    assert broken <= {"no-overlap"}  # the lab sends nothing to a worker
    assert client.get(STUDY).json()["best"]["value"] == 1.0
