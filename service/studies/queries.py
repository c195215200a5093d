"""Reading studies."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any
from weakref import WeakKeyDictionary

from pydantic import ValidationError
from sqlalchemy import ColumnElement, Connection, Engine, Select, and_, func, null, or_, select
from sqlalchemy.orm import InstrumentedAttribute, Session, defer

from search_spaces.definition import ObjectiveSpec, RepeatsSpec, StudyDefinition
from search_spaces.tasks import TASKS, Direction
from service.analysis.best import Goal, judgement
from service.analysis.winner import Judgement
from service.db import rows
from service.db.database import database_now
from service.db.kinds import StudyKind
from service.db.models import Schedule, Study, StudyTag, Trial
from service.definitions.stored import effective_document, read_definition, shown_params
from service.errors import NotASearch, NotFound
from service.states import StudyState
from service.studies import results, standing
from service.studies.cursors import make_cursor, read_cursor
from service.studies.deadlines import deadline
from service.studies.schemas import (
    BestTrial,
    Counts,
    ExtensionView,
    ListedBest,
    ListedStudy,
    StudyView,
)

LISTED = tuple(
    defer(column, raiseload=True) for column in (Study.definition, Study.preparation, Study.importance)
)
"""Options of a query for studies that are only listed: without the columns that may be large."""


@dataclass(frozen=True, kw_only=True)
class Page:
    studies: Sequence[Study]
    next_cursor: str | None


@dataclass(frozen=True)
class Span:
    """From one time on and before another, where they are given."""

    start: datetime | None = None
    end: datetime | None = None

    def conditions(self, column: InstrumentedAttribute[Any]) -> Iterator[ColumnElement[bool]]:
        """A study without the time is in no span that has an end or a start."""
        if self.start is not None:
            yield column >= self.start
        if self.end is not None:
            yield column < self.end


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
    created: Span = Span()
    ended: Span = Span()
    tags: Sequence[str] | None = None
    """All of these."""

    archived: bool = False
    """Those that are archived, in place of the others."""
    deleted: bool = False
    """Those that are to be removed, archived or not, in place of the others."""

    def conditions(self) -> Iterator[ColumnElement[bool]]:
        yield Study.kind == self.kind
        yield Study.deleted_at.is_not(None) if self.deleted else Study.deleted_at.is_(None)
        if not self.deleted:
            yield Study.archived_at.is_not(None) if self.archived else Study.archived_at.is_(None)
        if self.states:
            yield Study.state.in_(self.states)
        if self.prefix is not None:
            yield begins_with(Study.name, self.prefix)
        if self.owner is not None:
            yield Study.owner == self.owner
        for tag in self.tags or ():
            yield Study.id.in_(select(StudyTag.study_id).where(StudyTag.tag == tag))
        if self.schedule is not None:
            present = select(Schedule.id).where(Schedule.name == self.schedule)
            yield or_(
                Study.schedule_id == self.schedule,
                Study.schedule_name == self.schedule,
                Study.schedule_id.in_(present),
            )
        yield from self.created.conditions(Study.created_at)
        yield from self.ended.conditions(Study.ended_at)


def get_study(session: Session, ref: str, *, lock: bool = False) -> Study:
    """The study of this name or id. Raises `NotFound`."""
    found = rows.find(session, Study, ref, lock=lock)
    if found is None:
        raise NotFound(_no_study(session, ref))
    return found


def _no_study(session: Session, ref: str) -> str:
    gone = rows.find_removed(session, ref)
    if gone is None:
        return f"There is no study {ref[:200]!r}."
    return (
        f"The study {gone.name!r} was removed on {gone.removed_at:%Y-%m-%d}: {gone.deleted_by!r} had"
        f" deleted it on {gone.deleted_at:%Y-%m-%d}."
    )


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


def list_view(session: Session, studies: Sequence[Study]) -> list[ListedStudy]:
    """Studies as lists show them. Their definitions are not read: a page of them may have many megabytes."""
    return [
        ListedStudy(**fields, best=None if found.best is None else ListedBest(**dict(found.best)))
        for _, found, fields in _read_all(session, studies)
    ]


def show(session: Session, study: Study) -> StudyView:
    """A study as the API shows it at its own address."""
    [(_, found, fields)] = _read_all(session, [study])
    return _view(session, study, found, fields)


@dataclass(frozen=True, kw_only=True)
class _Found:
    """What is known of a study elsewhere than in its row."""

    goal: Goal | None
    """None: this version cannot read it."""
    counts: Counts
    best: ListedBest | None
    row: Trial | None
    """The best of the search."""
    judged: Judgement | None
    """Where repeats decide."""


def _read_all(session: Session, studies: Sequence[Study]) -> Iterator[tuple[Study, _Found, dict[str, Any]]]:
    """Each study, what is known of it elsewhere, and what lists and the study's own address both show."""
    aims = _aims(session, [study.id for study in studies])
    counts = results.counts_of(session, studies)
    best = results.best_of_each(session, {study_id: aim.direction for study_id, aim in aims.items()})
    tests, paused = _range_tests(session, studies)
    tags = _tags(session, studies)
    now, missing = database_now(session), standing.coordinator_is_missing(session, studies)
    for study in studies:
        goal, row = aims[study.id].goal, best.get(study.id)
        judged = None
        if goal is not None and goal.repeats is not None and row is not None:
            trials = results.compared(session, study, goal)
            judged = judgement(goal, trials, over=study.ended_at is not None)
        why = standing.reason(study, now, coordinator_missing=missing, paused_test=paused.get(study.id))
        fields = {
            "id": study.id,
            "name": study.name,
            "kind": StudyKind(study.kind),
            "state": StudyState(study.state),
            "reason": why,
            "owner": study.owner,
            "tags": tags.get(study.id, []),
            "note": study.note,
            "created_at": study.created_at,
            "started_at": study.started_at,
            "ended_at": study.ended_at,
            "pause_requested": study.pause_requested,
            "paused_at": study.paused_at,
            "archived_at": study.archived_at,
            "deleted_at": study.deleted_at,
            "deleted_by": study.deleted_by,
            "removal_at": study.removal_at,
            "schedule": study.schedule_name,
            "schedule_id": study.schedule_id,
            "fired_for": study.fired_for,
            "base_seed": study.base_seed,
            "range_test": tests.get(study.range_test_id or ""),
            "task": None if goal is None else goal.task,
            "metric": None if goal is None else goal.objective.metric,
            "direction": None if goal is None else goal.objective.direction,
            "counts": counts[study.id],
            "dashboard_path": standing.dashboard_path(study),
        }
        listed = standing.listed_best(row, judged)
        yield study, _Found(goal=goal, counts=counts[study.id], best=listed, row=row, judged=judged), fields


