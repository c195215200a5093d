"""Databases with many studies that have ended, as a service leaves them, written in seconds."""

from __future__ import annotations

import json
import random
import uuid
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from typing import Any

from sqlalchemy import Connection, MetaData, insert

from search_spaces.definition import StudyDefinition
from search_spaces.parsing.document import parse_definition
from service import optuna_store
from service.db.database import Database, open_database
from service.db.models import Attempt, EventCounter, EventRow, RungReport, Study
from service.maintenance import integrity, schema
from service.optuna_store.storage import Storage, close_storage, open_storage
from service.optuna_store.studies import ensure_study
from service.settings import Settings

RUNGS = 6
"""Of a trial that trained to its end; a pruned one has two."""
PRUNED_EVERY = 3
LARGE = 1000
"""Trials of a study whose importance a coordinator would have kept."""
_EVERY = 100
"""Training examples between two rungs."""
_ROWS_AT_A_TIME = 5000

DOCUMENT: dict[str, Any] = {
    "name": "filled",
    "model": {"id": "org/model"},
    "data": {"train": "/data/train.jsonl", "eval": "/data/eval.jsonl"},
    "search": {
        "algorithm": "random",
        "trials": 10_000,
        "space": {
            "learning_rate": {"min": 1e-5, "max": 1e-2, "scale": "log"},
            "lora_r": {"choices": [4, 8, 16]},
            "batch_size": {"choices": [8, 16]},
            "warmup_ratio": {"min": 0.0, "max": 0.2},
        },
    },
    "evaluation": {"every_examples": _EVERY},
}


def fill(settings: Settings, sizes: list[int]) -> list[str]:
    """Make studies of so many trials each: their names, in this order."""
    schema.upgrade(settings)
    definition = parse_definition(DOCUMENT)
    database, storage = open_database(settings), open_storage(settings)
    try:
        distributions = _distributions(storage, definition)
        names = [f"study-{place:04d}" for place in range(len(sizes))]
        with integrity.open_engines(settings) as (service, optuna):
            with service.begin() as connection:
                _fill_service(connection, definition, names, sizes)
            theirs = MetaData()
            theirs.reflect(optuna)
            with optuna.begin() as connection:
                _fill_optuna(connection, theirs, distributions, names, sizes)
        _build_tables(database, storage)
        _analyze(settings)
    finally:
        close_storage(storage)
        database.dispose()
    return names


def _build_tables(database: Database, storage: Storage) -> None:
    """What the service derives from both, where this version has it."""
    try:
        from service.db.models import Trial
        from service.reports.queries import find_importance
        from service.trials.rebuilding import rebuild_all
    except ImportError:
        return
    rebuild_all(database, storage)
    with database.write() as session:
        for study in session.query(Study):
            size = session.query(Trial).where(Trial.study_id == study.id).count()
            if size >= LARGE:
                definition = StudyDefinition.model_validate(study.definition)
                found = find_importance(storage, study.name, definition)
                study.importance = found.model_dump(mode="json")


def _analyze(settings: Settings) -> None:
    with integrity.open_engines(settings) as engines:
        for engine in engines:
            with engine.begin() as connection:
                connection.exec_driver_sql("ANALYZE")


def _distributions(storage: Storage, definition: StudyDefinition) -> dict[str, str]:
    """Parameter -> its distribution as Optuna's tables hold it, from one trial that is really asked for."""
    study = ensure_study(storage, "pattern", definition)
    number, _ = optuna_store.ask(study, definition)
    frozen = study.trials[number]
    from optuna.distributions import distribution_to_json

    found = {name: distribution_to_json(one) for name, one in frozen.distributions.items()}
    storage.delete_study(study._study_id)
    return found


def _value(name: str, dice: random.Random) -> float:
    """Optuna's own number for a value; of a choice, its place."""
    match name:
        case "learning_rate":
            return float(10 ** dice.uniform(-5, -2))
        case "warmup_ratio":
            return dice.uniform(0.0, 0.2)
        case "lora_r":
            return float(dice.randrange(3))
        case _:
            return float(dice.randrange(2))


