"""Ending one trial early, on request."""

from __future__ import annotations

from sqlalchemy.orm import Session

from service.db import trials
from service.db.kinds import StudyKind
from service.db.models import Trial, TrialStop
from service.db.transitions import append_event
from service.errors import AlreadyEnded, NotASearch, NotFound
from service.rest.preconditions import Precondition
from service.studies.pauses import open_study
from service.studies.results import ENDED

STOP_REQUESTED = "stop_requested"
"""The kind of event that says that somebody wants a trial to end."""


def request_stop(
    session: Session, ref: str, number: int, why: str, expected: Precondition, *, asked_by: str
) -> None:
    """Ask for a trial's end; the study's coordinator carries it out. Asking again changes nothing.

    Args:
        session: writes.
        ref: the study's name or id.
        number: the trial's.
        why: in the words of who asks; may be empty.
        expected: of the study.
        asked_by: whose request it is.

    Raises:
        NotFound: there is no such study or trial.
        PreconditionFailed: the study is not what was expected.
        AlreadyEnded: the study or the trial is over.
        BeingCancelled: the study is about to be.
        NotASearch: it is a range test.
    """
    study = open_study(session, ref, expected, "have a trial stopped")
    if study.kind == StudyKind.RANGE_TEST:
        raise NotASearch(f"{study.name!r} is a range test, which needs all of its sweeps.")
    trial = session.get(Trial, (study.id, number))
    if trial is None:
        raise NotFound(f"The study {study.name!r} has no trial {number}.")
    if trial.state in ENDED:
        raise AlreadyEnded(
            f"Trial {number} of the study {study.name!r} is already {trial.state}: {trial.reason}"
        )
    if session.get(TrialStop, (study.id, number)) is not None:
        return
    reason = f"stopped on request of {asked_by!r}" + (f": {why}" if why else "")
    session.add(TrialStop(study_id=study.id, trial_number=number, asked_by=asked_by, reason=reason))
    study.revision += 1
    message = f"{asked_by!r} asked for the trial's end" + (f": {why}" if why else "")
    append_event(session, study.id, STOP_REQUESTED, message, trial_number=number)
    session.flush()
    trials.touch(session, study.id, [number])
