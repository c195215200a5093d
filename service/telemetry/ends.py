"""Tells of the ends of attempts and studies, each when the transaction that recorded it has been committed.

Whatever code ends something, it is told of once, and nothing is told that was rolled back. A process that
is killed right after a commit has told nobody: logs and traces may miss an end, rows never do.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from sqlalchemy import event, select
from sqlalchemy.orm import Session
from sqlalchemy.orm.attributes import get_history

from service.db.database import Database
from service.db.models import Attempt, Study
from service.states import TERMINAL_ATTEMPT_STATES, TERMINAL_STUDY_STATES


@dataclass(frozen=True, kw_only=True)
class StudyEnd:
    """A study that has completed, failed or was cancelled."""

    study_id: str
    study: str
    """Its name."""
    owner: str
    state: str
    reason: str
    created_at: datetime
    started_at: datetime | None
    ended_at: datetime


@dataclass(frozen=True, kw_only=True)
class AttemptEnd:
    """An attempt that has ended, however."""

    study_id: str
    study: str
    """The study's name."""
    trial: int
    attempt: int
    """1 for the trial's first attempt, and so on."""
    state: str
    reason: str
    worker: str
    device: str | None
    examples: int
    tokens: int
    dispatched_at: datetime
    started_at: datetime | None
    ended_at: datetime


End = StudyEnd | AttemptEnd


def follow_ends(database: Database, tell: Callable[[End], None]) -> Callable[[], None]:
    """Call `tell` for everything that ends by this process' transactions.

    Args:
        database: whose writing transactions are followed.
        tell: is called after the commit, in the thread that committed. It must not raise.

    Returns:
        What ends this.
    """

    pending = object()  # under which a session keeps what is to be told: each follower its own

    def flushed(session: Session, _: object) -> None:
        for row in (*session.new, *session.dirty):
            if isinstance(row, Attempt | Study) and get_history(row, "state").has_changes():
                end = _end_of(session, row)
                if end is not None:
                    session.info.setdefault(pending, []).append(end)

    def committed(session: Session) -> None:
        if not session.in_nested_transaction():
            for end in session.info.pop(pending, []):
                tell(end)

    def rolled_back(session: Session) -> None:
        if not session.in_nested_transaction():
            session.info.pop(pending, None)

    listeners: tuple[tuple[str, Callable[..., Any]], ...] = (
        ("after_flush", flushed),
        ("after_commit", committed),
        ("after_rollback", rolled_back),
    )
    for name, listener in listeners:
        event.listen(database.writer, name, listener)

    def leave() -> None:
        for name, listener in listeners:
            event.remove(database.writer, name, listener)

    return leave


def _end_of(session: Session, row: Attempt | Study) -> End | None:
    if row.ended_at is None:
        return None
    if isinstance(row, Study):
        if row.state not in TERMINAL_STUDY_STATES:
            return None
        return StudyEnd(
            study_id=row.id,
            study=row.name,
            owner=row.owner,
            state=str(row.state),
            reason=row.reason,
            created_at=row.created_at,
            started_at=row.started_at,
            ended_at=row.ended_at,
        )
    if row.state not in TERMINAL_ATTEMPT_STATES:
        return None
    name = select(Study.name).where(Study.id == row.study_id)  # on the connection: a flush is under way
    return AttemptEnd(
        study_id=row.study_id,
        study=session.connection().execute(name).scalar_one(),
        trial=row.trial_number,
        attempt=row.ordinal,
        state=str(row.state),
        reason=row.reason,
        worker=row.worker_id,
        device=row.device,
        examples=row.examples_seen,
        tokens=row.tokens,
        dispatched_at=row.dispatched_at,
        started_at=row.started_at,
        ended_at=row.ended_at,
    )
