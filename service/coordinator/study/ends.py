"""What the service's tables say of the ends of a study's trials."""

from __future__ import annotations

from sqlalchemy import select
from sqlalchemy.orm import Session

from service.coordinator.policy.trial_history import END_EVENTS, has_ended
from service.db.models import Attempt, EventRow


def order(session: Session, study_id: str) -> dict[int, int]:
    """Trial -> place of its end among the study's, as they were recorded. Clocks may jump; rows do not."""
    rows = session.scalars(
        select(EventRow.trial_number)
        .where(EventRow.study_id == study_id, EventRow.kind.in_(END_EVENTS))
        .order_by(EventRow.id)
    )
    found: dict[int, int] = {}
    for number in rows:
        if number is not None:
            found.setdefault(number, len(found))
    return found


def fatal_reasons(session: Session, study_id: str) -> dict[int, str]:
    """Trial -> why it ended, of those that ended for a reason in the study's model or data."""
    fatal = Attempt.outcome["fatal_to_study"].as_boolean()
    rows = session.scalars(select(Attempt).where(Attempt.study_id == study_id, fatal))
    return {attempt.trial_number: attempt.reason for attempt in rows if has_ended(attempt)}
