"""How the rows of studies, attempts and trials change: the only ways to change a state.

Each function is one part of a writing transaction whose caller holds the study's row locked, and each change
of a state appends an event that says why. The times of pauses are the database's.
"""

from __future__ import annotations

from collections.abc import Iterable
from datetime import UTC, datetime
from enum import StrEnum
from typing import Any

from sqlalchemy import select
from sqlalchemy.orm import Session

from search_spaces.wording import SENTENCE_CHARACTERS, shortened
from service.db import trials
from service.db.database import database_now
from service.db.models import Attempt, EnqueuedRecipe, EventRow, Study
from service.errors import IllegalTransition
from service.states import (
    ATTEMPT_TRANSITIONS,
    STUDY_TRANSITIONS,
    TERMINAL_ATTEMPT_STATES,
    TERMINAL_STUDY_STATES,
    AttemptState,
    StudyState,
)

RECIPE_DROPPED = "recipe_dropped"
"""The kind of event that says that an enqueued recipe gets no trial."""


def advance_study(session: Session, study: Study, to: StudyState, reason: str) -> None:
    """Move a study, say why, and note when it started or ended.

    Raises `IllegalTransition` when the table has no such move.
    """
    came_from = StudyState(study.state)
    if to not in STUDY_TRANSITIONS[came_from]:
        raise IllegalTransition(
            _refusal(f"Study {study.name!r}", came_from, to, STUDY_TRANSITIONS[came_from])
        )
    now = datetime.now(UTC)
    study.state = to
    study.reason = shortened(reason, SENTENCE_CHARACTERS)
    study.revision += 1
    if to is StudyState.RUNNING and study.started_at is None:
        study.started_at = now
    if to in TERMINAL_STUDY_STATES:
        study.ended_at = now
        drop_recipes(session, study.id, "the study ended before it")
    append_event(session, study.id, f"study_{to}", reason)


def advance_attempt(
    session: Session,
    attempt: Attempt,
    to: AttemptState,
    reason: str,
    *,
    result: trials.Result | None = None,
    at: datetime | None = None,
) -> None:
    """Move an attempt and with it its trial, say why, and note when it started or ended.

    Args:
        session: writes.
        attempt: the latest of its trial.
        to: its new state.
        reason: why, in words.
        result: what its trial is compared by, if it has completed.
        at: when; None: now, by this machine's clock.

    Raises:
        IllegalTransition: the table has no such move.
    """
    came_from = AttemptState(attempt.state)
    if to not in ATTEMPT_TRANSITIONS[came_from]:
        what = f"Attempt {attempt.ordinal} of trial {attempt.trial_number}"
        raise IllegalTransition(_refusal(what, came_from, to, ATTEMPT_TRANSITIONS[came_from]))
    now = at or datetime.now(UTC)
    attempt.state = to
    attempt.reason = shortened(reason, SENTENCE_CHARACTERS)
    if to is AttemptState.RUNNING:
        attempt.started_at = now
    if to in TERMINAL_ATTEMPT_STATES:
        attempt.ended_at = now
    trials.follow(session, attempt, result)
    append_event(session, attempt.study_id, f"attempt_{to}", reason, trial_number=attempt.trial_number)


def drop_recipes(session: Session, study_id: str, reason: str, *, recipe: int | None = None) -> None:
    """Say of enqueued recipes that no trial has got that none will, and why: of one, or of all that wait."""
    waiting = select(EnqueuedRecipe).where(
        EnqueuedRecipe.study_id == study_id,
        EnqueuedRecipe.trial_number.is_(None),
        EnqueuedRecipe.dropped.is_(None),
    )
    if recipe is not None:
        waiting = waiting.where(EnqueuedRecipe.id == recipe)
    for row in session.scalars(waiting.order_by(EnqueuedRecipe.id)).all():
        row.dropped = reason
        append_event(
            session,
            study_id,
            RECIPE_DROPPED,
            f"the recipe enqueued by {row.asked_by!r} as number {row.id} gets no trial: {reason}",
        )


def end_trial(session: Session, study_id: str, number: int, outcome: AttemptState, reason: str) -> None:
    """End a trial that has no live attempt, and say why."""
    trials.end(session, study_id, number, outcome, reason)
    append_event(session, study_id, f"trial_{outcome}", reason, trial_number=number)


def append_event(
    session: Session,
    study_id: str,
    kind: str,
    message: str,
    *,
    trial_number: int | None = None,
    data: dict[str, Any] | None = None,
) -> None:
    """Add one line to a study's history.

    Args:
        session: writes.
        study_id: whose history.
        kind: of event.
        message: what happened, for people.
        trial_number: of the trial that it happened to, if it was one.
        data: what the message was made from, where the service reads it again.
    """
    message = shortened(message, SENTENCE_CHARACTERS)
    session.add(EventRow(study_id=study_id, trial_number=trial_number, kind=kind, message=message, data=data))


def _refusal(what: str, came_from: StrEnum, to: StrEnum, allowed: Iterable[StrEnum]) -> str:
    ways = ", ".join(sorted(allowed)) or "nothing else, because it has ended"
    return f"{what} is {came_from} and cannot become {to}; it can become {ways}."


def put_down(session: Session, study: Study, reason: str) -> None:
    """queued or running -> paused. None of its attempts may be alive. Its lease ends."""
    _end_wait(session, study)
    advance_study(session, study, StudyState.PAUSED, reason)
    study.pause_requested = False
    study.paused_at = database_now(session)
    study.lease_owner = None
    study.lease_expires_at = None


def queue_again(session: Session, study: Study, reason: str) -> None:
    """paused -> queued: its pause is over, and it waits for its turn like any other."""
    now = database_now(session)
    if study.paused_at is not None and _clock_runs(session, study):
        study.paused_seconds += max(0.0, (now - study.paused_at).total_seconds())
    advance_study(session, study, StudyState.QUEUED, reason)
    study.pause_requested = False
    study.paused_at = None
    study.resumed_at = now


def revive(session: Session, study: Study, reason: str) -> None:
    """completed, failed or cancelled -> queued: it was extended. The time since its end counts as a pause."""
    now = database_now(session)
    if study.ended_at is not None and _clock_runs(session, study):
        study.paused_seconds += max(0.0, (now - study.ended_at).total_seconds())
    advance_study(session, study, StudyState.QUEUED, reason)
    study.cancel_requested = study.pause_requested = False
    study.ended_at = study.importance = study.swept_at = None
    study.resumed_at = now


def start(session: Session, study: Study, reason: str) -> None:
    """queued -> running."""
    _end_wait(session, study)
    advance_study(session, study, StudyState.RUNNING, reason)


def take_back(session: Session, study: Study) -> None:
    """Take back the request for a pause. `budget.until` counts from here, as after any pause."""
    _end_wait(session, study)
    study.pause_requested = False
    study.resumed_at = database_now(session)


def _end_wait(session: Session, study: Study) -> None:
    """For a study that was resumed, its wait as queued counts as a part of its pause."""
    waits = study.state == StudyState.QUEUED and study.resumed_at is not None
    if waits and study.resumed_at is not None and _clock_runs(session, study):
        study.paused_seconds += max(0.0, (database_now(session) - study.resumed_at).total_seconds())


def _clock_runs(session: Session, study: Study) -> bool:
    """Whether `budget.timeout` counts already: from the dispatch of the first trial."""
    return (
        session.scalars(select(Attempt.id).where(Attempt.study_id == study.id).limit(1)).first() is not None
    )