def _losses(study: int, number: int) -> list[float]:
    dice = random.Random(study * 1_000_003 + number)
    loss, low = 3.0, dice.uniform(0.5, 2.0)
    found = []
    for _ in range(2 if number % PRUNED_EVERY == 2 else RUNGS):
        loss = low + (loss - low) * dice.uniform(0.5, 0.8)
        found.append(loss)
    return found


def _fill_service(
    connection: Connection, definition: StudyDefinition, names: list[str], sizes: list[int]
) -> None:
    begin = datetime(2026, 1, 1, tzinfo=UTC)
    document = definition.model_dump(mode="json")
    studies = [
        {
            "id": uuid.uuid4().hex,
            "name": name,
            "definition": {**document, "name": name},
            "state": "completed",
            "reason": "all trials have ended",
            "created_at": begin + timedelta(minutes=place),
            "started_at": begin + timedelta(minutes=place, seconds=1),
            "ended_at": begin + timedelta(minutes=place, seconds=50),
            "swept_at": begin + timedelta(minutes=place, seconds=55),
        }
        for place, name in enumerate(names)
    ]
    connection.execute(insert(Study), studies)
    attempt_id = 0
    attempts, reports, events = [], [], []
    for place, size in enumerate(sizes):
        at = begin + timedelta(minutes=place)
        for number in range(size):
            attempt_id += 1
            study_id, losses = studies[place]["id"], _losses(place, number)
            pruned = number % PRUNED_EVERY == 2
            attempts.append(_attempt(attempt_id, study_id, number, losses, at))
            reports += [
                _report(attempt_id, study_id, number, rung, loss) for rung, loss in enumerate(losses, 1)
            ]
            end = "attempt_pruned" if pruned else "attempt_completed"
            for kind, message in (("attempt_dispatched", "sent"), (end, "as its reports said")):
                events.append(
                    {
                        # Given, because the counter is slow in a transaction of so many events.
                        "position": len(events) + 1,
                        "study_id": study_id,
                        "trial_number": number,
                        "kind": kind,
                        "message": message,
                        "at": at,
                    }
                )
    connection.execute(insert(EventCounter), [{"id": 1, "last": len(events)}])
    for table, rows in ((Attempt, attempts), (RungReport, reports), (EventRow, events)):
        for start in range(0, len(rows), _ROWS_AT_A_TIME):
            connection.execute(insert(table), rows[start : start + _ROWS_AT_A_TIME])


def _attempt(
    attempt_id: int, study_id: str, number: int, losses: list[float], at: datetime
) -> dict[str, Any]:
    pruned = number % PRUNED_EVERY == 2
    seen = _EVERY * len(losses)
    return {
        "id": attempt_id,
        "study_id": study_id,
        "trial_number": number,
        "ordinal": 1,
        "state": "pruned" if pruned else "completed",
        "reason": "behind its peers" if pruned else "trained to its end",
        "worker_id": f"worker-{number % 4}",
        "device": "cpu",
        "gpus": 0.0,
        "artifact_dir": f"/artifacts/{study_id}/{number}/1",
        "verdict_reason": "behind its peers" if pruned else None,
        "last_rung": seen,
        "dispatched_at": at,
        "started_at": at + timedelta(seconds=1),
        "ended_at": at + timedelta(seconds=40),
        "total_examples": _EVERY * RUNGS,
        "examples_seen": seen,
        "step": seen // 8,
        "train_loss": losses[-1] * 0.95,
        "last_event_seq": 10,
        "outcome": {
            "status": "pruned" if pruned else "completed",
            "value": min(losses),
            "best_rung": _EVERY * (1 + losses.index(min(losses))),
            "metrics": {"eval_loss": min(losses), "perplexity": 2.0, "token_accuracy": 0.5},
            "final_metrics": {"eval_loss": losses[-1], "perplexity": 2.0, "token_accuracy": 0.5},
            "train_seconds": 38.5,
            "peak_memory_bytes": 2_000_000_000,
            "predicted_memory_bytes": 2_100_000_000,
            "useful_token_share": 0.9,
            "trainable_parameters": 1_000_000,
            "gradient_noise_scale": 20.0,
            "best_adapter_dir": f"/artifacts/{study_id}/{number}/1/best",
            "last_adapter_dir": f"/artifacts/{study_id}/{number}/1/last",
            "rate_curve": [],
        },
    }


