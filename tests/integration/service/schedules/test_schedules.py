"""Schedules over HTTP and their firings, on both databases."""

from __future__ import annotations

import threading
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from functools import partial
from typing import Any

import pytest
from sqlalchemy import select
from sqlalchemy.orm import Session
from starlette.testclient import TestClient

from service.coordinator.chores.fingerprints import FingerprintReader
from service.coordinator.chores.preparation import advance_stages
from service.coordinator.chores.schedules import fire_schedules, repair_schedules
from service.db.database import Database
from service.db.models import Schedule, ScheduleEvent, Study
from service.errors import LimitReached
from service.optuna_store.storage import Storage
from service.rest.idempotency import HEADER
from service.schedules import commands, sweeps
from service.schedules.firings import sweep_seed
from service.schedules.sweeps import due, fire
from service.states import StudyState
from service.studies.limits import Limits
from tests.support.service.api import expect_problem

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
    listed = {key: value for key, value in schedule.items() if key != "definition"}
    assert client.get("/v1/schedules").json() == {"items": [listed]}
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
        ({"definition": {}}, {f"definition.{key}" for key in ("name", "model", "data", "search")}),
        ({"definition": None}, {"definition"}),
        ({"name": "a b"}, {"name"}),
        ({"name": None}, {"name"}),
        ({"seed": -1}, {"seed"}),
        ({"seed": 2**32}, {"seed"}),
        ({"seed": True}, {"seed"}),
        ({"seed": "7"}, {"seed"}),
        ({"overlap": "alow"}, {"overlap"}),
        ({"overlap": ["skip"]}, {"overlap"}),
        ({"overlap": None}, {"overlap"}),
        ({"repeat_configurations": "yes", "name": ""}, {"repeat_configurations", "name"}),
        ({"search": {"seed": 3}}, {"search"}),
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
    make(cron="* * * * *", overlap="allow")
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
        make(name=f"s{i}", cron="* * * * *", overlap="allow")
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
    assert (study["schedule"], study["fired_for"]) == ("nightly", "2026-01-01T02:30:00Z")


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
        said = session.scalars(select(ScheduleEvent.message).where(ScheduleEvent.kind == "failed")).all()
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
        broken.setattr(sweeps, "make_sweep", fail)
        fire_schedules(service_database)
    with service_database.read() as session:
        schedule = session.scalars(select(Schedule)).one()
        assert schedule.enabled
        assert schedule.next_fire_at is not None
        assert schedule.next_fire_at > datetime.now(UTC)
        assert session.scalars(select(Study)).all() == []


# -- seeds -------------------------------------------------------------------------------------------


def test_each_sweep_has_a_seed_that_follows_from_the_schedules_and_its_firing(
    client: TestClient, make: Make, service_database: Database
) -> None:
    make(overlap="allow")
    seeds = []
    for day in (1, 2, 3):
        at = datetime(2026, 1, day, 2, 30, tzinfo=UTC)
        _due_at(service_database, at)
        [name] = _fire(service_database, at)
        study = client.get(f"/v1/studies/{name}").json()
        seeds.append(study["definition"]["search"]["seed"])
        assert (study["base_seed"], seeds[-1]) == (7, sweep_seed(7, at))
        [event] = client.get(f"/v1/studies/{name}/events").json()["items"]
        assert event["message"] == (
            f"fired by the schedule 'nightly'; its search.seed {seeds[-1]} follows from the schedule's 7 and "
            f"2026-01-0{day}T02:30:00+00:00"
        )
    assert len(set(seeds)) == 3
    assert client.get("/v1/schedules/nightly").json()["definition"]["search"]["seed"] == 7


def test_studies_that_a_person_submits_keep_the_seed_that_they_have(
    client: TestClient, definition: Make
) -> None:
    answers = [client.post("/v1/studies", json=definition(name=name)).json() for name in ("a", "b")]
    assert [(a["definition"]["search"]["seed"], a["base_seed"]) for a in answers] == [(7, None), (7, None)]


