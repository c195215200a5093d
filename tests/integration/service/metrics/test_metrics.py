"""/metrics: what Prometheus is told of studies, workers, schedules and requests, on both databases."""

from __future__ import annotations

from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from prometheus_client.openmetrics.parser import text_string_to_metric_families as parse_openmetrics
from prometheus_client.parser import text_string_to_metric_families
from starlette.testclient import TestClient

from service.db import trials
from service.db.database import Database
from service.db.kinds import WORKER_CAPACITY
from service.db.models import Attempt, Coordinator, Device, EventRow, Schedule, Study
from service.metrics import measurements
from service.states import AttemptState, LossCause, StudyState

Key = tuple[str, frozenset[tuple[str, str]]]


def samples(client: TestClient) -> dict[Key, float]:
    answer = client.get("/metrics")
    assert answer.status_code == 200
    assert answer.headers["content-type"].startswith("text/plain; version=")
    return {
        (sample.name, frozenset(sample.labels.items())): sample.value
        for family in text_string_to_metric_families(answer.text)
        for sample in family.samples
    }


def key(name: str, **labels: str) -> Key:
    return f"nightsweep_{name}", frozenset(labels.items())


@pytest.fixture
def now() -> datetime:
    return datetime.now(UTC)


@pytest.fixture
def add(service_database: Database) -> Callable[[Any], Any]:
    def store(row: Any) -> Any:
        def write(session: Any) -> Any:
            session.add(row)
            session.flush()
            if isinstance(row, Attempt):
                trials.add(session, row.study_id, row.trial_number, {})
                trials.follow(session, row)
            return row

        return service_database.transact(write)

    return store


def attempt(study: Study, number: int, **columns: Any) -> Attempt:
    known = {"ordinal": 1, "artifact_dir": "/a", "worker_id": "w-1", "gpus": 1.0}
    return Attempt(study_id=study.id, trial_number=number, **{**known, **columns})


def test_an_empty_service_says_that_nothing_runs(client: TestClient) -> None:
    found = samples(client)
    assert {found[key("studies", state=state)] for state in StudyState} == {0}
    assert found[key("oldest_queued_study_seconds")] == 0
    assert found[key("coordinators")] == 0
    assert found[key("devices_put_aside")] == 0
    assert not [name for name, _ in found if name == "nightsweep_trials"]


def test_a_running_study_has_series_of_its_trials_packs_tokens_and_losses(
    client: TestClient, add: Any, now: datetime
) -> None:
    study = add(
        Study(
            name="tone",
            owner="anna",
            definition={},
            state=StudyState.RUNNING,
            lease_owner="c",
            lease_expires_at=now + timedelta(minutes=10),
        )
    )
    began = now - timedelta(hours=2)
    ended = {"started_at": began, "ended_at": began + timedelta(hours=1)}
    add(attempt(study, 0, state=AttemptState.COMPLETED, tokens=900, padded_tokens=1000, **ended))
    lost = {"state": AttemptState.LOST, "loss_cause": LossCause.WORKER_DIED, **ended}
    add(attempt(study, 1, tokens=100, padded_tokens=100, **lost))
    # It goes on from what the lost one had counted.
    again = {"state": AttemptState.RUNNING, "started_at": now, "worker_id": "w-2"}
    add(attempt(study, 1, ordinal=2, tokens=300, padded_tokens=400, **again))
    add(attempt(study, 2, state=AttemptState.DISPATCHED, worker_id="w-2"))
    for slots in (2, 4):
        data = {"worker_id": "w-2", "slots": slots}
        add(EventRow(study_id=study.id, kind=WORKER_CAPACITY, message="", data=data))

    found = samples(client)
    of = {"study": "tone", "owner": "anna"}
    assert found[key("studies", state="running")] == 1
    assert found[key("trials", state="completed", **of)] == 1
    assert found[key("trials", state="running", **of)] == 1
    assert found[key("trials", state="dispatched", **of)] == 1
    assert found[key("lost_attempts_total", cause="worker_died", **of)] == 1
    assert found[key("training_tokens_total", kind="useful", **of)] == 1200
    assert found[key("training_tokens_total", kind="padding", **of)] == 200
    assert found[key("pack_trials", worker="w-2", **of)] == 2
    assert found[key("pack_slots", worker="w-2", **of)] == 4
    assert key("pack_trials", worker="w-1", **of) not in found
    assert found[key("gpu_seconds_total", **of)] == pytest.approx(3600, abs=60)
    assert found[key("worker_seconds_total", **of)] == pytest.approx(3600, abs=60)
    assert 500 < found[key("lease_remaining_seconds", **of)] <= 600


