"""Making range tests."""

from __future__ import annotations

from sqlalchemy import select
from sqlalchemy.orm import Session

from search_spaces.definition import StudyDefinition
from search_spaces.range_tests.derivation import derive
from service.db.kinds import StudyKind
from service.db.models import NOBODY, Study, new_id
from service.db.rows import insert
from service.db.transitions import append_event

SUFFIX = ".range-test"
_LONGEST_NAME = 128
"""Of a study (`search_spaces.definition.StudyName`)."""


def make(session: Session, definition: StudyDefinition, why: str, *, owner: str = NOBODY) -> Study:
    """Store the range test of a definition, as queued.

    It is named after the definition, `NAME.range-test`, with a number behind it where that is taken: the
    name itself stays free for the study that follows.

    Args:
        session: a writing transaction; the caller commits it.
        definition: an accepted one.
        why: for its history.
        owner: whose it is.
    """
    number = 1
    while True:
        name = _name(definition.name, number)
        number += 1
        if session.scalars(select(Study.id).where(Study.name == name)).first() is not None:
            continue
        study = Study(
            id=new_id(),
            name=name,
            kind=StudyKind.RANGE_TEST,
            definition=derive(definition, name).model_dump(mode="json"),
            reason="waiting for a coordinator",
            owner=owner,
        )
        if insert(session, study):
            append_event(session, study.id, "study_queued", why)
            return study


def _name(stem: str, number: int) -> str:
    suffix = SUFFIX if number == 1 else f"{SUFFIX}-{number}"
    return stem[: _LONGEST_NAME - len(suffix)] + suffix
