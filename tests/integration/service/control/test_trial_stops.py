"""Stopping one trial over HTTP, on both databases."""

from __future__ import annotations

from typing import Any

import pytest
from starlette.testclient import TestClient

from service.db.database import Database
from service.db.models import TrialStop
from service.optuna_store.storage import Storage
from service.states import StudyState
from tests.support.service.api import Make, expect_problem
from tests.support.service.database_lab import Lab

TRIALS = "/v1/studies/support-tone/trials"


@pytest.fixture
def lab(client: TestClient, definition: Make, service_database: Database, storage: Storage) -> Lab:
    """A running study whose trial 0 has completed and whose trial 1 trains."""
    made = Lab(client.post("/v1/studies", json=definition()).json(), service_database, storage)
    made.advance(StudyState.RUNNING)
    made.complete(1.5)
    made.attempt(made.ask()[0])
    return made


def wishes(database: Database) -> list[tuple[int, str, str]]:
    with database.read() as session:
        rows = session.query(TrialStop).order_by(TrialStop.trial_number)
        return [(row.trial_number, row.asked_by, row.reason) for row in rows]


def test_a_wish_is_kept_once_with_who_asked_and_why(client: TestClient, lab: Lab) -> None:
    answers = [
        client.post(f"{TRIALS}/1/stop", json={"reason": "it  only\tcosts"}),
        client.post(f"{TRIALS}/1/stop", json={"reason": "another"}),
        client.post(f"{TRIALS}/1/stop"),
    ]
    assert [(a.status_code, a.json()["state"], a.json()["stop_requested"]) for a in answers] == [
        (202, "running", True)
    ] * 3
    assert wishes(lab.database) == [(1, "default", "stopped on request of 'default': it only costs")]
    events = client.get("/v1/studies/support-tone/events").json()["items"]
    said = [(e["trial_number"], e["message"]) for e in events if e["kind"] == "stop_requested"]
    assert said == [(1, "'default' asked for the trial's end: it only costs")]
    shown = [trial["stop_requested"] for trial in client.get(TRIALS).json()["items"]]
    assert shown == [False, True]


def test_a_stop_is_made_once_for_one_key(client: TestClient, lab: Lab) -> None:
    headers = {"Idempotency-Key": "one"}
    first = client.post(f"{TRIALS}/1/stop", headers=headers)
    again = client.post(f"{TRIALS}/1/stop", headers=headers)
    assert (again.content, again.headers["Idempotent-Replayed"]) == (first.content, "true")


@pytest.mark.parametrize(
    ("path", "body", "status", "said"),
    [
        ("/v1/studies/other/trials/0/stop", {}, 404, "There is no study 'other'."),
        (f"{TRIALS}/2/stop", {}, 404, "The study 'support-tone' has no trial 2."),
        (f"{TRIALS}/0/stop", {}, 409, "Trial 0 of the study 'support-tone' is already completed"),
        (f"{TRIALS}/1/stop", {"resaon": "x"}, 422, "resaon"),
        (f"{TRIALS}/1/stop", {"reason": "x" * 301}, 422, "reason"),
        (f"{TRIALS}/1/stop", {"reason": 3}, 422, "reason"),
    ],
)
def test_what_cannot_be_stopped_is_refused(
    client: TestClient, lab: Lab, path: str, body: Any, status: int, said: str
) -> None:
    assert said in expect_problem(client.post(path, json=body), status)["detail"]
    assert wishes(lab.database) == []


def test_a_stop_that_expects_another_revision_is_refused(client: TestClient, lab: Lab) -> None:
    answer = client.post(f"{TRIALS}/1/stop", headers={"If-Match": '"0"'})
    expect_problem(answer, 412)
    client.post("/v1/studies/support-tone/cancel")
    refused = expect_problem(client.post(f"{TRIALS}/1/stop"), 409)
    assert "is being cancelled, so it cannot have a trial stopped" in refused["detail"]
