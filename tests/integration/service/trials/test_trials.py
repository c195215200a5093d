"""Trials, the best one and adapters over HTTP, on both databases."""

from __future__ import annotations

import io
import json
import os
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from starlette.testclient import TestClient

from search_spaces.definition import build_recipe
from service.db.database import Database
from service.optuna_store.reporting import report
from service.optuna_store.storage import Storage
from service.optuna_store.telling import tell
from service.settings import Settings
from service.states import AttemptState
from tests.support.service.database_lab import Lab

Make = Callable[..., dict[str, Any]]
# Nothing here reaches the database, so one of the two is enough.
on_sqlite = pytest.mark.parametrize("backend", ["sqlite"], indirect=True)


@pytest.fixture
def lab(client: TestClient, definition: Make, service_database: Database, storage: Storage) -> Lab:
    return Lab(client.post("/v1/studies", json=definition()).json(), service_database, storage)


def test_a_new_study_has_no_trials_and_no_best(client: TestClient, definition: Make) -> None:
    client.post("/v1/studies", json=definition())
    assert client.get("/v1/studies/support-tone/trials").json() == {"items": [], "next_cursor": None}
    answer = client.get("/v1/studies/support-tone/best")
    assert (answer.status_code, answer.json()["title"]) == (404, "Not found")
    assert client.get("/v1/studies/support-tone/trials/0").status_code == 404


def test_a_trial_merges_optunas_values_with_its_attempts(client: TestClient, lab: Lab) -> None:
    number, params = lab.ask()
    lab.attempt(number, 1, AttemptState.LOST)
    outcome = {
        "value": 1.5,
        "best_rung": 200,
        "metrics": {"eval_loss": 1.5, "perplexity": float("inf")},
        "final_metrics": {"eval_loss": 1.75},
        "train_seconds": 12.5,
        "peak_memory_bytes": 1024,
        "predicted_memory_bytes": 2048,
        "useful_token_share": 0.75,
        "trainable_parameters": 4096,
        "gradient_noise_scale": 21.6,
        "best_adapter_dir": "/artifacts/best",
    }
    lab.attempt(
        number,
        2,
        AttemptState.COMPLETED,
        outcome=outcome,
        device="cpu",
        total_examples=400,
        examples_seen=400,
        step=50,
        train_loss=1.25,
    )
    lab.report(number, 100, {"eval_loss": 2.0, "perplexity": float("inf")}, 2.25, noise=17.5)
    unreported = {
        "examples_seen": None,
        "metrics": {},
        "train_loss": None,
        "train_seconds": None,
        "gradient_noise_scale": None,
    }
    for rung, value in ((100, 2.0), (200, 1.5), (400, 1.75)):
        report(lab.optuna, number, rung, value)
    tell(lab.optuna, number, AttemptState.COMPLETED, "it completed", value=1.5)
    lab.settle()

    trial = client.get("/v1/studies/support-tone/trials/0").json()
    attempts = trial.pop("attempts")
    times = trial.pop("started_at"), trial.pop("ended_at")
    assert trial == {
        "number": 0,
        "state": "completed",
        "reason": "it completed",
        "params": params,
        "recipe": build_recipe(lab.definition, params).model_dump(mode="json")
        | {"lora_alpha": 32.0, "quantization": "nf4", "max_length": 512}
        | {"loss": "cross_entropy", "focal_gamma": 2.0, "label_smoothing": 0.0, "neftune_alpha": 0.0},
        "repeat_of": None,
        "seed": None,
        "evaluates": None,
        "stop_requested": False,
        "value": 1.5,
        "costs": {},
        "feasible": True,
        "best_rung": 200,
        "rungs": [
            {
                "rung": 100,
                "value": 2.0,
                "examples_seen": 104,
                "metrics": {"eval_loss": 2.0, "perplexity": None},
                "train_loss": 2.25,
                "train_seconds": 3.0,
                "gradient_noise_scale": 17.5,
            },
            {"rung": 200, "value": 1.5, **unreported},
            {"rung": 400, "value": 1.75, **unreported},
        ],
        "diagnosis": [
            {
                "verdict": "not_enough_rungs",
                "evidence": "3 evaluations; the shape of a curve needs at least 4",
                "rung": None,
            }
        ],
        "metrics": {"eval_loss": 1.5, "perplexity": None},
        "final_metrics": {"eval_loss": 1.75},
        "progress": {"examples_seen": 400, "total_examples": 400, "step": 50, "train_loss": 1.25},
        "train_seconds": 12.5,
        "peak_memory_bytes": 1024,
        "predicted_memory_bytes": 2048,
        "useful_token_share": 0.75,
        "trainable_parameters": 4096,
        "gradient_noise_scale": 21.6,
        "critical_batch_size": 22,
        "adapter": {"path": "/artifacts/best", "url": f"/v1/studies/{lab.id}/trials/0/adapter"},
    }
    assert times == (attempts[0]["started_at"], attempts[1]["ended_at"])
    assert [(a["ordinal"], a["state"], a["worker_id"]) for a in attempts] == [
        (1, "lost", "worker-1"),
        (2, "completed", "worker-2"),
    ]
    assert client.get("/v1/studies/support-tone/best").json()["number"] == 0


def test_a_trial_without_an_attempt_waits(client: TestClient, lab: Lab) -> None:
    _, params = lab.ask()
    trial = client.get("/v1/studies/support-tone/trials").json()["items"][0]
    assert (trial["state"], trial["params"], trial["attempts"]) == ("waiting", params, [])
    assert (trial["progress"], trial["adapter"], trial["value"]) == (None, None, None)


