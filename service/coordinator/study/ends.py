"""What the service's tables say of the ends of a study's trials, and what is kept at the study's own end."""

from __future__ import annotations

import logging
from typing import Any

from sqlalchemy import select
from sqlalchemy.orm import Session

from search_spaces.definition import StudyDefinition
from service.coordinator.outages import is_trouble
from service.coordinator.policy.snapshot import TrialPhase, TrialSnapshot
from service.coordinator.policy.trial_history import END_EVENTS, AskedTrial, has_ended
from service.db.models import Attempt, EventRow
from service.optuna_store.storage import Storage
from service.states import AttemptState

log = logging.getLogger(__name__)

ENDED_AS = {
    "complete": AttemptState.COMPLETED,
    "pruned": AttemptState.PRUNED,
    "fail": AttemptState.FAILED,
}
"""How a trial ended of which Optuna alone knows."""


def order(session: Session, study_id: str) -> dict[int, int]:
    """Trial -> place of its end among the study's, as they were recorded. Clocks may jump; rows do not."""
    rows = session.scalars(
        select(EventRow.trial_number)
        .where(EventRow.study_id == study_id, EventRow.kind.in_(END_EVENTS))
        .order_by(EventRow.id)
    )
    found: dict[int, int] = {}
    for number in rows:
        if number is not None:
            found.setdefault(number, len(found))
    return found


def fatal_reasons(session: Session, study_id: str) -> dict[int, str]:
    """Trial -> why it ended, of those that ended for a reason in the study's model or data."""
    fatal = Attempt.outcome["fatal_to_study"].as_boolean()
    rows = session.scalars(select(Attempt).where(Attempt.study_id == study_id, fatal))
    return {attempt.trial_number: attempt.reason for attempt in rows if has_ended(attempt)}


LARGE = 200
"""Completed trials from which on a study keeps the importance of its hyperparameters when it ends."""


def importance(storage: Storage, name: str, definition: StudyDefinition) -> dict[str, Any] | None:
    """What readers of a large study would otherwise wait for; None: they make it themselves."""
    # Imported where it is needed: it takes pandas and scipy, which few studies need here.
    from service.reports.queries import find_importance

    try:
        found = find_importance(storage, name, definition)
    except Exception as error:
        if is_trouble(error):
            raise
        log.exception("the importance of hyperparameters of study %s cannot be kept", name)
        return None  # a study must end all the same
    return found.model_dump(mode="json")


def ended(
    number: int,
    asked: AskedTrial | None,
    outcome: AttemptState,
    place: int,
    *,
    value: float | None = None,
    feasible: bool,
    fatal_reason: str | None = None,
) -> TrialSnapshot:
    """A trial that has ended, as decisions look at it.

    Args:
        number: the trial's.
        asked: what it was asked for as; None: nobody knows.
        outcome: how it ended.
        place: of its end among those of the study.
        value: the objective.
        feasible: whether it breaks no constraint.
        fatal_reason: why every other trial would end like it.
    """
    return TrialSnapshot(
        number=number,
        phase=TrialPhase.ENDED,
        repeat_of=None if asked is None else asked.repeat_of,
        seed=None if asked is None else asked.seed,
        evaluates=None if asked is None else asked.role,
        outcome=outcome,
        end_order=place,
        value=value,
        feasible=feasible,
        fatal_reason=fatal_reason,
    )
