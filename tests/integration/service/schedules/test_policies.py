"""What becomes of firings: overlaps, missed ones, start and end, windows, and files of each sweep's own."""

from __future__ import annotations

from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import literal, select
from starlette.testclient import TestClient

from service.coordinator.chores.schedules import close_windows, fire_schedules, repair_schedules
from service.db import database as db
from service.db.column_types import UtcDateTime
from service.db.database import Database
from service.db.models import Schedule, Study
from service.db.transitions import put_down, start
from service.schedules import sweeps
from service.settings import Settings
from service.states import StudyState
from tests.support.service.api import expect_problem, on_sqlite

Make = Callable[..., dict[str, Any]]
Clock = Callable[[str], datetime]
Come = Callable[[str], list[str]]
FIRST = "2026-12-01T22:00"


@pytest.fixture
def at(monkeypatch: pytest.MonkeyPatch) -> Clock:
    """Sets the database's clock, in UTC."""

    def set_clock(text: str) -> datetime:
        now = datetime.fromisoformat(text).replace(tzinfo=UTC)
        monkeypatch.setattr(db, "_NOW", select(literal(now, UtcDateTime())))
        return now

    set_clock("2026-12-01T12:00")
    return set_clock


@pytest.fixture
def make(client: TestClient, definition: Make, at: Clock) -> Make:
    """Makes a schedule over REST, at noon of the first of December."""

    def post(**fields: Any) -> dict[str, Any]:
        body = {"name": "nightly", "cron": "0 22 * * *", "definition": definition(), **fields}
        answer = client.post("/v1/schedules", json=body)
        assert answer.status_code == 201, answer.text
        schedule: dict[str, Any] = answer.json()
        return schedule

    return post


@pytest.fixture
def root(settings: Settings) -> Path:
    """The folder of the data files."""
    return settings.data_roots[0]


@pytest.fixture
def fire(service_database: Database, at: Clock, settings: Settings) -> Come:
    """A coordinator comes by at a moment; the names of all sweeps, the oldest first."""

    def come_by(text: str) -> list[str]:
        at(text)
        close_windows(service_database)
        fire_schedules(service_database, data_roots=settings.data_roots)
        with service_database.read() as session:
            return list(session.scalars(select(Study.name).order_by(Study.created_at)))

    return come_by


def _move(database: Database, name: str, to: StudyState, reason: str = "x") -> None:
    with database.write() as session:
        study = session.scalars(select(Study).where(Study.name == name)).one()
        if to == StudyState.RUNNING:
            start(session, study, reason)
        elif to == StudyState.PAUSED:
            put_down(session, study, reason)
        else:
            study.state, study.ended_at = to, datetime.now(UTC)


def _history(client: TestClient, kind: str | None = None) -> list[dict[str, Any]]:
    events = client.get("/v1/schedules/nightly/history").json()["items"]
    return [event for event in events if kind in (None, event["kind"])]


# -- overlaps ------------------------------------------------------------------------------------------


def test_a_queued_firing_is_made_when_the_sweep_under_way_has_ended(
    client: TestClient, make: Make, fire: Come, service_database: Database
) -> None:
    make(overlap="queue")
    [first] = fire("2026-12-01T22:00:05")
    assert fire("2026-12-02T22:00:05") == [first]
    assert client.get("/v1/schedules/nightly").json()["queued_for"] == "2026-12-02T22:00:00Z"
    [queued] = _history(client, "queued")
    assert queued["message"] == f"waits for its sweep {first!r}: it is still queued (overlap: queue)"
    assert fire("2026-12-03T22:00:05") == [first]
    [skipped] = _history(client, "skipped")
    assert (skipped["fired_for"], "waits in its place" in skipped["message"]) == (
        "2026-12-02T22:00:00Z",
        True,
    )
    _move(service_database, first, StudyState.COMPLETED)
    for _ in range(2):
        assert fire("2026-12-04T09:00") == [first, "nightly-20261203-2200"]
    shown = client.get("/v1/schedules/nightly").json()
    assert (shown["queued_for"], shown["last_fired_for"]) == (None, "2026-12-03T22:00:00Z")
    events = client.get("/v1/studies/nightly-20261203-2200/events").json()["items"]
    assert events[0]["message"].startswith(
        "fired by the schedule 'nightly', after an earlier sweep had ended;"
    )