def test_a_trial_that_is_still_being_drawn_shows_no_recipe(client: TestClient, lab: Lab) -> None:
    lab.optuna.ask()
    lab.settle()
    trial = client.get("/v1/studies/support-tone/trials/0").json()
    assert (trial["state"], trial["params"], trial["recipe"]) == ("waiting", {}, None)


def test_a_trial_given_up_after_lost_attempts_shows_what_was_told(client: TestClient, lab: Lab) -> None:
    number, _ = lab.ask()
    lab.attempt(number, 1, AttemptState.LOST)
    assert client.get("/v1/studies/support-tone/trials/0").json()["state"] == "lost"
    tell(lab.optuna, number, AttemptState.FAILED, "its worker was lost 4 times")
    lab.settle()
    trial = client.get("/v1/studies/support-tone/trials/0").json()
    assert (trial["state"], trial["reason"]) == ("failed", "its worker was lost 4 times")


def test_a_completed_trial_shows_its_value_before_optuna_is_told(client: TestClient, lab: Lab) -> None:
    number, _ = lab.ask()
    lab.attempt(number, 1, AttemptState.COMPLETED, outcome={"value": 1.5, "best_rung": 100})
    assert client.get("/v1/studies/support-tone/trials/0").json()["value"] == 1.5


def test_a_list_of_names_is_shown_as_a_list(
    client: TestClient, definition: Make, service_database: Database, storage: Storage
) -> None:
    choices = [["q_proj"], ["q_proj", "v_proj"]]
    search = {"algorithm": "grid", "space": {"target_modules": {"choices": choices}}}
    study = client.post("/v1/studies", json=definition(search=search)).json()
    lab = Lab(study, service_database, storage)
    lab.ask()
    lab.ask()
    trials = client.get("/v1/studies/support-tone/trials").json()["items"]
    assert [trial["params"]["target_modules"] for trial in trials] == choices


@pytest.mark.parametrize("number", ["-1", "x", "1.5", str(2**40)])
def test_a_trial_number_is_a_number(client: TestClient, lab: Lab, number: str) -> None:
    answer = client.get(f"/v1/studies/support-tone/trials/{number}")
    assert (answer.status_code, answer.headers["content-type"]) == (422, "application/problem+json")


def _adapter(folder: Path) -> dict[str, bytes]:
    folder.mkdir(parents=True)
    files = {
        "adapter_config.json": json.dumps({"r": 8}).encode(),
        "adapter_model.safetensors": os.urandom(3 << 20),
    }
    for name, content in files.items():
        (folder / name).write_bytes(content)
    (folder / "optimizer.pt").write_bytes(b"not to be given out")
    return files


def _finished(lab: Lab, folder: Path, which: str = "best") -> None:
    number, _ = lab.ask()
    lab.attempt(number, 1, AttemptState.COMPLETED, outcome={f"{which}_adapter_dir": str(folder)})


@pytest.mark.parametrize(("which", "head"), [("best", {}), ("last", {"config.json": b"{}"})])
def test_an_adapter_comes_as_a_zip_of_its_own_files_alone(
    client: TestClient, lab: Lab, settings: Settings, which: str, head: dict[str, bytes]
) -> None:
    folder = settings.artifacts_dir / lab.id / "0" / "1" / which
    expected = _adapter(folder) | head
    for name, content in head.items():
        (folder / name).write_bytes(content)
    _finished(lab, folder, which)
    answer = client.get("/v1/studies/support-tone/trials/0/adapter", params={"which": which})
    assert (answer.status_code, answer.headers["content-type"]) == (200, "application/zip")
    assert answer.headers["content-disposition"] == f'attachment; filename="support-tone-0-{which}.zip"'
    with zipfile.ZipFile(io.BytesIO(answer.content)) as archive:
        assert archive.testzip() is None
        assert {name: archive.read(name) for name in archive.namelist()} == expected


@on_sqlite
@pytest.mark.parametrize("trick", ["outside", "linked folder", "linked file", "missing", "pipe"])
def test_nothing_but_an_adapter_inside_the_artifacts_is_given_out(
    client: TestClient, lab: Lab, settings: Settings, tmp_path: Path, trick: str
) -> None:
    inside, outside = settings.artifacts_dir / lab.id / "0" / "1" / "best", tmp_path / "elsewhere"
    _adapter(outside)
    folder = outside if trick == "outside" else inside
    if trick == "linked folder":
        inside.parent.mkdir(parents=True)
        inside.symlink_to(outside)
    if trick in ("linked file", "pipe", "missing"):
        _adapter(inside)
        weights = inside / "adapter_model.safetensors"
        weights.unlink()
        if trick == "linked file":
            weights.symlink_to(outside / "adapter_model.safetensors")
        if trick == "pipe":
            os.mkfifo(weights)
    _finished(lab, folder)
    answer = client.get("/v1/studies/support-tone/trials/0/adapter")
    assert (answer.status_code, answer.headers["content-type"]) == (404, "application/problem+json")


def test_a_trial_without_an_adapter_says_so(client: TestClient, lab: Lab) -> None:
    lab.attempt(lab.ask()[0])
    answer = client.get("/v1/studies/support-tone/trials/0/adapter")
    assert answer.json()["detail"] == "Trial 0 of the study 'support-tone' has no best adapter yet."
    unknown = client.get("/v1/studies/support-tone/trials/99/adapter")
    assert unknown.json()["detail"] == "No trial 99 of the study 'support-tone' has started yet."
    assert client.get("/v1/studies/support-tone/trials/0/adapter?which=worst").status_code == 422