@dataclass(frozen=True, kw_only=True)
class _Aim:
    """What lists need of a study's definition."""

    goal: Goal | None
    """None: this version cannot read it."""
    direction: Direction


_KNOWN_AIMS: WeakKeyDictionary[Engine | Connection, dict[str, _Aim]] = WeakKeyDictionary()
"""Of each database. A definition never changes, and the database needs milliseconds for a large one."""
_MOST_AIMS = 10_000


def _aims(session: Session, ids: Sequence[str]) -> Mapping[str, _Aim]:
    """Study id -> what its definition aims at: small sections, which the database takes out of it."""
    known = _KNOWN_AIMS.setdefault(session.get_bind(), {})
    if unknown := [study_id for study_id in ids if study_id not in known]:
        if len(known) > _MOST_AIMS:
            known.clear()
            unknown = list(ids)
        names = ("task", "objective", "repeats")
        sections = select(Study.id, *(Study.definition[name] for name in names))
        for study_id, task, objective, repeats in session.execute(sections.where(Study.id.in_(unknown))):
            maximizes = isinstance(objective, dict) and objective.get("direction") == "maximize"
            known[study_id] = _Aim(
                goal=_read_goal(task, objective, repeats), direction="maximize" if maximizes else "minimize"
            )
    return {study_id: known[study_id] for study_id in ids if study_id in known}


def direction_of(session: Session, study: Study) -> Direction:
    """Whether less or more of a study's objective is better, whatever else of its definition can be read."""
    return _aims(session, [study.id])[study.id].direction


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


def _tags(session: Session, studies: Sequence[Study]) -> Mapping[str, list[str]]:
    """Study id -> its tags, in the order of the alphabet; without those that have none."""
    found: dict[str, list[str]] = {}
    rows = select(StudyTag.study_id, StudyTag.tag).where(
        StudyTag.study_id.in_([study.id for study in studies])
    )
    for study_id, tag in session.execute(rows):
        found.setdefault(study_id, []).append(tag)
    return {study_id: sorted(tags) for study_id, tags in found.items()}


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


def _view(session: Session, study: Study, found: _Found, fields: Mapping[str, Any]) -> StudyView:
    definition = read_definition(study)
    requested = standing.trials_requested(study, definition)
    front = None
    if definition is not None and definition.objective.costs:
        front = standing.pareto_points(definition, results.eligible(session, study))
    return StudyView(
        **fields,
        stage=standing.stage(study, definition, repeats=found.counts.repeats),
        definition=effective_document(study.definition, study.extensions),
        extensions=[ExtensionView.model_validate(each) for each in study.extensions or ()],
        deadline=None if definition is None else deadline(study, definition.budget),
        trials_requested=requested,
        repeats_requested=standing.repeats_requested(definition, requested),
        preparation=standing.preparation_view(study),
        best=_best_trial(session, study, definition, found),
        pareto_front=front,
    )


def _best_trial(
    session: Session, study: Study, definition: StudyDefinition | None, found: _Found
) -> BestTrial | None:
    """The best trial: by its repeats, once they are done."""
    if found.best is None or found.row is None:
        return None
    row: Trial | None = found.row
    if found.best.trial_number != found.row.number:
        row = session.get(Trial, (study.id, found.best.trial_number))
    shown = BestTrial(**dict(found.best), params=shown_params(definition, {} if row is None else row.params))
    if found.judged is None:
        return shown
    winner = found.judged.first
    return shown.model_copy(
        update={
            "mean": winner.mean,
            "standard_deviation": winner.standard_deviation,
            "n": len(winner.values),
            "sentence": found.judged.sentence,
        }
    )
