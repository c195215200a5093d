"""A fake of the REST API for unit tests of its client: scripted answers, recorded requests."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

import httpx

Reply = httpx.Response | httpx.RequestError | Callable[[httpx.Request], httpx.Response]


class FakeApi:
    """Answers `METHOD path` with the replies it was given for it, the last one again and again."""

    def __init__(self, replies: dict[str, Reply | list[Reply]]) -> None:
        self._replies = {
            route: list(reply) if isinstance(reply, list) else [reply] for route, reply in replies.items()
        }
        self.requests: list[httpx.Request] = []

    @property
    def transport(self) -> httpx.MockTransport:
        return httpx.MockTransport(self._answer)

    def body(self, index: int = -1) -> Any:
        """The JSON body of a request that came in."""
        return json.loads(self.requests[index].content)

    def _answer(self, request: httpx.Request) -> httpx.Response:
        self.requests.append(request)
        replies = self._replies.get(f"{request.method} {request.url.raw_path.decode().split('?')[0]}")
        if replies is None:
            return problem(404, "Not found", f"There is no {request.url.path}.")
        reply = replies.pop(0) if len(replies) > 1 else replies[0]
        if isinstance(reply, httpx.RequestError):
            raise reply
        return reply(request) if callable(reply) else reply


def problem(
    status: int, title: str, detail: str, faults: list[dict[str, Any]] | None = None
) -> httpx.Response:
    """An RFC 9457 answer."""
    document = {"type": "about:blank", "title": title, "status": status, "detail": detail}
    return httpx.Response(
        status,
        headers={"Content-Type": "application/problem+json"},
        content=json.dumps(document | ({"faults": faults} if faults else {})),
    )


def refused() -> httpx.ConnectError:
    """What httpx raises when nobody listens."""
    return httpx.ConnectError("[Errno 111] Connection refused")


def study_json(**changes: Any) -> dict[str, Any]:
    """A study as the API answers it."""
    study = {
        "id": "5" * 32,
        "name": "tone",
        "kind": "search",
        "state": "running",
        "reason": "",
        "owner": "operator",
        "definition": {
            "name": "tone",
            "model": {"id": "/models/base"},
            "search": {"algorithm": "tpe", "preset": "qlora-quick", "space": {"lora_r": {"choices": [4, 8]}}},
            "objective": {"metric": "eval_loss", "direction": "minimize"},
        },
        "created_at": "2026-07-01T22:00:00Z",
        "started_at": "2026-07-01T22:00:05Z",
        "ended_at": None,
        "pause_requested": False,
        "paused_at": None,
        "deadline": None,
        "stage": None,
        "schedule": None,
        "schedule_id": None,
        "fired_for": None,
        "base_seed": None,
        "range_test": None,
        "trials_requested": 12,
        "repeats_requested": 0,
        "metric": "eval_loss",
        "direction": "minimize",
        "counts": {"running": 1, "completed": 1, "pruned": 0, "total": 2},
        "preparation": None,
        "best": {"trial_number": 0, "value": 0.412, "params": {"learning_rate": 3.123e-4, "lora_r": 8}},
        "pareto_front": None,
        "dashboard_path": "/dashboard/studies/3",
    } | changes
    if study["preparation"]:
        study["preparation"] = {"evaluated": 0, "fingerprints": {}} | study["preparation"]
    return study


def trial_json(number: int, state: str = "completed", **changes: Any) -> dict[str, Any]:
    """A trial as the API answers it. Of progress, rungs and findings a test gives what it is about."""
    trial = {
        "number": number,
        "state": state,
        "reason": "",
        "params": {"learning_rate": 3.123e-4, "lora_r": 8},
        "recipe": {"learning_rate": 3.123e-4, "lora_r": 8, "epochs": 1.0},
        "repeat_of": None,
        "seed": None,
        "value": None,
        "costs": {},
        "feasible": True,
        "best_rung": None,
        "rungs": [],
        "metrics": {},
        "final_metrics": {},
        "diagnosis": [],
        "progress": {"examples_seen": 0, "total_examples": 960, "step": 0, "train_loss": None},
        "train_seconds": None,
        "peak_memory_bytes": None,
        "predicted_memory_bytes": None,
        "useful_token_share": None,
        "trainable_parameters": None,
        "gradient_noise_scale": None,
        "critical_batch_size": None,
        "started_at": None,
        "ended_at": None,
        "adapter": None,
        "attempts": [],
    } | changes
    rung = {
        "examples_seen": None,
        "metrics": {},
        "train_loss": None,
        "train_seconds": None,
        "gradient_noise_scale": None,
    }
    if trial["progress"]:
        trial["progress"] = {"step": 0, "train_loss": None} | trial["progress"]
    trial["rungs"] = [rung | given for given in trial["rungs"]]
    trial["diagnosis"] = [{"rung": None} | given for given in trial["diagnosis"]]
    return trial


def best_json(number: int, **changes: Any) -> dict[str, Any]:
    """The best trial as the API answers it."""
    return trial_json(number, **changes) | {"judgement": None, "pareto_front": None}


def event_json(number: int, **changes: Any) -> dict[str, Any]:
    """An event of a study as the API answers it."""
    event = {"id": number, "at": "2026-07-01T22:00:00Z", "trial_number": None, "kind": "x", "message": "m"}
    return event | changes


def schedule_json(**changes: Any) -> dict[str, Any]:
    """A schedule as the API answers it."""
    return {
        "id": "7" * 32,
        "name": "nightly",
        "cron": "0 22 * * *",
        "timezone": "UTC",
        "enabled": True,
        "owner": "alice",
        "overlap": "skip",
        "repeat_configurations": False,
        "definition": {"name": "tone"},
        "created_at": "2026-07-01T00:00:00Z",
        "next_fire_at": None,
        "last_fired_for": None,
        "studies": 3,
        "last_sweep": None,
        "last_skipped": None,
    } | changes
