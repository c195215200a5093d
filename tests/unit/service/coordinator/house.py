"""The service's two databases and a fake cluster: what the tests of the coordinator run whole studies in."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

from sqlalchemy import select

from search_spaces.definition import parse_definition
from service import database as db
from service import optuna_store
from service.coordinator.loop import Coordinator
from service.models import Attempt, EventRow, Study
from service.settings import Settings
from service.states import TERMINAL_STUDY_STATES
from tests.fakes.cluster import FakeCluster

DEFINITION: dict[str, Any] = {
    "name": "s",
    "model": {"id": "org/model"},
    "data": {"train": "/t.jsonl", "eval": "/e.jsonl"},
    "search": {
        "algorithm": "tpe",
        "trials": 12,
        "space": {
            "learning_rate": {"min": 1e-5, "max": 1e-1, "scale": "log"},
            "lora_r": {"choices": [4, 8]},
        },
    },
    "evaluation": {"every_examples": 25},
    "budget": {"max_parallel_trials": 3},
}
GRID: dict[str, Any] = {
    "algorithm": "grid",
    "space": {
        "learning_rate": {"choices": [1e-4, 1e-3]},
        "lora_r": {"choices": [4, 8]},
        "epochs": {"choices": [1, 2]},
    },
}


class House:
    """The service's two databases and a cluster, through which coordinators come and go.

    Args:
        home: its folder.
        cluster: where its studies train.
        patience: seconds that a study waits for a node, and trials for a worker that is starting.
    """

    def __init__(self, home: Path, cluster: FakeCluster, *, patience: float = 0.01) -> None:
        self.settings = Settings(home=home, poll_seconds=0.001, resource_timeout_seconds=patience)
        db.upgrade(self.settings)
        self.database = db.open_database(self.settings)
        self.storage = optuna_store.open_storage(self.settings)
        self.cluster = cluster
        self.coordinator = self.new_coordinator()

    def new_coordinator(self) -> Coordinator:
        return Coordinator(self.settings, self.database, self.storage, self.cluster)

    def submit(self, **changes: Any) -> str:
        document = {**DEFINITION, **changes}
        definition = parse_definition(document).model_dump(mode="json")
        with self.database.write() as session:
            study = Study(name=document["name"], definition=definition)
            session.add(study)
        return study.id

    def study(self, study_id: str) -> Study:
        with self.database.read() as session:
            return session.get_one(Study, study_id)

    def attempts(self) -> list[Attempt]:
        with self.database.read() as session:
            return list(session.scalars(select(Attempt).order_by(Attempt.id)))

    def events(self, kind: str) -> list[str]:
        with self.database.read() as session:
            rows = select(EventRow.message).where(EventRow.kind == kind).order_by(EventRow.id)
            return list(session.scalars(rows))

    def rungs(self) -> dict[int, dict[int, float]]:
        """What Optuna was told of each trial on its way."""
        return {t.number: dict(t.rungs) for t in optuna_store.read_trials(self.storage, "s")}

    def rounds(self, until: Callable[[], bool], limit: int = 200) -> None:
        """Rounds until something holds."""
        for _ in range(limit):
            if until():
                return
            self.coordinator.round()
        raise AssertionError(f"it did not come about in {limit} rounds")

    def run(self, *study_ids: str, rounds: int = 2000, each: Callable[[], None] = lambda: None) -> None:
        """Rounds until the studies have ended."""
        for _ in range(rounds):
            if all(self.study(s).state in TERMINAL_STUDY_STATES for s in study_ids):
                return
            each()
            self.coordinator.round()
        raise AssertionError(f"no end after {rounds} rounds: {[self.study(s).state for s in study_ids]}")

    def crash(self) -> None:
        """The coordinator vanishes between two rounds, its lease runs out, and another one comes."""
        self.cluster.lose_connection()
        with self.database.write() as session:
            for study in session.scalars(select(Study)):
                study.lease_expires_at = None if study.lease_owner is None else study.created_at
        self.coordinator = self.new_coordinator()

    def values(self) -> dict[int, tuple[str, float | None, dict[str, Any]]]:
        trials = optuna_store.read_trials(self.storage, "s")
        return {t.number: (t.user_attrs["outcome"], t.value, dict(t.params)) for t in trials}

    def close(self) -> None:
        optuna_store.close_storage(self.storage)
        self.database.dispose()
