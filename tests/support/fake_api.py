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
    return {
        "id": "5" * 32,
        "name": "tone",
        "state": "running",
        "reason": "",
        "definition": {
            "name": "tone",
            "model": {"id": "/models/base"},
            "search": {"algorithm": "tpe", "preset": "qlora-quick", "space": {"lora_r": {"choices": [4, 8]}}},
            "objective": {"metric": "eval_loss", "direction": "minimize"},
        },
        "created_at": "2026-07-01T22:00:00Z",
        "started_at": "2026-07-01T22:00:05Z",
        "ended_at": None,
        "schedule": None,
        "fired_for": None,
        "trials_requested": 12,
        "metric": "eval_loss",
        "direction": "minimize",
        "counts": {"running": 1, "completed": 1, "pruned": 0, "total": 2},
        "best": {"trial_number": 0, "value": 0.412, "params": {"learning_rate": 3.123e-4, "lora_r": 8}},
        "dashboard_path": "/dashboard/studies/3",
    } | changes


def trial_json(number: int, state: str = "completed", **changes: Any) -> dict[str, Any]:
    """A trial as the API answers it."""
    return {
        "number": number,
        "state": state,
        "reason": "",
        "params": {"learning_rate": 3.123e-4, "lora_r": 8},
        "recipe": {"learning_rate": 3.123e-4, "lora_r": 8, "epochs": 1.0},
        "value": None,
        "best_rung": None,
        "rungs": [],
        "metrics": {},
        "final_metrics": {},
        "progress": {"examples_seen": 0, "total_examples": 960, "step": 0, "train_loss": None},
        "train_seconds": None,
        "peak_memory_bytes": None,
        "predicted_memory_bytes": None,
        "useful_token_share": None,
        "started_at": None,
        "ended_at": None,
        "adapter": None,
        "attempts": [],
    } | changes