@pytest.mark.parametrize("how", ["disable", "remove"])
def test_a_queued_firing_goes_with_its_schedule_and_the_history_says_so(
    client: TestClient, make: Make, fire: Come, service_database: Database, how: str
) -> None:
    make(overlap="queue")
    [first] = fire("2026-12-01T22:00:05")
    fire("2026-12-02T22:00:05")
    if how == "disable":
        client.patch("/v1/schedules/nightly", json={"enabled": False})
    else:
        client.delete("/v1/schedules/nightly")
    [skipped] = _history(client, "skipped")
    assert skipped["message"] == f"skipped: the schedule was {how}d while it waited"
    _move(service_database, first, StudyState.COMPLETED)
    assert fire("2026-12-03T09:00") == [first]


def test_the_sweep_under_way_is_cancelled_and_the_next_is_made_at_once(
    client: TestClient, make: Make, fire: Come, service_database: Database
) -> None:
    make(overlap="cancel_running")
    [first] = fire("2026-12-01T22:00:05")
    _move(service_database, first, StudyState.RUNNING)
    assert fire("2026-12-02T22:00:05") == [first, "nightly-20261202-2200"]
    assert fire("2026-12-02T22:01:05") == [first, "nightly-20261202-2200"]
    events = client.get(f"/v1/studies/{first}/events").json()["items"]
    assert [event["message"] for event in events if event["kind"] == "cancel_requested"] == [
        "the schedule 'nightly' makes its next sweep (overlap: cancel_running)"
    ]
    [cancelled] = _history(client, "cancelled_earlier")
    assert cancelled["message"] == f"cancelled {first!r}, still under way, and made the next sweep at once"


def test_nothing_is_cancelled_for_a_sweep_that_cannot_run(
    client: TestClient, make: Make, definition: Make, fire: Come, root: Path
) -> None:
    (root / "2026-12-01.jsonl").write_bytes((root / "train.jsonl").read_bytes())
    data = {**definition()["data"], "train": "{date}.jsonl"}
    make(overlap="cancel_running", definition=definition(data=data))
    fire("2026-12-01T22:00:05")
    first, second = fire("2026-12-02T22:00:05")
    assert client.get(f"/v1/studies/{second}").json()["state"] == "failed"
    events = client.get(f"/v1/studies/{first}/events").json()["items"]
    assert [event["kind"] for event in events] == ["study_queued"]


def test_a_run_on_request_follows_the_rule_for_overlaps(client: TestClient, make: Make, at: Clock) -> None:
    make(overlap="queue")
    first = client.post("/v1/schedules/nightly/run").json()["name"]
    expect_problem(client.post("/v1/schedules/nightly/run"), 409)
    client.patch("/v1/schedules/nightly", json={"overlap": "cancel_running"})
    assert client.post("/v1/schedules/nightly/run").status_code == 201
    kinds = [event["kind"] for event in client.get(f"/v1/studies/{first}/events").json()["items"]]
    assert kinds == ["study_queued", "cancel_requested"]


# -- missed firings ------------------------------------------------------------------------------------


@pytest.mark.parametrize("catch_up", ["latest", "none"])
def test_missed_firings_are_said_once_with_their_number(
    client: TestClient, make: Make, fire: Come, catch_up: str
) -> None:
    make(catch_up=catch_up)
    made = ["nightly-20261205-2200"] if catch_up == "latest" else []
    for _ in range(2):
        assert fire("2026-12-06T01:00") == made
    [missed] = _history(client, "missed")
    last = "2026-12-04T22:00:00Z" if made else "2026-12-05T22:00:00Z"
    assert missed["missed"] == {"count": 4 + (not made), "first": "2026-12-01T22:00:00Z", "last": last}
    assert missed["fired_for"] == last
    if made:
        assert missed["message"] == (
            "missed 4 firings from 2026-12-01 22:00 UTC to 2026-12-04 22:00 UTC: no coordinator was there; "
            "the latest, of 2026-12-05 22:00 UTC, is made now"
        )
        [event] = client.get(f"/v1/studies/{made[0]}/events").json()["items"]
        assert ", 3 hours late; its search.seed" in event["message"]


