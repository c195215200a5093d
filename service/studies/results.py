"""What the trials of studies come to, by their rows: counts, the best one, and what it is compared with."""

from __future__ import annotations

import functools
import math
from collections.abc import Sequence

from sqlalchemy import ColumnElement, Select, bindparam, func, or_, select
from sqlalchemy.orm import InstrumentedAttribute, Session, aliased

from search_spaces.tasks import Direction
from service.analysis.best import Goal
from service.db.models import Study, Trial
from service.optuna_store.telling import OUTCOME_ATTR, REASON_ATTR, STATE_OF
from service.optuna_store.values import TrialValues
from service.states import (
    LIVE_ATTEMPT_STATES,
    TERMINAL_ATTEMPT_STATES,
    TERMINAL_STUDY_STATES,
    UNFINISHED_ATTEMPT_STATES,
    WAITING,
    AttemptState,
)
from service.studies.schemas import Counts

ENDED = TERMINAL_ATTEMPT_STATES - UNFINISHED_ATTEMPT_STATES
"""States of trials that are over."""

_ELIGIBLE: tuple[ColumnElement[bool], ...] = (
    Trial.repeat_of.is_(None),
    Trial.evaluates.is_(None),
    Trial.feasible.is_(True),
    Trial.value.is_not(None),
)
"""Trials that may be the best: of the search, completed, within the constraints."""


def values_of(row: Trial) -> TrialValues:
    """A trial's row in the form of what Optuna knows of it."""
    ended = row.state in ENDED
    return TrialValues(
        number=row.number,
        params=row.params,
        value=row.value,
        values=() if row.value is None else (row.value, *row.costs),
        feasible=row.feasible,
        rungs=tuple((rung, math.nan if value is None else value) for rung, value in row.rungs),
        state=STATE_OF[AttemptState(row.state)].name.lower() if ended else "running",
        repeat_of=row.repeat_of,
        seed=row.seed,
        evaluates=row.evaluates,
        user_attrs={OUTCOME_ATTR: row.state, REASON_ATTR: row.reason} if ended else {},
    )


def counts_of(session: Session, studies: Sequence[Study]) -> dict[str, Counts]:
    """Study id -> its trials by state."""
    counts = func.count(), func.count(Trial.repeat_of), func.count(Trial.evaluates)
    query = select(Trial.study_id, Trial.state, *counts)
    query = query.where(Trial.study_id.in_([study.id for study in studies]))
    found: dict[str, dict[str, int]] = {study.id: {} for study in studies}
    beside: dict[str, tuple[int, int]] = dict.fromkeys(found, (0, 0))
    for study_id, state, count, *others in session.execute(query.group_by(Trial.study_id, Trial.state)):
        found[study_id][state] = count
        repeats, evaluations = beside[study_id]
        beside[study_id] = (repeats + others[0], evaluations + others[1])
    return {study.id: _counts(study, found[study.id], *beside[study.id]) for study in studies}


def _counts(study: Study, by_state: dict[str, int], repeats: int, evaluations: int) -> Counts:
    total = sum(by_state.values())
    running = sum(by_state.pop(state, 0) for state in LIVE_ATTEMPT_STATES)
    waiting = sum(by_state.pop(state, 0) for state in (WAITING, *UNFINISHED_ATTEMPT_STATES))
    if study.state in TERMINAL_STUDY_STATES:
        by_state[AttemptState.CANCELLED] = by_state.get(AttemptState.CANCELLED, 0) + waiting
        waiting = 0
    return Counts(
        running=running,
        waiting=waiting,
        total=total,
        repeats=repeats,
        evaluations=evaluations,
        **{str(state): count for state, count in by_state.items()},
    )


def count_ended(session: Session, studies: Sequence[Study]) -> dict[str, int]:
    """Study id -> how many of its trials are over, whatever became of them."""
    query = select(Trial.study_id, func.count()).where(
        Trial.study_id.in_([study.id for study in studies]), Trial.state.in_(ENDED)
    )
    counts = {study.id: 0 for study in studies}
    counts.update((row[0], row[1]) for row in session.execute(query.group_by(Trial.study_id)))
    return counts


def best_first(direction: Direction) -> tuple[ColumnElement[float | None], InstrumentedAttribute[int]]:
    """The order of eligible trials, the best first."""
    value = Trial.value.asc() if direction == "minimize" else Trial.value.desc()
    return value, Trial.number


def best_of_each(session: Session, directions: dict[str, Direction]) -> dict[str, Trial]:
    """Study id -> the best of its search's completed trials that break no constraint, by the objective.

    Args:
        session: reads.
        directions: study id -> whether less or more is better.
    """
    found: dict[str, Trial] = {}
    for direction in set(directions.values()):
        ids = [study_id for study_id, other in directions.items() if other == direction]
        found |= {row.study_id: row for row in session.scalars(_best_query(direction), {"ids": ids})}
    return found


@functools.cache  # to put it together takes longer than to run it
def _best_query(direction: Direction) -> Select[Trial]:
    one = aliased(Trial)
    first = (
        select(Trial.number)
        .where(Trial.study_id == Study.id, *_ELIGIBLE)
        .order_by(*best_first(direction))
        .limit(1)
        .correlate(Study)
        .scalar_subquery()
    )
    query = select(one).join(Study, Study.id == one.study_id)
    return query.where(Study.id.in_(bindparam("ids", expanding=True)), one.number == first)


def compared(session: Session, study: Study, goal: Goal) -> list[TrialValues]:
    """The trials by which the winner is judged (`best.judgement`): the best of the search, repeats, and what
    those repeat."""
    of_study = select(Trial).where(Trial.study_id == study.id)
    top_k = 1 if goal.repeats is None else goal.repeats.top_k
    first = of_study.where(*_ELIGIBLE).order_by(*best_first(goal.objective.direction)).limit(top_k)
    rows = {row.number: row for row in session.scalars(first)}
    repeated = select(Trial.repeat_of).where(Trial.study_id == study.id, Trial.repeat_of.is_not(None))
    again = of_study.where(or_(Trial.repeat_of.is_not(None), Trial.number.in_(repeated)))
    rows |= {row.number: row for row in session.scalars(again)}
    return [values_of(rows[number]) for number in sorted(rows)]


def count_eligible(session: Session, study: Study) -> int:
    """How many completed trials of a study's search break no constraint."""
    query = select(func.count()).select_from(Trial).where(Trial.study_id == study.id, *_ELIGIBLE)
    return session.scalars(query).one()


def eligible(session: Session, study: Study) -> list[TrialValues]:
    """All completed trials of a study's search that break no constraint, by number."""
    query = select(Trial).where(Trial.study_id == study.id, *_ELIGIBLE).order_by(Trial.number)
    return [values_of(row) for row in session.scalars(query)]
