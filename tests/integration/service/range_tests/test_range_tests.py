"""/v1/range-tests over HTTP, on both databases, and the warm starts that a submission refuses."""

from __future__ import annotations

import math
from typing import Any

import pytest
from sqlalchemy import delete
from starlette.testclient import TestClient

from search_spaces.definition import StudyDefinition
from service.coordinator import leases
from service.coordinator.chores.fingerprints import FingerprintReader
from service.coordinator.chores.preparation import FIGURE, advance_stages
from service.db.database import Database
from service.db.models import Attempt, Study
from service.db.transitions import advance_study
from service.optuna_store.storage import Storage
from service.optuna_store.studies import ensure_study
from service.states import AttemptState, StudyState
from service.trials.rebuilding import rebuild_all
from tests.support.service.api import Make, expect_problem, on_sqlite


def with_a_range(definition: Make, **changes: Any) -> dict[str, Any]:
    """A definition whose learning rate may be narrowed from 1e-6 to 1."""
    space = {
        "learning_rate": {"min": 1e-6, "max": 1.0, "scale": "log"},
        "batch_size": {"choices": [4, 8, 32]},
        "lora_r": {"min": 4, "max": 16, "type": "int"},
        "lora_dropout": {"min": 0.05, "max": 0.2},
    }
    return definition(search={"algorithm": "random", "trials": 4, "seed": 7, "space": space, **changes})


def curve(steps: int = 100) -> list[list[float]]:
    """Flat at 3, steepest at 1e-3, rising from 1e-2 on."""
    points = []
    for step in range(steps):
        rate = 1e-7 * 1e7 ** (step / (steps - 1))
        fallen = 2.0 / (1.0 + math.exp(-5.0 * (math.log10(rate) + 3.0)))
        points.append([rate, 3.0 - fallen + (rate / 0.05) ** 2])
    return points


def sweep_all(database: Database, test_id: str, state: StudyState = StudyState.COMPLETED) -> None:
    """What the coordinator leaves of a range test whose every corner was swept."""
    with database.write() as session:
        test = session.get_one(Study, test_id)
        corners = len(test.definition["search"]["space"]["batch_size"]["choices"]) * len(
            test.definition["search"]["space"]["lora_r"]["choices"]
        )
        for number in range(corners):
            session.add(
                Attempt(
                    study_id=test_id,
                    trial_number=number,
                    ordinal=1,
                    state=AttemptState.COMPLETED,
                    worker_id="w1",
                    artifact_dir="/a",
                    outcome={"rate_curve": curve()},
                )
            )
        advance_study(session, test, StudyState.RUNNING, "a coordinator has started it")
        advance_study(session, test, state, "all trials ended")


def test_a_range_test_is_made_of_the_corners_of_a_definition(client: TestClient, definition: Make) -> None:
    answer = client.post("/v1/range-tests", json=with_a_range(definition))
    test = answer.json()
    assert answer.status_code == 201, answer.text
    assert answer.headers["location"] == f"/v1/range-tests/{test['id']}"
    assert (test["name"], test["state"], test["study"]) == ("support-tone.range-test", "queued", None)
    assert [corner["values"] for corner in test["corners"]] == [
        {"batch_size": batch, "lora_r": rank} for batch in (4, 32) for rank in (4, 16)
    ]
    assert {corner["note"] for corner in test["corners"]} == {"not swept"}
    assert test["definition"]["recipe"]["lora_dropout"] == 0.05  # nearest to the default, which is 0
    assert test["definition"]["search"]["learning_rate_range_test"]["steps"] == 100
    assert test["allowed"] == {"min": 1e-6, "max": 1.0}
    assert (test["proposed"], test["bounds"], test["notes"]) == (None, None, [])
    for ref in (test["id"], test["name"]):
        assert client.get(f"/v1/range-tests/{ref}").json() == test


