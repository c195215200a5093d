"""Changing the tags and the note of a study."""

from __future__ import annotations

from collections.abc import Iterator

from sqlalchemy import delete, select
from sqlalchemy.orm import Session

from service.control.documents import Labels
from service.db.models import Study, StudyTag
from service.db.transitions import append_event
from service.rest.preconditions import Precondition
from service.studies.queries import get_study

LABELLED = "labels_changed"
"""The kind of event that says what was changed of a study's tags and note."""


def change_labels(
    session: Session, ref: str, wanted: Labels, expected: Precondition, *, asked_by: str
) -> Study:
    """Give a study these tags and this note, whatever its state. What it has already changes nothing.

    Raises:
        NotFound: there is no such study.
        PreconditionFailed: it is not what was expected.
    """
    study = get_study(session, ref, lock=True)
    expected.check(f"The study {study.name!r}", study.revision)
    changes = [*_set_tags(session, study, wanted), *_set_note(study, wanted)]
    if changes:
        study.revision += 1
        append_event(session, study.id, LABELLED, f"{asked_by!r} changed {'; '.join(changes)}")
    return study


def _set_tags(session: Session, study: Study, wanted: Labels) -> Iterator[str]:
    if wanted.tags is None:
        return
    of_study = StudyTag.study_id == study.id
    present = set(session.scalars(select(StudyTag.tag).where(of_study)))
    added, removed = set(wanted.tags) - present, present - set(wanted.tags)
    session.execute(delete(StudyTag).where(of_study, StudyTag.tag.in_(removed)))
    session.add_all(StudyTag(study_id=study.id, tag=tag) for tag in added)
    if added or removed:
        yield f"its tags: {' '.join([f'+{t}' for t in sorted(added)] + [f'-{t}' for t in sorted(removed)])}"


def _set_note(study: Study, wanted: Labels) -> Iterator[str]:
    if wanted.note is None or wanted.note == (study.note or ""):
        return
    study.note = wanted.note or None
    yield f"its note: {wanted.note or 'removed'}"
