"""Accepting and cancelling studies."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from sqlalchemy import select
from sqlalchemy.exc import IntegrityError
from sqlalchemy.orm import Session

from search_spaces.definition import StudyDefinition, parse_definition
from search_spaces.errors import Fault, InvalidDefinition
from service import warm_start
from service.db.models import NOBODY, Study, new_id
from service.db.transitions import append_event
from service.definitions.local_files import resolve_paths
from service.errors import AlreadyEnded, Invalid, NameTaken
from service.rest.etags import ANYTHING, Precondition
from service.states import TERMINAL_STUDY_STATES
from service.studies.limits import UNLIMITED, Limits, require_room
from service.studies.queries import get_study


def check_definition(document: Any, data_roots: Sequence[Path]) -> tuple[StudyDefinition | None, list[Fault]]:
    """The definition with its paths resolved, or everything that is wrong with it."""
    resolved, file_faults = resolve_paths(document, data_roots)
    try:
        definition = parse_definition(resolved)
    except InvalidDefinition as error:
        known = {fault.path for fault in error.faults}
        return None, [*error.faults, *(fault for fault in file_faults if fault.path not in known)]
    return (None, file_faults) if file_faults else (definition, [])


def accept_definition(document: Any, data_roots: Sequence[Path]) -> StudyDefinition:
    """The definition, as it will be stored. Raises `Invalid` with every fault at once."""
    definition, faults = check_definition(document, data_roots)
    if definition is None:
        raise Invalid("The definition", faults)
    return definition


def submit(
    session: Session, definition: StudyDefinition, *, owner: str = NOBODY, limits: Limits = UNLIMITED
) -> Study:
    """Store a study as queued.

    Raises:
        Invalid: its warm start cannot be.
        NameTaken: there is a study of that name.
        LimitReached: the owner may not have another one.
    """
    faults = warm_start.check(session, definition)
    if faults:
        raise Invalid("The definition", faults)
    taken = NameTaken(f"A study named {definition.name!r} already exists; choose another name.")
    if session.scalars(select(Study.id).where(Study.name == definition.name)).first() is not None:
        raise taken
    require_room(session, owner, definition, limits)
    study = Study(
        id=new_id(),
        name=definition.name,
        definition=definition.model_dump(mode="json"),
        reason="waiting for a coordinator",
        owner=owner,
    )
    try:
        with session.begin_nested():
            session.add(study)
    except IntegrityError:
        raise taken from None  # by a request that ran beside this one
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
