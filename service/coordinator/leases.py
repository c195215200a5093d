"""Who may write to a study: a lease with an owner, an expiry and a fencing number.

Expiry is judged by the database's clock, so coordinators' clocks need not agree. Every taking raises
the fencing number, and every transaction of a holder begins with `hold`, which fails when the lease is
no longer its own: a coordinator that slept through its lease cannot write.
"""

from __future__ import annotations

import logging
from collections.abc import Collection
from dataclasses import asdict, dataclass, replace
from datetime import datetime, timedelta
from functools import cache, partial

from sqlalchemy import ColumnElement, and_, bindparam, or_, select, update
from sqlalchemy.orm import Session

from service.db.database import Clock, Database, database_now
from service.db.kinds import StudyKind
from service.db.lease_times import LONGEST_LEASE_SECONDS, is_leased, lease_in_reach
from service.db.models import Study
from service.db.transitions import append_event
from service.errors import LeaseLost
from service.optuna_store.fences import raise_fence
from service.optuna_store.storage import Storage
from service.states import StudyState
from service.studies.limits import startable

log = logging.getLogger(__name__)

LEASE_REPAIRED = "lease_repaired"
"""The kind of event that says that a lease of a wrong clock was not waited for."""

_WAITS = Study.state.in_((StudyState.QUEUED, StudyState.PAUSED))


@dataclass(frozen=True, kw_only=True)
class Lease:
    study_id: str
    owner: str
    number: int


def take(
    session: Session,
    *,
    owner: str,
    seconds: float,
    limit: int,
    in_hand: Collection[str] | None = None,
    per_owner: int | None = None,
) -> list[Lease]:
    """Take free or expired leases: of all running studies, and of queued ones while under `limit`.

    A queued study that waits for its range test or its warm start, or as a sweep for what earlier ones have
    evaluated, is not taken.

    Running studies are taken whatever the limit: the workers that their dead coordinators started still hold
    the GPUs that other studies would wait for. So are paused and resumed studies that are to be cancelled:
    they only have to end their open trials.

    Args:
        session: a writing transaction; the caller commits it.
        owner: who takes them.
        seconds: how long they last unless renewed.
        limit: how many studies more the owner would run; the oldest are taken first.
        in_hand: studies that the owner works on; None: all that are leased to it. Others whose lease is its
            own are free to it: it let go of them while a database was away.
        per_owner: queued studies of an owner (of the studies) who runs so many are left waiting; None: no
            such limit.
    """
    now = database_now(session)
    free = ~is_leased(now)
    if in_hand is not None:
        elsewhere = Study.id.not_in(in_hand)
        # A lease in hand that a clock has set that was ahead is set right when it is renewed.
        free = and_(free, or_(elsewhere, Study.lease_expires_at.is_(None), lease_in_reach(now)))
        free = or_(free, and_(Study.lease_owner == owner, elsewhere))
    oldest = select(Study).where(free).order_by(Study.created_at, Study.id).with_for_update(skip_locked=True)
    to_close = and_(_WAITS, Study.cancel_requested, Study.started_at.is_not(None))
    candidates = list(session.scalars(oldest.where(or_(Study.state == StudyState.RUNNING, to_close))))
    room = limit - len(candidates)
    if room > 0:
        waiting = and_(Study.state == StudyState.QUEUED, ~waits_for_stages(), ~to_close)
        if per_owner is not None:
            chosen = startable(session, and_(free, waiting), per_owner=per_owner, most=room)
            waiting = and_(waiting, Study.id.in_(chosen))
        candidates += session.scalars(oldest.where(waiting).limit(room))
    for study in candidates:
        before, ended_at = study.lease_owner, study.lease_expires_at
        study.lease_owner = owner
        study.lease_expires_at = now + timedelta(seconds=seconds)
        study.lease_number += 1
        session.flush()  # the lease is written first, then what its holder writes
        _note_wrong_clock(session, study, before, ended_at, now)
    return [Lease(study_id=s.id, owner=owner, number=s.lease_number) for s in candidates]


def _note_wrong_clock(
    session: Session, study: Study, owner: str | None, ends: datetime | None, now: datetime
) -> None:
    """Say that a lease was taken from somebody since no right clock can have given it for so long."""
    if ends is not None and ends > now + timedelta(seconds=LONGEST_LEASE_SECONDS):
        message = (
            f"the lease of {owner} was to last until {ends:%Y-%m-%d %H:%M:%S} UTC, longer than"
            f" any lease may ({LONGEST_LEASE_SECONDS:g} s): a clock was wrong, and the lease counts as over"
        )
        append_event(session, study.id, LEASE_REPAIRED, message)
        log.warning("study %s: %s", study.name, message)


@cache
def waits_for_stages() -> ColumnElement[bool]:
    """Searches that `chores.preparation` has to prepare before their first trial, and has not.

    Sweeps of schedules among them, but for those that an earlier version began without."""
    asks = or_(
        Study.definition[("search", "learning_rate_range_test")].as_string().is_not(None),
        Study.definition["warm_start"].as_string().is_not(None),
        and_(Study.fired_for.is_not(None), Study.started_at.is_(None)),
    )
    return and_(Study.kind == StudyKind.SEARCH, Study.preparation.is_(None), asks)


_HELD = (
    select(Study)
    .where(
        Study.id == bindparam("study_id"),
        Study.lease_owner == bindparam("owner"),
        Study.lease_number == bindparam("number"),
        Study.lease_expires_at > Clock(),
    )
    .with_for_update()
)


def hold(session: Session, lease: Lease) -> Study:
    """The study, locked for this transaction, if the lease is still ours.

    Raises:
        LeaseLost: another coordinator took it, or it ran out.
    """
    study = session.scalars(_HELD, asdict(lease)).one_or_none()
    if study is None:
        raise LeaseLost(
            f"the lease {lease.number} on study {lease.study_id} is no longer held by {lease.owner}"
        )
    return study


def renew(session: Session, lease: Lease, *, seconds: float) -> None:
    """Extend a lease that is still ours. Raises `LeaseLost` when it is not."""
    study = hold(session, lease)
    study.lease_expires_at = database_now(session) + timedelta(seconds=seconds)


def outrun(session: Session, lease: Lease, number: int) -> Lease:
    """Raise the fencing number of a lease that is still ours above one that Optuna's storage knows already.

    That one is of a time that the service's tables have forgotten: they were restored from a backup.

    Raises:
        LeaseLost: the lease is not ours any more.
    """
    study = hold(session, lease)
    study.lease_number = max(study.lease_number, number) + 1
    return replace(lease, number=study.lease_number)


def fence_off(database: Database, storage: Storage, lease: Lease, name: str) -> Lease:
    """Keep earlier holders from writing to Optuna, before anything is read there; the lease then.

    Raises:
        LeaseLost: it is not ours any more.
    """
    while True:
        higher = raise_fence(storage, name, number=lease.number, owner=lease.owner)
        if higher is None:
            return lease
        lease = database.transact(partial(outrun, lease=lease, number=higher))


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
    """Studies without a trial that wait, queued or paused, that nobody holds and that are to be cancelled.

    Locked for this transaction.
    """
    free = ~is_leased(database_now(session))
    query = select(Study).where(_WAITS, Study.cancel_requested, Study.started_at.is_(None), free)
    return list(session.scalars(query.with_for_update(skip_locked=True)))
