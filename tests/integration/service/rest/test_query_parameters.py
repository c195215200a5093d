"""Query parameters over HTTP: unknown ones are refused everywhere, and lists take filters."""

from __future__ import annotations

from datetime import UTC, datetime
from functools import partial
from typing import Any, get_args

import pytest
from sqlalchemy import select
from starlette.testclient import TestClient

from service.db.database import Database
from service.db.models import Schedule, Study
from service.optuna_store.storage import Storage
from service.schedules.sweeps import fire
from service.states import AttemptState, StudyState
from service.trials.queries import State
from service.trials.records import TrialState
from tests.support.service.api import Make, expect_problem, on_sqlite
from tests.support.service.database_lab import Lab


def faults(client: TestClient, path: str) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = expect_problem(client.get(path), 422)["faults"]
    return found


def names(client: TestClient, query: str = "") -> list[str]:
    """Of the studies that match, oldest first."""
    answer = client.get(f"/v1/studies{query}")
    assert answer.status_code == 200, answer.text
    return [study["name"] for study in answer.json()["items"]][::-1]


def numbers(client: TestClient, query: str = "") -> list[int]:
    answer = client.get(f"/v1/studies/support-tone/trials{query}")
    assert answer.status_code == 200, answer.text
    return [trial["number"] for trial in answer.json()["items"]]


@pytest.fixture
def lab(client: TestClient, definition: Make, service_database: Database, storage: Storage) -> Lab:
    """A study with six trials: completed at 2, 1 and 3, failed, running, waiting."""
    lab = Lab(client.post("/v1/studies", json=definition()).json(), service_database, storage)
    for value in (2.0, 1.0, 3.0):
        lab.complete(value)
    lab.complete(0.0, end=AttemptState.FAILED)
    lab.attempt(lab.ask()[0])
    lab.ask()
    return lab


@on_sqlite
def test_no_endpoint_ignores_a_parameter_that_it_does_not_have(client: TestClient) -> None:
    for path, operations in client.get("/openapi.json").json()["paths"].items():
        known = {p["name"]: p for operation in operations.values() for p in operation.get("parameters", ())}
        filled = path.format_map({name: "0" for name, p in known.items() if p["in"] == "path"})
        for method in operations:
            answer = client.request(method, f"{filled}?colour=blue")
            found = expect_problem(answer, 422)["faults"]
            sent = [f for f in found if f["message"] != "is required"]
            assert [(f["path"], f["value"], f["message"]) for f in sent] == [
                ("query.colour", "blue", "unknown query parameter")
            ]


@on_sqlite
def test_an_unknown_parameter_is_answered_with_the_nearest_and_all_others(client: TestClient) -> None:
    assert faults(client, "/v1/studies?stat=running") == [
        {
            "path": "query.stat",
            "value": "running",
            "message": "unknown query parameter",
            "allowed": "state, prefix, owner, schedule, created_after, created_before,"
            " ended_after, ended_before, tag, archived, deleted, limit, cursor",
            "nearest": "state",
        }
    ]
    (fault,) = faults(client, "/v1/workers?limit=5")
    assert (fault["allowed"], fault["nearest"]) == ("no query parameters", None)


@on_sqlite
def test_what_other_services_call_a_parameter_leads_to_ours(client: TestClient) -> None:
    found = faults(client, "/v1/studies?name=a&status=b&page=2&per_page=3&sort_by=c")
    assert [f["nearest"] for f in found] == ["prefix", "state", "cursor", "limit", None]  # none to sort by
    assert faults(client, "/v1/studies/x/trials?order_by=value")[0]["nearest"] == "sort"


@on_sqlite
@pytest.mark.parametrize(
    ("query", "value"),
    [("limit=1&limit=2", ["1", "2"]), ("owner=a&owner=a", ["a", "a"]), ("limit=1&limit=", ["1", ""])],
)
def test_a_single_value_is_not_taken_twice(client: TestClient, query: str, value: list[str]) -> None:
    found = faults(client, f"/v1/studies?{query}")
    assert [(f["path"], f["value"], f["message"]) for f in found if f["allowed"] == "one value"] == [
        (f"query.{query.split('=')[0]}", value, "was given 2 times")
    ]


@on_sqlite
def test_every_fault_of_a_query_is_named_at_once(client: TestClient) -> None:
    found = faults(client, "/v1/studies?nme=a&limit=0&state=runing&prefix=%00")
    assert [f["path"] for f in found] == ["query.nme", "query.state", "query.prefix", "query.limit"]


@on_sqlite
@pytest.mark.parametrize(
    "query", ["%00=1", "%ff=%fe", "=", "a%20b=c", "state[]=running", "State=running", "&&x"]
)
def test_odd_names_of_parameters_are_refused_too(client: TestClient, query: str) -> None:
    assert [f["message"] for f in faults(client, f"/v1/studies?{query}")] == ["unknown query parameter"]