@pytest.mark.parametrize(("late", "made"), [("2026-12-01T22:10", 1), ("2026-12-01T22:10:01", 0)])
def test_a_firing_is_missed_after_ten_minutes(
    client: TestClient, make: Make, fire: Come, late: str, made: int
) -> None:
    make(catch_up="none")
    assert len(fire(late)) == made
    assert len(_history(client, "missed")) == 1 - made


def test_firings_of_years_are_not_counted_one_by_one(client: TestClient, make: Make, fire: Come) -> None:
    make(cron="* * * * *", catch_up="none")
    assert fire("2027-12-01T12:00:30") == ["nightly-20271201-1200"]
    [missed] = _history(client, "missed")
    assert missed["missed"] == {
        "count": 20_000,
        "first": "2026-12-01T12:01:00Z",
        "last": "2027-12-01T11:59:00Z",
    }
    assert "at least 20,000 firings" in missed["message"]


# -- start and end -------------------------------------------------------------------------------------


def test_a_schedule_begins_and_ends_and_says_that_it_has_ended(
    client: TestClient, make: Make, fire: Come
) -> None:
    shown = make(start="2026-12-03", end="2026-12-04", overlap="allow", timezone="Europe/Berlin")
    assert (shown["start"], shown["end"], shown["next_fire_at"]) == (
        *("2026-12-03", "2026-12-04"),
        "2026-12-03T21:00:00Z",
    )
    assert fire("2026-12-03T20:59") == []
    assert fire("2026-12-03T21:00:05") == ["nightly-20261203-2200"]
    assert _history(client, "ended") == []
    assert len(fire("2026-12-04T21:00:05")) == 2
    [ended] = _history(client, "ended")
    assert ended["message"] == "ended: nothing fires after 2026-12-04 (Europe/Berlin)"
    assert client.get("/v1/schedules/nightly").json()["next_fire_at"] is None
    assert len(fire("2026-12-09T12:00")) == 2
    again = client.patch("/v1/schedules/nightly", json={"end": None})
    assert again.json()["next_fire_at"] == "2026-12-09T21:00:00Z"
    [changed] = _history(client, "changed")
    assert changed["changes"] == {"end": {"from": "2026-12-04", "to": None}}


def test_a_clock_that_was_ahead_of_the_end_is_repaired(
    client: TestClient, make: Make, fire: Come, at: Clock, service_database: Database
) -> None:
    make(end="2026-12-31", catch_up="none")
    fire("2029-01-01T00:00")
    assert client.get("/v1/schedules/nightly").json()["next_fire_at"] is None
    at("2026-12-01T12:05")
    repair_schedules(service_database)
    assert client.get("/v1/schedules/nightly").json()["next_fire_at"] == "2026-12-01T22:00:00Z"
    [repaired] = _history(client, "repaired")
    assert "its next firing was to be none" in repaired["message"]


@on_sqlite
@pytest.mark.parametrize(
    ("fields", "paths"),
    [
        ({"start": "tomorrow"}, {"start"}),
        ({"end": "2026-12-01T18:00+01:00"}, {"end"}),
        ({"start": "2026-12-09", "end": "2026-12-02"}, {"end"}),
        ({"end": "2026-11-30"}, {"end"}),
        ({"end": "2026-12-01T21:00"}, {"end"}),
        ({"catch_up": "all"}, {"catch_up"}),
        ({"overlap": "que"}, {"overlap"}),
        ({"until": "25:00"}, {"until"}),
        ({"until": 360}, {"until"}),
        ({"until_action": "pause"}, {"until_action"}),
        ({"until": "06:00", "until_action": "stop"}, {"until_action"}),
        ({"sweep_name": "{day}"}, {"sweep_name"}),
        ({"sweep_nme": "x"}, {"sweep_nme"}),
        (
            {"start": 1, "until": "x", "sweep_name": "{date", "cron": "x", "overlap": None},
            {"start", "until", "sweep_name", "cron", "overlap"},
        ),
    ],
)
def test_every_fault_is_named_and_nothing_is_made(
    client: TestClient, definition: Make, at: Clock, fields: dict[str, Any], paths: set[str]
) -> None:
    body = {"name": "nightly", "cron": "0 22 * * *", "definition": definition(), **fields}
    problem = expect_problem(client.post("/v1/schedules", json=body), 422)
    assert {fault["path"] for fault in problem["faults"]} == paths
    assert client.get("/v1/schedules").json() == {"items": []}


