"""/v1/studies over HTTP, on both databases: accepting, refusing, listing, cancelling."""

from __future__ import annotations

import json
from collections.abc import MutableMapping
from typing import Any

import anyio
import pytest
from sqlalchemy import select
from starlette.testclient import TestClient

from search_spaces.definition import StudyDefinition
from service.db.database import Database
from service.db.models import Attempt, Study
from service.db.transitions import advance_attempt, advance_study, append_event
from service.optuna_store.asking import ask
from service.optuna_store.storage import Storage
from service.optuna_store.studies import ensure_study
from service.optuna_store.telling import tell
from service.settings import Settings
from service.states import TRIAL_FAILED, AttemptState, StudyState
from service.studies import queries
from service.trials.rebuilding import rebuild_all
from tests.support.service.api import Make, expect_problem, on_sqlite, stored


def test_a_right_definition_is_stored_as_queued(
    client: TestClient, definition: Make, settings: Settings
) -> None:
    answer = client.post("/v1/studies", json=definition())
    study = answer.json()
    assert answer.status_code == 201
    assert answer.headers["location"] == f"/v1/studies/{study['id']}"
    assert (study["state"], study["trials_requested"], study["best"]) == ("queued", 4, None)
    assert study["counts"]["total"] == 0
    assert study["dashboard_path"] is None
    root = settings.data_roots[0]
    assert study["definition"]["data"]["train"] == str(root / "train.jsonl")
    assert study["definition"]["data"]["eval"] == str(root / "eval.jsonl")
    for ref in (study["id"], study["name"]):
        assert client.get(f"/v1/studies/{ref}").json() == study


def test_yaml_is_accepted_as_people_write_it(client: TestClient) -> None:
    body = """
name: by-hand
model: {id: Qwen/Qwen2.5-0.5B-Instruct}
data: {train: train.jsonl, eval: eval.jsonl}
search:
  algorithm: grid
  space:
    learning_rate: {choices: [1e-4, 1.0e-3]}   # 1e-4 is text in YAML 1.1
    batch_size: {choices: [4, 8]}
"""
    for media_type in ("application/yaml", "application/x-yaml; charset=utf-8"):
        answer = client.post(
            "/v1/studies",
            content=body.replace("by-hand", f"hand-{media_type[12]}"),
            headers={"content-type": media_type},
        )
        assert answer.status_code == 201, answer.text
        assert answer.json()["trials_requested"] == 4


def test_a_name_already_taken_is_a_conflict(client: TestClient, definition: Make) -> None:
    assert client.post("/v1/studies", json=definition()).status_code == 201
    problem = expect_problem(client.post("/v1/studies", json=definition()), 409)
    assert problem["type"] == "urn:nightsweep:problem:name-already-taken"
    assert "'support-tone'" in problem["detail"]
    assert stored(client) == 1


def test_a_link_inside_the_roots_is_stored_as_the_file_it_leads_to(
    client: TestClient, definition: Make, settings: Settings
) -> None:
    root = settings.data_roots[0]
    (root / "link.jsonl").symlink_to(root / "train.jsonl")
    study = client.post(
        "/v1/studies", json=definition(data={"train": "link.jsonl", "eval": "eval.jsonl"})
    ).json()
    assert study["definition"]["data"]["train"] == str(root / "train.jsonl")


def test_a_model_folder_inside_the_roots_is_stored_resolved(
    client: TestClient, definition: Make, settings: Settings
) -> None:
    folder = settings.data_roots[0] / "base"
    folder.mkdir()
    study = client.post("/v1/studies", json=definition(model={"id": "base"})).json()
    assert study["definition"]["model"]["id"] == str(folder)


def test_a_preset_is_resolved_at_acceptance(client: TestClient, definition: Make) -> None:
    study = client.post("/v1/studies", json=definition(search={"trials": 3, "preset": "qlora-quick"})).json()
    stored = StudyDefinition.model_validate(study["definition"])
    assert stored.search.preset == "qlora-quick"
    assert stored.search.space.parameters


