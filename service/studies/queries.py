"""Reading studies and their events."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any
from weakref import WeakKeyDictionary

from pydantic import ValidationError
from sqlalchemy import ColumnElement, Connection, Engine, Select, and_, func, null, or_, select
from sqlalchemy.orm import InstrumentedAttribute, Session, defer

from search_spaces.definition import ObjectiveSpec, RepeatsSpec
from search_spaces.tasks import TASKS
from service.analysis.best import Goal
from service.db import rows
from service.db.database import database_now
from service.db.kinds import StudyKind
from service.db.models import Attempt, EventRow, Schedule, Study
from service.definitions.stored import read_definition
from service.errors import NotASearch, NotFound
from service.optuna_store.storage import Storage
from service.optuna_store.studies import read_summary, read_trials
from service.optuna_store.values import StudySummary, TrialValues
from service.states import (
    LIVE_ATTEMPT_STATES,
    TERMINAL_STUDY_STATES,
    TRIAL_FAILED,
    UNFINISHED_ATTEMPT_STATES,
    AttemptState,
    StudyState,
)
from service.studies import standing
from service.studies.cursors import make_cursor, read_cursor
from service.studies.deadlines import deadline
from service.studies.schemas import Counts, EventView, ListedStudy, StudyView

LISTED = (defer(Study.definition, raiseload=True), defer(Study.preparation, raiseload=True))
"""Options of a query for studies that are only listed: without the columns that may be large."""


@dataclass(frozen=True, kw_only=True)
class Page:
    studies: Sequence[Study]
    next_cursor: str | None


@dataclass(frozen=True, kw_only=True)
class Filters:
    """Which studies are listed: those that match everything that is given."""

    kind: StudyKind = StudyKind.SEARCH
    states: Sequence[StudyState] | None = None
    """Any of these."""
    prefix: str | None = None
    """Of the name."""
    owner: str | None = None
    schedule: str | None = None
    """The name or id of the schedule that made it, which may have been removed since."""

    def conditions(self) -> Iterator[ColumnElement[bool]]:
        yield Study.kind == self.kind
        if self.states:
            yield Study.state.in_(self.states)
        if self.prefix is not None:
            yield begins_with(Study.name, self.prefix)
        if self.owner is not None:
            yield Study.owner == self.owner
        if self.schedule is not None:
            present = select(Schedule.id).where(Schedule.name == self.schedule)
            yield or_(
                Study.schedule_id == self.schedule,
                Study.schedule_name == self.schedule,
                Study.schedule_id.in_(present),
            )


def get_study(session: Session, ref: str, *, lock: bool = False) -> Study:
    """The study of this name or id. Raises `NotFound`."""
    found = rows.find(session, Study, ref, lock=lock)
    if found is None:
        raise NotFound(f"There is no study {ref[:200]!r}.")
    return found


def get_search(session: Session, ref: str) -> Study:
    """The study of this name or id. Raises `NotFound`, and `NotASearch` for range tests."""
    study = get_study(session, ref)
    if study.kind == StudyKind.RANGE_TEST:
        raise NotASearch(
            f"{study.name!r} is a range test and not a search, so it has no best trial and no report."
            f" See /v1/range-tests/{study.name}."
        )
    return study


def begins_with(column: InstrumentedAttribute[str], prefix: str) -> ColumnElement[bool]:
    """Whether a name begins so, upper and lower case apart: SQLite's LIKE takes them for the same."""
    return func.substr(column, 1, len(prefix)) == prefix


def list_studies(session: Session, filters: Filters, *, limit: int, cursor: str | None) -> Page:
    """One page of the studies that match, newest first."""
    return page_of(session, select(Study).where(*filters.conditions()), limit=limit, cursor=cursor)


def page_of(session: Session, query: Select[Study], *, limit: int, cursor: str | None) -> Page:
    """One page of the studies that a query selects, newest first, for `list_view`."""
    query = query.options(*LISTED)
    query = query.order_by(Study.created_at.desc(), Study.id.desc()).limit(limit + 1)
    if cursor is not None:
        at, study_id = read_cursor(cursor)
        query = query.where(or_(Study.created_at < at, and_(Study.created_at == at, Study.id < study_id)))
    studies = session.scalars(query).all()
    last = studies[limit - 1] if len(studies) > limit else None
    return Page(studies=studies[:limit], next_cursor=make_cursor(last) if last else None)