def test_a_second_one_of_the_same_definition_gets_a_number(client: TestClient, definition: Make) -> None:
    names = [client.post("/v1/range-tests", json=with_a_range(definition)).json()["name"] for _ in range(3)]
    assert names == [f"support-tone.range-test{end}" for end in ("", "-2", "-3")]
    assert (
        client.post("/v1/studies", json=with_a_range(definition)).status_code == 201
    )  # its own name is free


def test_a_name_as_long_as_a_name_may_be_has_room_for_the_ending(
    client: TestClient, definition: Make
) -> None:
    body = with_a_range(definition) | {"name": "n" * 128}
    name = client.post("/v1/range-tests", json=body).json()["name"]
    assert (len(name), name[-12:]) == (128, "n.range-test")


def test_the_settings_of_the_definition_are_taken(client: TestClient, definition: Make) -> None:
    settings = {"min": 1e-6, "max": 0.1, "steps": 50, "widen": True}
    body = with_a_range(definition, learning_rate_range_test=settings)
    test = client.post("/v1/range-tests", json=body).json()
    kept = test["definition"]["search"]["learning_rate_range_test"]
    assert kept == settings | {"within": [1e-6, 1.0]}


def test_a_fixed_learning_rate_has_no_bounds_to_keep_to(client: TestClient, definition: Make) -> None:
    body = definition(search={"algorithm": "random", "trials": 4, "space": {"lora_r": {"choices": [4, 8]}}})
    test = client.post("/v1/range-tests", json=body).json()
    assert test["allowed"] is None
    assert [corner["values"]["lora_r"] for corner in test["corners"]] == [4, 8]


def test_an_optimizer_that_is_searched_makes_corners_too(client: TestClient, definition: Make) -> None:
    body = with_a_range(definition)
    body["search"]["space"]["optimizer"] = {"choices": ["adamw", "sgd"]}
    test = client.post("/v1/range-tests", json=body).json()
    assert [corner["values"]["optimizer"] for corner in test["corners"]] == ["adamw", "sgd"] * 4


def test_what_the_sweeps_found_is_shown_with_their_curves(
    client: TestClient, definition: Make, service_database: Database, storage: Storage
) -> None:
    test_id = client.post("/v1/range-tests", json=with_a_range(definition)).json()["id"]
    sweep_all(service_database, test_id)
    test = client.get(f"/v1/range-tests/{test_id}").json()
    assert test["state"] == "completed"
    for corner in test["corners"]:
        assert len(corner["curve"]) == 100
        assert 3e-4 < corner["steepest"] < 3e-3 < corner["minimum"] < corner["divergence"]
    assert test["bounds"] == test["proposed"]
    assert 1e-6 < test["bounds"]["min"] < 1e-3 < test["bounds"]["max"] < 1e-1
    assert test["notes"][0].startswith("learning_rate narrowed from 1e-6…1e0 to ")


def test_rates_are_those_that_a_recipe_states_where_they_are_scaled_with_the_batch(
    client: TestClient, definition: Make, service_database: Database
) -> None:
    body = with_a_range(definition) | {"recipe": {"learning_rate_scaling": "sqrt"}}
    test_id = client.post("/v1/range-tests", json=body).json()["id"]
    sweep_all(service_database, test_id)
    corners = client.get(f"/v1/range-tests/{test_id}").json()["corners"]
    small, large = corners[0], corners[-1]
    assert (small["values"]["batch_size"], large["values"]["batch_size"]) == (4, 32)
    # The optimizers stepped with the same rates: the reference batch is 16.
    assert small["steepest"] == pytest.approx(large["steepest"] * 8**0.5)
    assert small["curve"][0]["learning_rate"] == pytest.approx(1e-7 * 2)


