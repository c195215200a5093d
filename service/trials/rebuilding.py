"""Making the rows of trials from what they are copies of: Optuna's storage, attempts and events.

A coordinator does so whenever it takes a study, since its predecessor may have died between two writes;
`nightsweep db upgrade` for studies of earlier versions; and `nightsweep db check --repair` for all. Only rows
that differ are written.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import astuple
from typing import Any

from sqlalchemy import select
from sqlalchemy.orm import Session

from service.analysis import outcomes
from service.analysis.running_diagnosis import RunningDiagnosis
from service.db.database import Database
from service.db.kinds import StudyKind
from service.db.models import EventRow, Study, Trial
from service.optuna_store.storage import Storage
from service.optuna_store.studies import find_study_number, read_trials
from service.optuna_store.values import TrialValues
from service.states import TERMINAL_ATTEMPT_STATES, UNFINISHED_ATTEMPT_STATES, AttemptState
from service.trials.records import DIAGNOSED, StudyTrials, TrialRecord, finite, join

_END_EVENTS = {
    f"trial_{state}": state for state in sorted(TERMINAL_ATTEMPT_STATES - UNFINISHED_ATTEMPT_STATES)
}
"""Kinds of events that end a trial without an attempt, and how."""


def rebuild_all(database: Database, storage: Storage) -> int:
    """Do so for all studies: how many rows were written or removed. The service may run meanwhile."""
    with database.read() as session:
        ids = session.scalars(select(Study.id).order_by(Study.created_at, Study.id)).all()
    return sum(database.transact(lambda session, key=key: _of_id(session, storage, key)) for key in ids)  # type: ignore[misc]


def rebuild_missing(session: Session, storage: Storage) -> None:
    """Do so for studies of earlier versions, which no coordinator has taken under this one."""
    for study in session.scalars(select(Study).where(Study.optuna_number.is_(None))).all():
        rebuild_from(session, storage, study)


def _of_id(session: Session, storage: Storage, study_id: str) -> int:
    study = session.get(Study, study_id, with_for_update=True)
    return 0 if study is None else rebuild_from(session, storage, study)


def rebuild_from(session: Session, storage: Storage, study: Study) -> int:
    """The rows of one study, and all verdicts: how many were written or removed."""
    study.optuna_number = find_study_number(storage, study.name)
    return rebuild(session, study, read_trials(storage, study.name), anew=True)


def rebuild(session: Session, study: Study, trials: Sequence[TrialValues], *, anew: bool = False) -> int:
    """Write the rows of a study's trials that differ from what they are copies of.

    Args:
        session: writes. The study's row is locked.
        study: the study.
        trials: all that Optuna knows of it.
        anew: make every diagnosis again, not only where one is missing.

    Returns:
        How many were written or removed.
    """
    joined = derive(session, study, trials)
    rows = {row.number: row for row in session.scalars(select(Trial).where(Trial.study_id == study.id))}
    changed = set[int]()
    for record in joined.records:
        wanted = columns(study, joined, record)
        row = rows.pop(record.number, None)
        if row is None:
            session.add(Trial(study_id=study.id, number=record.number, **wanted))
        elif any(getattr(row, name) != value for name, value in wanted.items()):
            for name, value in wanted.items():
                setattr(row, name, value)
            row.findings = None  # it may rest on what was wrong
        else:
            continue
        changed.add(record.number)
    for row in rows.values():  # Optuna does not know them, or they are no part of the study
        session.delete(row)
    session.flush()
    return len(rows) + len(changed | _diagnose(session, study, trials, anew=anew))


def derive(
    session: Session, study: Study, trials: Sequence[TrialValues], *, reports: bool = False
) -> StudyTrials:
    """What Optuna, attempts and events say together, without a look at the rows."""
    return join(session, study, trials, read_reports=reports, ended=dict(_ends(session, study)))


def columns(study: Study, trials: StudyTrials, record: TrialRecord) -> Mapping[str, Any]:
    """A trial's row but for its diagnosis."""
    values, last = record.values, record.last
    value, costs, feasible = record.value, list(values.values[1:]), values.feasible
    completed = last is not None and last.state == AttemptState.COMPLETED
    if values.value is None and completed and trials.definition is not None:
        # The coordinator records an end before it tells Optuna.
        given = trials.definition, StudyKind(study.kind), record.outcome
        if outcomes.shortfall(*given) is None:
            result = outcomes.result(*given)
            value, costs, feasible = result.value, list(result.costs), result.feasible
    return {
        "state": record.state,
        "reason": record.reason,
        "params": dict(values.params),
        "repeat_of": values.repeat_of,
        "seed": values.seed,
        "evaluates": None if values.evaluates is None else dict(values.evaluates),
        "value": value,
        "costs": costs,
        "feasible": feasible and record.state != AttemptState.OUT_OF_MEMORY,
        "rungs": [[rung, finite(at)] for rung, at in values.rungs],
        "best_rung": record.outcome.get("best_rung"),
        "started_at": next((a.started_at for a in record.attempts if a.started_at is not None), None),
        "ended_at": None if last is None else last.ended_at,
    }


def _ends(session: Session, study: Study) -> Iterator[tuple[int, tuple[AttemptState, str]]]:
    events = select(EventRow).where(EventRow.study_id == study.id, EventRow.kind.in_(_END_EVENTS))
    for event in session.scalars(events.order_by(EventRow.id.desc())):  # the first of a trial stands
        if event.trial_number is not None:
            yield event.trial_number, (_END_EVENTS[event.kind], event.message)


def _diagnose(session: Session, study: Study, trials: Sequence[TrialValues], *, anew: bool) -> set[int]:
    """Write the verdicts that are missing; the trials of which something new is said."""
    if study.kind != StudyKind.SEARCH:
        return set()
    ended = select(Trial).where(Trial.study_id == study.id, Trial.state.in_(DIAGNOSED))
    rows = {row.number: row for row in session.scalars(ended)}
    if not anew and all(row.findings is not None for row in rows.values()):
        return set()
    diagnosis = RunningDiagnosis(derive(session, study, trials, reports=True).curves())
    changed = set()
    for number, row in rows.items():
        found = [list(astuple(finding)) for finding in diagnosis.findings.get(number, ())]
        if row.findings != found:
            row.findings = found
            changed.add(number)
    return changed