def list_view(session: Session, storage: Storage, studies: Sequence[Study]) -> list[ListedStudy]:
    """Studies as lists show them. Their definitions are not read: a page of them may have many megabytes."""
    read = _read_all(session, storage, studies)
    return [
        ListedStudy(**fields, best=standing.listed_best(study, found.goal, found.summary, found.trials))
        for study, found, fields in read
    ]


def show(session: Session, storage: Storage, studies: Sequence[Study]) -> list[StudyView]:
    """Studies as the API shows each at its own address."""
    return [_view(study, found, fields) for study, found, fields in _read_all(session, storage, studies)]


@dataclass(frozen=True, kw_only=True)
class _Found:
    """What is known of a study elsewhere than in its row."""

    goal: Goal | None
    """None: this version cannot read it."""
    summary: StudySummary | None
    trials: Sequence[TrialValues]
    """All of them, where they have to be compared with each other; else three small queries do."""


def _read_all(
    session: Session, storage: Storage, studies: Sequence[Study]
) -> Iterator[tuple[Study, _Found, dict[str, Any]]]:
    """Each study, what is known of it elsewhere, and what lists and the study's own address both show."""
    ids = [study.id for study in studies]
    attempts, goals = _attempt_counts(session, ids), _goals(session, ids)
    tests, paused = _range_tests(session, studies)
    now, missing = database_now(session), standing.coordinator_is_missing(session, studies)
    for study in studies:
        goal = goals.get(study.id)
        summary = read_summary(storage, study.name)
        compared = goal is not None and (goal.repeats is not None or goal.objective.costs)
        trials = read_trials(storage, study.name) if compared else []
        number = summary.trials if summary is not None else 0
        counts = _counts(session, study, attempts.get(study.id, {}), number)
        counts.repeats = sum(trial.repeat_of is not None for trial in trials)
        why = standing.reason(study, now, coordinator_missing=missing, paused_test=paused.get(study.id))
        fields = {
            "id": study.id,
            "name": study.name,
            "kind": StudyKind(study.kind),
            "state": StudyState(study.state),
            "reason": why,
            "owner": study.owner,
            "created_at": study.created_at,
            "started_at": study.started_at,
            "ended_at": study.ended_at,
            "pause_requested": study.pause_requested,
            "paused_at": study.paused_at,
            "schedule": study.schedule_name,
            "schedule_id": study.schedule_id,
            "fired_for": study.fired_for,
            "base_seed": study.base_seed,
            "range_test": tests.get(study.range_test_id or ""),
            "task": None if goal is None else goal.task,
            "metric": None if goal is None else goal.objective.metric,
            "direction": None if goal is None else goal.objective.direction,
            "counts": counts,
            "dashboard_path": None if summary is None else f"/dashboard/studies/{summary.number}",
        }
        yield study, _Found(goal=goal, summary=summary, trials=trials), fields


_KNOWN_GOALS: WeakKeyDictionary[Engine | Connection, dict[str, Goal | None]] = WeakKeyDictionary()
"""Of each database. A definition never changes, and the database needs milliseconds for a large one."""
_MOST_GOALS = 10_000


def _goals(session: Session, ids: Sequence[str]) -> Mapping[str, Goal | None]:
    """Study id -> what its definition aims at: small sections, which the database takes out of it."""
    known = _KNOWN_GOALS.setdefault(session.get_bind(), {})
    if unknown := [study_id for study_id in ids if study_id not in known]:
        if len(known) > _MOST_GOALS:
            known.clear()
            unknown = list(ids)
        names = ("task", "objective", "repeats")
        sections = select(Study.id, *(Study.definition[name] for name in names))
        for study_id, task, objective, repeats in session.execute(sections.where(Study.id.in_(unknown))):
            known[study_id] = _read_goal(task, objective, repeats)
    return {study_id: known.get(study_id) for study_id in ids}


def _read_goal(task: Any, objective: Any, repeats: Any) -> Goal | None:
    if task not in TASKS:
        return None
    try:
        return Goal(
            task=task,
            objective=ObjectiveSpec.model_validate(objective),
            repeats=None if repeats is None else RepeatsSpec.model_validate(repeats),
        )
    except ValidationError:
        return None


