"""Schedules over HTTP and their firings, on both databases."""

from __future__ import annotations

import threading
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from functools import partial
from typing import Any

import pytest
from sqlalchemy import select
from starlette.testclient import TestClient

from service.coordinator.chores import fire_schedules
from service.database import Database
from service.models import EventRow, Schedule, Study
from service.schedules import commands
from service.schedules.commands import due, fire

Make = Callable[..., dict[str, Any]]
# Nothing here reaches the database, so one of the two is enough.
on_sqlite = pytest.mark.parametrize("backend", ["sqlite"], indirect=True)


@pytest.fixture
def make(client: TestClient, definition: Make) -> Make:
    """Makes a schedule over REST."""

    def post(**fields: Any) -> dict[str, Any]:
        body = {"name": "nightly", "cron": "30 2 * * *", "definition": definition(), **fields}
        answer = client.post("/v1/schedules", json=body)
        assert answer.status_code == 201, answer.text
        schedule: dict[str, Any] = answer.json()
        return schedule

    return post


def _due_at(database: Database, at: datetime) -> None:
    with database.write() as session:
        session.scalars(select(Schedule)).one().next_fire_at = at


def _fire(database: Database, now: datetime) -> list[str]:
    with database.read() as session:
        waiting = due(session, now)
    fired = [database.transact(partial(fire, schedule_id=each, now=now)) for each in waiting]
    return [study.name for study in fired if study is not None]


def test_a_schedule_is_made_shown_changed_and_removed(client: TestClient, make: Make) -> None:
    schedule = make(timezone="Europe/Berlin")
    assert (schedule["enabled"], schedule["studies"], schedule["last_fired_for"]) == (True, 0, None)
    assert datetime.fromisoformat(schedule["next_fire_at"]) > datetime.now(UTC)
    for ref in ("nightly", schedule["id"]):
        assert client.get(f"/v1/schedules/{ref}").json() == schedule
    assert client.get("/v1/schedules").json() == {"items": [schedule]}
    off = client.patch("/v1/schedules/nightly", json={"enabled": False}).json()
    assert (off["enabled"], off["next_fire_at"]) == (False, None)
    on = client.patch("/v1/schedules/nightly", json={"enabled": True, "cron": "0 0 1 1 *"}).json()
    assert (on["cron"], on["next_fire_at"][4:]) == ("0 0 1 1 *", "-12-31T23:00:00Z")
    assert client.delete("/v1/schedules/nightly").status_code == 204
    assert client.get("/v1/schedules/nightly").status_code == 404
    assert client.delete("/v1/schedules/nightly").status_code == 404


def test_a_schedule_without_a_name_has_its_definitions(client: TestClient, definition: Make) -> None:
    body = {"cron": "* * * * *", "definition": definition()}
    assert client.post("/v1/schedules", json=body).json()["name"] == "support-tone"
    assert client.post("/v1/schedules", json=body).status_code == 409


@on_sqlite
@pytest.mark.parametrize(
    ("fields", "paths"),
    [
        ({"cron": "61 * * * *"}, {"cron"}),
        ({"cron": "* * * *"}, {"cron"}),
        ({"cron": "* * * * * *"}, {"cron"}),
        ({"cron": "0 0 30 2 *"}, {"cron"}),
        ({"cron": ""}, {"cron"}),
        ({"cron": 5}, {"cron"}),
        ({"cron": "nightly"}, {"cron"}),
        ({"cron": "1-" * 5000}, {"cron"}),
        ({"timezone": "Mars/Olympus"}, {"timezone"}),
        ({"timezone": "../etc/passwd"}, {"timezone"}),
        ({"timezone": None}, {"timezone"}),
        ({"name": "a b"}, {"name"}),
        ({"name": "x" * 101}, {"name"}),
        ({"enabled": "yes"}, {"enabled"}),
        ({"crn": 1}, {"crn"}),
        ({"definition": 1}, {"definition"}),
        (
            {"cron": "x", "timezone": "y", "definition": {"name": "a", "extra": 1}},
            {
                "cron",
                "timezone",
                "definition.extra",
                "definition.model",
                "definition.data",
                "definition.search",
            },
        ),
    ],
)
def test_every_fault_of_a_wrong_schedule_is_named(
    client: TestClient, definition: Make, fields: dict[str, Any], paths: set[str]
) -> None:
    body = {"cron": "* * * * *", "definition": definition(), **fields}
    answer = client.post("/v1/schedules", json=body)
    assert (answer.status_code, {f["path"] for f in answer.json()["faults"]}) == (422, paths)
    assert client.get("/v1/schedules").json() == {"items": []}