def test_the_curve_is_on_the_dashboard_s_page(
    client: TestClient, definition: Make, service_database: Database, storage: Storage
) -> None:
    """Read back through the dashboard's own API, whose client draws it."""
    test = client.post("/v1/range-tests", json=with_a_range(definition)).json()
    sweep_all(service_database, test["id"])
    ensure_study(storage, test["name"], StudyDefinition.model_validate(test["definition"]))
    advance_stages(service_database, storage, FingerprintReader())
    advance_stages(service_database, storage, FingerprintReader())
    rebuild_all(service_database, storage)
    path = client.get(f"/v1/range-tests/{test['id']}").json()["dashboard_path"]
    shown = client.get(path.replace("/dashboard", "/api")).json()
    (found,) = shown["plotly_graph_objects"]
    assert found["id"] == FIGURE
    assert '"type":"log"' in found["graph_object"]
    assert "batch 32, rank 16" in found["graph_object"]
    assert client.get(path).status_code == 200


def test_range_tests_are_listed_apart_from_studies(client: TestClient, definition: Make) -> None:
    study = client.post("/v1/studies", json=with_a_range(definition)).json()
    test = client.post("/v1/range-tests", json=with_a_range(definition)).json()
    assert [s["name"] for s in client.get("/v1/studies").json()["items"]] == [study["name"]]
    assert [t["name"] for t in client.get("/v1/range-tests").json()["items"]] == [test["name"]]
    assert client.get("/v1/range-tests", params={"state": "running"}).json()["items"] == []


def test_a_range_test_is_a_study_too_and_a_study_is_no_range_test(
    client: TestClient, definition: Make
) -> None:
    study = client.post("/v1/studies", json=with_a_range(definition)).json()
    test = client.post("/v1/range-tests", json=with_a_range(definition)).json()
    assert client.get(f"/v1/studies/{test['name']}").json()["id"] == test["id"]
    assert client.get(f"/v1/studies/{test['name']}/events").json()["items"][0]["message"] == "submitted"
    problem = expect_problem(client.get(f"/v1/range-tests/{study['name']}"), 404)
    assert problem["detail"] == "'support-tone' is a study, not a range test; see /v1/studies/support-tone."
    expect_problem(client.get("/v1/range-tests/nothing"), 404)
    expect_problem(client.post(f"/v1/range-tests/{study['name']}/cancel"), 404)


def test_a_range_test_is_cancelled_once(
    client: TestClient, definition: Make, service_database: Database
) -> None:
    test = client.post("/v1/range-tests", json=with_a_range(definition)).json()
    assert client.post(f"/v1/range-tests/{test['name']}/cancel").status_code == 202
    with service_database.write() as session:
        assert session.get_one(Study, test["id"]).cancel_requested
        advance_study(session, session.get_one(Study, test["id"]), StudyState.CANCELLED, "cancelled")
    expect_problem(client.post(f"/v1/range-tests/{test['name']}/cancel"), 409)


@on_sqlite
def test_a_faulty_definition_is_refused_with_every_fault(client: TestClient, definition: Make) -> None:
    body = with_a_range(definition, learning_rate_range_test={"min": 1.0, "max": 0.1, "steps": 3})
    problem = expect_problem(client.post("/v1/range-tests", json=body), 422)
    assert problem["faults"]
    assert client.get("/v1/range-tests").json()["items"] == []


def test_queued_studies_that_wait_for_a_stage_are_not_taken(
    client: TestClient, definition: Make, service_database: Database
) -> None:
    waiting = with_a_range(definition, learning_rate_range_test=True) | {"name": "tests-first"}
    assert client.post("/v1/studies", json=waiting).status_code == 201
    plain = client.post("/v1/studies", json=with_a_range(definition)).json()
    warm = with_a_range(definition) | {"name": "warm", "warm_start": {"from": "nightly"}}
    schedule = {"name": "nightly", "cron": "0 2 * * *", "definition": with_a_range(definition)}
    assert client.post("/v1/schedules", json=schedule).status_code == 201
    assert client.post("/v1/studies", json=warm).status_code == 201
    with service_database.write() as session:
        taken = leases.take(session, owner="me", seconds=60, limit=10)
    assert [lease.study_id for lease in taken] == [plain["id"]]