def test_what_a_sweep_leaves_out_is_settled_once(
    client: TestClient, make: Make, service_database: Database, storage: Storage
) -> None:
    make(overlap="allow")
    for day in (1, 2):
        at = datetime(2026, 1, day, 2, 30, tzinfo=UTC)
        _due_at(service_database, at)
        _fire(service_database, at)
    prepared = []
    for _ in range(2):
        advance_stages(service_database, storage, FingerprintReader())
        studies = client.get("/v1/schedules/nightly/studies").json()["items"]
        shown = [client.get(f"/v1/studies/{study['id']}").json() for study in studies]
        prepared.append([study["preparation"] for study in shown])
    assert prepared[0] == prepared[1]
    for preparation in prepared[0]:
        assert set(preparation["fingerprints"]) == {"model", "data.train", "data.eval"}
        assert (preparation["evaluated"], preparation["notes"]) == (0, [])
    with service_database.read() as session:
        bases = [
            study.preparation["evaluated_basis"]
            for study in session.scalars(select(Study))
            if study.preparation
        ]
    assert (len(bases), len(set(bases))) == (2, 1)


# -- changes and their history -----------------------------------------------------------------------


def test_definition_name_and_seed_are_changed_and_the_history_says_by_whom(
    client: TestClient, make: Make, definition: Make
) -> None:
    before = make()
    search = {**definition()["search"], "trials": 9}
    answer = client.patch(
        "/v1/schedules/nightly", json={"name": "dawn", "seed": 11, "definition": definition(search=search)}
    )
    assert answer.status_code == 200, answer.text
    after = answer.json()
    assert (after["name"], after["id"]) == ("dawn", before["id"])
    assert (after["definition"]["search"]["seed"], after["definition"]["search"]["trials"]) == (11, 9)
    assert client.get("/v1/schedules/nightly").status_code == 404
    changed, created = client.get("/v1/schedules/dawn/history").json()["items"]
    assert (created["kind"], created["schedule"], created["asked_by"]) == ("created", "nightly", "default")
    assert (changed["kind"], changed["schedule"], changed["asked_by"]) == ("changed", "dawn", "default")
    assert changed["changes"] == {
        "name": {"from": "nightly", "to": "dawn"},
        "definition.search.trials": {"from": 4, "to": 9},
        "definition.search.seed": {"from": 7, "to": 11},
    }
    assert changed["message"] == "changed: name, definition.search.trials, definition.search.seed"


def test_a_changed_definition_is_of_the_next_sweeps(
    client: TestClient, make: Make, definition: Make, service_database: Database
) -> None:
    make(overlap="allow")
    at = datetime(2026, 1, 1, 2, 30, tzinfo=UTC)
    _due_at(service_database, at)
    [first] = _fire(service_database, at)
    stored = client.get(f"/v1/studies/{first}").json()["definition"]
    client.patch("/v1/schedules/nightly", json={"definition": definition(recipe={"lora_r": 4}), "seed": 1})
    _due_at(service_database, at + timedelta(days=1))
    [second] = _fire(service_database, at + timedelta(days=1))
    assert client.get(f"/v1/studies/{first}").json()["definition"] == stored
    study = client.get(f"/v1/studies/{second}").json()
    assert (study["definition"]["recipe"], study["base_seed"]) == ({"lora_r": 4}, 1)


def test_a_name_that_another_schedule_has_is_refused(client: TestClient, make: Make) -> None:
    make()
    other = make(name="other")
    expect_problem(client.patch("/v1/schedules/other", json={"name": "nightly", "seed": 3}), 409)
    assert client.get("/v1/schedules/other").json() == other
    assert client.patch("/v1/schedules/other", json={"name": "other", "enabled": False}).status_code == 200


def test_a_warm_start_from_the_schedule_itself_follows_its_name(
    client: TestClient, make: Make, definition: Make
) -> None:
    make(definition=definition(warm_start={"from": "nightly"}))
    renamed = client.patch("/v1/schedules/nightly", json={"name": "dawn"}).json()
    assert renamed["definition"]["warm_start"]["from"] == "dawn"
    newest = client.get("/v1/schedules/dawn/history").json()["items"][0]
    assert newest["changes"]["definition.warm_start.from"] == {"from": "nightly", "to": "dawn"}


def test_a_firing_that_is_due_is_not_lost_by_a_change_of_something_else(
    client: TestClient, make: Make, service_database: Database
) -> None:
    make()
    at = datetime(2026, 1, 1, 2, 30, tzinfo=UTC)
    _due_at(service_database, at)
    assert client.patch("/v1/schedules/nightly", json={"seed": 8}).status_code == 200
    assert _fire(service_database, at) == ["nightly-20260101-0230"]