@on_sqlite
@pytest.mark.parametrize(
    ("change", "paths"),
    [
        ({}, {""}),
        ([], {""}),
        ({"cron": "x"}, {"cron"}),
        ({"timezone": "x", "enabled": 1}, {"timezone", "enabled"}),
        ({"definition": {}}, {"definition"}),
    ],
)
def test_a_wrong_change_changes_nothing(client: TestClient, make: Make, change: Any, paths: set[str]) -> None:
    before = make()
    answer = client.patch("/v1/schedules/nightly", json=change)
    assert (answer.status_code, {f["path"] for f in answer.json()["faults"]}) == (422, paths)
    assert client.get("/v1/schedules/nightly").json() == before


def test_a_firing_makes_one_study_named_after_its_local_time(
    client: TestClient, make: Make, service_database: Database
) -> None:
    make(timezone="Asia/Kolkata")
    at = datetime(2026, 5, 1, 21, 0, tzinfo=UTC)  # 02:30 of the next day in Kolkata
    _due_at(service_database, at)
    now = at + timedelta(seconds=20)
    assert _fire(service_database, now) == ["nightly-20260502-0230"]
    assert _fire(service_database, now) == []
    study = client.get("/v1/studies/nightly-20260502-0230").json()
    assert (study["schedule"], study["fired_for"]) == ("nightly", "2026-05-01T21:00:00Z")
    assert (study["state"], study["definition"]["name"]) == ("queued", "nightly-20260502-0230")
    schedule = client.get("/v1/schedules/nightly").json()
    assert (schedule["studies"], schedule["last_fired_for"]) == (1, "2026-05-01T21:00:00Z")
    assert schedule["next_fire_at"] == "2026-05-02T21:00:00Z"


def test_of_several_missed_firings_only_the_latest_is_made(make: Make, service_database: Database) -> None:
    make()
    _due_at(service_database, datetime(2026, 1, 1, 2, 30, tzinfo=UTC))
    assert _fire(service_database, datetime(2026, 1, 9, 12, 0, tzinfo=UTC)) == ["nightly-20260109-0230"]
    with service_database.read() as session:
        assert session.scalars(select(Schedule.next_fire_at)).one() == datetime(
            2026, 1, 10, 2, 30, tzinfo=UTC
        )


def test_a_schedule_of_every_minute_fires_once_a_minute(make: Make, service_database: Database) -> None:
    make(cron="* * * * *")
    start = datetime(2026, 1, 1, 0, 0, tzinfo=UTC)
    _due_at(service_database, start)
    names = [
        name
        for seconds in range(0, 180, 7)
        for name in _fire(service_database, start + timedelta(seconds=seconds))
    ]
    assert names == ["nightly-20260101-0000", "nightly-20260101-0001", "nightly-20260101-0002"]


def test_a_taken_name_gets_a_suffix(
    client: TestClient, make: Make, definition: Make, service_database: Database
) -> None:
    make()
    for name in ("nightly-20260101-0230", "nightly-20260101-0230-2"):
        client.post("/v1/studies", json=definition(name=name))
    at = datetime(2026, 1, 1, 2, 30, tzinfo=UTC)
    _due_at(service_database, at)
    assert _fire(service_database, at) == ["nightly-20260101-0230-3"]


