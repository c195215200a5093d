"""Databases with whole studies in them, run by the real coordinator on a cluster that trains nothing."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from sqlalchemy import select

from search_spaces.parsing.document import parse_definition
from service.coordinator.loop import Coordinator
from service.db import database as db
from service.db.models import Study
from service.maintenance import integrity
from service.maintenance.backup.sides import read_sides
from service.maintenance.backup.values import encode
from service.optuna_store.storage import close_storage, open_storage
from service.settings import Settings
from service.states import TERMINAL_STUDY_STATES
from tests.support.fakes.cluster import FakeCluster

GRID: dict[str, Any] = {
    "name": "grid",
    "model": {"id": "org/model"},
    "data": {"train": "/t.jsonl", "eval": "/e.jsonl"},
    "search": {
        "algorithm": "grid",
        "space": {"learning_rate": {"choices": [1e-4, 1e-3]}, "lora_r": {"choices": [4, 8]}},
    },
    "evaluation": {"every_examples": 25},
    "budget": {"max_parallel_trials": 2},
}
RANDOM: dict[str, Any] = {
    **GRID,
    "name": "random",
    "search": {
        "algorithm": "random",
        "trials": 6,
        "space": {"learning_rate": {"min": 1e-5, "max": 1e-1, "scale": "log"}, "lora_r": {"choices": [4, 8]}},
    },
    "pruning": {"algorithm": "asha", "min_examples": 25, "reduction_factor": 2, "n_min_trials": 1},
    "repeats": {"top_k": 1, "seeds": 2},
}


class Service:
    """The service without its REST process: two databases, a coordinator, a fake cluster.

    Args:
        settings: of databases that have their tables.
    """

    def __init__(self, settings: Settings) -> None:
        self.settings = settings.model_copy(update={"poll_seconds": 0.001})
        self.settings.home.mkdir(parents=True, exist_ok=True)
        self.database = db.open_database(self.settings)
        self.storage = open_storage(self.settings)
        self.cluster = FakeCluster(4, slots=2)
        self.coordinator = Coordinator(self.settings, self.database, self.storage, self.cluster)

    def submit(self, document: dict[str, Any]) -> str:
        definition = parse_definition(document).model_dump(mode="json")
        with self.database.write() as session:
            study = Study(name=document["name"], definition=definition)
            session.add(study)
        return study.id

    def states(self) -> dict[str, str]:
        with self.database.read() as session:
            return {study.name: study.state for study in session.query(Study)}

    def run(self, rounds: int = 2000) -> None:
        """Rounds until every study has ended."""
        for _ in range(rounds):
            if all(state in TERMINAL_STUDY_STATES for state in self.states().values()):
                return
            self.coordinator.round()
        raise AssertionError(f"no end after {rounds} rounds: {self.states()}")

    def close(self) -> None:
        close_storage(self.storage)
        self.database.dispose()


@contextmanager
def service_of(settings: Settings) -> Iterator[Service]:
    service = Service(settings)
    try:
        yield service
    finally:
        service.close()


def search(settings: Settings) -> None:
    """A grid, one of whose workers dies, and a pruned search with repeats, both to their ends."""
    with service_of(settings) as service:
        service.submit(GRID)
        service.submit(RANDOM)
        while not service.cluster.alive:
            service.coordinator.round()
        service.coordinator.round()
        service.cluster.kill(service.cluster.alive[0])
        service.run()


def rows_of(settings: Settings) -> dict[str, list[dict[str, Any]]]:
    """Everything in both databases, as a backup would say it, by side and table."""
    with integrity.open_engines(settings) as engines:
        found: dict[str, list[dict[str, Any]]] = {}
        for side in read_sides(*engines):
            with side.engine.connect() as connection:
                for table in side.tables:
                    rows = connection.execute(select(table).order_by(*table.primary_key)).mappings()
                    found[f"{side.name}/{table.name}"] = [
                        {name: encode(value) for name, value in row.items()} for row in rows
                    ]
        return found
