"""The rows of trials that readers see: how each is changed by what happens to the trial.

Each function is one part of the writing transaction that records what happened, whose caller holds the
study's row locked. None needs the row to be there: a coordinator writes those that are missing when it next
takes the study (`service.trials.rebuilding`).
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from sqlalchemy import update
from sqlalchemy.orm import Session

from service.db.models import Attempt, Trial
from service.states import WAITING, AttemptState

WAITS = "waiting for a free slot"
"""The reason of a trial that has had no attempt yet."""


@dataclass(frozen=True, kw_only=True)
class Result:
    """What a completed trial is compared by."""

    value: float
    """The objective at its best rung."""
    costs: Sequence[float] = ()
    """In the order of `objective.costs`."""
    feasible: bool = True
    """It breaks no constraint."""


def add(
    session: Session,
    study_id: str,
    number: int,
    params: Mapping[str, Any],
    *,
    repeat_of: int | None = None,
    seed: int | None = None,
    evaluates: Mapping[str, Any] | None = None,
) -> None:
    """A trial that was asked for. Adding it again changes nothing.

    Args:
        session: writes.
        study_id: the study's.
        number: the trial's.
        params: as Optuna holds them.
        repeat_of: the trial whose recipe it runs again, if it is a repeat.
        seed: of a repeat.
        evaluates: the adapter that it evaluates, if it trains nothing.
    """
    if session.get(Trial, (study_id, number)) is None:
        row = Trial(study_id=study_id, number=number, state=WAITING, reason=WAITS, params=dict(params))
        row.repeat_of, row.seed = repeat_of, seed
        row.evaluates = None if evaluates is None else dict(evaluates)
        session.add(row)


def follow(session: Session, attempt: Attempt, result: Result | None = None) -> None:
    """A trial's latest attempt has changed.

    Args:
        session: writes.
        attempt: the latest one.
        result: of a trial that has completed with it.
    """
    row = session.get(Trial, (attempt.study_id, attempt.trial_number))
    if row is None:
        return
    row.state, row.reason = attempt.state, attempt.reason
    row.started_at = row.started_at or attempt.started_at
    row.ended_at = attempt.ended_at
    row.best_rung = (attempt.outcome or {}).get("best_rung")
    if result is not None:
        row.value, row.costs, row.feasible = result.value, list(result.costs), result.feasible
    elif attempt.state == AttemptState.OUT_OF_MEMORY:
        row.feasible = False  # as Optuna is told: a violated constraint


def end(session: Session, study_id: str, number: int, outcome: AttemptState, reason: str) -> None:
    """A trial has ended without an attempt that did."""
    row = session.get(Trial, (study_id, number))
    if row is not None:
        row.state, row.reason = outcome, reason
        row.feasible = row.feasible and outcome is not AttemptState.OUT_OF_MEMORY


def report(session: Session, study_id: str, number: int, rung: int, value: float) -> None:
    """Optuna was told the objective at a rung. The first report of a rung stands."""
    row = session.get(Trial, (study_id, number))
    if row is not None and all(known != rung for known, _ in row.rungs):
        row.rungs = sorted([*row.rungs, [rung, value]], key=lambda pair: pair[0])


def touch(session: Session, study_id: str, numbers: Iterable[int]) -> None:
    """Something else has changed of what is shown of these trials."""
    of_these = Trial.study_id == study_id, Trial.number.in_(set(numbers))
    session.execute(update(Trial).where(*of_these).values(revision=Trial.revision + 1))
