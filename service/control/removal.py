"""The archive, and the deletion of studies: what may be deleted, and until when that can be taken back.

A deletion is a date in the study's row. Until it has come the study is only hidden from lists; then a
coordinator removes it (`service.coordinator.chores.removal`).
"""

from __future__ import annotations

from datetime import timedelta

from sqlalchemy.orm import Session

from service.control.needs import needed_by, own_range_test
from service.db.database import database_now
from service.db.models import Study
from service.db.transitions import append_event
from service.errors import BeingRemoved, StillNeeded
from service.rest.preconditions import Precondition
from service.studies.queries import get_study

ARCHIVED, UNARCHIVED = "archived", "unarchived"
DELETED, RESTORED = "deleted", "restored"
"""Kinds of events that say so, and who asked for it."""


def archive(session: Session, ref: str, expected: Precondition, *, asked_by: str) -> Study:
    """Have lists leave a study out. Raises `NotFound` and `PreconditionFailed`."""
    study = _expected(session, ref, expected)
    if study.archived_at is None:
        study.archived_at = database_now(session)
        record_change(session, study, ARCHIVED, f"archived on request of {asked_by!r}")
    return study


def unarchive(session: Session, ref: str, expected: Precondition, *, asked_by: str) -> Study:
    """Have lists show a study again. Raises `NotFound` and `PreconditionFailed`."""
    study = _expected(session, ref, expected)
    if study.archived_at is not None:
        study.archived_at = None
        record_change(session, study, UNARCHIVED, f"taken out of the archive on request of {asked_by!r}")
    return study


def delete(session: Session, ref: str, expected: Precondition, *, asked_by: str, grace: timedelta) -> Study:
    """Have a study removed once a time of grace is over, with the range test that is its first stage.

    Deleting it again changes nothing.

    Raises:
        NotFound: there is no such study.
        PreconditionFailed: it is not what was expected.
        StillNeeded: it has not ended, or another study or a schedule needs it.
    """
    study = _expected(session, ref, expected)
    if study.deleted_at is not None:
        return study
    reasons = list(needed_by(session, study))
    if reasons:
        raise StillNeeded(f"The study {study.name!r} cannot be deleted: {'; '.join(reasons)}.")
    at = database_now(session)
    for each in (study, *own_range_test(session, study)):
        each.deleted_at, each.deleted_by, each.removal_at = at, asked_by, at + grace
        until = f"{each.removal_at:%Y-%m-%d %H:%M} UTC"
        record_change(
            session, each, DELETED, f"deleted on request of {asked_by!r}; it can be restored until {until}"
        )
    return study


def restore(session: Session, ref: str, expected: Precondition, *, asked_by: str) -> Study:
    """Take a deletion back, with that of its range test. One that is not deleted is left as it is.

    Raises:
        NotFound: there is no such study, or none any more.
        PreconditionFailed: it is not what was expected.
        BeingRemoved: a coordinator removes it.
    """
    study = _expected(session, ref, expected)
    if study.removing_at is not None:
        raise BeingRemoved(
            f"The study {study.name!r} cannot be restored: since {study.removing_at:%Y-%m-%d %H:%M:%S} UTC a "
            "coordinator removes its adapters and its trials."
        )
    if study.deleted_at is None:
        return study
    for each in (study, *own_range_test(session, study)):
        if each.deleted_at is not None and each.removing_at is None:
            each.deleted_at = each.deleted_by = each.removal_at = None
            record_change(session, each, RESTORED, f"restored on request of {asked_by!r}")
    return study


def _expected(session: Session, ref: str, expected: Precondition) -> Study:
    study = get_study(session, ref, lock=True)
    expected.check(f"The study {study.name!r}", study.revision)
    return study


def record_change(session: Session, study: Study, kind: str, message: str) -> None:
    study.revision += 1
    append_event(session, study.id, kind, message)
