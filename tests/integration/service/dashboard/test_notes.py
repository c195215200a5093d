"""What the dashboard says beyond what Optuna knows: notes, its best trials, whose repeat a trial is."""

from __future__ import annotations

from typing import Any

import pytest
from optuna.study import StudyDirection
from sqlalchemy import update
from starlette.testclient import TestClient

from search_spaces.definition import StudyDefinition
from service.coordinator.study.leased_study import RANGE_TEST_METRIC
from service.db.database import Database
from service.db.models import Attempt
from service.optuna_store.asking import ask
from service.optuna_store.storage import Storage
from service.optuna_store.studies import ensure_study
from service.optuna_store.telling import tell
from service.states import AttemptState, StudyState
from service.trials.rebuilding import rebuild_all
from tests.support.service.api import Make
from tests.support.service.database_lab import Lab

on_sqlite = pytest.mark.parametrize("backend", ["sqlite"], indirect=True)
METRICS = {
    "metrics": {"eval_loss": 1.25, "accuracy": 0.5},
    "final_metrics": {"eval_loss": 1.5, "accuracy": 0.4},
}


@pytest.fixture
def lab(client: TestClient, definition: Make, service_database: Database, storage: Storage) -> Lab:
    body = definition(repeats={"top_k": 1, "seeds": 2})
    return Lab(client.post("/v1/studies", json=body).json(), service_database, storage)


def page(client: TestClient, name: str = "support-tone", query: str = "") -> dict[str, Any]:
    """What the dashboard's client gets of a study."""
    [number] = [
        s["study_id"] for s in client.get("/api/studies").json()["study_summaries"] if s["study_name"] == name
    ]
    answer = client.get(f"/api/studies/{number}{query}")
    assert answer.status_code == 200
    assert int(answer.headers["content-length"]) == len(answer.content)
    document: dict[str, Any] = answer.json()
    return document


def note(client: TestClient, number: int) -> str:
    """A trial's, without the signs that keep Markdown from changing it."""
    body: str = page(client)["trials"][number]["note"]["body"]
    return body.replace("\\", "")


def test_a_trials_note_holds_reason_metrics_adapter_and_every_value_of_its_recipe(
    client: TestClient, lab: Lab
) -> None:
    lab.complete(1.25, best_rung=100, best_adapter_dir="/artifacts/best", **METRICS)
    trial = client.get("/v1/studies/support-tone/trials/0").json()
    body = note(client, 0)
    assert body.startswith("**completed**: it completed\n")
    assert "| metric | best rung, 100 examples | last rung |" in body
    assert "| accuracy | 0.5 | 0.4 |" in body
    assert "| eval_loss | 1.25 | 1.5 |" in body
    assert f"({trial['adapter']['url']}), kept in `/artifacts/best`." in body
    assert [name for name in trial["recipe"] if f"| {name} | " not in body] == []


@pytest.mark.parametrize("end", [AttemptState.PRUNED, AttemptState.DIVERGED, AttemptState.FAILED])
def test_a_trial_that_ended_otherwise_says_why_and_that_no_adapter_is_kept(
    client: TestClient, lab: Lab, end: AttemptState
) -> None:
    lab.complete(1.25, end=end)
    body = note(client, 0)
    assert body.startswith(f"**{end}**: it {end}\n")
    assert "**Adapter**: none is kept." in body


def test_a_trial_that_trains_has_a_note_already(client: TestClient, lab: Lab) -> None:
    number, _ = lab.ask()
    lab.attempt(number)
    assert note(client, number).startswith("**running**: training on cpu")


def test_a_trial_that_goes_on_later_is_not_said_to_have_no_adapter(client: TestClient, lab: Lab) -> None:
    number, _ = lab.ask()
    lab.attempt(number, 1, AttemptState.PAUSED)
    assert note(client, number).startswith("**paused**: it paused")
    assert "Adapter" not in note(client, number)


def test_repeats_are_told_apart(client: TestClient, lab: Lab) -> None:
    lab.complete(1.25)
    for seed in (1, 2):
        lab.complete(1.3, repeat_of=0, seed=seed)
    assert page(client)["nightsweep"]["repeats"] == {
        "1": "repeat of 0, seed 1",
        "2": "repeat of 0, seed 2",
    }
    assert "Repeat 2 of trial 0, seed 2." in note(client, 2)
    assert "| seed | 2 |" in note(client, 2)
    assert "epeat" not in note(client, 0)


def test_the_studys_note_says_state_best_and_how_the_adapter_is_fetched(client: TestClient, lab: Lab) -> None:
    assert "**Best**: none yet." in page(client)["note"]["body"]
    lab.complete(1.25)
    lab.complete(1.5)
    lab.advance(StudyState.RUNNING, StudyState.COMPLETED)
    body = page(client)["note"]["body"].replace("\\", "")
    assert body.startswith("**completed**: now completed\n")
    assert "**Best**: trial 0, eval_loss 1.25." in body
    assert "(/v1/studies/support-tone/trials/0/adapter)" in body
    assert "`nightsweep adapter support-tone`" in body
    assert "`nightsweep best support-tone`" in body


