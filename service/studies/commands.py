"""Accepting and cancelling studies."""

from __future__ import annotations

from sqlalchemy import select
from sqlalchemy.orm import Session

from search_spaces.definition import StudyDefinition
from service.db.models import NOBODY, Study, new_id
from service.db.rows import insert
from service.db.transitions import append_event
from service.errors import AlreadyEnded, Invalid, NameTaken
from service.rest.preconditions import ANYTHING, Precondition
from service.states import TERMINAL_STUDY_STATES
from service.studies.limits import UNLIMITED, Limits, require_within_limits
from service.studies.queries import get_study
from service.warm_start.checks import check_warm_start


def submit(
    session: Session, definition: StudyDefinition, *, owner: str = NOBODY, limits: Limits = UNLIMITED
) -> Study:
    """Store a study as queued.

    Raises:
        Invalid: its warm start cannot be.
        NameTaken: there is a study of that name.
        LimitReached: the owner may not have another one.
    """
    faults = check_warm_start(session, definition)
    if faults:
        raise Invalid("The definition", faults)
    taken = NameTaken(f"A study named {definition.name!r} already exists; choose another name.")
    if session.scalars(select(Study.id).where(Study.name == definition.name)).first() is not None:
        raise taken
    require_within_limits(session, owner, definition, limits)
    study = Study(
        id=new_id(),
        name=definition.name,
        definition=definition.model_dump(mode="json"),
        reason="waiting for a coordinator",
        owner=owner,
    )
    if not insert(session, study):
        raise taken
    append_event(session, study.id, "study_queued", "submitted")
    return study


def request_cancel(session: Session, ref: str, expected: Precondition = ANYTHING) -> Study:
    """Ask for a study's end; its coordinator carries it out. Asking again changes nothing.

    Raises:
        NotFound: there is no such study.
        PreconditionFailed: it is not what was expected.
        AlreadyEnded: it is over.
    """
    study = get_study(session, ref, lock=True)
    expected.check(f"The study {study.name!r}", study.revision)
    if study.state in TERMINAL_STUDY_STATES:
        raise AlreadyEnded(f"The study {study.name!r} is already {study.state}: {study.reason}.")
    if not study.cancel_requested:
        study.cancel_requested = True
        study.revision += 1
        append_event(session, study.id, "cancel_requested", "cancellation was requested over REST")
    return study