def test_a_change_that_changes_nothing_leaves_no_trace_in_the_history(client: TestClient, make: Make) -> None:
    schedule = make()
    for same in ({"seed": 7}, {"definition": schedule["definition"]}, {"name": "nightly"}):
        assert client.patch("/v1/schedules/nightly", json=same).status_code == 200
    assert [e["kind"] for e in client.get("/v1/schedules/nightly/history").json()["items"]] == ["created"]


def test_the_history_comes_in_pages_and_stays_after_the_removal(client: TestClient, make: Make) -> None:
    schedule = make()
    for seed in (1, 2, 3):
        client.patch("/v1/schedules/nightly", json={"seed": seed})
    client.delete("/v1/schedules/nightly")
    path = "/v1/schedules/nightly/history"
    kinds: list[str] = []
    query = {"limit": 2}
    while page := client.get(path, params=query).json()["items"]:
        kinds += [event["kind"] for event in page]
        query["before"] = page[-1]["id"]
    assert kinds == ["removed", "changed", "changed", "changed", "created"]
    by_id = client.get(f"/v1/schedules/{schedule['id']}/history").json()
    assert by_id == client.get(path).json()


# -- sweeps ------------------------------------------------------------------------------------------


def _end(database: Database, name: str) -> None:
    with database.write() as session:
        study = session.scalars(select(Study).where(Study.name == name)).one()
        study.state, study.ended_at = StudyState.CANCELLED, datetime.now(UTC)


def _names(client: TestClient, ref: str, **query: Any) -> list[str]:
    answer = client.get(f"/v1/schedules/{ref}/studies", params=query)
    assert answer.status_code == 200, answer.text
    return [study["name"] for study in answer.json()["items"]]


def test_the_sweeps_of_a_schedule_are_listed_newest_first_also_after_it_was_removed(
    client: TestClient, make: Make, definition: Make, service_database: Database
) -> None:
    schedule = make(overlap="allow")
    client.post("/v1/studies", json=definition(name="nightly-by-hand"))
    made: list[str] = []
    for day in (1, 2, 3):
        at = datetime(2026, 1, day, 2, 30, tzinfo=UTC)
        _due_at(service_database, at)
        made = _fire(service_database, at) + made
    page = client.get("/v1/schedules/nightly/studies", params={"limit": 2}).json()
    shown = [(study["name"], study["state"], study["best"]) for study in page["items"]]
    assert shown == [(name, "queued", None) for name in made[:2]]
    assert _names(client, "nightly", cursor=page["next_cursor"]) == made[2:]
    client.delete("/v1/schedules/nightly")
    assert _names(client, "nightly") == _names(client, schedule["id"]) == made
    study = client.get(f"/v1/studies/{made[0]}").json()
    assert (study["schedule"], study["schedule_id"]) == ("nightly", schedule["id"])
    expect_problem(client.get("/v1/schedules/nightl/studies"), 404)
    expect_problem(client.get("/v1/schedules/a b/history"), 404)


def test_a_name_that_was_removed_and_made_again_lists_the_sweeps_of_both_and_an_id_its_own(
    client: TestClient, make: Make, service_database: Database
) -> None:
    made, ids = [], []
    for day in (1, 2):
        ids.append(make()["id"])
        at = datetime(2026, 1, day, 2, 30, tzinfo=UTC)
        _due_at(service_database, at)
        made.append(_fire(service_database, at))
        if day == 1:
            client.delete("/v1/schedules/nightly")
    assert _names(client, "nightly") == made[1] + made[0]
    assert [_names(client, ref) for ref in ids] == made
    assert client.get("/v1/schedules/nightly").json()["studies"] == 1


def test_a_renamed_schedule_lists_what_it_made_under_its_old_name(
    client: TestClient, make: Make, service_database: Database
) -> None:
    make()
    at = datetime(2026, 1, 1, 2, 30, tzinfo=UTC)
    _due_at(service_database, at)
    made = _fire(service_database, at)
    client.patch("/v1/schedules/nightly", json={"name": "dawn"})
    assert _names(client, "dawn") == _names(client, "nightly") == made
    assert client.get(f"/v1/studies/{made[0]}").json()["schedule"] == "nightly"
    client.delete("/v1/schedules/dawn")
    assert _names(client, "dawn") == made


