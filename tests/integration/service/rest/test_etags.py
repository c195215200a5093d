"""ETag and If-Match on both databases: nobody changes what they have not seen, if they ask for that."""

from __future__ import annotations

import threading
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime

import httpx
import pytest
from sqlalchemy import select
from starlette.testclient import TestClient

from service.db.database import Database
from service.db.models import Schedule
from service.optuna_store.storage import Storage
from service.schedules.sweeps import fire
from service.states import StudyState
from tests.support.service.api import Make, expect_problem, on_sqlite
from tests.support.service.database_lab import Lab


def _make(client: TestClient, definition: Make) -> httpx.Response:
    body = {"name": "nightly", "cron": "30 2 * * *", "definition": definition()}
    return client.post("/v1/schedules", json=body)


def _if_match(tag: str) -> dict[str, str]:
    return {"if-match": tag}


def test_a_studys_etag_moves_with_its_state_and_with_requests(
    client: TestClient, definition: Make, service_database: Database, storage: Storage
) -> None:
    submitted = client.post("/v1/studies", json=definition())
    tags = [submitted.headers["etag"]]
    assert client.get("/v1/studies/support-tone").headers["etag"] == tags[0]
    lab = Lab(submitted.json(), service_database, storage)
    lab.advance(StudyState.RUNNING)
    tags.append(client.get("/v1/studies/support-tone").headers["etag"])
    lab.complete(0.5)  # what its trials do is none of its revisions
    assert client.get("/v1/studies/support-tone").headers["etag"] == tags[-1]
    tags.append(client.post("/v1/studies/support-tone/cancel").headers["etag"])
    # Asking again changes nothing.
    assert client.post("/v1/studies/support-tone/cancel").headers["etag"] == tags[-1]
    lab.advance(StudyState.CANCELLED)
    tags.append(client.get("/v1/studies/support-tone").headers["etag"])
    assert len(set(tags)) == 4
    assert all(tag[0] == tag[-1] == '"' for tag in tags)


@pytest.mark.parametrize("action", ["cancel", "pause"])
def test_a_study_that_was_changed_in_between_is_left_alone(
    client: TestClient,
    definition: Make,
    service_database: Database,
    storage: Storage,
    action: str,
) -> None:
    submitted = client.post("/v1/studies", json=definition())
    seen = submitted.headers["etag"]
    Lab(submitted.json(), service_database, storage).advance(StudyState.RUNNING)
    answer = client.post(f"/v1/studies/support-tone/{action}", headers=_if_match(seen))
    problem = expect_problem(answer, 412)
    present = client.get("/v1/studies/support-tone").headers["etag"]
    assert problem["type"] == "urn:nightsweep:problem:changed-in-between"
    assert seen in problem["detail"]
    assert present in problem["detail"]
    assert [e["kind"] for e in client.get("/v1/studies/support-tone/events").json()["items"]] == [
        "study_queued",
        "study_running",
    ]
    assert client.post(f"/v1/studies/support-tone/{action}", headers=_if_match(present)).status_code == 202


@pytest.mark.parametrize("tags", ["*", '"no", {}', '{}, W/"x"', '"a,b"  ,  {}'])
def test_one_tag_of_several_is_enough(client: TestClient, definition: Make, tags: str) -> None:
    seen = client.post("/v1/studies", json=definition()).headers["etag"]
    answer = client.post("/v1/studies/support-tone/cancel", headers=_if_match(tags.format(seen)))
    assert answer.status_code == 202


def test_a_weak_tag_never_matches(client: TestClient, definition: Make) -> None:
    seen = client.post("/v1/studies", json=definition()).headers["etag"]
    answer = client.post("/v1/studies/support-tone/cancel", headers=_if_match(f"W/{seen}"))
    assert "weak tag" in expect_problem(answer, 412)["detail"]
    assert client.get("/v1/studies/support-tone").headers["etag"] == seen


@on_sqlite
@pytest.mark.parametrize(
    "tags", ["", "1", "'1'", '"1', '"1",', '*, "1"', '"1" "2"', 'w/"1"', '"a b"', "x" * 2000]
)
def test_what_is_no_list_of_tags_is_refused(client: TestClient, definition: Make, tags: str) -> None:
    client.post("/v1/studies", json=definition())
    answer = client.post("/v1/studies/support-tone/cancel", headers=_if_match(tags))
    problem = expect_problem(answer, 422)
    assert [fault["path"] for fault in problem["faults"]] == ["header.if-match"]
    assert problem["faults"][0]["allowed"].startswith("an ETag as it was received, in double quotes")


def test_what_is_not_there_is_not_found_whatever_is_expected(client: TestClient) -> None:
    for method, path in (
        ("POST", "/v1/studies/none/cancel"),
        ("POST", "/v1/range-tests/none/cancel"),
        ("DELETE", "/v1/schedules/none"),
        ("POST", "/v1/schedules/none/run"),
    ):
        expect_problem(client.request(method, path, headers=_if_match('"1"')), 404)


def test_a_range_test_has_an_etag_as_well(client: TestClient, definition: Make) -> None:
    seen = client.post("/v1/range-tests", json=definition()).headers["etag"]
    path = "/v1/range-tests/support-tone.range-test"
    assert client.get(path).headers["etag"] == seen
    expect_problem(client.post(f"{path}/cancel", headers=_if_match('"no"')), 412)
    assert client.post(f"{path}/cancel", headers=_if_match(seen)).headers["etag"] != seen


def test_of_two_changes_of_what_both_saw_the_second_is_refused(client: TestClient, definition: Make) -> None:
    seen = _make(client, definition).headers["etag"]
    first = client.patch("/v1/schedules/nightly", json={"enabled": False}, headers=_if_match(seen))
    assert (first.status_code, first.headers["etag"] == seen) == (200, False)
    second = client.patch("/v1/schedules/nightly", json={"cron": "0 0 * * *"}, headers=_if_match(seen))
    expect_problem(second, 412)
    expect_problem(client.delete("/v1/schedules/nightly", headers=_if_match(seen)), 412)
    kept = client.get("/v1/schedules/nightly")
    assert (kept.json()["cron"], kept.headers["etag"]) == ("30 2 * * *", first.headers["etag"])
    assert client.delete("/v1/schedules/nightly", headers=_if_match(kept.headers["etag"])).status_code == 204


def test_of_changes_at_once_with_one_tag_one_is_made(client: TestClient, definition: Make) -> None:
    seen, together = _make(client, definition).headers["etag"], threading.Barrier(6)

    def change(minute: int) -> int:
        together.wait(timeout=30)
        body = {"cron": f"{minute} 3 * * *"}
        return client.patch("/v1/schedules/nightly", json=body, headers=_if_match(seen)).status_code

    with ThreadPoolExecutor(6) as pool:
        assert sorted(pool.map(change, range(6))) == [200] + 5 * [412]


def test_a_firing_is_no_change_of_a_schedule(
    client: TestClient, definition: Make, service_database: Database
) -> None:
    seen = _make(client, definition).headers["etag"]
    with service_database.write() as session:
        schedule = session.scalars(select(Schedule)).one()
        schedule.next_fire_at = datetime(2026, 7, 1, 2, 30, tzinfo=UTC)
        assert fire(session, schedule.id, datetime(2026, 7, 1, 2, 31, tzinfo=UTC)) is not None
    assert client.get("/v1/schedules/nightly").headers["etag"] == seen
