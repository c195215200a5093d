"""`nightsweep workers`: what trains, which GPUs were put aside, and giving one back."""

from __future__ import annotations

import json
from typing import Any

import httpx

from tests.support.fakes.api import Reply, problem

WORKER = {
    "id": "worker-5-1",
    "study": "tone",
    "device": "cuda:0",
    "device_id": "node-7/GPU-2f1c9b52",
    "gpus": 1.0,
    "trials": [
        {"number": 3, "attempt": 1, "state": "running"},
        {"number": 4, "attempt": 2, "state": "dispatched"},
    ],
    "since": "2026-07-01T22:00:00Z",
}
DEVICE = {
    "id": "node-7/GPU-2f1c9b52",
    "put_aside_at": "2026-07-02T03:00:00Z",
    "reason": "3 workers died on it",
    "restored_at": None,
}


def answer(workers: list[dict[str, Any]], devices: list[dict[str, Any]]) -> dict[str, Reply | list[Reply]]:
    return {"GET /v1/workers": httpx.Response(200, json={"workers": workers, "devices": devices})}


def test_workers_shows_who_trains_what_and_which_gpus_were_put_aside(run: Any) -> None:
    result = run(answer([WORKER], [DEVICE]), "workers")
    assert result.exit_code == 0
    rows = [[cell.strip() for cell in row.split("  ") if cell.strip()] for row in result.stdout.splitlines()]
    assert rows == [
        ["worker", "study", "trials", "device", "gpu", "since"],
        ["worker-5-1", "tone", "3, 4", "cuda:0", "node-7/GPU-2f1c9b52", "2026-07-01 22:00:00Z"],
        [],
        ["gpu", "put aside", "restored", "reason"],
        ["node-7/GPU-2f1c9b52", "2026-07-02 03:00:00Z", "-", "3 workers died on it"],
    ]


def test_workers_says_when_there_is_nothing_to_show(run: Any) -> None:
    assert run(answer([], []), "workers").stdout == "No worker is training.\n"


def test_workers_prints_pure_json_when_asked(run: Any) -> None:
    result = run(answer([WORKER], [DEVICE]), "workers", "--json")
    assert json.loads(result.stdout) == {"workers": [WORKER], "devices": [DEVICE]}


def test_restore_gives_a_gpu_back_by_its_whole_name(run: Any) -> None:
    route = "POST /v1/workers/devices/node-7%2FGPU-2f1c9b52/restore"
    replies = {route: httpx.Response(200, json={**DEVICE, "put_aside_at": None})}
    result = run(replies, "workers", "restore", "node-7/GPU-2f1c9b52")
    assert (result.exit_code, result.stdout) == (0, "GPU node-7/GPU-2f1c9b52 gets trials again.\n")
    as_json = run(replies, "workers", "restore", "node-7/GPU-2f1c9b52", "--json")
    assert json.loads(as_json.stdout) == {**DEVICE, "put_aside_at": None}


def test_restore_of_a_gpu_that_nobody_knows_says_so(run: Any) -> None:
    route = "POST /v1/workers/devices/x/restore"
    result = run(
        {route: problem(404, "Not found", "No GPU 'x' was ever put aside.")}, "workers", "restore", "x"
    )
    assert result.exit_code == 1
    assert "No GPU 'x' was ever put aside." in result.stderr