@on_sqlite
def test_a_wrong_parameter_changes_nothing(client: TestClient, definition: Make) -> None:
    expect_problem(client.post("/v1/studies?dryrun=true", json=definition()), 422)
    client.post("/v1/studies", json=definition())
    expect_problem(client.post("/v1/studies/support-tone/cancel?force=true"), 422)
    assert client.get("/v1/studies/support-tone").json()["state"] == "queued"


@on_sqlite
def test_pages_of_others_keep_their_own_parameters(client: TestClient) -> None:
    for path in ("/api/studies?x=1", "/dashboard?x=1", "/docs?x=1", "/openapi.json?x=1"):
        assert client.get(path).status_code == 200


@on_sqlite
@pytest.mark.parametrize(
    ("path", "name", "allowed", "nearest"),
    [
        ("/v1/studies?state=runing", "state", ", ".join(StudyState), "running"),
        ("/v1/studies?state=running&state=done", "state", ", ".join(StudyState), None),
        ("/v1/studies?state=", "state", ", ".join(StudyState), None),
        ("/v1/studies?state=running,queued", "state", ", ".join(StudyState), "running"),
        ("/v1/studies/support-tone/trials?state=complete", "state", ", ".join(get_args(State)), "completed"),
        ("/v1/studies/support-tone/trials?sort=value", "sort", "number, best", None),
        ("/v1/schedules?enabled=yes", "enabled", "true, false", None),
    ],
)
def test_a_wrong_filter_is_answered_with_what_is_allowed(
    client: TestClient, path: str, name: str, allowed: str, nearest: str | None
) -> None:
    assert [(f["path"], f["allowed"], f["nearest"]) for f in faults(client, path)] == [
        (f"query.{name}", allowed, nearest)
    ]


@on_sqlite
@pytest.mark.parametrize(
    ("limit", "message"),
    [
        ("0", "must be at least 1"),
        ("101", "must be at most 100"),
        ("ten", "must be a whole number"),
        ("1.5", "must be a whole number"),
        ("", "must be a whole number"),
    ],
)
def test_a_wrong_number_is_answered_with_its_range(client: TestClient, limit: str, message: str) -> None:
    assert [f["message"] for f in faults(client, f"/v1/studies?limit={limit}")] == [message]


@on_sqlite
@pytest.mark.parametrize("name", ["prefix", "owner", "schedule"])
@pytest.mark.parametrize("value", ["", "%25", "a b", "é", "%00", "x" * 201])
def test_what_no_name_begins_with_is_refused(client: TestClient, name: str, value: str) -> None:
    (fault,) = faults(client, f"/v1/studies?{name}={value}")
    assert fault["path"] == f"query.{name}"
    assert fault["allowed"].endswith("dots, hyphens and underscores, beginning with a letter or a digit")


def test_studies_are_found_by_prefix_state_and_owner(
    client: TestClient, definition: Make, service_database: Database
) -> None:
    for name in ("tone", "Tone-2", "tone-3", "t_ne", "other"):
        client.post("/v1/studies", json=definition(name=name))
    with service_database.write() as session:
        for study in session.scalars(select(Study).where(Study.name.in_(["tone", "other"]))):
            study.state, study.owner = StudyState.RUNNING, "alice"
        session.scalars(select(Study).where(Study.name == "t_ne")).one().state = StudyState.CANCELLED
    assert names(client, "?prefix=tone") == ["tone", "tone-3"]
    assert names(client, "?prefix=t_") == ["t_ne"]
    assert names(client, "?prefix=nothing") == []
    assert names(client, "?owner=alice") == ["tone", "other"]
    assert names(client, "?owner=alice&prefix=to") == ["tone"]
    assert names(client, "?state=queued") == ["Tone-2", "tone-3"]
    assert names(client, "?state=running&state=cancelled&owner=default") == ["t_ne"]
    assert names(client) == ["tone", "Tone-2", "tone-3", "t_ne", "other"]


def test_a_schedule_s_studies_are_found_by_its_name_or_id(
    client: TestClient, definition: Make, service_database: Database
) -> None:
    client.post("/v1/studies", json=definition(name="by-hand"))
    for name in ("nightly", "weekly"):
        body = {"name": name, "cron": "0 3 * * *", "definition": definition(name=name)}
        schedule = client.post("/v1/schedules", json=body).json()
        with service_database.write() as session:
            session.get_one(Schedule, schedule["id"]).next_fire_at = datetime(2026, 1, 1, 3, tzinfo=UTC)
        at = datetime(2026, 1, 1, 4, tzinfo=UTC)
        service_database.transact(partial(fire, schedule_id=schedule["id"], now=at))
    (made,) = names(client, "?schedule=weekly")
    assert made.startswith("weekly")
    assert names(client, f"?schedule={schedule['id']}") == [made]
    assert names(client, "?schedule=weekly&state=completed") == []
    assert names(client, "?schedule=gone") == []


