"""A server with something in it: studies in every condition, schedules, a range test, an adapter to fetch."""

from __future__ import annotations

import json
import threading
from collections.abc import Container, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import partial
from typing import Any

from fastapi import FastAPI
from pydantic import SecretStr
from sqlalchemy import select
from starlette.testclient import TestClient
from starlette.types import ASGIApp, Receive, Scope, Send

from service.app import create_app
from service.db.database import open_database
from service.db.models import Device, Study
from service.db.transitions import advance_study
from service.devices import heartbeats
from service.optuna_store.storage import close_storage, open_storage
from service.settings import Settings
from service.states import AttemptState, StudyState
from tests.soak.fuzz.definitions import sound_definition, sound_schedule
from tests.support.service.database_lab import Lab

KEY = "fuzz-key"
PLAN_SECONDS = 0.001
"""A plan's report needs a process with torch, seconds each time: it is given up at once."""
RUNGS = ((2.0, 2.1), (1.5, 1.6), (1.4, 1.3))


@dataclass(frozen=True, kw_only=True)
class World:
    """The application, and what can be asked of it by name."""

    app: FastAPI
    studies: tuple[str, ...]
    searched: tuple[str, ...]
    """Studies with trials."""
    range_tests: tuple[str, ...]
    schedules: tuple[str, ...]
    devices: tuple[str, ...]
    keys: tuple[str, ...]

    def known(self, parameter: str, beside: Container[str]) -> tuple[Any, ...]:
        """Values of a path parameter that lead to something, beside the others of its path."""
        return {
            "study": self.searched if "number" in beside else self.studies,
            "range_test": self.range_tests,
            "schedule": self.schedules,
            "device": self.devices,
            "key": self.keys,
            "number": (0, 1, 2, 3, 4),
            "name": ("qlora-quick", "qlora-default"),
        }[parameter]


def make_world(settings: Settings) -> World:
    """Fill an empty, migrated database, and open the application on it.

    The application has a key, so that authentication is fuzzed, too.
    """
    changes = {
        "api_key": SecretStr(KEY),
        "plan_timeout_seconds": PLAN_SECONDS,
        "submission_check_seconds": 0,
        "plugins": ("my_metrics",),  # which definitions may name, and nothing here imports
    }
    settings = settings.model_copy(update=changes)
    for name in ("train.jsonl", "eval.jsonl"):
        rows = [{"text": f"Row {i} of {name}, with a few words in it."} for i in range(20)]
        (settings.data_roots[0] / name).write_text("".join(f"{json.dumps(row)}\n" for row in rows))
    for name in ("train.csv", "eval.csv"):
        (settings.data_roots[0] / name).write_text("".join(f"{i},a text,{i % 2}\n" for i in range(20)))
    database, storage = open_database(settings), open_storage(settings)
    studies: list[dict[str, Any]] = []
    with TestClient(create_app(settings), headers={"authorization": f"Bearer {KEY}"}) as client:

        def post(path: str, body: dict[str, Any]) -> dict[str, Any]:
            answer = client.post(path, json=body)
            assert answer.status_code == 201, answer.text
            made: dict[str, Any] = answer.json()
            return made

        for number in range(6):
            studies.append(post("/v1/studies", {**sound_definition(number), "name": f"study-{number}"}))
        plain = {
            "name": "study-plain",
            "model": {"id": "org/base"},
            "data": {"train": "train.jsonl", "eval": "eval.jsonl"},
            "search": {"trials": 4, "space": {"learning_rate": {"min": 1e-5, "max": 1e-3, "scale": "log"}}},
        }
        studies.append(post("/v1/studies", plain))
        several = {**plain, "name": "study-costs", "objective": {"costs": ["trainable_parameters"]}}
        several["search"] = {**plain["search"], "algorithm": "random"}
        studies.append(post("/v1/studies", several))
        schedules = [post("/v1/schedules", sound_schedule(number)) for number in range(30)]
        range_tests = [post("/v1/range-tests", sound_definition(number)) for number in range(20, 23)]
        keys = [post("/v1/keys", {"owner": f"owner-{number}"}) for number in range(12)]
        _run(Lab(studies[6], database, storage), settings, ())
        _run(Lab(studies[7], database, storage), settings, (12.5,))
        with database.write() as session:
            for row, state in zip(
                session.scalars(select(Study).where(Study.name.in_(["study-0", "study-1"]))),
                (StudyState.CANCELLED, StudyState.FAILED),
                strict=True,
            ):
                advance_study(session, row, state, f"it {state}")
            session.add(Device(id="GPU-0b1c", put_aside_at=datetime.now(UTC), reason="three trials failed"))
    close_storage(storage)
    database.dispose()
    app = create_app(settings)
    app.add_middleware(NothingWaits)
    words = [(study["id"], study["name"]) for study in studies]
    searched = tuple(word for both in words[6:] for word in both)
    return World(
        app=app,
        # Those with trials are asked for as often as all the others together.
        studies=(*(word for both in words[:6] for word in both), *searched * 4),
        searched=searched,
        range_tests=tuple(test["id"] for test in range_tests),
        schedules=tuple(schedule["id"] for schedule in schedules),
        devices=("GPU-0b1c",),
        keys=tuple(key["id"] for key in keys),
    )


class NothingWaits:
    """ASGI middleware: streams and long polls end at once, as when the server stops."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "http":
            scope["app"].state.broadcaster.close()
        await self._app(scope, receive, send)


@contextmanager
def living_coordinator(settings: Settings) -> Iterator[None]:
    """The heartbeats of a coordinator, so that the server is ready; it does nothing else."""
    database, stop = open_database(settings), threading.Event()

    def beat() -> None:
        while True:
            database.transact(partial(heartbeats.beat, owner="fuzz"))
            if stop.wait(heartbeats.BEAT_SECONDS):
                return

    database.transact(partial(heartbeats.beat, owner="fuzz"))
    thread = threading.Thread(target=beat, daemon=True)
    thread.start()
    try:
        yield
    finally:
        stop.set()
        thread.join()
        database.dispose()


def _run(lab: Lab, settings: Settings, costs: tuple[float, ...]) -> None:
    """Trials of each kind, the first with an adapter on the disk."""
    lab.advance(StudyState.RUNNING)
    folder = settings.artifacts_dir / lab.id / "0" / "1" / "best"
    folder.mkdir(parents=True)
    for name in ("adapter_config.json", "adapter_model.safetensors"):
        (folder / name).write_text("{}")
    lab.complete(1.4, costs=costs, rungs=RUNGS, best_adapter_dir=str(folder))
    lab.complete(1.3, costs=costs, rungs=RUNGS)
    lab.complete(float("inf"), costs=costs, end=AttemptState.DIVERGED)
    lab.complete(0.0, end=AttemptState.FAILED)
    lab.ask()
