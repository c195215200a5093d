"""The time and memory that earlier trials of the same task and model took on this server."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from sqlalchemy import select
from sqlalchemy.orm import Session

from search_spaces.definition import StudyDefinition
from service.db.kinds import StudyKind
from service.db.models import Attempt, Study
from service.states import AttemptState

RECENT_STUDIES = 200
"""Studies that are looked through, newest first."""
RECENT_TRIALS = 500
"""Completed trials that are."""
_DATA = ("train", "format", "columns", "max_length", "max_train_examples")
_SECTIONS = ("model", "task", "data", "evaluation")
_EVALUATION = ("eval", "max_eval_examples")


@dataclass(frozen=True)
class EarlierTrial:
    """A completed trial of the same task and model at the same quantization."""

    device: str | None
    examples: int
    train_seconds: float
    """Of its worker: in a pass of several trials, its rows' share."""
    eval_seconds: float
    peak_memory_bytes: int
    same_data: bool
    """Trained on the same data at the same length."""
    same_evaluation: bool
    """Evaluated on the same data at the same rungs, too."""


def earlier_trials(session: Session, definition: StudyDefinition) -> list[EarlierTrial]:
    """Completed trials of the definition's task on its model, newest first."""
    wanted = definition.model_dump(mode="json")
    # The database takes out what is compared: whole definitions may have many megabytes together.
    sections = (Study.definition[name].label(name) for name in _SECTIONS)
    recent = select(Study.id, *sections).where(Study.kind == StudyKind.SEARCH)
    rows = session.execute(recent.order_by(Study.created_at.desc()).limit(RECENT_STUDIES)).mappings()
    studies = {
        row["id"]: {name: row[name] for name in _SECTIONS}
        for row in rows
        if (row["model"], row["task"]) == (wanted["model"], wanted["task"])
    }
    if not studies:
        return []
    attempts = session.scalars(
        select(Attempt)
        .where(Attempt.study_id.in_(studies), Attempt.state == AttemptState.COMPLETED)
        .order_by(Attempt.id.desc())
        .limit(RECENT_TRIALS)
    )
    found = (_earlier(attempt, studies[attempt.study_id], wanted) for attempt in attempts)
    return [trial for trial in found if trial is not None]


def _earlier(attempt: Attempt, stored: Mapping[str, Any], wanted: Mapping[str, Any]) -> EarlierTrial | None:
    outcome = attempt.outcome or {}
    examples, seconds = outcome.get("examples_seen"), outcome.get("train_seconds")
    if not examples or not seconds or not math.isfinite(seconds):
        return None
    same_data = _same(stored, wanted, "data", _DATA)
    return EarlierTrial(
        device=attempt.device,
        examples=int(examples),
        train_seconds=float(seconds),
        eval_seconds=float(outcome.get("eval_seconds") or 0.0),
        peak_memory_bytes=int(outcome.get("peak_memory_bytes") or 0),
        same_data=same_data,
        same_evaluation=same_data
        and _same(stored, wanted, "data", _EVALUATION)
        and _same(stored, wanted, "evaluation", ("every_examples", "generate")),
    )


def _same(one: Mapping[str, Any], other: Mapping[str, Any], section: str, keys: Sequence[str]) -> bool:
    return all((one.get(section) or {}).get(key) == (other.get(section) or {}).get(key) for key in keys)