# -- overlaps ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("state", "fires"),
    [("queued", False), ("running", False), ("paused", True), ("completed", True), ("failed", True)],
)
def test_a_firing_is_skipped_while_an_earlier_sweep_is_queued_or_running(
    client: TestClient, make: Make, service_database: Database, state: str, fires: bool
) -> None:
    make()
    at = datetime(2026, 1, 1, 2, 30, tzinfo=UTC)
    _due_at(service_database, at)
    [first] = _fire(service_database, at)
    with service_database.write() as session:
        session.scalars(select(Study)).one().state = state
    following = at + timedelta(days=1)
    assert _fire(service_database, following) == (["nightly-20260102-0230"] if fires else [])
    assert _fire(service_database, following) == []
    schedule = client.get("/v1/schedules/nightly").json()
    skips = [e for e in client.get("/v1/schedules/nightly/history").json()["items"] if e["kind"] == "skipped"]
    if fires:
        assert (schedule["studies"], schedule["last_skipped"], skips) == (2, None, [])
        return
    reason = f"skipped: its sweep {first!r} is still {state} (overlap: skip)"
    assert schedule["last_skipped"] == {"fired_for": "2026-01-02T02:30:00Z", "reason": reason}
    assert [(e["message"], e["asked_by"]) for e in skips] == [(reason, None)]
    assert (schedule["studies"], schedule["next_fire_at"]) == (1, "2026-01-03T02:30:00Z")


def test_a_firing_that_was_made_already_is_not_skipped_because_of_its_own_sweep(
    client: TestClient, make: Make, service_database: Database
) -> None:
    make()
    at = datetime(2026, 1, 1, 2, 30, tzinfo=UTC)
    for _ in range(2):
        _due_at(service_database, at)
        _fire(service_database, at)
    assert client.get("/v1/schedules/nightly").json()["last_skipped"] is None


def test_sweeps_overlap_where_that_is_allowed(
    client: TestClient, make: Make, service_database: Database
) -> None:
    make()
    at = datetime(2026, 1, 1, 2, 30, tzinfo=UTC)
    _due_at(service_database, at)
    _fire(service_database, at)
    client.patch("/v1/schedules/nightly", json={"overlap": "allow"})
    assert _fire(service_database, at + timedelta(days=1)) == ["nightly-20260102-0230"]


def test_another_schedules_sweep_is_in_nobodys_way(make: Make, service_database: Database) -> None:
    make(name="a", cron="* * * * *")
    make(name="b", cron="* * * * *")
    at = datetime(2026, 1, 1, tzinfo=UTC)
    with service_database.write() as session:
        for schedule in session.scalars(select(Schedule)):
            schedule.next_fire_at = at
    assert sorted(_fire(service_database, at)) == ["a-20260101-0000", "b-20260101-0000"]


# -- run now -----------------------------------------------------------------------------------------


def test_a_sweep_is_made_at_once_on_request(
    client: TestClient, make: Make, service_database: Database
) -> None:
    schedule = make(enabled=False)
    answer = client.post("/v1/schedules/nightly/run")
    assert answer.status_code == 201, answer.text
    study = answer.json()
    assert answer.headers["location"] == f"/v1/studies/{study['id']}"
    assert (study["schedule"], study["schedule_id"]) == ("nightly", schedule["id"])
    at = datetime.fromisoformat(study["fired_for"])
    assert study["definition"]["search"]["seed"] == sweep_seed(7, at)
    [event] = client.get(f"/v1/studies/{study['id']}/events").json()["items"]
    said = "run on request of 'default' by the schedule 'nightly'; its search.seed "
    assert event["message"].startswith(said)
    after = client.get("/v1/schedules/nightly").json()
    assert (after["studies"], after["last_fired_for"], after["next_fire_at"]) == (1, None, None)
    problem = expect_problem(client.post("/v1/schedules/nightly/run"), 409)
    assert (problem["title"], study["name"] in problem["detail"]) == ("Sweep under way", True)
    _end(service_database, study["name"])
    assert client.post("/v1/schedules/nightly/run").status_code == 201
    expect_problem(client.post("/v1/schedules/none/run"), 404)


