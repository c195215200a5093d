"""The windows of sweeps: which are over, and what becomes of the sweeps that they found waiting.

A sweep's window lasts from its firing, or from when it was resumed, to its `budget.until`. The coordinator
that runs a sweep pauses or ends it then; nobody runs those that wait.
"""

from __future__ import annotations

from datetime import datetime

from sqlalchemy import ColumnElement, and_, or_, select
from sqlalchemy.orm import Session

from search_spaces.definition import BudgetSpec
from service.db.database import database_now
from service.db.lease_times import is_leased
from service.db.models import Schedule, Study
from service.db.transitions import advance_study
from service.definitions.stored import read_definition
from service.states import StudyState
from service.studies import pauses
from service.studies.deadlines import deadline, deadline_reached


def is_over(study: Study, now: datetime) -> bool:
    """Whether a sweep's `budget.until` came by then."""
    definition = read_definition(study) if study.window_from is not None else None
    ends = None if definition is None else deadline(study, definition.budget)
    return ends is not None and ends <= now


def paused_at_its_end(session: Session, schedule: Schedule) -> Study | None:
    """The latest sweep that was paused when its window had ended, locked. What a person or a fault has paused
    before waits for a person."""
    query = select(Study).where(
        Study.schedule_id == schedule.id,
        Study.state == StudyState.PAUSED,
        Study.window_from.is_not(None),
        ~Study.cancel_requested,
    )
    query = query.order_by(Study.created_at.desc(), Study.id).with_for_update()
    for study in session.scalars(query.execution_options(populate_existing=True)):
        if study.paused_at is not None and is_over(study, study.paused_at):
            return study
    return None


def over_while_waiting(session: Session, now: datetime) -> list[str]:
    """Ids of the sweeps whose window ended while they waited for a coordinator."""
    waiting = select(Study.id, Study.window_from, Study.resumed_at, Study.definition["budget"])
    found = []
    for study_id, window_from, resumed_at, budget in session.execute(waiting.where(_waits_in_window(now))):
        row = Study(window_from=window_from, resumed_at=resumed_at)
        try:
            reached = deadline_reached(row, BudgetSpec.model_validate(budget), now)
        except (ValueError, KeyError, OSError):  # stored by another version, or its timezone has gone
            continue  # the coordinator that takes it says so
        if reached is not None:
            found.append(study_id)
    return found


def close(session: Session, study_id: str) -> None:
    """Pause a sweep whose window ended while it waited; one that has not begun and is to end then has failed.

    One that has begun is ended by the coordinator that takes it.
    """
    now = database_now(session)
    query = select(Study).where(Study.id == study_id, _waits_in_window(now))
    study = session.scalars(query.with_for_update(skip_locked=True)).one_or_none()
    definition = None if study is None else read_definition(study)
    if study is None or definition is None:
        return
    reason = deadline_reached(study, definition.budget, now)
    if reason is None:
        return
    if definition.budget.until_action == "pause":
        pauses.pause_queued(session, study, f"{reason} while it waited")
    else:
        advance_study(session, study, StudyState.FAILED, f"{reason} before it had started")


def _waits_in_window(now: datetime) -> ColumnElement[bool]:
    """Sweeps with a window that are queued and nobody's; to end, only those that have not begun."""
    pauses_then = Study.definition[("budget", "until_action")].as_string() == "pause"
    return and_(
        Study.window_from.is_not(None),
        Study.state == StudyState.QUEUED,
        ~Study.cancel_requested,
        ~is_leased(now),
        or_(Study.started_at.is_(None), pauses_then),
    )