@on_sqlite
def test_a_window_of_the_schedule_and_one_of_its_definition_exclude_each_other(
    client: TestClient, make: Make, definition: Make
) -> None:
    make(until="06:00")
    both = {"definition": definition(budget={"until": "07:00"})}
    problem = expect_problem(client.patch("/v1/schedules/nightly", json=both), 422)
    assert [fault["path"] for fault in problem["faults"]] == ["until"]
    assert client.patch("/v1/schedules/nightly", json={**both, "until": None}).status_code == 200


@on_sqlite
def test_an_ended_schedule_is_enabled_only_with_another_end(
    client: TestClient, make: Make, at: Clock
) -> None:
    make(end="2026-12-02", enabled=False)
    at("2026-12-05T12:00")
    problem = expect_problem(client.patch("/v1/schedules/nightly", json={"enabled": True}), 422)
    assert "has passed" in problem["faults"][0]["message"]
    both = {"enabled": True, "end": "2026-12-09"}
    assert client.patch("/v1/schedules/nightly", json=both).status_code == 200


# -- windows -------------------------------------------------------------------------------------------


def test_a_sweep_has_its_schedules_window_and_a_late_one_of_a_window_that_is_over_is_missed(
    client: TestClient, make: Make, fire: Come
) -> None:
    make(until="06:00", timezone="Europe/Berlin")
    [name] = fire("2026-12-01T21:00:05")
    study = client.get(f"/v1/studies/{name}").json()
    budget = study["definition"]["budget"]
    assert (budget["until"], budget["until_timezone"], budget["until_action"]) == (
        *("06:00", "Europe/Berlin"),
        "end",
    )
    assert study["deadline"] == "2026-12-02T05:00:00Z"
    assert fire("2026-12-03T05:00") == [name]
    [missed] = _history(client, "missed")
    assert missed["message"].endswith("no sweep is made, since the window until 06:00 is over")


@pytest.mark.parametrize(
    ("action", "state"), [("end", "failed"), ("pause", "paused"), ("continue", "paused")]
)
def test_a_sweep_that_waited_all_night_does_not_begin_by_day(
    client: TestClient, make: Make, fire: Come, action: str, state: str
) -> None:
    make(until="06:00", until_action=action)
    [name] = fire("2026-12-01T22:00:05")
    fire("2026-12-02T05:59")
    assert client.get(f"/v1/studies/{name}").json()["state"] == "queued"
    fire("2026-12-02T06:00")
    study = client.get(f"/v1/studies/{name}").json()
    assert study["state"] == state
    assert study["reason"].startswith("budget.until 06:00 UTC reached (2026-12-02 06:00 UTC)")


def test_a_sweep_that_this_version_cannot_read_stops_no_coordinator(
    client: TestClient, make: Make, fire: Come, service_database: Database
) -> None:
    make(until="06:00")
    [name] = fire("2026-12-01T22:00:05")
    with service_database.write() as session:
        session.scalars(select(Study)).one().definition = {}
    assert fire("2026-12-02T12:00") == [name]