def test_a_firing_that_was_made_already_is_not_made_again(make: Make, service_database: Database) -> None:
    """Even when the schedule's own row was put back, as by a restored backup."""
    make()
    at = datetime(2026, 1, 1, 2, 30, tzinfo=UTC)
    for expected in (["nightly-20260101-0230"], []):
        _due_at(service_database, at)
        assert _fire(service_database, at) == expected


def test_a_disabled_schedule_does_not_fire(
    client: TestClient, make: Make, service_database: Database
) -> None:
    make(cron="* * * * *")
    client.patch("/v1/schedules/nightly", json={"enabled": False})
    assert _fire(service_database, datetime(2100, 1, 1, tzinfo=UTC)) == []


def test_coordinators_that_fire_at_once_make_each_sweep_once(make: Make, service_database: Database) -> None:
    for i in range(6):
        make(name=f"s{i}", cron="* * * * *")
    start = datetime(2026, 1, 1, tzinfo=UTC)
    with service_database.write() as session:
        for schedule in session.scalars(select(Schedule)):
            schedule.next_fire_at = start
    barrier = threading.Barrier(4)
    made: list[str] = []

    def coordinator() -> None:
        for minute in range(3):
            barrier.wait(timeout=60)
            made.extend(_fire(service_database, start + timedelta(minutes=minute)))

    threads = [threading.Thread(target=coordinator) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(timeout=60)
    # One that was skipped because another held its lock is fired in the next round; nothing is made twice.
    made.extend(_fire(service_database, start + timedelta(minutes=2)))
    with service_database.read() as session:
        stored = session.scalars(select(Study.name)).all()
    assert sorted(made) == sorted(stored)
    assert {f"s{i}-20260101-0002" for i in range(6)} <= set(stored)


def test_the_studies_of_a_removed_schedule_stay(
    client: TestClient, make: Make, service_database: Database
) -> None:
    make()
    at = datetime(2026, 1, 1, 2, 30, tzinfo=UTC)
    _due_at(service_database, at)
    _fire(service_database, at)
    client.delete("/v1/schedules/nightly")
    study = client.get("/v1/studies/nightly-20260101-0230").json()
    assert (study["schedule"], study["fired_for"]) == (None, "2026-01-01T02:30:00Z")


def test_a_schedule_that_cannot_be_fired_is_passed_over_and_holds_up_no_other(
    service_database: Database, client: TestClient, make: Make
) -> None:
    make(name="bad")
    make(name="worse")
    make(name="good")
    then = datetime.now(UTC) - timedelta(minutes=1)
    with service_database.write() as session:
        for schedule in session.scalars(select(Schedule)):
            schedule.next_fire_at = then
            if schedule.name == "bad":
                schedule.timezone = "Mars/Olympus"
            elif schedule.name == "worse":
                schedule.cron = "no cron"
    for _ in range(2):
        fire_schedules(service_database)
    with service_database.read() as session:
        assert [study.name.split("-")[0] for study in session.scalars(select(Study))] == ["good"]
        enabled = {s.name: s.enabled for s in session.scalars(select(Schedule))}
        said = session.scalars(select(EventRow.message).where(EventRow.kind == "schedule_failed")).all()
    assert enabled == {"good": True, "bad": False, "worse": False}
    assert len(said) == 2
    assert all("could not be fired" in message and "was disabled" in message for message in said)


def test_a_firing_that_fails_once_leaves_its_schedule_enabled(
    service_database: Database, client: TestClient, make: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    make(name="nightly")
    _due_at(service_database, datetime.now(UTC) - timedelta(minutes=1))

    def fail(*_: Any) -> None:
        raise ZeroDivisionError("of ours")

    with monkeypatch.context() as broken:
        broken.setattr(commands, "latest_firing", fail)
        fire_schedules(service_database)
    with service_database.read() as session:
        schedule = session.scalars(select(Schedule)).one()
        assert schedule.enabled
        assert schedule.next_fire_at is not None
        assert schedule.next_fire_at > datetime.now(UTC)
        assert session.scalars(select(Study)).all() == []
