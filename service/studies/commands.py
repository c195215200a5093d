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
from service.errors import AlreadyEnded, Invalid, NameTaken
from service.local_files import resolve_paths
from service.models import Study, new_id
from service.states import TERMINAL_STUDY_STATES, append_event
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


def submit(session: Session, definition: StudyDefinition) -> Study:
    """Store a study as queued. Raises `NameTaken`, and `Invalid` for a warm start that cannot be."""
    faults = warm_start.check(session, definition)
    if faults:
        raise Invalid("The definition", faults)
    taken = NameTaken(f"There is a study {definition.name!r} already; choose another name.")
    if session.scalars(select(Study.id).where(Study.name == definition.name)).first() is not None:
        raise taken
    study = Study(
        id=new_id(),
        name=definition.name,
        definition=definition.model_dump(mode="json"),
        reason="waiting for a coordinator",
    )
    try:
        with session.begin_nested():
            session.add(study)
    except IntegrityError:
        raise taken from None  # by a request that ran beside this one
    append_event(session, study.id, "study_queued", "submitted")
    return study


def request_cancel(session: Session, ref: str) -> Study:
    """Ask for a study's end; its coordinator carries it out. Asking again changes nothing.

    Raises:
        NotFound: there is no such study.
        AlreadyEnded: it is over.
    """
    study = get_study(session, ref, lock=True)
    if study.state in TERMINAL_STUDY_STATES:
        raise AlreadyEnded(f"The study {study.name!r} is {study.state} already: {study.reason}.")
    if not study.cancel_requested:
        study.cancel_requested = True
        append_event(session, study.id, "cancel_requested", "cancellation was requested over REST")
    return study