def test_the_next_firing_continues_a_sweep_that_its_window_has_paused(
    client: TestClient, make: Make, fire: Come, at: Clock, service_database: Database
) -> None:
    make(until="06:00", until_action="continue")
    [name] = fire("2026-12-01T22:00:05")
    for day in (2, 3):
        _move(service_database, name, StudyState.RUNNING)
        at(f"2026-12-0{day}T06:00:01")
        _move(service_database, name, StudyState.PAUSED)
        assert fire(f"2026-12-0{day}T22:00:05") == [name]
        study = client.get(f"/v1/studies/{name}").json()
        assert study["state"] == "queued"
        events = client.get(f"/v1/studies/{name}/events").json()["items"]
        assert events[-1]["message"] == "continued by the schedule 'nightly'; waiting for a coordinator"
        assert study["deadline"] == f"2026-12-0{day + 1}T06:00:00Z"
    assert [event["fired_for"] for event in _history(client, "continued")] == [
        "2026-12-03T22:00:00Z",
        "2026-12-02T22:00:00Z",
    ]
    _move(service_database, name, StudyState.COMPLETED)
    assert fire("2026-12-04T22:00:05") == [name, "nightly-20261204-2200"]


def test_a_sweep_that_a_person_has_paused_waits_for_a_person(
    client: TestClient, make: Make, fire: Come, at: Clock
) -> None:
    make(until="06:00", until_action="continue")
    [name] = fire("2026-12-01T22:00:05")
    at("2026-12-02T01:00")
    assert client.post(f"/v1/studies/{name}/pause").status_code == 202
    assert fire("2026-12-02T22:00:05") == [name, "nightly-20261202-2200"]
    assert client.get(f"/v1/studies/{name}").json()["state"] == "paused"


def test_a_firing_at_the_very_end_of_the_window_before_waits_and_continues(
    client: TestClient, make: Make, fire: Come, service_database: Database
) -> None:
    make(until="22:00", until_action="continue")
    [name] = fire("2026-12-01T22:00:05")
    _move(service_database, name, StudyState.RUNNING)
    assert fire("2026-12-02T22:00:05") == [name]
    assert "its window has ended" in _history(client, "queued")[0]["message"]
    _move(service_database, name, StudyState.PAUSED)
    assert fire("2026-12-02T22:00:09") == [name]
    assert client.get(f"/v1/studies/{name}").json()["state"] == "queued"
    assert len(_history(client, "continued")) == 1


# -- names and files of each sweep's own ---------------------------------------------------------------


def test_sweeps_are_called_and_read_what_their_patterns_say(
    client: TestClient, make: Make, definition: Make, fire: Come, root: Path
) -> None:
    data, folder = definition()["data"], root / "days"
    folder.mkdir()
    (folder / "2026-12-01.jsonl").write_bytes((root / "train.jsonl").read_bytes())
    shown = make(
        sweep_name="tone-{week}-{run}",
        overlap="allow",
        definition=definition(data={**data, "train": "days/{date}.jsonl"}),
    )
    assert shown["definition"]["data"]["train"] == f"{folder}/{{date}}.jsonl"
    assert fire("2026-12-01T22:00:05") == ["tone-2026-W49-1"]
    assert fire("2026-12-02T22:00:05") == ["tone-2026-W49-1", "tone-2026-W49-2"]
    first, second = (client.get(f"/v1/studies/tone-2026-W49-{run}").json() for run in (1, 2))
    assert first["definition"]["data"]["train"] == f"{folder}/2026-12-01.jsonl"
    assert (first["state"], second["state"]) == ("queued", "failed")
    assert second["reason"] == (
        f"data.train {folder}/2026-12-02.jsonl does not exist (from {folder}/{{date}}.jsonl)"
    )
    problem = expect_problem(client.post("/v1/schedules/nightly/run"), 422)
    assert [fault["path"] for fault in problem["faults"]] == ["data.train"]
    (folder / "2026-12-03.jsonl").symlink_to("/etc/hostname")
    fire("2026-12-03T22:00:05")
    third = client.get("/v1/studies/tone-2026-W49-3").json()
    assert "outside the data roots" in third["reason"]
    same = client.patch("/v1/schedules/nightly", json={"definition": shown["definition"]})
    assert same.json()["definition"] == shown["definition"]


