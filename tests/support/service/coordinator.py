"""The service's two databases and a fake cluster: what the tests of the coordinator run whole studies in."""

from __future__ import annotations

import functools
import random
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import select
from sqlalchemy.orm import Session

from search_spaces.parsing.document import parse_definition
from service import optuna_store
from service.coordinator.loop import Coordinator
from service.coordinator.study.runner import StudyRunner
from service.db import database as db
from service.db.kinds import StudyKind
from service.db.models import Attempt, EventRow, RungReport, Study
from service.maintenance.schema import upgrade
from service.optuna_store.storage import close_storage, open_storage
from service.optuna_store.studies import read_trials
from service.settings import Settings
from service.states import TERMINAL_STUDY_STATES
from tests.support.fakes.cluster import FakeCluster

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


@functools.cache
def _empty_databases() -> dict[str, bytes]:
    """The files of both databases without a row: the migrations run once for all labs."""
    with tempfile.TemporaryDirectory() as home:
        upgrade(Settings(home=Path(home)))
        return {path.name: path.read_bytes() for path in Path(home).glob("*.db")}


class Killed(BaseException):
    """The coordinator's process ends here. Nothing of ours catches it."""


class CoordinatorLab:
    """The service's two databases and a cluster, through which coordinators come and go.

    Args:
        home: its folder.
        cluster: where its studies train.
        patience: seconds that a study waits for a node, and trials for a worker that is starting.
        database_url: of a database with the schema, in place of SQLite files of its own.
        settings: others of the service's.
    """

    def __init__(
        self,
        home: Path,
        cluster: FakeCluster,
        *,
        patience: float = 0.01,
        database_url: str | None = None,
        **settings: Any,
    ) -> None:
        given = {"poll_seconds": 0.001, "resource_timeout_seconds": patience, **settings}
        if database_url is not None:
            given["database_url"] = database_url
        self.settings = Settings(home=home, **given)
        home.mkdir(parents=True, exist_ok=True)
        if database_url is None:
            for name, content in _empty_databases().items():
                (home / name).write_bytes(content)
        self.database = db.open_database(self.settings)
        self.storage = open_storage(self.settings)
        self.cluster = cluster
        self.coordinator = self.new_coordinator()

    def new_coordinator(self) -> Coordinator:
        return Coordinator(self.settings, self.database, self.storage, self.cluster)

    @property
    def runners(self) -> list[StudyRunner]:
        """Those of the studies whose leases the coordinator holds."""
        return list(self.coordinator.studies.values())

    def submit(
        self, columns: dict[str, Any] | None = None, sweep: dict[str, Any] | None = None, **changes: Any
    ) -> str:
        """A study of `DEFINITION` with changes.

        Args:
            columns: what is not the default in its row.
            sweep: makes a range test of it, which no submitted document can be.
            changes: to the definition.
        """
        document = {**DEFINITION, **changes}
        definition = parse_definition(document).model_dump(mode="json")
        if sweep is not None:
            definition["search"]["learning_rate_range_test"] = sweep
            columns = {"kind": StudyKind.RANGE_TEST, **(columns or {})}
        with self.database.write() as session:
            study = Study(name=document["name"], definition=definition, **(columns or {}))
            session.add(study)
        return study.id

    def study(self, study_id: str) -> Study:
        with self.database.read() as session:
            return session.get_one(Study, study_id)

    def attempts(self) -> list[Attempt]:
        with self.database.read() as session:
            return list(session.scalars(select(Attempt).order_by(Attempt.id)))

    def let_time_pass(self, seconds: float) -> None:
        """What has happened to attempts was so much longer ago."""
        with self.database.write() as session:
            for attempt in session.scalars(select(Attempt)):
                for column in ("dispatched_at", "started_at", "ended_at"):
                    if (at := getattr(attempt, column)) is not None:
                        setattr(attempt, column, at - timedelta(seconds=seconds))

    def events(self, kind: str) -> list[str]:
        with self.database.read() as session:
            rows = select(EventRow.message).where(EventRow.kind == kind).order_by(EventRow.id)
            return list(session.scalars(rows))

    def rungs(self) -> dict[int, dict[int, float]]:
        """What Optuna was told of each trial on its way."""
        return {t.number: dict(t.rungs) for t in read_trials(self.storage, "s")}

    def rung_reports(self) -> list[RungReport]:
        with self.database.read() as session:
            return list(session.scalars(select(RungReport).order_by(RungReport.id)))

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

    def run_through_deaths(
        self, study_id: str, dice: random.Random, monkeypatch: pytest.MonkeyPatch, *, chance: float = 0.02
    ) -> int:
        """Rounds until the study has ended, while coordinators die before or after any write.

        Returns:
            How many died.
        """
        deaths, armed = 0, True

        def die_perhaps() -> None:
            if armed and dice.random() < chance:
                raise Killed

        def mortal(function: Callable[..., Any]) -> Callable[..., Any]:
            def call(*args: Any, **kwargs: Any) -> Any:
                die_perhaps()
                result = function(*args, **kwargs)
                die_perhaps()
                return result

            return call

        write = db.Database.write

        @contextmanager
        def mortal_write(database: db.Database) -> Iterator[Session]:
            die_perhaps()
            with write(database) as session:
                yield session
            die_perhaps()

        with monkeypatch.context() as deadly:
            for name in ("ask", "ask_evaluation", "ask_repeat", "report", "should_prune", "tell"):
                deadly.setattr(optuna_store, name, mortal(getattr(optuna_store, name)))
            for name in ("start", "submit", "release"):
                deadly.setattr(self.cluster, name, mortal(getattr(self.cluster, name)))
            deadly.setattr(db.Database, "write", mortal_write)
            for _ in range(20_000):
                if self.study(study_id).state in TERMINAL_STUDY_STATES:
                    return deaths
                try:
                    self.coordinator.round()
                except Killed:
                    deaths += 1
                    armed = False
                    self.crash()
                    armed = True
        raise AssertionError("no end after 20,000 rounds")

    def values(self) -> dict[int, tuple[str, float | None, dict[str, Any]]]:
        trials = read_trials(self.storage, "s")
        return {t.number: (t.user_attrs["outcome"], t.value, dict(t.params)) for t in trials}

    def close(self) -> None:
        close_storage(self.storage)
        self.database.dispose()