@on_sqlite
@pytest.mark.parametrize(
    ("content", "media_type", "status"),
    [
        (b"{", "application/json", 400),
        (b"", "application/json", 400),
        (b"\xff\xfe", "application/json", 400),
        (b'{"name": "\xff"}', "application/json", 400),
        (b"[" * 100_000, "application/json", 400),
        (b'{"a":' * 900 + b"1" + b"}" * 900, "application/json", 422),
        (b'{"name": "a", "name": "b"}', "application/json", 400),
        (b'{"name": ' + b"1" * 5000 + b"}", "application/json", 400),
        (b'{"name": NaN}', "application/json", 422),
        (b'{"name": "\\ud800"}', "application/json", 422),
        (b'{"name": "a\\u0000"}', "application/json", 422),
        (b"[]", "application/json", 422),
        (b"null", "application/json", 422),
        (b"1", "application/json", 422),
        (b"a: [", "application/yaml", 400),
        (b"a: &x [1]\nb: *x", "application/yaml", 400),
        (b"a: &x 1", "application/yaml", 400),
        (b"!!python/object/apply:os.system ['true']", "application/yaml", 400),
        (b"a: !!binary aGk=", "application/yaml", 400),
        (b"a: 1\na: 2", "application/yaml", 400),
        (b"? [1, 2]\n: 3", "application/yaml", 400),
        (b"[" * 5000, "application/yaml", 400),
        (b"a: 1\n---\nb: 2", "application/yaml", 400),
        (b"a: 2026-01-31", "application/yaml", 422),
        (b"1: 2", "application/yaml", 422),
        (b"", "application/yaml", 422),
        (b"\x00", "application/yaml", 400),
        (b"{}", "text/plain", 415),
        (b"{}", "application/json; charset=utf-16", 415),
        (b"{}", "", 415),
    ],
)
def test_hostile_bodies_are_problems(
    client: TestClient, content: bytes, media_type: str, status: int
) -> None:
    headers = {"content-type": media_type} if media_type else {}
    expect_problem(client.post("/v1/studies", content=content, headers=headers), status)
    assert stored(client) == 0


@on_sqlite
def test_a_body_over_the_limit_is_413_whether_its_length_is_stated_or_not(
    client: TestClient, settings: Settings
) -> None:
    headers = {"content-type": "application/json"}
    body = b" " * (settings.max_body_bytes + 1)
    expect_problem(client.post("/v1/studies", content=body, headers=headers), 413)
    expect_problem(client.post("/v1/studies", content=iter([body]), headers=headers), 413)


@on_sqlite
def test_an_endless_body_is_not_read_to_its_end(client: TestClient, settings: Settings) -> None:
    asked, statuses = 0, []

    async def receive() -> dict[str, Any]:
        nonlocal asked
        asked += 1
        return {"type": "http.request", "body": b" " * 100_000, "more_body": True}

    async def send(message: MutableMapping[str, Any]) -> None:
        statuses.append(message.get("status"))

    async def post() -> None:
        headers = [(b"content-type", b"application/json"), (b"transfer-encoding", b"chunked")]
        scope = {
            "type": "http",
            "scheme": "http",
            "method": "POST",
            "path": "/v1/studies",
            "query_string": b"",
            "headers": headers,
        }
        await client.app(scope, receive, send)

    anyio.run(post)
    assert statuses[0] == 413
    assert asked == settings.max_body_bytes // 100_000 + 1


def test_a_body_of_exactly_the_limit_is_read(
    client: TestClient, settings: Settings, definition: Make
) -> None:
    body = json.dumps(definition()).encode()
    padded = body + b" " * (settings.max_body_bytes - len(body))
    answer = client.post("/v1/studies", content=padded, headers={"content-type": "application/json"})
    assert answer.status_code == 201


@pytest.mark.parametrize("ref", ["nobody", "%00", "a%20b", "%ED%A0%80", "%FF", "x" * 5000, "..", "'--"])
def test_there_is_no_such_study(client: TestClient, ref: str) -> None:
    for path in ("", "/trials", "/trials/0", "/best", "/events", "/trials/0/adapter"):
        if (ref, path) == ("..", "/events"):
            continue  # to a client that is /v1/events, the events of all studies
        expect_problem(client.get(f"/v1/studies/{ref}{path}"), 404)
    expect_problem(client.post(f"/v1/studies/{ref}/cancel"), 404)


def test_studies_are_listed_newest_first_page_by_page(client: TestClient, definition: Make) -> None:
    names = [f"s{i}" for i in range(5)]
    for name in names:
        client.post("/v1/studies", json=definition(name=name))
    seen, query = [], {"limit": 2}
    while True:
        page = client.get("/v1/studies", params=query).json()
        seen.append([study["name"] for study in page["items"]])
        if page["next_cursor"] is None:
            break
        query = {"limit": 2, "cursor": page["next_cursor"]}
    assert seen == [["s4", "s3"], ["s2", "s1"], ["s0"]]