@on_sqlite
def test_a_dry_run_is_refused_and_starts_nothing(client: TestClient, definition: Make) -> None:
    answer = client.post("/v1/range-tests?dry_run=true", json=with_a_range(definition))
    (fault,) = expect_problem(answer, 422)["faults"]
    assert fault["path"] == "query.dry_run"
    assert "has no plan; plan the study instead" in fault["message"]
    assert client.get("/v1/range-tests").json()["items"] == []
    assert client.post("/v1/range-tests?dry_run=false", json=with_a_range(definition)).status_code == 201


@pytest.mark.parametrize("state", [StudyState.CANCELLED, StudyState.FAILED])
@on_sqlite
def test_one_that_did_not_complete_proposes_nothing(
    client: TestClient, definition: Make, service_database: Database, state: StudyState
) -> None:
    test_id = client.post("/v1/range-tests", json=with_a_range(definition)).json()["id"]
    sweep_all(service_database, test_id, state)
    with service_database.write() as session:
        session.execute(delete(Attempt).where(Attempt.study_id == test_id, Attempt.trial_number > 0))
    test = client.get(f"/v1/range-tests/{test_id}").json()
    assert (test["proposed"], test["bounds"]) == (None, None)
    assert test["notes"] == [f"{state}: swept 1 of 4 corners"]
    assert test["corners"][0]["steepest"] is not None


@pytest.mark.parametrize("what", ["report", "importance", "pareto-front", "best"])
@on_sqlite
def test_a_range_test_has_no_report(client: TestClient, definition: Make, what: str) -> None:
    name = client.post("/v1/range-tests", json=with_a_range(definition)).json()["name"]
    problem = expect_problem(client.get(f"/v1/studies/{name}/{what}"), 409)
    assert problem["title"] == "Not a search"
    assert f"See /v1/range-tests/{name}." in problem["detail"]


@on_sqlite
def test_what_the_service_sets_is_no_hint(client: TestClient, definition: Make) -> None:
    body = with_a_range(definition, learning_rate_range_test={"withi": [1e-5, 1e-3]})
    (fault,) = expect_problem(client.post("/v1/studies", json=body), 422)["faults"]
    assert (fault["nearest"], fault["allowed"]) == (None, "min, max, steps, widen")
    body = with_a_range(definition, learning_rate_range_test={"within": [1e-5, 1e-3]})
    (fault,) = expect_problem(client.post("/v1/studies", json=body), 422)["faults"]
    assert fault["message"] == "is set by the service, so it cannot be given"


# -- warm starts at submission ---------------------------------------------------------------------------


def completed(client: TestClient, database: Database, body: dict[str, Any]) -> str:
    """A study of this definition with one completed trial."""
    study = client.post("/v1/studies", json=body).json()
    with database.write() as session:
        session.add(
            Attempt(
                study_id=study["id"],
                trial_number=0,
                ordinal=1,
                state=AttemptState.COMPLETED,
                worker_id="w1",
                artifact_dir="/a",
            )
        )
    name: str = study["name"]
    return name


def faults(client: TestClient, body: dict[str, Any]) -> list[str]:
    problem = expect_problem(client.post("/v1/studies", json=body), 422)
    return [f"{fault['path']}: {fault['message']}" for fault in problem["faults"]]


def test_a_source_that_nobody_knows_is_refused(client: TestClient, definition: Make) -> None:
    assert faults(client, definition(warm_start={"from": "nobody"})) == ["warm_start.from: does not exist"]


def test_a_source_of_any_length_is_not_repeated_whole(client: TestClient, definition: Make) -> None:
    answer = client.post("/v1/studies", json=definition(warm_start={"from": "n" * 900_000}))
    [fault] = expect_problem(answer, 422)["faults"]
    assert fault["path"] == "warm_start.from"
    assert len(answer.content) < 2_000