def test_the_best_trial_is_the_services_own_also_where_a_repeat_or_an_infeasible_one_is_lower(
    client: TestClient, lab: Lab
) -> None:
    lab.complete(1.25)
    lab.complete(1.0, violations={"accuracy": 0.1})
    lab.complete(1.1, repeat_of=0, seed=1)
    for query in ("", "?after=0", "?after=3"):
        assert [trial["number"] for trial in page(client, query=query)["best_trials"]] == [0]


def test_the_trials_from_a_number_on_are_asked_for_as_before(client: TestClient, lab: Lab) -> None:
    for _ in range(3):
        lab.complete(1.25)
    shown = page(client, query="?after=2")["trials"]
    assert [(trial["number"], bool(trial["note"]["body"])) for trial in shown] == [(2, True)]


def test_markdown_in_a_reason_is_text(client: TestClient, lab: Lab) -> None:
    number, _ = lab.ask()
    lab.attempt(number)
    reason = "a | b <img src=x> [link](http://x) `code`\n# title"
    lab.database.transact(lambda session: session.execute(update(Attempt).values(reason=reason)))
    body = page(client)["trials"][0]["note"]["body"]
    assert r"a \| b \<img src=x\> \[link\]\(http://x\) \`code\` \# title" in body


def importance(client: TestClient) -> dict[str, Any]:
    answer = client.get("/api/studies/1/param_importances")
    assert answer.status_code == 200
    document: dict[str, Any] = answer.json()
    return document


@on_sqlite
def test_importance_says_that_there_are_too_few_trials_as_the_report_does(
    client: TestClient, lab: Lab
) -> None:
    for value in range(9):
        lab.complete(1.0 + value)
    sentence = "9 trials completed within the constraints; PED-ANOVA needs at least 10."
    shown = importance(client)
    assert shown["param_importances"] == [[]]
    assert shown["nightsweep"]["titles"]["Hyperparameter Importance"].startswith(sentence)
    lab.complete(20.0)
    assert importance(client)["param_importances"] != [[]]
    assert "nightsweep" not in importance(client)


@on_sqlite
def test_a_range_test_has_neither_a_best_trial_nor_importance(
    client: TestClient, definition: Make, service_database: Database, storage: Storage
) -> None:
    body = definition()
    body["search"]["learning_rate_range_test"] = True
    made = client.post("/v1/range-tests", json=body).json()
    whole = StudyDefinition.model_validate(made["definition"])
    study = ensure_study(storage, made["name"], whole, metric=RANGE_TEST_METRIC)
    for value in (1.0, 2.0):
        number, _ = ask(study, whole)
        tell(study, number, AttemptState.COMPLETED, "swept", value=value)
    rebuild_all(service_database, storage)
    shown = page(client, made["name"])
    assert shown["best_trials"] == []
    assert "Adapter" not in shown["trials"][0]["note"]["body"]
    assert "| learning_rate | swept |" in shown["trials"][0]["note"]["body"].replace("\\", "")
    assert "| use_rslora | false |" in shown["trials"][0]["note"]["body"].replace("\\", "")
    assert set(shown["nightsweep"]["titles"]) == {"Best Trial", "Hyperparameter Importance"}
    assert importance(client)["param_importances"] == [[]]
    assert f"(/v1/range-tests/{made['name']})" in shown["note"]["body"].replace("\\", "")


@on_sqlite
def test_a_study_of_somebody_else_in_the_same_storage_is_shown_as_it_is(
    client: TestClient, storage: Storage
) -> None:
    number = storage.create_new_study([StudyDirection.MINIMIZE], "theirs")
    storage.create_new_trial(number)
    shown = page(client, "theirs")
    assert (shown["note"]["body"], len(shown["trials"]), "nightsweep" in shown) == ("", 1, False)


@on_sqlite
def test_a_study_that_is_not_there_and_a_query_that_is_none_answer_as_the_dashboard_does(
    client: TestClient, lab: Lab
) -> None:
    assert client.get("/api/studies/77").status_code == 404
    assert client.get("/api/studies/77/param_importances").status_code == 404
    assert client.get("/api/studies/1?after=-1").status_code == 400


@on_sqlite
def test_every_page_runs_the_script_that_hides_what_cannot_work(client: TestClient) -> None:
    for path in ("/dashboard", "/dashboard/studies/1/trials"):
        answer = client.get(path, headers={"if-modified-since": "Wed, 01 Jan 2031 00:00:00 GMT"})
        assert answer.status_code == 200
        assert answer.text.index("/static/nightsweep.js") < answer.text.index("/static/bundle.js")
        assert "script-src 'self'" in answer.headers["content-security-policy"]
        assert client.head(path).status_code == 200
    script = client.get("/static/nightsweep.js")
    assert (script.status_code, script.headers["content-type"]) == (200, "text/javascript; charset=utf-8")