def _report(attempt_id: int, study_id: str, number: int, rung: int, loss: float) -> dict[str, Any]:
    return {
        "study_id": study_id,
        "trial_number": number,
        "rung": _EVERY * rung,
        "attempt_id": attempt_id,
        "examples_seen": _EVERY * rung,
        "step": _EVERY * rung // 8,
        "epoch": rung / RUNGS,
        "metrics": {"eval_loss": loss, "perplexity": 2.0, "token_accuracy": 0.5},
        "train_loss": loss * 0.95,
        "train_seconds": 6.0 * rung,
        "gradient_noise_scale": 20.0,
    }


def _fill_optuna(
    connection: Connection,
    tables: MetaData,
    distributions: dict[str, str],
    names: list[str],
    sizes: list[int],
) -> None:
    rows: dict[str, list[dict[str, Any]]] = {}
    trial_id = 1_000_000  # far above what the pattern had, whose number PostgreSQL will not give again
    for place, (name, size) in enumerate(zip(names, sizes, strict=True)):
        study_id = 1_000 + place
        rows.setdefault("studies", []).append({"study_id": study_id, "study_name": name})
        rows.setdefault("study_directions", []).append(
            {"direction": "MINIMIZE", "study_id": study_id, "objective": 0}
        )
        rows.setdefault("study_user_attributes", []).append(
            {"study_id": study_id, "key": "model", "value_json": json.dumps("org/model")}
        )
        for number in range(size):
            trial_id += 1
            for table, row in _optuna_trial(trial_id, study_id, place, number, distributions):
                rows.setdefault(table, []).append(row)
    for table in tables.sorted_tables:
        of_table = rows.get(table.name, [])
        for start in range(0, len(of_table), _ROWS_AT_A_TIME):
            connection.execute(insert(table), of_table[start : start + _ROWS_AT_A_TIME])


def _optuna_trial(
    trial_id: int, study_id: int, place: int, number: int, distributions: dict[str, str]
) -> Iterator[tuple[str, dict[str, Any]]]:
    losses, dice = _losses(place, number), random.Random(trial_id)
    pruned = number % PRUNED_EVERY == 2
    at = datetime(2026, 1, 1)  # noqa: DTZ001  (Optuna keeps local times)
    yield (
        "trials",
        {
            "trial_id": trial_id,
            "number": number,
            "study_id": study_id,
            "state": "PRUNED" if pruned else "COMPLETE",
            "datetime_start": at,
            "datetime_complete": at + timedelta(seconds=40),
        },
    )
    for name, distribution in distributions.items():
        yield (
            "trial_params",
            {
                "trial_id": trial_id,
                "param_name": name,
                "param_value": _value(name, dice),
                "distribution_json": distribution,
            },
        )
    for rung, loss in enumerate(losses, 1):
        yield (
            "trial_intermediate_values",
            {
                "trial_id": trial_id,
                "step": _EVERY * rung,
                "intermediate_value": loss,
                "intermediate_value_type": "FINITE",
            },
        )
    if not pruned:
        yield (
            "trial_values",
            {"trial_id": trial_id, "objective": 0, "value": min(losses), "value_type": "FINITE"},
        )
    outcome = "pruned" if pruned else "completed"
    for key, value in (("outcome", outcome), ("reason", "trained to its end")):
        yield "trial_user_attributes", {"trial_id": trial_id, "key": key, "value_json": json.dumps(value)}
