"""Recipes that people enqueue: the next trials of a study have their parameters.

A row is a wish until a trial of Optuna's names it (`search_spaces.sampling.history.ENQUEUED`), which is
written in one transaction with the trial. So a coordinator that dies before it has written the trial's number
into the row leaves that to whoever takes the study next, and none asks twice.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from pydantic_core import to_jsonable_python
from sqlalchemy import ColumnElement, func, select
from sqlalchemy.orm import Session

from search_spaces.definition import StudyDefinition
from search_spaces.sampling.plan import planned_trials, prepared_space
from search_spaces.sampling.requested import Values, read_request
from search_spaces.space.search_space import SearchSpace
from search_spaces.wording import counted
from service.control.requests import are_waiting
from service.control.schemas import RecipeView
from service.db.kinds import StudyKind
from service.db.models import EnqueuedRecipe, Study, Trial
from service.db.transitions import append_event
from service.definitions.stored import read_definition, read_preparation
from service.errors import AlreadyTried, Conflict, Invalid, NotASearch, NoTrialsLeft
from service.rest.preconditions import Precondition
from service.states import AttemptState
from service.studies.pauses import open_study

ENQUEUED_EVENT = "recipe_enqueued"
"""The kind of event that says that somebody has enqueued a recipe."""


def enqueue(
    session: Session, ref: str, sent: Mapping[str, Any], expected: Precondition, *, asked_by: str
) -> RecipeView:
    """Have the next trial of a study's search use these parameters; its sampler chooses the others.

    Raises:
        NotFound: there is no such study.
        PreconditionFailed: it is not what was expected.
        AlreadyEnded, BeingCancelled: it asks for no further trial.
        NotASearch: it is a range test.
        Invalid: the parameters are not in its space.
        NoTrialsLeft: all its trials have been asked for or enqueued.
        AlreadyTried: a trial has this configuration, or will.
    """
    study = open_study(session, ref, expected, "be given another trial")
    if study.kind == StudyKind.RANGE_TEST:
        raise NotASearch(f"{study.name!r} is a range test, whose trials follow from its definition.")
    definition = read_definition(study)
    if definition is None:
        raise Conflict(f"This version cannot read the definition of the study {study.name!r}.")
    prepared = read_preparation(study)
    space = prepared_space(definition, prepared)
    values, faults = read_request(space, sent, on_grid=definition.search.algorithm == "grid")
    if faults:
        raise Invalid("The recipe", faults)
    waiting = session.scalars(select(EnqueuedRecipe).where(*are_waiting(study.id))).all()
    _require_room(session, study, planned_trials(definition, prepared), len(waiting))
    _require_untried(session, study, definition, space, values, waiting)
    row = EnqueuedRecipe(study_id=study.id, params=to_jsonable_python(values), asked_by=asked_by)
    session.add(row)
    study.revision += 1
    session.flush()
    append_event(session, study.id, ENQUEUED_EVENT, f"{asked_by!r} enqueued a recipe, number {row.id}")
    return _view(row)


def _require_room(session: Session, study: Study, planned: int, waiting: int) -> None:
    asked = session.scalars(select(func.count()).where(*_of_search(study))).one()
    if asked + waiting >= planned:
        enqueued = f" and {counted(waiting, 'recipe')} enqueued" if waiting else ""
        raise NoTrialsLeft(
            f"The search of the study {study.name!r} has {counted(planned, 'trial')}: {asked} asked for"
            f"{enqueued}, so there is none left for this recipe. Extend the study by one, then enqueue it."
        )


def _of_search(study: Study) -> tuple[ColumnElement[bool], ...]:
    return Trial.study_id == study.id, Trial.repeat_of.is_(None), Trial.evaluates.is_(None)


def _require_untried(
    session: Session,
    study: Study,
    definition: StudyDefinition,
    space: SearchSpace,
    values: Values,
    waiting: Sequence[EnqueuedRecipe],
) -> None:
    """Of a whole configuration. Failed and cancelled trials do not count, unless it is a grid's point."""
    if not space.contains(values):
        return
    key = space.configuration_key(values)
    failed = (AttemptState.FAILED, AttemptState.CANCELLED)
    on_grid = definition.search.algorithm == "grid"
    rows = select(Trial.number, Trial.state, Trial.params)
    for row in session.execute(rows.where(*_of_search(study))):
        if (on_grid or row.state not in failed) and space.configuration_key(row.params) == key:
            raise AlreadyTried(f"Trial {row.number} of the study {study.name!r} has this configuration.")
    for recipe in waiting:
        if space.configuration_key(recipe.params) == key:
            raise AlreadyTried(f"This configuration is enqueued already, as number {recipe.id}.")


def list_recipes(session: Session, study: Study, *, after: int, limit: int) -> list[RecipeView]:
    """What was enqueued in a study with an id above `after`, oldest first."""
    of_study = select(EnqueuedRecipe).where(EnqueuedRecipe.study_id == study.id, EnqueuedRecipe.id > after)
    return [_view(row) for row in session.scalars(of_study.order_by(EnqueuedRecipe.id).limit(limit))]


def _view(row: EnqueuedRecipe) -> RecipeView:
    state = "asked" if row.trial_number is not None else "waiting" if row.dropped is None else "dropped"
    return RecipeView(
        id=row.id,
        state=state,
        params=row.params,
        asked_by=row.asked_by,
        at=row.at,
        trial_number=row.trial_number,
        reason=row.dropped,
    )
