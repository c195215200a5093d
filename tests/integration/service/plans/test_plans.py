"""`POST /v1/studies?dry_run=true`: the same checks as a submission, a plan in return, and no trace."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from optuna.storages._rdb.models import BaseModel
from sqlalchemy import func, select
from starlette.testclient import TestClient

from service.app import create_app
from service.db.database import Database
from service.db.models import Attempt, Base, Study
from service.optuna_store.storage import Storage
from service.plans.data_reports import processes
from service.settings import Settings
from service.states import AttemptState
from tests.support.checkout import QUICKSTART
from tests.support.service.api import LOCAL, Make, expect_problem, on_sqlite, stored

DRY_RUN = "/v1/studies?dry_run=true"


@pytest.fixture
def no_worker_packages(monkeypatch: pytest.MonkeyPatch) -> None:
    """As on a host of the API alone."""
    monkeypatch.setattr(processes, "find_spec", lambda name: None)


def every_row(database: Database, storage: Storage) -> int:
    with database.engine.connect() as ours, storage.engine.connect() as theirs:
        tables = [(ours, table) for table in Base.metadata.sorted_tables]
        tables += [
            (theirs, table) for table in BaseModel.metadata.sorted_tables if table.name != "version_info"
        ]
        return sum(
            connection.execute(select(func.count()).select_from(table)).scalar_one()
            for connection, table in tables
        )


@pytest.mark.usefixtures("no_worker_packages")
def test_a_dry_run_leaves_no_row_in_any_table(
    client: TestClient, definition: Make, service_database: Database, storage: Storage
) -> None:
    answer = client.post(DRY_RUN, json=definition())
    assert (answer.status_code, "location" in answer.headers) == (200, False)
    assert every_row(service_database, storage) == 0


@pytest.mark.usefixtures("no_worker_packages")
def test_a_host_without_the_workers_packages_plans_what_it_can(client: TestClient, definition: Make) -> None:
    plan = client.post(DRY_RUN, json=definition()).json()
    assert plan["trials"] == {
        "algorithm": "random",
        "search": 4,
        "space_size": None,
        "range_test": 0,
        "repeats": 0,
        "total": 4,
    }
    assert (plan["data"], plan["model"], plan["training"]) == (None, None, None)
    assert "not installed beside the API" in plan["report_unknown"]
    assert plan["time"]["unknown"] == "no trial of this task and model has completed on this server"
    assert plan["definition"]["data"]["train"].endswith("/data/train.jsonl")


@on_sqlite
@pytest.mark.usefixtures("no_worker_packages")
def test_a_dry_run_refuses_what_a_submission_refuses(client: TestClient, definition: Make) -> None:
    for wrong in (
        definition(search={"algorithm": "tpe"}),
        definition(data={"train": "/etc/passwd", "eval": "eval.jsonl"}),
        definition(warm_start={"from": "nobody"}),
    ):
        problem = expect_problem(client.post(DRY_RUN, json=wrong), 422)
        assert problem == expect_problem(client.post("/v1/studies", json=wrong), 422)


@on_sqlite
@pytest.mark.usefixtures("no_worker_packages")
def test_a_name_that_is_taken_is_a_warning(client: TestClient, definition: Make) -> None:
    assert client.post("/v1/studies", json=definition()).status_code == 201
    plan = client.post(DRY_RUN, json=definition()).json()
    assert ([warning["code"] for warning in plan["warnings"]], plan["acceptable"]) == (
        ["name_taken"],
        False,
    )
    assert stored(client) == 1


@pytest.mark.usefixtures("no_worker_packages")
def test_time_and_memory_come_from_completed_trials_of_the_same_model(
    client: TestClient, definition: Make, service_database: Database
) -> None:
    ids = [
        client.post("/v1/studies", json=definition(name=name, model={"id": model})).json()["id"]
        for name, model in (("same", "org/base"), ("other", "org/other"))
    ]
    with service_database.write() as session:
        for study_id, state, seconds in (
            (ids[0], AttemptState.COMPLETED, 50.0),
            (ids[0], AttemptState.PRUNED, 1.0),
            (ids[1], AttemptState.COMPLETED, 1.0),
        ):
            session.add(
                Attempt(
                    study_id=study_id,
                    trial_number=len(session.new) + int(seconds),
                    ordinal=1,
                    state=state,
                    worker_id="w",
                    device="cpu",
                    artifact_dir="a",
                    outcome={
                        "examples_seen": 100,
                        "train_seconds": seconds,
                        "eval_seconds": 0.0,
                        "peak_memory_bytes": 7,
                    },
                )
            )
            session.flush()
    plan = client.post(DRY_RUN, json=definition(name="new", model={"id": "org/base"})).json()
    time = plan["time"]
    assert (time["earlier_trials"], time["examples_per_second"], time["same_data"]) == (1, 2.0, True)
    assert plan["memory"]["earlier_peak"] == {"bytes": 7, "trials": 1, "devices": ["cpu"]}


def test_the_plan_is_documented(client: TestClient) -> None:
    operation = client.get("/openapi.json").json()["paths"]["/v1/studies"]["post"]
    assert operation["responses"]["200"]["content"]["application/json"]["schema"] == {
        "$ref": "#/components/schemas/PlanView"
    }
    assert "201" in operation["responses"]


@pytest.fixture
def quickstart(tmp_path: Path) -> Iterator[TestClient]:
    """An API that may read the quickstart's files, on SQLite."""
    from service.maintenance import schema

    settings = Settings(home=tmp_path / "home", data_roots=(QUICKSTART,), plan_timeout_seconds=240)
    schema.upgrade(settings)
    with TestClient(create_app(settings), base_url=LOCAL) as opened:
        yield opened


def test_the_quickstart_is_planned_from_its_files(quickstart: TestClient) -> None:
    text = (QUICKSTART / "study.yaml").read_bytes()
    answer = quickstart.post(DRY_RUN, content=text, headers={"content-type": "application/yaml"})
    plan: dict[str, Any] = answer.json()
    assert answer.status_code == 200, json.dumps(plan)
    assert (plan["problems"], plan["warnings"], plan["acceptable"]) == ([], [], True)
    assert plan["data"]["train"]["rows"] == 600
    training = plan["training"]
    # 16 trials of 1 to 3 epochs of 600 rows; batch 32 takes 19 steps an epoch, batch 4 takes 150.
    assert training["search"]["examples"] == {"at_least": 9_600, "at_most": 28_800}
    assert (training["shortest"]["steps"], training["longest"]["steps"]) == (19, 450)
    assert training["rungs"]["shared"] == [300]
    assert training["rungs"]["pruning"] == [300, 600, 900, 1_200, 1_500]
    assert plan["memory"]["one_trial_bytes"]["at_least"] > plan["model"]["quantizable_parameters"] // 2
    with quickstart.app.state.resources.database.read() as session:  # type: ignore[attr-defined]
        assert session.scalars(select(Study)).all() == []