def test_a_study_keeps_its_series_for_an_hour_after_its_end(
    client: TestClient, add: Any, now: datetime
) -> None:
    for name, minutes in (("lately", 59), ("before", 61)):
        ended_at = now - timedelta(minutes=minutes)
        add(Study(name=name, definition={}, state=StudyState.COMPLETED, ended_at=ended_at))
    found = samples(client)
    assert found[key("studies", state="completed")] == 2
    assert key("gpu_seconds_total", study="lately", owner="default") in found
    assert key("gpu_seconds_total", study="before", owner="default") not in found


def test_too_many_studies_leave_out_those_that_have_ended(
    client: TestClient, add: Any, now: datetime, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(measurements, "MOST_STUDIES", 2)
    add(Study(name="ended", definition={}, state=StudyState.FAILED, ended_at=now))
    for name in ("first", "second"):
        add(Study(name=name, definition={}, created_at=now - timedelta(minutes=5)))
    found = samples(client)
    assert found[key("studies_without_series")] == 1
    shown = {dict(labels)["study"] for name, labels in found if name == "nightsweep_gpu_seconds_total"}
    assert shown == {"first", "second"}
    assert found[key("oldest_queued_study_seconds")] == pytest.approx(300, abs=60)


def test_coordinators_devices_and_schedules_are_counted(client: TestClient, add: Any, now: datetime) -> None:
    add(Coordinator(owner="well", seen_at=now))
    add(Coordinator(owner="ill", seen_at=now, trouble="the disk is full"))
    add(Coordinator(owner="gone", seen_at=now - timedelta(hours=1)))
    add(Device(id="GPU-1", put_aside_at=now, reason="bad"))
    add(
        Schedule(
            name="nightly",
            cron="0 22 * * *",
            timezone="UTC",
            definition={},
            next_fire_at=datetime(2030, 1, 1, tzinfo=UTC),
        )
    )
    found = samples(client)
    assert found[key("coordinators")] == 2
    assert found[key("coordinators_in_trouble")] == 1
    assert found[key("devices_put_aside")] == 1
    nightly = {"schedule": "nightly", "owner": "default"}
    assert found[key("schedule_enabled", **nightly)] == 1
    assert found[key("schedule_next_firing_timestamp_seconds", **nightly)] == 1893456000
    assert key("schedule_last_firing_timestamp_seconds", **nightly) not in found


def test_requests_are_counted_by_their_routes_and_never_by_what_was_asked_for(client: TestClient) -> None:
    for study in ("a", "b", "c"):
        assert client.get(f"/v1/studies/{study}").status_code == 404
    client.request("BREW", "/v1/studies")
    client.get("/static/nothing-of-ours")
    found = samples(client)
    count = "request_seconds_count"
    assert found[key(count, method="GET", route="/v1/studies/{study}", status="4xx")] == 3
    routes = {dict(labels)["route"] for name, labels in found if name == f"nightsweep_{count}"}
    assert not any("nothing-of-ours" in route for route in routes)
    assert "other" in {dict(labels)["method"] for name, labels in found if name == f"nightsweep_{count}"}


def test_openmetrics_is_given_to_those_who_ask_for_it(client: TestClient) -> None:
    answer = client.get("/metrics", headers={"accept": "application/openmetrics-text; version=1.0.0"})
    assert answer.headers["content-type"].startswith("application/openmetrics-text")
    assert "nightsweep_studies" in {family.name for family in parse_openmetrics(answer.text)}