def test_a_source_without_a_completed_trial_is_refused(client: TestClient, definition: Make) -> None:
    client.post("/v1/studies", json=definition(name="a"))
    assert faults(client, definition(warm_start={"from": "a"})) == [
        "warm_start.from: has no completed trial: it is queued"
    ]


def test_a_range_test_is_no_source(client: TestClient, definition: Make) -> None:
    client.post("/v1/range-tests", json=with_a_range(definition))
    assert faults(client, definition(warm_start={"from": "support-tone.range-test"})) == [
        "warm_start.from: is a range test, which has no recipes to start from"
    ]


def test_a_prior_is_refused_with_every_difference(
    client: TestClient, definition: Make, service_database: Database
) -> None:
    name = completed(client, service_database, definition(name="a", objective={"metric": "accuracy"}))
    search = {"algorithm": "tpe", "trials": 4, "space": {"lora_r": {"choices": [4, 8]}}}
    other = definition(
        search=search,
        model={"id": "Qwen/Qwen2.5-0.5B-Instruct", "quantization": "int8"},
        data={"train": "train.jsonl", "eval": "eval.jsonl", "max_length": 256},
        warm_start={"from": name, "as": "prior"},
    )
    found = faults(client, other)
    assert "warm_start.from: model.quantization is nf4 there and int8 here" in found
    assert "warm_start.from: data.max_length is 512 there and 256 here" in found
    assert "warm_start.from: objective.metric is accuracy there and eval_loss here" in found
    other["warm_start"]["as"] = "enqueue"
    assert client.post("/v1/studies", json=other).status_code == 201


def test_a_prior_of_the_same_kind_is_accepted(
    client: TestClient, definition: Make, service_database: Database
) -> None:
    name = completed(client, service_database, definition(name="a"))
    search = {"algorithm": "tpe", "trials": 4, "space": {"lora_r": {"choices": [4, 8]}}}
    body = definition(search=search, warm_start={"from": name, "as": "prior", "top_k": 3})
    answer = client.post("/v1/studies", json=body)
    assert answer.status_code == 201, answer.text
    assert answer.json()["definition"]["warm_start"] == {"from": "a", "as": "prior", "top_k": 3}


@pytest.mark.parametrize("source", ["", "a b", "../x", "n" * 300])
@on_sqlite
def test_a_reference_that_is_no_name_is_refused_and_never_looked_up(
    client: TestClient, definition: Make, source: str
) -> None:
    assert any(
        "warm_start.from" in fault for fault in faults(client, definition(warm_start={"from": source}))
    )


CLASSES = {"task": "sequence_classification", "objective": {"metric": "macro_f1"}}


@pytest.mark.parametrize("how", ["enqueue", "prior"])
def test_a_study_of_another_task_is_no_source(
    client: TestClient, definition: Make, service_database: Database, how: str
) -> None:
    name = completed(client, service_database, definition(name="a", **CLASSES))
    search = {"algorithm": "tpe", "trials": 4, "space": {"lora_r": {"choices": [4, 8]}}}
    body = definition(search=search, warm_start={"from": name, "as": how})
    assert faults(client, body) == [
        "warm_start.from: task is sequence_classification there and causal_lm here"
    ]


def test_a_prior_of_other_texts_is_refused(
    client: TestClient, definition: Make, service_database: Database
) -> None:
    generate = {"max_new_tokens": 32, "answer_pattern": "[0-9]+"}
    objective = {"metric": "answer_match"}
    name = completed(
        client,
        service_database,
        definition(name="a", objective=objective, evaluation={"generate": generate}),
    )
    search = {"algorithm": "tpe", "trials": 4, "space": {"lora_r": {"choices": [4, 8]}}}
    body = definition(
        search=search,
        objective=objective,
        evaluation={"generate": {**generate, "max_new_tokens": 64}},
        warm_start={"from": name, "as": "prior"},
    )
    assert faults(client, body) == [
        "warm_start.from: evaluation.generate.max_new_tokens is 32 there and 64 here"
    ]
