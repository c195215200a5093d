"""How a study's row changes when it is put down and taken up again.

Each function is one part of a writing transaction whose caller holds the study's row locked. Times are the
database's.
"""

from __future__ import annotations

from sqlalchemy import select
from sqlalchemy.orm import Session

from service.db.database import database_now
from service.db.models import Attempt, Study
from service.states import StudyState, advance_study


def put_down(session: Session, study: Study, reason: str) -> None:
    """queued or running -> paused. Nothing of it may be alive. Whoever held its lease holds it no more."""
    _end_wait(session, study)
    advance_study(session, study, StudyState.PAUSED, reason)
    study.pause_requested = False
    study.paused_at = database_now(session)
    study.lease_owner = None
    study.lease_expires_at = None


def queue_again(session: Session, study: Study, reason: str) -> None:
    """paused -> queued: it waits for a place like any other, and its pause is over."""
    now = database_now(session)
    if study.paused_at is not None and _clock_runs(session, study):
        study.paused_seconds += max(0.0, (now - study.paused_at).total_seconds())
    advance_study(session, study, StudyState.QUEUED, reason)
    study.pause_requested = False
    study.paused_at = None
    study.resumed_at = now


def start(session: Session, study: Study, reason: str) -> None:
    """queued -> running."""
    _end_wait(session, study)
    advance_study(session, study, StudyState.RUNNING, reason)


def take_back(session: Session, study: Study) -> None:
    """What was to be paused goes on. The next pause is reckoned from here, as after any other."""
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