def test_a_file_that_is_not_there_yet_is_accepted_and_the_history_says_so(
    client: TestClient, make: Make, definition: Make, root: Path
) -> None:
    data, folder = definition()["data"], root
    make(definition=definition(data={**data, "train": f"{folder}/{{date}}.jsonl"}))
    [unchecked] = _history(client, "unchecked")
    assert f"data.train {folder}/2026-12-01.jsonl not there yet" in unchecked["message"]
    for wrong, words in (
        (f"{folder}/{{date}}.txt", "not a supported type"),
        ("/etc/{date}.jsonl", "outside the data roots"),
        (f"{folder}/{{dat}}.jsonl", "unknown field {dat}"),
    ):
        change = {"definition": definition(data={**data, "train": wrong})}
        [fault] = expect_problem(client.patch("/v1/schedules/nightly", json=change), 422)["faults"]
        assert (fault["path"], words in fault["message"]) == ("definition.data.train", True)


# -- previews and runs ---------------------------------------------------------------------------------


@on_sqlite
def test_the_next_firings_are_shown_of_a_schedule_and_of_one_that_is_not_there(
    client: TestClient, make: Make, at: Clock
) -> None:
    at("2027-03-27T12:00")
    timing = {"cron": "30 2 * * *", "timezone": "Europe/Berlin", "end": "2027-03-29"}
    make(**timing)
    shown = client.get("/v1/schedules/nightly/firings").json()
    assert shown["items"] == [
        {
            "at": "2027-03-28T01:00:00Z",
            "local": "2027-03-28T03:00",
            "offset": "+02:00",
            "note": "moved from 02:30, which the clock skips",
        },
        {"at": "2027-03-29T00:30:00Z", "local": "2027-03-29T02:30", "offset": "+02:00", "note": None},
    ]
    assert client.get("/v1/schedule-preview", params=timing).json() == shown
    few = client.get("/v1/schedules/nightly/firings", params={"count": 1}).json()
    assert few["items"] == shown["items"][:1]
    wrong = {"cron": "x", "timezone": "Europe/Berln", "end": "soon"}
    problem = expect_problem(client.get("/v1/schedule-preview", params=wrong), 422)
    assert {fault["path"] for fault in problem["faults"]} == {f"query.{key}" for key in wrong}
    for query in ({}, {"cron": "0 0 * * *", "count": 101}):
        expect_problem(client.get("/v1/schedule-preview", params=query), 422)


def test_the_history_of_a_change_has_every_new_key(client: TestClient, make: Make) -> None:
    make()
    changes = {
        "start": "2026-12-02",
        "end": "2026-12-30",
        "overlap": "queue",
        "catch_up": "none",
        "until": "06:00",
        "until_action": "continue",
        "sweep_name": "n-{date}",
    }
    shown = client.patch("/v1/schedules/nightly", json=changes).json()
    assert {key: shown[key] for key in changes} == changes
    [changed] = _history(client, "changed")
    assert {key: change["to"] for key, change in changed["changes"].items()} == changes
    cleared = dict.fromkeys(("start", "end", "until", "sweep_name"))
    shown = client.patch("/v1/schedules/nightly", json=cleared).json()
    assert [shown[key] for key in (*cleared, "until_action")] == [None] * 5


def test_sweeps_are_listed_with_their_gpu_hours(client: TestClient, make: Make, fire: Come) -> None:
    make()
    fire("2026-12-01T22:00:05")
    [run] = client.get("/v1/schedules/nightly/studies").json()["items"]
    assert (run["gpu_hours"], run["state"], run["counts"]["total"]) == (0.0, "queued", 0)


def test_a_waiting_firing_that_cannot_be_made_is_passed_over(
    client: TestClient,
    make: Make,
    fire: Come,
    service_database: Database,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    make(overlap="queue")
    [first] = fire("2026-12-01T22:00:05")
    fire("2026-12-02T22:00:05")
    _move(service_database, first, StudyState.COMPLETED)

    def fail(*_: Any) -> None:
        raise ZeroDivisionError("of ours")

    with monkeypatch.context() as broken:
        broken.setattr(sweeps, "make_sweep", fail)
        fire("2026-12-02T22:01")
    assert _history(client, "failed")[0]["fired_for"] == "2026-12-02T22:00:00Z"
    with service_database.read() as session:
        row = session.scalars(select(Schedule)).one()
        assert (row.queued_for, row.enabled) == (None, True)
        assert row.next_fire_at == datetime(2026, 12, 3, 22, tzinfo=UTC) + timedelta()