def test_a_request_to_run_that_is_sent_twice_makes_one_sweep(client: TestClient, make: Make) -> None:
    make(overlap="allow")
    answers = [client.post("/v1/schedules/nightly/run", headers={HEADER: "once"}) for _ in range(2)]
    assert answers[0].content == answers[1].content
    assert answers[1].headers["idempotent-replayed"] == "true"
    assert len(_names(client, "nightly")) == 1
    assert client.post("/v1/schedules/nightly/run", headers={HEADER: "twice"}).status_code == 201
    assert len(_names(client, "nightly")) == 2


def test_a_run_is_of_the_revision_that_was_seen(client: TestClient, make: Make) -> None:
    make(overlap="allow")
    seen = client.get("/v1/schedules/nightly").headers["etag"]
    client.patch("/v1/schedules/nightly", json={"seed": 9})
    expect_problem(client.post("/v1/schedules/nightly/run", headers={"if-match": seen}), 412)
    now = client.get("/v1/schedules/nightly").headers["etag"]
    assert client.post("/v1/schedules/nightly/run", headers={"if-match": now}).status_code == 201
    assert client.get("/v1/schedules/nightly").headers["etag"] == now  # which is of what people change


def test_runs_within_one_tick_of_the_clock_have_instants_of_their_own(
    client: TestClient, make: Make, service_database: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    make(overlap="allow")
    monkeypatch.setattr(commands, "database_now", lambda _: datetime(2026, 1, 1, tzinfo=UTC))
    names = [client.post("/v1/schedules/nightly/run").json()["name"] for _ in range(3)]
    assert names == ["nightly-20260101-0000", "nightly-20260101-0000-2", "nightly-20260101-0000-3"]
    with service_database.read() as session:
        assert len(set(session.scalars(select(Study.fired_for)))) == 3


def test_a_run_over_the_owners_limits_is_refused(
    client: TestClient, make: Make, service_database: Database
) -> None:
    make(overlap="allow")

    def run(session: Session) -> Study:
        schedule = session.scalars(select(Schedule)).one()
        return commands.run_now(session, schedule, limits=Limits(active_studies=1))

    service_database.transact(run)
    with pytest.raises(LimitReached, match="allows 1"):
        service_database.transact(run)


@pytest.mark.parametrize("cron", ["0 2 * * *", "*/5 * * * *", "0 0 1 1 *"])
def test_a_firing_that_a_clock_has_computed_that_was_ahead_is_repaired_and_told(
    client: TestClient, make: Make, service_database: Database, cron: str
) -> None:
    schedule = make(cron=cron)
    repair_schedules(service_database)
    with service_database.write() as session:
        row = session.get_one(Schedule, schedule["id"])
        right = row.next_fire_at
        assert right is not None
        assert session.scalars(select(ScheduleEvent).where(ScheduleEvent.kind == "repaired")).all() == []
        row.next_fire_at = right + timedelta(days=366 * 2)
    repair_schedules(service_database)
    repair_schedules(service_database)
    with service_database.read() as session:
        again = session.get_one(Schedule, schedule["id"]).next_fire_at
        assert again is not None
        assert timedelta(0) <= again - right < timedelta(minutes=10)
        [event] = session.scalars(select(ScheduleEvent).where(ScheduleEvent.kind == "repaired"))
        assert "a clock was wrong" in event.message


def test_a_schedule_that_is_disabled_or_whose_timezone_is_gone_is_left_as_it_is(
    make: Make, service_database: Database
) -> None:
    ids = [make(name=name)["id"] for name in ("disabled", "lost")]
    with service_database.write() as session:
        disabled, lost = (session.get_one(Schedule, one) for one in ids)
        disabled.enabled = False
        lost.timezone = "Atlantis/Capital"
        for one in (disabled, lost):
            one.next_fire_at = datetime(2999, 1, 1, tzinfo=UTC)
    repair_schedules(service_database)
    with service_database.read() as session:
        assert {session.get_one(Schedule, one).next_fire_at for one in ids} == {
            datetime(2999, 1, 1, tzinfo=UTC)
        }
