"""Whole studies through REST on real processes: Ray, Optuna, bitsandbytes, PEFT, SQL and HTTP."""

from __future__ import annotations

import io
import itertools
import json
import subprocess
import sys
import zipfile
from datetime import datetime
from pathlib import Path
from typing import Any

import pytest

from tests.acceptance.conftest import RunningService

SPACE = {
    "learning_rate": {"choices": [1e-4, 1e-2]},
    "batch_size": {"choices": [4, 8]},
    "epochs": {"choices": [1]},
    "weight_decay": {"choices": [0.01]},
    "lora_r": {"choices": [2, 4]},
}
CONTINUOUS = {
    "learning_rate": {"min": 1e-4, "max": 1e-2, "scale": "log"},
    "batch_size": {"choices": [4, 8]},
    "epochs": {"min": 1, "max": 2, "type": "int"},
    "weight_decay": {"min": 0.0, "max": 0.1},
    "lora_r": {"choices": [2, 4]},
}
SEARCHES: dict[str, dict[str, Any]] = {
    "grid": {"algorithm": "grid", "space": SPACE},
    "random": {"algorithm": "random", "trials": 7, "seed": 3, "space": CONTINUOUS},
    "tpe": {"algorithm": "tpe", "trials": 7, "seed": 3, "space": CONTINUOUS},
}


def running_at_once(trials: list[dict[str, Any]]) -> int:
    """The most attempts that were alive at one moment."""
    moments: list[tuple[datetime, int]] = []
    for attempt in itertools.chain.from_iterable(trial["attempts"] for trial in trials):
        moments.append((datetime.fromisoformat(attempt["dispatched_at"]), +1))
        moments.append((datetime.fromisoformat(attempt["ended_at"]), -1))
    return max(itertools.accumulate(change for _, change in sorted(moments)))


def test_every_algorithm_runs_exactly_its_trials_within_its_bounds(running_service: RunningService) -> None:
    """Exact counts, no duplicate grid point, never more at once than `max_parallel_trials`."""
    for name, search in SEARCHES.items():
        resources = {"workers": "auto" if name == "grid" else 1}
        changes = {"search": search, "recipe": {}, "pruning": {"algorithm": "none"}, "resources": resources}
        definition = running_service.definition(name, **changes)
        running_service.submit(definition)
    for name, search in SEARCHES.items():
        study, trials = running_service.wait(name), running_service.trials(name)
        expected = search.get("trials", 8)
        why = f"all {expected} trials ended{': the grid is exhausted' * (name == 'grid')}"
        assert (study["state"], study["reason"]) == ("completed", why)
        assert study["counts"]["total"] == study["counts"]["completed"] == expected
        assert [trial["number"] for trial in trials] == list(range(expected))
        assert all(len(trial["attempts"]) == 1 for trial in trials)
        assert running_at_once(trials) <= 2
        assert study["best"]["value"] == min(trial["value"] for trial in trials)
    points = [tuple(trial["params"][key] for key in SPACE) for trial in running_service.trials("grid")]
    assert points == list(itertools.product(*(parameter["choices"] for parameter in SPACE.values())))


def test_the_best_adapter_is_plain_peft_and_gives_the_recorded_loss(
    running_service: RunningService, tmp_path: Path
) -> None:
    """Downloaded as a zip and loaded in another process, by nobody's code but PEFT's."""
    running_service.submit(running_service.definition("adapter"))
    running_service.wait("adapter")
    best = running_service.client.get("/v1/studies/adapter/best").json()
    answer = running_service.client.get(best["adapter"]["url"])
    assert answer.status_code == 200
    with zipfile.ZipFile(io.BytesIO(answer.content)) as archive:
        assert {"adapter_config.json", "adapter_model.safetensors"} <= set(archive.namelist())
        archive.extractall(tmp_path)
    script = Path(__file__).parents[1] / "scripts" / "measure_adapter.py"
    measured = subprocess.run(
        [
            sys.executable,
            str(script),
            str(running_service.folder / "base"),
            str(tmp_path),
            str(running_service.folder / "eval.jsonl"),
        ],
        capture_output=True,
        text=True,
        check=True,
    )
    assert json.loads(measured.stdout)["eval_loss"] == pytest.approx(best["value"], abs=1e-3)


def test_a_fault_that_only_a_worker_finds_fails_the_study_and_says_where(
    running_service: RunningService,
) -> None:
    """The sentence names file and line, in REST and on the study."""
    broken = running_service.folder / "broken.jsonl"
    broken.write_text('{"prompt": "a", "completion": "b"}\n{"prompt": "only a prompt"}\n')
    definition = running_service.definition("broken")
    definition["data"]["train"] = str(broken)
    running_service.submit(definition)
    study = running_service.wait("broken")
    assert study["state"] == "failed"
    assert f"{broken}:2" in study["reason"]
    assert "completion" in study["reason"]
    assert study["counts"]["failed"] >= 1


def test_a_cancelled_study_ends_and_frees_its_workers_for_the_next(running_service: RunningService) -> None:
    search = {**SEARCHES["tpe"], "trials": 500}
    running_service.submit(running_service.definition("endless", search=search, recipe={}))
    answer = running_service.client.post("/v1/studies/endless/cancel")
    assert answer.status_code == 202
    assert running_service.wait("endless")["state"] == "cancelled"
    assert all(trial["state"] != "running" for trial in running_service.trials("endless"))
    running_service.submit(
        running_service.definition("next", search={**SEARCHES["tpe"], "trials": 1}, recipe={})
    )
    assert running_service.wait("next")["state"] == "completed"
