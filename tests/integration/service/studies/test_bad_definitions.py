"""Wrong definitions over HTTP: every fault named at once, and nothing stored."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from starlette.testclient import TestClient

from service.settings import Settings
from tests.support.service.api import Make, expect_problem, on_sqlite, stored


def _search(make: Make, **changes: Any) -> dict[str, Any]:
    return {**make()["search"], **changes}


def _space(make: Make, **parameters: Any) -> dict[str, Any]:
    return _search(make, space=parameters)


BAD: dict[str, tuple[Callable[[Make], dict[str, Any]], set[str]]] = {
    "unknown key": (lambda make: make(serach={}), {"serach"}),
    "unknown nested key": (
        lambda make: make(model={"id": "a/b", "quantisation": "nf4"}),
        {"model.quantisation"},
    ),
    "missing sections": (lambda make: {"name": "x"}, {"model", "data", "search"}),
    "empty range": (
        lambda make: make(search=_space(make, learning_rate={"choices": []})),
        {"search.space.learning_rate.choices"},
    ),
    "inverted range": (
        lambda make: make(search=_space(make, learning_rate={"min": 1.0, "max": 0.1})),
        {"search.space.learning_rate.min", "search.space.learning_rate.max"},
    ),
    "non-finite range": (
        lambda make: make(search=_space(make, learning_rate={"min": 1e-5, "max": float("inf")})),
        {"search.space.learning_rate.max"},
    ),
    "not a number": (
        lambda make: make(search=_space(make, learning_rate={"min": float("nan"), "max": 1e-3})),
        {"search.space.learning_rate.min"},
    ),
    "log of zero": (
        lambda make: make(search=_space(make, weight_decay={"min": 0.0, "max": 0.1, "scale": "log"})),
        {"search.space.weight_decay.min"},
    ),
    "infinite grid": (
        lambda make: make(search=_search(make, algorithm="grid", trials=None)),
        {"search.space.learning_rate"},
    ),
    "grid too large": (
        lambda make: make(
            search={
                "algorithm": "grid",
                "space": {
                    "learning_rate": {"choices": [i * 1e-6 for i in range(1, 102)]},
                    "batch_size": {"choices": list(range(1, 101))},
                },
            }
        ),
        {"search.space"},
    ),
    "unknown algorithm": (
        lambda make: make(search=_search(make, algorithm="bayes")),
        {"search.algorithm"},
    ),
    "unknown metric": (lambda make: make(objective={"metric": "eval_los"}), {"objective.metric"}),
    "unknown loss": (lambda make: make(losses={"own": "m:f"}, recipe={"loss": "ownn"}), {"recipe.loss"}),
    "modules that are not allowed": (
        lambda make: make(metrics={"profit": "m:f"}, losses={"own": "m:g"}, recipe={"loss": "own"}),
        {"metrics.profit", "losses.own"},
    ),
    "unknown pruner": (lambda make: make(pruning={"algorithm": "ashaa"}), {"pruning.algorithm"}),
    "unknown preset": (
        lambda make: make(search={"trials": 4, "preset": "qlora-defalt"}),
        {"search.preset"},
    ),
    "no trials": (lambda make: make(search=_search(make, trials=0)), {"search.trials"}),
    "batch of zero": (
        lambda make: make(search=_space(make, batch_size={"choices": [0, 4]})),
        {"search.space.batch_size.choices.0"},
    ),
    "negative rank": (lambda make: make(recipe={"lora_r": -1}), {"recipe.lora_r"}),
    "no such file": (
        lambda make: make(data={"train": "trian.jsonl", "eval": "eval.jsonl"}),
        {"data.train"},
    ),
    "wrong suffix": (lambda make: make(data={"train": "notes.txt", "eval": "eval.jsonl"}), {"data.train"}),
    "hub id that is a path": (
        lambda make: make(data={"train": {"hub": "/etc", "split": "train"}, "eval": "eval.jsonl"}),
        {"data.train.hub"},
    ),
    "no such model folder": (lambda make: make(model={"id": "./nothing"}), {"model.id"}),
    "many at once": (
        lambda make: make(
            nme=1,
            model={"id": "a/b", "quantization": "nf3"},
            data={"train": "../secret.jsonl", "eval": "eval.jsonl", "max_length": 2},
            budget={"max_parallel_trials": 0},
        ),
        {"nme", "model.quantization", "data.train", "data.max_length", "budget.max_parallel_trials"},
    ),
}


@on_sqlite
@pytest.mark.parametrize("case", BAD)
def test_every_fault_of_a_wrong_definition_is_named_and_nothing_is_stored(
    client: TestClient, definition: Make, settings: Settings, case: str
) -> None:
    make, paths = BAD[case]
    (settings.data_roots[0] / "notes.txt").write_text("x")
    body = json.dumps(make(definition))  # httpx itself would refuse to write NaN
    answer = client.post("/v1/studies", content=body, headers={"content-type": "application/json"})
    problem = expect_problem(answer, 422)
    found = {fault["path"] for fault in problem["faults"]}
    if case == "inverted range":
        assert found
        assert found <= paths  # either end can be blamed
    else:
        assert found == paths
    assert all(fault["message"] for fault in problem["faults"])
    assert stored(client) == 0


@on_sqlite
@pytest.mark.parametrize(
    ("sections", "path", "nearest"),
    [
        ({"serach": {}}, "serach", "search"),
        ({"objective": {"metric": "eval_los"}}, "objective.metric", "eval_loss"),
        ({"data": {"train": "trian.jsonl", "eval": "eval.jsonl"}}, "data.train", "train.jsonl"),
        ({"search": {"trials": 4, "preset": "qlora-defalt"}}, "search.preset", "qlora-default"),
    ],
)
def test_a_misspelt_name_is_answered_with_the_nearest_known_one(
    client: TestClient, definition: Make, sections: dict[str, Any], path: str, nearest: str
) -> None:
    problem = expect_problem(client.post("/v1/studies", json=definition(**sections)), 422)
    fault = next(f for f in problem["faults"] if f["path"] == path)
    assert fault["nearest"] == nearest
    assert fault["allowed"]


@on_sqlite
@pytest.mark.parametrize("escape", ["dots", "link", "absolute", "folder link"])
def test_data_outside_the_roots_is_refused_whatever_leads_there(
    client: TestClient, definition: Make, settings: Settings, tmp_path: Path, escape: str
) -> None:
    outside = tmp_path / "secret.jsonl"
    outside.write_text('{"text": "secret"}\n')
    root = settings.data_roots[0]
    if escape == "link":
        (root / "link.jsonl").symlink_to(outside)
    if escape == "folder link":
        (root / "up").symlink_to(tmp_path)
    name = {
        "dots": "../secret.jsonl",
        "link": "link.jsonl",
        "absolute": str(outside),
        "folder link": "up/secret.jsonl",
    }[escape]
    body = definition(data={"train": name, "eval": "eval.jsonl"})
    problem = expect_problem(client.post("/v1/studies", json=body), 422)
    assert [f["path"] for f in problem["faults"]] == ["data.train"]
    assert "outside the data roots" in problem["faults"][0]["message"]
    assert stored(client) == 0


@on_sqlite
def test_a_path_outside_is_refused_alike_whether_it_exists_or_not(
    client: TestClient, definition: Make, tmp_path: Path
) -> None:
    (tmp_path / "there.jsonl").write_text("{}")
    messages = {
        client.post(
            "/v1/studies", json=definition(data={"train": str(tmp_path / name), "eval": "eval.jsonl"})
        ).json()["faults"][0]["message"]
        for name in ("there.jsonl", "not-there.jsonl")
    }
    assert len(messages) == 1


def test_a_model_folder_outside_the_roots_is_refused(
    client: TestClient, definition: Make, tmp_path: Path
) -> None:
    problem = expect_problem(client.post("/v1/studies", json=definition(model={"id": str(tmp_path)})), 422)
    assert [f["path"] for f in problem["faults"]] == ["model.id"]


@pytest.mark.skipif(os.geteuid() == 0, reason="root may read every file")
def test_a_file_the_server_may_not_read_is_a_fault(
    client: TestClient, definition: Make, settings: Settings
) -> None:
    (settings.data_roots[0] / "train.jsonl").chmod(0)
    problem = expect_problem(client.post("/v1/studies", json=definition()), 422)
    assert [f["path"] for f in problem["faults"]] == ["data.train"]