def test_studies_are_listed_by_state(
    client: TestClient, definition: Make, service_database: Database
) -> None:
    for name in ("a", "b"):
        client.post("/v1/studies", json=definition(name=name))
    with service_database.write() as session:
        study = session.query(Study).filter_by(name="b").one()
        advance_study(session, study, StudyState.RUNNING, "taken up")
    listed = {
        state: [s["name"] for s in client.get("/v1/studies", params={"state": state}).json()["items"]]
        for state in ("queued", "running", "failed")
    }
    assert listed == {"queued": ["a"], "running": ["b"], "failed": []}


@pytest.mark.parametrize(
    ("query", "path"),
    [
        ("limit=0", "query.limit"),
        ("limit=x", "query.limit"),
        ("limit=101", "query.limit"),
        ("state=sleeping", "query.state"),
        ("cursor=zz", "query.cursor"),
        ("cursor=99999999999999999-" + "0" * 32, "query.cursor"),
        ("cursor=%00", "query.cursor"),
        ("cursor=" + "a" * 300, "query.cursor"),
    ],
)
def test_a_wrong_query_is_a_problem_that_names_the_parameter(
    client: TestClient, query: str, path: str
) -> None:
    problem = expect_problem(client.get(f"/v1/studies?{query}"), 422)
    assert [fault["path"] for fault in problem["faults"]] == [path]


def test_cancelling_is_requested_once_and_written_down(client: TestClient, definition: Make) -> None:
    client.post("/v1/studies", json=definition())
    for _ in range(2):
        answer = client.post("/v1/studies/support-tone/cancel")
        assert (answer.status_code, answer.json()["state"]) == (202, "queued")
    events = client.get("/v1/studies/support-tone/events").json()["items"]
    assert [event["kind"] for event in events] == ["study_queued", "cancel_requested"]
    after = client.get("/v1/studies/support-tone/events", params={"after": events[0]["id"]}).json()
    assert after["items"] == events[1:]


def test_a_study_that_is_over_cannot_be_cancelled(
    client: TestClient, definition: Make, service_database: Database
) -> None:
    client.post("/v1/studies", json=definition())
    with service_database.write() as session:
        advance_study(session, session.query(Study).one(), StudyState.FAILED, "no usable rows")
    problem = expect_problem(client.post("/v1/studies/support-tone/cancel"), 409)
    assert "already failed: no usable rows" in problem["detail"]


def test_a_study_counts_its_trials_by_their_latest_attempt(
    client: TestClient, definition: Make, service_database: Database, storage: Storage
) -> None:
    study_id = client.post("/v1/studies", json=definition()).json()["id"]
    wanted = StudyDefinition.model_validate(client.get("/v1/studies/support-tone").json()["definition"])
    optuna_study = ensure_study(storage, "support-tone", wanted, study_id=study_id)
    for _ in range(5):
        ask(optuna_study, wanted)
    histories = [
        [AttemptState.COMPLETED],
        [AttemptState.LOST, AttemptState.DIVERGED],
        [None],
        [AttemptState.LOST],
    ]  # and the fifth has no attempt yet
    with service_database.write() as session:
        for number, history in enumerate(histories):
            for ordinal, end in enumerate(history, 1):
                attempt = Attempt(
                    study_id=study_id, trial_number=number, ordinal=ordinal, worker_id="w", artifact_dir="/a"
                )
                session.add(attempt)
                session.flush()
                if end is not None:
                    advance_attempt(session, attempt, end, "because")
                    session.flush()
    tell(optuna_study, 0, AttemptState.COMPLETED, "done", value=1.25)
    rebuild_all(service_database, storage)
    study = client.get("/v1/studies/support-tone").json()
    expected = {"running": 1, "completed": 1, "diverged": 1, "waiting": 2, "total": 5}
    assert _counted(study) == expected
    params = client.get("/v1/studies/support-tone/trials/0").json()["params"]
    best = {name: study["best"][name] for name in ("trial_number", "value", "params", "mean", "n")}
    assert best == {"trial_number": 0, "value": 1.25, "params": params, "mean": None, "n": 0}
    assert client.get(study["dashboard_path"]).status_code == 200


def _counted(study: dict[str, Any]) -> dict[str, int]:
    return {name: n for name, n in study["counts"].items() if n}


