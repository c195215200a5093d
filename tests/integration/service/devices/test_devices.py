"""/v1/workers: who trains what, which GPUs were put aside, and how one comes back, on both databases."""

from __future__ import annotations

from datetime import UTC, datetime
from urllib.parse import quote

import pytest
from starlette.testclient import TestClient

from service.coordinator.study.device_health import devices_aside, put_aside_if_bad
from service.db.database import Database
from service.db.models import Attempt, Device, Study
from service.states import AttemptState, LossCause
from tests.support.service.api import expect_problem

GPU = "node-7/GPU-2f1c9b52"
EARLY, LATE = datetime(2026, 7, 1, 22, tzinfo=UTC), datetime(2026, 7, 2, 3, tzinfo=UTC)


@pytest.fixture
def study_id(service_database: Database) -> str:
    with service_database.write() as session:
        study = Study(name="tone", definition={})
        session.add(study)
    return study.id


def add(database: Database, study_id: str, number: int, worker_id: str, **columns: object) -> None:
    with database.write() as session:
        known = {"ordinal": 1, "artifact_dir": "/a", "device_id": GPU, "dispatched_at": EARLY}
        session.add(
            Attempt(study_id=study_id, trial_number=number, worker_id=worker_id, **{**known, **columns})
        )


def lose(database: Database, study_id: str, number: int, worker_id: str, at: datetime = LATE) -> None:
    """A trial's worker died while the trial trained."""
    lost = {"state": AttemptState.LOST, "loss_cause": LossCause.WORKER_DIED, "ended_at": at}
    add(database, study_id, number, worker_id, started_at=EARLY, **lost)


def judge(database: Database, study_id: str) -> bool:
    return database.transact(lambda session: put_aside_if_bad(session, GPU, study_id=study_id))


def test_the_workers_that_train_are_shown_with_their_trials(
    client: TestClient, service_database: Database, study_id: str
) -> None:
    assert client.get("/v1/workers").json() == {"workers": [], "devices": []}
    add(service_database, study_id, 3, "w1", state=AttemptState.RUNNING, device="cuda:0", gpus=1.0)
    add(service_database, study_id, 4, "w1", ordinal=2, gpus=1.0, dispatched_at=LATE)
    add(service_database, study_id, 5, "w2", state=AttemptState.COMPLETED, ended_at=LATE)
    add(service_database, study_id, 6, "w3", state=AttemptState.RUNNING, device="cpu", device_id=None)
    assert client.get("/v1/workers").json()["workers"] == [
        {
            "id": "w1",
            "study": "tone",
            "device": "cuda:0",
            "device_id": GPU,
            "gpus": 1.0,
            "trials": [
                {"number": 3, "attempt": 1, "state": "running"},
                {"number": 4, "attempt": 2, "state": "dispatched"},
            ],
            "since": "2026-07-01T22:00:00Z",
        },
        {
            "id": "w3",
            "study": "tone",
            "device": "cpu",
            "device_id": None,
            "gpus": 0.0,
            "trials": [{"number": 6, "attempt": 1, "state": "running"}],
            "since": "2026-07-01T22:00:00Z",
        },
    ]


def test_a_gpu_is_put_aside_shown_and_given_back(
    client: TestClient, service_database: Database, study_id: str
) -> None:
    lose(service_database, study_id, 0, "w1")
    lose(service_database, study_id, 1, "w2")
    assert judge(service_database, study_id) is False
    lose(service_database, study_id, 2, "w3")
    assert judge(service_database, study_id) is True
    assert judge(service_database, study_id) is False  # it is aside already
    [device] = client.get("/v1/workers").json()["devices"]
    assert (device["id"], device["restored_at"]) == (GPU, None)
    assert device["put_aside_at"] is not None
    assert device["reason"] == (
        "3 workers died on it, and no trial ended on it in between: tone/0; tone/1; tone/2"
    )
    events = client.get("/v1/studies/tone/events").json()["items"]
    assert [e["kind"] for e in events] == ["device_put_aside"]
    answer = client.post(f"/v1/workers/devices/{GPU}/restore")
    assert answer.status_code == 200
    restored = answer.json()
    assert (restored["put_aside_at"], restored["reason"]) == (None, device["reason"])
    assert client.get("/v1/workers").json()["devices"] == [restored]
    with service_database.read() as session:
        assert devices_aside(session) == frozenset()
    assert judge(service_database, study_id) is False  # those deaths were before it was given back


def test_a_trial_that_the_gpu_brought_to_its_end_clears_it(service_database: Database, study_id: str) -> None:
    for number, worker_id in enumerate(("w1", "w2")):
        lose(service_database, study_id, number, worker_id, at=EARLY)
    lose(service_database, study_id, 2, "w3")
    ended = {"state": AttemptState.PRUNED, "ended_at": datetime(2026, 7, 1, 23, tzinfo=UTC)}
    add(service_database, study_id, 3, "w4", **ended)
    assert judge(service_database, study_id) is True  # pruned in its absence: its worker had died, too
    with service_database.write() as session:
        session.get_one(Device, GPU).put_aside_at = None
    add(service_database, study_id, 4, "w4", outcome={"examples_seen": 25}, **ended)
    assert judge(service_database, study_id) is False


def test_giving_a_gpu_back_twice_changes_nothing(client: TestClient, service_database: Database) -> None:
    with service_database.write() as session:
        session.add(Device(id=GPU, put_aside_at=EARLY, reason="three deaths"))
    by_encoded_name = f"/v1/workers/devices/{quote(GPU, safe='')}/restore"
    first = client.post(by_encoded_name).json()
    assert client.post(f"/v1/workers/devices/{GPU}/restore").json() == first


def test_the_same_idempotency_key_gets_the_same_answer(
    client: TestClient, service_database: Database
) -> None:
    with service_database.write() as session:
        session.add(Device(id=GPU, put_aside_at=EARLY, reason="three deaths"))
    headers = {"Idempotency-Key": "once"}
    first = client.post(f"/v1/workers/devices/{GPU}/restore", headers=headers)
    with service_database.write() as session:
        session.get_one(Device, GPU).put_aside_at = LATE
    again = client.post(f"/v1/workers/devices/{GPU}/restore", headers=headers)
    assert (again.json(), again.headers["Idempotent-Replayed"]) == (first.json(), "true")
    with service_database.read() as session:
        assert devices_aside(session) == {GPU}


@pytest.mark.parametrize("name", ["node-7/GPU-0", "%00", "a%20b", "%F0%9F%92%A5", "x" * 3000, "..%2F.."])
def test_a_gpu_that_was_never_put_aside_is_not_found(client: TestClient, name: str) -> None:
    expect_problem(client.post(f"/v1/workers/devices/{name}/restore"), 404)