def test_pages_with_filters_hold_every_match_once(
    client: TestClient, definition: Make, service_database: Database
) -> None:
    for number in range(7):
        client.post("/v1/studies", json=definition(name=f"{'odd' if number % 2 else 'even'}-{number}"))
    seen, query = [], "prefix=even&limit=1"
    while True:
        page = client.get(f"/v1/studies?{query}").json()
        seen += [study["name"] for study in page["items"]]
        if page["next_cursor"] is None:
            break
        query = f"prefix=even&limit=1&cursor={page['next_cursor']}"
    assert seen == ["even-6", "even-4", "even-2", "even-0"]


def test_schedules_are_found_by_prefix_owner_and_whether_they_fire(
    client: TestClient, definition: Make, service_database: Database
) -> None:
    for name, enabled in (("night-a", True), ("night-b", False), ("day", True)):
        body = {"name": name, "cron": "0 3 * * *", "enabled": enabled, "definition": definition()}
        assert client.post("/v1/schedules", json=body).status_code == 201
    with service_database.write() as session:
        session.scalars(select(Schedule).where(Schedule.name == "day")).one().owner = "alice"

    def found(query: str) -> list[str]:
        return [schedule["name"] for schedule in client.get(f"/v1/schedules?{query}").json()["items"]]

    assert found("prefix=night") == ["night-a", "night-b"]
    assert found("enabled=true") == ["day", "night-a"]
    assert found("enabled=false") == ["night-b"]
    assert found("owner=alice") == ["day"]
    assert found("owner=alice&enabled=false") == []


@on_sqlite
def test_range_tests_take_the_filters_of_studies(client: TestClient, definition: Make) -> None:
    search = {"trials": 2, "space": {"learning_rate": {"min": 1e-5, "max": 1e-2, "scale": "log"}}}
    client.post("/v1/range-tests", json=definition(search=search))
    for query, expected in (("prefix=support", 1), ("prefix=x", 0), ("state=queued&state=failed", 1)):
        assert len(client.get(f"/v1/range-tests?{query}").json()["items"]) == expected
    assert faults(client, "/v1/range-tests?schedule=nightly")[0]["path"] == "query.schedule"


def test_trials_are_found_by_state(client: TestClient, lab: Lab) -> None:
    assert numbers(client) == [0, 1, 2, 3, 4, 5]
    assert numbers(client, "?state=completed") == [0, 1, 2]
    assert numbers(client, "?state=failed&state=waiting") == [3, 5]
    assert numbers(client, "?state=pruned") == []


def test_trials_are_sorted_by_the_objective_when_asked(client: TestClient, lab: Lab) -> None:
    assert numbers(client, "?sort=best") == [1, 0, 2, 3, 4, 5]
    assert numbers(client, "?sort=best&state=completed&limit=2") == [1, 0]


def test_the_best_of_a_maximized_objective_is_the_highest(
    client: TestClient, definition: Make, service_database: Database, storage: Storage
) -> None:
    body = definition(objective={"metric": "accuracy"})
    lab = Lab(client.post("/v1/studies", json=body).json(), service_database, storage)
    for value in (0.25, 0.75, 0.5):
        lab.complete(value)
    assert numbers(client, "?sort=best") == [1, 2, 0]


@pytest.mark.parametrize(
    ("query", "expected"),
    [("", [0, 1, 2, 3, 4, 5]), ("sort=best", [1, 0, 2, 3, 4, 5]), ("state=completed&sort=best", [1, 0, 2])],
)
def test_pages_of_trials_hold_each_of_them_once(
    client: TestClient, lab: Lab, query: str, expected: list[int]
) -> None:
    seen: list[int] = []
    following: dict[str, int] = {}
    while True:
        url = f"/v1/studies/support-tone/trials?limit=2&{query}"
        page = client.get(url + "".join(f"&{key}={value}" for key, value in following.items())).json()
        seen += [trial["number"] for trial in page["items"]]
        if page["next_cursor"] is None:
            break
        following = {"cursor": page["next_cursor"]}
    assert seen == expected


@on_sqlite
def test_a_cursor_beyond_the_last_trial_is_the_end(client: TestClient, lab: Lab) -> None:
    assert numbers(client, "?cursor=99") == []
    assert numbers(client, "?cursor=99&sort=best") == []


def test_every_state_of_a_trial_can_be_asked_for() -> None:
    states, waiting = get_args(TrialState)
    assert set(get_args(State)) == {*states, *get_args(waiting)}