def test_a_lost_trial_counts_as_what_became_of_it(
    client: TestClient, definition: Make, service_database: Database, storage: Storage
) -> None:
    """Lost too often: failed. Waiting for its next attempt when the study was cancelled: cancelled."""
    study_id = client.post("/v1/studies", json=definition()).json()["id"]
    wanted = StudyDefinition.model_validate(client.get("/v1/studies/support-tone").json()["definition"])
    optuna_study = ensure_study(storage, "support-tone", wanted, study_id=study_id)
    for _ in range(2):
        ask(optuna_study, wanted)
    with service_database.write() as session:
        for number in range(2):
            attempt = Attempt(
                study_id=study_id, trial_number=number, ordinal=1, worker_id="w", artifact_dir="/a"
            )
            session.add(attempt)
            session.flush()
            advance_attempt(session, attempt, AttemptState.LOST, "its worker died")
        append_event(session, study_id, TRIAL_FAILED, "lost 4 times", trial_number=0)
    tell(optuna_study, 0, AttemptState.FAILED, "lost 4 times")
    rebuild_all(service_database, storage)
    study = client.get("/v1/studies/support-tone").json()
    assert _counted(study) == {"failed": 1, "waiting": 1, "total": 2}

    with service_database.write() as session:
        advance_study(session, session.query(Study).one(), StudyState.CANCELLED, "cancelled on request")
    tell(optuna_study, 1, AttemptState.CANCELLED, "the study ended")
    rebuild_all(service_database, storage)
    study = client.get("/v1/studies/support-tone").json()
    assert _counted(study) == {"failed": 1, "cancelled": 1, "total": 2}
    states = [t["state"] for t in client.get("/v1/studies/support-tone/trials").json()["items"]]
    assert states == ["failed", "cancelled"]


def test_a_study_whose_definition_this_version_cannot_read_hides_no_other(
    client: TestClient, definition: Make, service_database: Database
) -> None:
    for name in ("fine", "foreign"):
        assert client.post("/v1/studies", json=definition(name=name)).status_code == 201
    with service_database.write() as session:
        foreign = session.scalars(select(Study).where(Study.name == "foreign")).one()
        foreign.definition = {**foreign.definition, "objective": {"metric": "from the future"}}
    listed = {study["name"]: study["metric"] for study in client.get("/v1/studies").json()["items"]}
    assert listed == {"fine": "eval_loss", "foreign": None}
    requested = {name: client.get(f"/v1/studies/{name}").json()["trials_requested"] for name in listed}
    assert requested == {"fine": 4, "foreign": None}
    assert client.get("/v1/studies/foreign/trials").json() == {"items": [], "next_cursor": None}


def test_lists_do_not_read_definitions(
    client: TestClient, definition: Make, service_database: Database
) -> None:
    """A page of the largest definitions has many megabytes."""
    modules = [[f"module_{number:05}_{'x' * 200}"] for number in range(300)]
    search = {"algorithm": "random", "trials": 4, "space": {"target_modules": {"choices": modules}}}
    for number in range(3):
        body = definition(name=f"wide-{number}", search=search)
        assert client.post("/v1/studies", json=body).status_code == 201
        schedule = {"name": f"night-{number}", "cron": "0 2 * * *", "definition": body}
        assert client.post("/v1/schedules", json=schedule).status_code == 201
    assert client.post("/v1/schedules/night-0/run").status_code == 201
    for path in ("/v1/studies", "/v1/schedules", "/v1/range-tests", "/v1/schedules/night-0/studies"):
        answer = client.get(path)
        assert answer.status_code == 200
        assert len(answer.content) < 5_000
        assert all("definition" not in item for item in answer.json()["items"])
    assert len(client.get("/v1/studies/wide-0").json()["definition"]["search"]["space"]["target_modules"]) > 0
    with service_database.read() as session:
        page = queries.list_studies(session, queries.Filters(), limit=2, cursor=None)
        assert len(queries.list_view(session, page.studies)) == 2
        assert not any("definition" in vars(study) for study in page.studies)


def test_a_long_change_of_a_schedule_is_short_in_its_history(client: TestClient, definition: Make) -> None:
    body = {"name": "night", "cron": "0 2 * * *", "definition": definition()}
    assert client.post("/v1/schedules", json=body).status_code == 201
    choices = list(range(1, 5_001))
    search = {"algorithm": "random", "trials": 4, "space": {"batch_size": {"choices": choices}}}
    answer = client.patch("/v1/schedules/night", json={"definition": definition(search=search)})
    assert answer.status_code == 200
    history = client.get("/v1/schedules/night/history")
    assert len(history.content) < 5_000
    [changed] = [item for item in history.json()["items"] if item["kind"] == "changed"]
    assert changed["changes"]["definition.search.space.batch_size.choices"]["to"] == choices[:20]
