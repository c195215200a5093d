"""Enqueued recipes as the coordinator that holds their study sees them. Imports nothing of REST."""

from __future__ import annotations

from collections.abc import Mapping

from sqlalchemy import ColumnElement, select, update
from sqlalchemy.orm import Session

from search_spaces.sampling.requested import Request
from service.db.models import EnqueuedRecipe


def next_request(session: Session, study_id: str) -> Request | None:
    """The oldest recipe that has no trial; None: there is none."""
    oldest = select(EnqueuedRecipe).where(*are_waiting(study_id)).order_by(EnqueuedRecipe.id).limit(1)
    row = session.scalars(oldest).first()
    if row is None:
        return None
    given = {name: tuple(value) if isinstance(value, list) else value for name, value in row.params.items()}
    return Request(id=row.id, given=given)


def note_asked(session: Session, study_id: str, requested: Mapping[int, int]) -> None:
    """Write down which trials have got recipes: id -> number. Doing so again changes nothing."""
    for recipe, number in requested.items():
        this = EnqueuedRecipe.id == recipe, EnqueuedRecipe.study_id == study_id
        session.execute(update(EnqueuedRecipe).where(*this).values(trial_number=number, dropped=None))


def are_waiting(study_id: str) -> tuple[ColumnElement[bool], ...]:
    """Conditions that the recipes of a study meet that no trial has got yet."""
    return (
        EnqueuedRecipe.study_id == study_id,
        EnqueuedRecipe.trial_number.is_(None),
        EnqueuedRecipe.dropped.is_(None),
    )
