"""Pausing and resuming studies on request.

A study without a lease is paused at once. One that a coordinator has leased is paused once its trials have
written their checkpoints. A range test that is a study's first stage is paused and resumed with
it.
"""

from __future__ import annotations

from sqlalchemy import select
from sqlalchemy.orm import Session

from service.db.database import database_now
from service.db.lease_times import is_leased
from service.db.models import Study
from service.db.transitions import append_event, put_down, queue_again, take_back
from service.definitions.stored import read_definition
from service.errors import AlreadyEnded, BeingCancelled
from service.rest.preconditions import ANYTHING, Precondition
from service.states import TERMINAL_STUDY_STATES, StudyState
from service.studies.deadlines import deadline_reached
from service.studies.queries import get_study

RESUMED = "resume_requested"
"""The kind of event that says that a pause was taken back, or is over."""


def request_pause(session: Session, ref: str, expected: Precondition = ANYTHING) -> Study:
    """Have a study paused so that it can be resumed exactly. Asking again changes nothing.

    Raises:
        NotFound: there is no such study.
        PreconditionFailed: it is not what was expected.
        AlreadyEnded: it is over.
        BeingCancelled: it is about to be.
    """
    study = open_study(session, ref, expected, "be paused")
    test = _first_stage(session, study)
    if test is not None:
        _pause(session, test, f"paused with the study {study.name!r}, of which it is the first stage")
    _pause(session, study, "paused on request")
    return study


def request_resume(session: Session, ref: str, expected: Precondition = ANYTHING) -> Study:
    """Have a study resumed. One that is neither paused nor about to be is left as it is.

    Raises:
        NotFound: there is no such study.
        PreconditionFailed: it is not what was expected.
        AlreadyEnded: it is over.
        BeingCancelled: it is about to be.
    """
    study = open_study(session, ref, expected, "be resumed")
    resume(session, study, "resumed")
    return study


def resume(session: Session, study: Study, why: str) -> None:
    """Have a study resumed that has not ended and is not to, with its first stage. Its row is locked."""
    test = _first_stage(session, study)
    if test is not None:
        _resume(session, test, f"{why}; waiting for a coordinator")
    waits_for = "a coordinator" if test is None else f"its learning-rate range test {test.name}"
    _resume(session, study, f"{why}; waiting for {waits_for}")


def pause_queued(session: Session, study: Study, reason: str) -> None:
    """Pause a queued study that nobody holds, with its first stage. Its row is locked."""
    test = _first_stage(session, study)
    if test is not None:
        _pause(session, test, f"paused with the study {study.name!r}, of which it is the first stage")
    put_down(session, study, reason)


def open_study(session: Session, ref: str, expected: Precondition, wanted: str) -> Study:
    """A study that has not ended and is not about to, locked for this transaction.

    Args:
        session: writes.
        ref: its name or id.
        expected: what it must be.
        wanted: what it cannot do otherwise, in words.

    Raises:
        NotFound: there is no such study.
        PreconditionFailed: it is not what was expected.
        AlreadyEnded: it is over.
        BeingCancelled: it is about to be.
    """
    study = get_study(session, ref, lock=True)
    expected.check(f"The study {study.name!r}", study.revision)
    if study.state in TERMINAL_STUDY_STATES:
        raise AlreadyEnded(f"The study {study.name!r} is already {study.state}: {study.reason}.")
    if study.cancel_requested:
        raise BeingCancelled(f"The study {study.name!r} is being cancelled, so it cannot {wanted}.")
    return study


def _first_stage(session: Session, study: Study) -> Study | None:
    """The range test that the study still waits for, if there is one."""
    if study.range_test_id is None or study.preparation is not None:
        return None
    test = get_study(session, study.range_test_id, lock=True)
    return None if test.state in TERMINAL_STUDY_STATES or test.cancel_requested else test


def _pause(session: Session, study: Study, reason: str) -> None:
    if study.state == StudyState.PAUSED or study.pause_requested:
        return
    leased = select(Study.id).where(Study.id == study.id, is_leased(database_now(session)))
    leased_now = session.scalars(leased).first() is not None
    if study.state == StudyState.QUEUED and not leased_now:
        put_down(session, study, reason)
        return
    study.pause_requested = True
    study.revision += 1
    append_event(session, study.id, "pause_requested", "a pause was requested over REST")


def _resume(session: Session, study: Study, reason: str) -> None:
    if study.state == StudyState.PAUSED:
        queue_again(session, study, reason)
    elif study.pause_requested or _is_past_deadline(session, study):
        take_back(session, study)
        study.revision += 1
        append_event(session, study.id, RESUMED, "the pause was cancelled before the study was paused")


def _is_past_deadline(session: Session, study: Study) -> bool:
    """Whether its coordinator is pausing it because `budget.until` has come."""
    definition = read_definition(study)
    if definition is None or definition.budget.until_action != "pause":
        return False
    return deadline_reached(study, definition.budget, database_now(session)) is not None
