"""Who may write to a study: a lease with an owner, an expiry and a fencing number.

Expiry is judged by the database's clock, so coordinators' clocks need not agree. Every taking raises
the fencing number, and every transaction of a holder begins with `hold`, which fails when the lease is
no longer its own: a coordinator that slept through its lease cannot write.
"""

from __future__ import annotations

from dataclasses import dataclass
from datetime import timedelta

from sqlalchemy import ColumnElement, and_, or_, select, update
from sqlalchemy.orm import Session

from service.database import database_now
from service.errors import LeaseLost
from service.models import Study, StudyKind
from service.states import StudyState


@dataclass(frozen=True, kw_only=True)
class Lease:
    study_id: str
    owner: str
    number: int


def take(session: Session, *, owner: str, seconds: float, limit: int) -> list[Lease]:
    """Take free or expired leases: of all running studies, and of queued ones while under `limit`.

    A queued study that waits for its range test or its warm start is not taken.

    A running study is never left waiting, whatever the limit: workers that its dead coordinator started
    still hold what the studies taken in its place would wait for.

    Args:
        session: a writing transaction; the caller commits it.
        owner: who takes them.
        seconds: how long they last unless renewed.
        limit: how many studies more the owner would run; the oldest are taken first.
    """
    now = database_now(session)
    free = or_(Study.lease_owner.is_(None), Study.lease_expires_at < now)
    oldest = select(Study).where(free).order_by(Study.created_at, Study.id).with_for_update(skip_locked=True)
    candidates = list(session.scalars(oldest.where(Study.state == StudyState.RUNNING)))
    room = limit - len(candidates)
    if room > 0:
        queued = oldest.where(Study.state == StudyState.QUEUED, ~waits_for_stages())
        candidates += session.scalars(queued.limit(room))
    for study in candidates:
        study.lease_owner = owner
        study.lease_expires_at = now + timedelta(seconds=seconds)
        study.lease_number += 1
    session.flush()
    return [Lease(study_id=s.id, owner=owner, number=s.lease_number) for s in candidates]


def waits_for_stages() -> ColumnElement[bool]:
    """Searches that `service.coordinator.stages` has to prepare before their first trial, and has not."""
    asks = or_(
        Study.definition[("search", "learning_rate_range_test")].as_string().is_not(None),
        Study.definition["warm_start"].as_string().is_not(None),
    )
    return and_(Study.kind == StudyKind.SEARCH, Study.preparation.is_(None), asks)


def hold(session: Session, lease: Lease) -> Study:
    """The study, locked for this transaction, if the lease is still ours.

    Raises:
        LeaseLost: another coordinator took it, or it ran out.
    """
    study = session.scalars(
        select(Study)
        .where(
            Study.id == lease.study_id,
            Study.lease_owner == lease.owner,
            Study.lease_number == lease.number,
            Study.lease_expires_at > database_now(session),
        )
        .with_for_update()
    ).one_or_none()
    if study is None:
        raise LeaseLost(
            f"the lease {lease.number} on study {lease.study_id} is no longer held by {lease.owner}"
        )
    return study


def renew(session: Session, lease: Lease, *, seconds: float) -> None:
    """Extend a lease that is still ours. Raises `LeaseLost` when it is not."""
    study = hold(session, lease)
    study.lease_expires_at = database_now(session) + timedelta(seconds=seconds)


def release(session: Session, lease: Lease) -> None:
    """Give a lease back, if it is still ours; the fencing number stays."""
    session.execute(
        update(Study)
        .where(
            Study.id == lease.study_id, Study.lease_owner == lease.owner, Study.lease_number == lease.number
        )
        .values(lease_owner=None, lease_expires_at=None)
    )


def cancelled_while_queued(session: Session) -> list[Study]:
    """Queued studies that nobody holds and somebody wants cancelled, locked for this transaction."""
    query = select(Study).where(
        Study.state == StudyState.QUEUED, Study.cancel_requested, Study.lease_owner.is_(None)
    )
    return list(session.scalars(query.with_for_update(skip_locked=True)))
