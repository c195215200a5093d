"""What a study has taught, over HTTP: the winner and its repeats, Pareto front, importance, report."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import pytest
from starlette.testclient import TestClient

from service.db.database import Database
from service.db.models import Study
from service.optuna_store.storage import Storage
from service.optuna_store.telling import tell
from service.states import AttemptState, StudyState
from tests.support.service.api import Make, expect_problem, on_sqlite
from tests.support.service.database_lab import Lab

Begin = Callable[..., Lab]
STUDY = "/v1/studies/support-tone"


@pytest.fixture
def begin(client: TestClient, definition: Make, service_database: Database, storage: Storage) -> Begin:
    def make(**sections: Any) -> Lab:
        answer = client.post("/v1/studies", json=definition(**sections))
        assert answer.status_code == 201, answer.text
        return Lab(answer.json(), service_database, storage)

    return make


def test_without_repeats_the_best_says_that_one_run_is_no_proof(client: TestClient, begin: Begin) -> None:
    begin().complete(1.5)
    best = client.get(f"{STUDY}/best").json()
    assert (best["number"], best["judgement"]["winner"], best["judgement"]["decided_by"]) == (0, 0, "search")
    assert best["judgement"]["candidates"] == [
        {"trial_number": 0, "value": 1.5, "runs": [], "n": 0, "mean": None, "standard_deviation": None}
    ]
    assert best["judgement"]["sentence"].startswith("One run says nothing about luck")
    assert best["pareto_front"] is None


def test_repeats_decide_the_winner_once_they_are_done(client: TestClient, begin: Begin) -> None:
    lab = begin(repeats={"top_k": 2, "seeds": 2})
    lab.advance(StudyState.RUNNING)
    assert client.get(STUDY).json()["stage"] == "search"
    for value in (1.0, 1.2, 3.0, 4.0):
        lab.complete(value)
    lab.complete(1.6, repeat_of=0, seed=43)
    study = client.get(STUDY).json()
    assert (study["stage"], study["counts"]["repeats"], study["repeats_requested"]) == ("repeats", 1, 4)
    assert study["best"]["trial_number"] == 0
    assert (
        client.get(f"{STUDY}/best").json()["judgement"]["sentence"].endswith("; 1 of 4 repeats ended so far.")
    )

    lab.complete(1.7, repeat_of=0, seed=44)
    lab.complete(1.20, repeat_of=1, seed=43)
    lab.complete(1.21, repeat_of=1, seed=44)
    lab.advance(StudyState.COMPLETED)
    best, study = client.get(f"{STUDY}/best").json(), client.get(STUDY).json()
    judged = best["judgement"]
    assert (best["number"], best["value"], judged["decided_by"]) == (1, 1.2, "repeats")
    assert [(c["trial_number"], c["n"]) for c in judged["candidates"]] == [(1, 2), (0, 2)]
    assert [(r["trial_number"], r["seed"]) for r in judged["candidates"][0]["runs"]] == [(6, 43), (7, 44)]
    assert judged["candidates"][0]["mean"] == pytest.approx(1.205)
    assert judged["sentence"].startswith("Trial 1 and trial 0 are ")
    assert judged["sentence"].endswith("2 runs each).")
    assert (study["stage"], study["best"]["trial_number"], study["best"]["n"]) == (None, 1, 2)
    assert study["best"]["sentence"] == judged["sentence"]

    repeat = client.get(f"{STUDY}/trials/6").json()
    assert (repeat["repeat_of"], repeat["seed"], repeat["recipe"]["seed"]) == (1, 43, 43)
    assert repeat["params"] == best["params"]


def test_an_infeasible_trial_is_never_the_best(client: TestClient, begin: Begin) -> None:
    lab = begin(constraints={"trainable_parameters": {"max": 1000}})
    lab.complete(1.0, violations={"trainable_parameters": 96.0}, trainable_parameters=1096)
    problem = expect_problem(client.get(f"{STUDY}/best"), 404)
    assert problem["detail"].endswith("has completed within its constraints yet.")
    lab.complete(2.0, violations={"trainable_parameters": -100.0}, trainable_parameters=900)
    assert client.get(f"{STUDY}/best").json()["number"] == 1
    assert client.get(STUDY).json()["best"]["trial_number"] == 1
    assert [t["feasible"] for t in client.get(f"{STUDY}/trials").json()["items"]] == [False, True]
    report = client.get(f"{STUDY}/report").json()
    assert report["constraints"] == [{"name": "trainable_parameters", "broken": 1, "completed": 2}]


def test_a_pareto_front_holds_what_nothing_beats(client: TestClient, begin: Begin) -> None:
    lab = begin(objective={"metric": "eval_loss", "costs": ["trainable_parameters"]})
    for value, cost in ((1.0, 400.0), (2.0, 100.0), (1.5, 500.0), (1.2, 200.0)):
        lab.complete(value, costs=[cost])
    front = client.get(f"{STUDY}/pareto-front").json()
    assert front["objectives"] == ["eval_loss", "trainable_parameters"]
    assert [(p["trial_number"], p["value"], p["costs"]) for p in front["items"]] == [
        (0, 1.0, {"trainable_parameters": 400.0}),
        (3, 1.2, {"trainable_parameters": 200.0}),
        (1, 2.0, {"trainable_parameters": 100.0}),
    ]
    assert client.get(STUDY).json()["pareto_front"] == front["items"]
    best = client.get(f"{STUDY}/best").json()
    assert (best["number"], best["pareto_front"]) == (0, front["items"])
    assert best["costs"] == {"trainable_parameters": 400.0}


@on_sqlite
def test_with_one_objective_the_front_is_the_best_trial(client: TestClient, begin: Begin) -> None:
    lab = begin()
    lab.complete(2.0)
    lab.complete(1.0)
    assert [p["trial_number"] for p in client.get(f"{STUDY}/pareto-front").json()["items"]] == [1]


def test_a_trials_curves_are_diagnosed(client: TestClient, begin: Begin) -> None:
    lab = begin()
    lab.complete(1.5, rungs=[(3.0, 3.5), (2.0, 2.1), (1.5, 1.4), (1.6, 1.0), (1.7, 0.8), (1.8, 0.6)])
    lab.complete(9.0, end=AttemptState.DIVERGED)
    first, second = client.get(f"{STUDY}/trials").json()["items"]
    assert first["diagnosis"] == [
        {
            "verdict": "overfitting",
            "evidence": "eval loss 1.5 at 300 examples and 1.8 at 600, while the train loss fell from 1.4"
            " to 0.6",
            "rung": 300,
        }
    ]
    assert [rung["train_loss"] for rung in first["rungs"]] == [3.5, 2.1, 1.4, 1.0, 0.8, 0.6]
    assert second["diagnosis"] == [{"verdict": "diverged", "evidence": "it diverged", "rung": None}]
    assert client.get(f"{STUDY}/trials/0").json()["diagnosis"] == first["diagnosis"]
    assert client.get(f"{STUDY}/report").json()["verdicts"] == {"diverged": 1, "overfitting": 1}


@on_sqlite
def test_importance_needs_trials_and_then_finds_what_matters(client: TestClient, begin: Begin) -> None:
    space = {"learning_rate": {"min": 1e-5, "max": 1e-1, "scale": "log"}, "batch_size": {"choices": [4, 8]}}
    lab = begin(search={"algorithm": "random", "trials": 16, "seed": 7, "space": space})
    empty = client.get(f"{STUDY}/importance").json()
    assert [p["importance"] for p in empty["parameters"]] == [None, None]
    for _ in range(16):
        number, params = lab.ask()
        value = abs(math.log10(params["learning_rate"]) + 3)
        tell(lab.optuna, number, AttemptState.COMPLETED, "done", value=value)
    found = client.get(f"{STUDY}/importance").json()
    assert (found["trials"], found["best_trials"]) == (16, 5)
    assert [(p["name"], p["above_chance"]) for p in found["parameters"]] == [
        ("learning_rate", True),
        ("batch_size", False),
    ]


def test_a_report_of_a_study_without_trials(client: TestClient, begin: Begin) -> None:
    begin()
    report = client.get(f"{STUDY}/report").json()
    assert (report["best"], report["seconds"], report["verdicts"]) == (None, None, {})
    assert report["study"] == client.get(STUDY).json()
    assert report["cost"]["examples_trained"] == 0
    assert report["cost"]["saved_share"] is None


def test_a_report_says_what_was_spent_and_saved(client: TestClient, begin: Begin) -> None:
    lab = begin()
    lab.advance(StudyState.RUNNING)
    lab.complete(1.0, rungs=[(2.0, 2.0), (1.5, 1.5), (1.2, 1.2), (1.0, 1.0)])
    lab.complete(2.0, rungs=[(2.5, 2.5)], total=400, end=AttemptState.PRUNED)
    lab.complete(2.0, rungs=[(9.5, 9.5)], total=200, end=AttemptState.DIVERGED)
    report = client.get(f"{STUDY}/report").json()
    cost = report["cost"]
    assert (cost["examples_trained"], cost["examples_saved_by_pruning"]) == (600, 300)
    assert (cost["examples_saved_by_divergence"], cost["saved_share"]) == (100, 0.4)
    assert cost["worker_hours"] > 0
    assert report["seconds"] > 0
    assert [advice["about"] for advice in report["advice"]] == ["search.trials"]


def test_a_study_shows_what_was_prepared_for_it(
    client: TestClient, begin: Begin, definition: Make, service_database: Database
) -> None:
    search = definition()["search"] | {"learning_rate_range_test": True}
    lab = begin(search=search)
    with service_database.write() as session:
        test = Study(id="t" * 32, name="support-tone.range-test", kind="range_test", definition={})
        session.add(test)
        session.flush()
        session.get_one(Study, lab.id).range_test_id = test.id
    study = client.get(STUDY).json()
    assert (study["stage"], study["range_test"]) == ("range test", "support-tone.range-test")
    assert study["preparation"] is None
    notes = ["narrowed to what the range test found"]
    with service_database.write() as session:
        found = session.get_one(Study, lab.id)
        found.preparation = {"learning_rate_bounds": [1e-4, 5e-4], "notes": notes}
    lab.advance(StudyState.RUNNING)
    study = client.get(STUDY).json()
    assert (study["kind"], study["stage"]) == ("search", "search")
    assert study["preparation"] == {
        "learning_rate_bounds": [1e-4, 5e-4],
        "enqueued": 0,
        "prior": 0,
        "evaluated": 0,
        "fingerprints": {},
        "notes": notes,
    }


@on_sqlite
@pytest.mark.parametrize("what", ["report", "importance", "pareto-front", "best"])
def test_a_study_that_is_not_there_has_none_of_them(client: TestClient, what: str) -> None:
    expect_problem(client.get(f"/v1/studies/nobody/{what}"), 404)
