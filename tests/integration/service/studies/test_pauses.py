"""Pausing and resuming over HTTP, on both databases."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

import pytest
from sqlalchemy import select
from starlette.testclient import TestClient

from service.db.database import Database
from service.db.models import Study
from service.db.transitions import advance_study, put_down
from service.states import StudyState
from tests.support.service.api import Make, expect_problem

PAUSE, RESUME = "/v1/studies/support-tone/pause", "/v1/studies/support-tone/resume"


def kinds(client: TestClient) -> list[str]:
    events = client.get("/v1/studies/support-tone/events").json()["items"]
    return [event["kind"] for event in events]


def test_a_queued_study_is_paused_at_once_and_queued_again(client: TestClient, definition: Make) -> None:
    client.post("/v1/studies", json=definition())
    for _ in range(2):
        answer = client.post(PAUSE)
        paused = answer.json()
        assert (answer.status_code, paused["state"], paused["reason"]) == (
            202,
            "paused",
            "paused on request",
        )
        assert paused["paused_at"] is not None
    for _ in range(2):
        resumed = client.post(RESUME).json()
        assert (resumed["state"], resumed["reason"]) == ("queued", "resumed; waiting for a coordinator")
        assert resumed["paused_at"] is None
    assert kinds(client) == ["study_queued", "study_paused", "study_queued"]


def test_a_running_study_is_asked_to_pause_and_may_be_asked_to_go_on(
    client: TestClient, definition: Make, service_database: Database
) -> None:
    client.post("/v1/studies", json=definition())
    with service_database.write() as session:
        advance_study(session, session.scalars(select(Study)).one(), StudyState.RUNNING, "taken up")
    assert client.post(RESUME).json()["state"] == "running"
    asked = client.post(PAUSE).json()
    assert (asked["state"], asked["pause_requested"], asked["paused_at"]) == ("running", True, None)
    with service_database.write() as session:
        put_down(session, session.scalars(select(Study)).one(), "paused on request")
    shown = client.get("/v1/studies/support-tone").json()
    assert (shown["state"], shown["pause_requested"], shown["stage"]) == ("paused", False, "search")
    [listed] = client.get("/v1/studies?state=paused").json()["items"]
    assert listed == {key: shown[key] for key in listed}
    assert client.post(RESUME).json()["state"] == "queued"
    assert kinds(client)[1:] == ["study_running", "pause_requested", "study_paused", "study_queued"]


def test_a_pause_that_is_taken_back_says_so(
    client: TestClient, definition: Make, service_database: Database
) -> None:
    client.post("/v1/studies", json=definition())
    with service_database.write() as session:
        advance_study(session, session.scalars(select(Study)).one(), StudyState.RUNNING, "taken up")
    client.post(PAUSE)
    assert client.post(RESUME).json()["pause_requested"] is False
    assert kinds(client)[-2:] == ["pause_requested", "resume_requested"]


@pytest.mark.parametrize("path", [PAUSE, RESUME])
def test_a_study_that_is_over_or_about_to_be_is_refused(
    client: TestClient, definition: Make, service_database: Database, path: str
) -> None:
    expect_problem(client.post(path), 404)
    client.post("/v1/studies", json=definition())
    client.post("/v1/studies/support-tone/cancel")
    assert "is being cancelled" in expect_problem(client.post(path), 409)["detail"]
    with service_database.write() as session:
        advance_study(session, session.scalars(select(Study)).one(), StudyState.CANCELLED, "as asked")
    assert "already cancelled: as asked" in expect_problem(client.post(path), 409)["detail"]


@pytest.mark.parametrize("path", [PAUSE, RESUME])
def test_a_change_that_expects_another_revision_is_refused(
    client: TestClient, definition: Make, path: str
) -> None:
    client.post("/v1/studies", json=definition())
    etag = client.get("/v1/studies/support-tone").headers["etag"]
    paused = client.post(PAUSE, headers={"If-Match": etag})
    assert (paused.status_code, paused.headers["etag"] != etag) == (202, True)
    expect_problem(client.post(path, headers={"If-Match": etag}), 412)


def test_a_held_study_that_has_not_begun_is_left_to_its_coordinator(
    client: TestClient, definition: Make, service_database: Database
) -> None:
    """Between the taking of the lease and the first trial it is queued still."""
    client.post("/v1/studies", json=definition())
    for minutes, state in ((1, "queued"), (-1, "paused")):
        with service_database.write() as session:
            study = session.scalars(select(Study)).one()
            study.pause_requested = False
            study.lease_owner = "somebody"
            study.lease_expires_at = datetime.now(UTC) + timedelta(minutes=minutes)
        assert client.post(PAUSE).json()["state"] == state
    with service_database.read() as session:
        assert session.scalars(select(Study.lease_owner)).one() is None


def test_the_next_time_of_day_is_shown_once_a_study_has_begun(
    client: TestClient, definition: Make, service_database: Database
) -> None:
    until = {"until": "06:00", "until_timezone": "Asia/Tokyo"}
    study = client.post("/v1/studies", json=definition(budget=until)).json()
    assert study["deadline"] is None
    with service_database.write() as session:
        advance_study(session, session.scalars(select(Study)).one(), StudyState.RUNNING, "taken up")
    deadline = datetime.fromisoformat(client.get("/v1/studies/support-tone").json()["deadline"])
    assert (deadline.astimezone(UTC).hour, deadline.minute) == (21, 0)
    assert timedelta(0) < deadline - datetime.now(UTC) <= timedelta(days=1)