def _range_tests(session: Session, studies: Sequence[Study]) -> tuple[dict[str, str], dict[str, str]]:
    """Range test's id -> its name, and the id of a study that waits for a paused one -> why, in words."""
    test_ids = {study.range_test_id for study in studies if study.range_test_id}
    if not test_ids:
        return {}, {}
    tests = session.execute(
        select(Study.id, Study.name, Study.state, Study.reason).where(Study.id.in_(test_ids))
    ).all()
    words = {
        row.id: f"waiting for its learning-rate range test {row.name}, which is paused: {row.reason}"
        for row in tests
        if row.state == StudyState.PAUSED
    }
    waiting = select(Study.id, Study.range_test_id).where(
        Study.id.in_([study.id for study in studies]),
        Study.range_test_id.in_(words),
        Study.preparation.is_(null()),
    )
    return {row.id: row.name for row in tests}, {
        row.id: words[row.range_test_id] for row in session.execute(waiting)
    }


def _attempt_counts(session: Session, ids: Sequence[str]) -> dict[str, dict[str, int]]:
    """Study id -> state of each trial's latest attempt -> number of trials."""
    latest = (
        select(Attempt.study_id, Attempt.trial_number, func.max(Attempt.ordinal).label("ordinal"))
        .where(Attempt.study_id.in_(ids))
        .group_by(Attempt.study_id, Attempt.trial_number)
        .subquery()
    )
    query = (
        select(Attempt.study_id, Attempt.state, func.count().label("trials"))
        .join(
            latest,
            and_(
                Attempt.study_id == latest.c.study_id,
                Attempt.trial_number == latest.c.trial_number,
                Attempt.ordinal == latest.c.ordinal,
            ),
        )
        .group_by(Attempt.study_id, Attempt.state)
    )
    result: dict[str, dict[str, int]] = {}
    for row in session.execute(query):
        result.setdefault(row.study_id, {})[row.state] = row.trials
    return result


def count_ended_trials(session: Session, studies: Sequence[Study]) -> dict[str, int]:
    """Study id -> how many of its trials are over, whatever became of them."""
    counts = _attempt_counts(session, [study.id for study in studies])
    open_states = LIVE_ATTEMPT_STATES | UNFINISHED_ATTEMPT_STATES
    return {
        study.id: sum(n for state, n in counts.get(study.id, {}).items() if state not in open_states)
        + _failed_while_waiting(session, study)
        for study in studies
    }


def _view(study: Study, found: _Found, fields: Mapping[str, Any]) -> StudyView:
    definition, trials = read_definition(study), found.trials
    requested = standing.trials_requested(study, definition)
    return StudyView(
        **fields,
        stage=standing.stage(study, definition, trials),
        definition=study.definition,
        deadline=None if definition is None else deadline(study, definition.budget),
        trials_requested=requested,
        repeats_requested=standing.repeats_requested(definition, requested),
        preparation=standing.preparation_view(study),
        best=standing.best_trial(study, definition, found.summary, trials),
        pareto_front=standing.pareto_points(definition, trials)
        if definition is not None and definition.objective.costs
        else None,
    )


def _counts(session: Session, study: Study, attempts: dict[str, int], trials: int) -> Counts:
    by_state = dict(attempts)
    running = sum(by_state.pop(state, 0) for state in LIVE_ATTEMPT_STATES)
    for state in UNFINISHED_ATTEMPT_STATES:
        by_state.pop(state, None)
    total = max(trials, sum(attempts.values()))
    waiting = total - running - sum(by_state.values())
    if waiting:
        failed = _failed_while_waiting(session, study)
        by_state[AttemptState.FAILED] = by_state.get(AttemptState.FAILED, 0) + failed
        waiting -= failed
    if study.state in TERMINAL_STUDY_STATES:
        by_state[AttemptState.CANCELLED] = by_state.get(AttemptState.CANCELLED, 0) + waiting
        waiting = 0
    return Counts(running=running, waiting=waiting, total=total, **{str(k): n for k, n in by_state.items()})


def _failed_while_waiting(session: Session, study: Study) -> int:
    """Trials that failed without an attempt that did: their workers were lost too often."""
    number = func.count(EventRow.trial_number.distinct())
    query = select(number).where(EventRow.study_id == study.id, EventRow.kind == TRIAL_FAILED)
    return session.scalar(query) or 0


def list_events(session: Session, study: Study, *, after: int, limit: int) -> list[EventView]:
    """A study's events with an id above `after`, oldest first."""
    query = (
        select(EventRow)
        .where(EventRow.study_id == study.id, EventRow.id > after)
        .order_by(EventRow.id)
        .limit(limit)
    )
    return [EventView.model_validate(event) for event in session.scalars(query)]
