"""Enqueuing recipes over HTTP, on both databases."""

from __future__ import annotations

from typing import Any

import pytest
from starlette.testclient import TestClient

from service.db.database import Database
from service.optuna_store.storage import Storage
from service.states import StudyState
from tests.support.service.api import Make, expect_problem
from tests.support.service.database_lab import Lab

STUDY = "/v1/studies/support-tone"
POINT = {"learning_rate": 1e-4, "batch_size": 8}


@pytest.fixture
def lab(client: TestClient, definition: Make, service_database: Database, storage: Storage) -> Lab:
    """A running study of 4 trials, one of which has completed."""
    made = Lab(client.post("/v1/studies", json=definition()).json(), service_database, storage)
    made.advance(StudyState.RUNNING)
    made.complete(1.5)
    return made


def test_a_recipe_waits_until_a_trial_has_it(client: TestClient, lab: Lab) -> None:
    made = client.post(f"{STUDY}/trials", json={"params": POINT})
    assert made.status_code == 202
    assert made.json() | {"at": None} == {
        "id": 1,
        "state": "waiting",
        "params": POINT,
        "asked_by": "default",
        "at": None,
        "trial_number": None,
        "reason": None,
    }
    client.post(f"{STUDY}/trials", json={"params": {"batch_size": 4}})
    listed = client.get(f"{STUDY}/enqueued").json()["items"]
    assert [(recipe["id"], recipe["params"]) for recipe in listed] == [(1, POINT), (2, {"batch_size": 4})]
    assert [recipe["id"] for recipe in client.get(f"{STUDY}/enqueued?after=1").json()["items"]] == [2]
    events = client.get(f"{STUDY}/events").json()["items"]
    assert "'default' enqueued a recipe, number 1" in [event["message"] for event in events]


def test_a_recipe_is_enqueued_once_for_one_key(client: TestClient, lab: Lab) -> None:
    headers = {"Idempotency-Key": "one"}
    first = client.post(f"{STUDY}/trials", json={"params": POINT}, headers=headers)
    again = client.post(f"{STUDY}/trials", json={"params": POINT}, headers=headers)
    assert (again.content, again.headers["Idempotent-Replayed"]) == (first.content, "true")
    assert len(client.get(f"{STUDY}/enqueued").json()["items"]) == 1


@pytest.mark.parametrize(
    ("body", "faults"),
    [
        ({}, {"params": "is required"}),
        ([], {"": "must be a mapping"}),
        ({"params": [], "parms": {}}, {"params": "must be a mapping", "parms": "unknown key"}),
        ({"params": {}}, {"params": "names no parameter"}),
        (
            {"params": {"lr": 1, "batch_size": 5}},
            {"params.lr": "unknown parameter", "params.batch_size": "is not in the search space"},
        ),
        ({"params": {f"p{n}": 1 for n in range(101)}}, {"params": "has 101 keys"}),
    ],
)
def test_every_fault_of_a_recipe_is_named(
    client: TestClient, lab: Lab, body: Any, faults: dict[str, str]
) -> None:
    problem = expect_problem(client.post(f"{STUDY}/trials", json=body), 422)
    assert {fault["path"]: fault["message"] for fault in problem["faults"]} == faults
    assert client.get(f"{STUDY}/enqueued").json()["items"] == []


def test_what_cannot_be_a_trial_is_refused_with_the_reason(client: TestClient, lab: Lab) -> None:
    [first] = client.get(f"{STUDY}/trials").json()["items"]
    refused = expect_problem(client.post(f"{STUDY}/trials", json={"params": first["params"]}), 409)
    assert refused["detail"] == "Trial 0 of the study 'support-tone' has this configuration."
    for rate in (1e-4, 2e-4, 3e-4):
        assert client.post(f"{STUDY}/trials", json={"params": {"learning_rate": rate}}).status_code == 202
    full = expect_problem(client.post(f"{STUDY}/trials", json={"params": {"learning_rate": 5e-4}}), 409)
    assert full["type"] == "urn:nightsweep:problem:no-trials-left"
    assert "has 4 trials: 1 asked for and 3 recipes enqueued" in full["detail"]
    lab.advance(StudyState.COMPLETED)
    over = expect_problem(client.post(f"{STUDY}/trials", json={"params": POINT}), 409)
    assert over["type"] == "urn:nightsweep:problem:already-ended"
    states = {recipe["state"] for recipe in client.get(f"{STUDY}/enqueued").json()["items"]}
    assert states == {"dropped"}
