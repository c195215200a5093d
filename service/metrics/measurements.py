"""Reading what is measured of studies, workers and schedules."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from typing import Any

from sqlalchemy import case, func, select
from sqlalchemy.orm import Session, load_only

from service.analysis.gpu_hours import gpu_hours, worker_hours
from service.db.database import database_now
from service.db.kinds import WORKER_CAPACITY
from service.db.models import Attempt, Device, EventRow, Schedule, Study, Trial
from service.devices import heartbeats
from service.states import ACTIVE_STUDY_STATES, LIVE_ATTEMPT_STATES, AttemptState, StudyState

KEPT_AFTER_END = timedelta(hours=1)
"""How long the series of a study that has ended go on, so that its last values are collected."""
MOST_STUDIES = 200
"""Studies that have series of their own."""
MOST_SCHEDULES = 500

_MEASURED = load_only(
    Attempt.study_id,
    Attempt.trial_number,
    Attempt.worker_id,
    Attempt.state,
    Attempt.loss_cause,
    Attempt.started_at,
    Attempt.ended_at,
    Attempt.gpus,
    Attempt.tokens,
    Attempt.padded_tokens,
    raiseload=True,
)


@dataclass(frozen=True, kw_only=True)
class StudyMeasurements:
    """One study that is active, or was within the last hour."""

    study: str
    """Its name."""
    owner: str
    lease_remaining: float | None
    """Seconds until its lease runs out; None: nobody holds it."""
    gpu_seconds: float
    worker_seconds: float
    trials: Mapping[str, int] = field(default_factory=dict)
    """State -> how many."""
    lost: Mapping[str, int] = field(default_factory=dict)
    """Cause -> how many attempts."""
    tokens: int = 0
    padded_tokens: int = 0
    packs: Mapping[str, int] = field(default_factory=dict)
    """Worker -> trials that it trains now."""
    slots: Mapping[str, int] = field(default_factory=dict)
    """Worker -> trials that it last wanted at once."""


@dataclass(frozen=True, kw_only=True)
class ScheduleMeasurements:
    name: str
    owner: str
    enabled: bool
    next_fire_at: datetime | None
    last_fired_for: datetime | None


@dataclass(frozen=True, kw_only=True)
class Measurements:
    """Everything that is measured in the database, at one moment."""

    studies_by_state: Mapping[StudyState, int]
    oldest_queued_seconds: float
    """How long the study has been queued that was submitted first; 0: none is."""
    coordinators: int
    coordinators_in_trouble: int
    devices_put_aside: int
    studies: tuple[StudyMeasurements, ...]
    studies_left_out: int
    schedules: tuple[ScheduleMeasurements, ...]


def measure(session: Session) -> Measurements:
    """Read everything that is measured. Its cost grows with the attempts of active studies only."""
    now = database_now(session)
    counted = session.execute(select(Study.state, func.count().label("studies")).group_by(Study.state))
    by_state = {row.state: row.studies for row in counted}
    queued = select(func.min(func.coalesce(Study.resumed_at, Study.created_at)))
    oldest = session.scalar(queued.where(Study.state == StudyState.QUEUED))
    living = heartbeats.living(session)
    put_aside = select(func.count()).where(Device.put_aside_at.is_not(None))
    rows, left_out = _shown_studies(session, now)
    return Measurements(
        studies_by_state={state: by_state.get(state, 0) for state in StudyState},
        oldest_queued_seconds=0.0 if oldest is None else max(0.0, (now - oldest).total_seconds()),
        coordinators=len(living),
        coordinators_in_trouble=sum(row.trouble is not None for row in living),
        devices_put_aside=session.scalar(put_aside) or 0,
        studies=_studies(session, rows, now),
        studies_left_out=left_out,
        schedules=_schedules(session),
    )


def _shown_studies(session: Session, now: datetime) -> tuple[list[Any], int]:
    """Studies that have series of their own, the active ones first, and how many more there are."""
    active = Study.state.in_(ACTIVE_STUDY_STATES)
    shown = active | (Study.ended_at >= now - KEPT_AFTER_END)
    total = session.scalar(select(func.count()).where(shown)) or 0
    found = session.execute(
        select(Study.id, Study.name, Study.owner, Study.lease_owner, Study.lease_expires_at)
        .where(shown)
        .order_by(case((active, 0), else_=1), Study.created_at.desc(), Study.id)
        .limit(MOST_STUDIES)
    ).all()
    return list(found), total - len(found)


def _studies(session: Session, rows: Collection[Any], now: datetime) -> tuple[StudyMeasurements, ...]:
    ids = [row.id for row in rows]
    attempts: dict[str, list[Attempt]] = {}
    for attempt in session.scalars(
        select(Attempt).options(_MEASURED).where(Attempt.study_id.in_(ids)).order_by(Attempt.id)
    ):
        attempts.setdefault(attempt.study_id, []).append(attempt)
    trials = _grouped(
        session.execute(
            select(Trial.study_id, Trial.state, func.count().label("trials"))
            .where(Trial.study_id.in_(ids))
            .group_by(Trial.study_id, Trial.state)
        ).all()
    )
    capacities = _grouped(
        session.execute(
            select(EventRow.study_id, EventRow.data)
            .where(EventRow.study_id.in_(ids), EventRow.kind == WORKER_CAPACITY)
            .order_by(EventRow.id)
        ).all()
    )
    return tuple(
        _study(row, attempts.get(row.id, []), trials.get(row.id, []), capacities.get(row.id, []), now)
        for row in rows
    )


def _grouped(rows: Iterable[Any]) -> dict[str, list[Any]]:
    found: dict[str, list[Any]] = {}
    for row in rows:
        found.setdefault(row.study_id, []).append(row)
    return found


def _study(
    row: Any,
    attempts: list[Attempt],
    trials: list[Any],
    capacities: list[Any],
    now: datetime,
) -> StudyMeasurements:
    lost: dict[str, int] = {}
    packs: dict[str, int] = {}
    tokens: dict[int, tuple[int, int]] = {}
    for attempt in attempts:
        if attempt.state == AttemptState.LOST:
            cause = attempt.loss_cause or "unknown"
            lost[cause] = lost.get(cause, 0) + 1
        elif attempt.state in LIVE_ATTEMPT_STATES:
            packs[attempt.worker_id] = packs.get(attempt.worker_id, 0) + 1
        # An attempt that resumed another counts on from what that one had counted.
        counted = attempt.tokens, attempt.padded_tokens
        tokens[attempt.trial_number] = max(tokens.get(attempt.trial_number, (0, 0)), counted)
    latest = {one.data["worker_id"]: one.data["slots"] for one in capacities if one.data is not None}
    leased = row.lease_owner is not None and row.lease_expires_at is not None
    return StudyMeasurements(
        study=row.name,
        owner=row.owner,
        lease_remaining=(row.lease_expires_at - now).total_seconds() if leased else None,
        gpu_seconds=gpu_hours(attempts, now) * 3600,
        worker_seconds=worker_hours(attempts, now) * 3600,
        trials={one.state: one.trials for one in trials},
        lost=lost,
        tokens=sum(useful for useful, _ in tokens.values()),
        padded_tokens=sum(padded for _, padded in tokens.values()),
        packs=packs,
        slots={worker: slots for worker, slots in latest.items() if worker in packs},
    )


def _schedules(session: Session) -> tuple[ScheduleMeasurements, ...]:
    found = session.execute(
        select(
            Schedule.name, Schedule.owner, Schedule.enabled, Schedule.next_fire_at, Schedule.last_fired_for
        )
        .order_by(Schedule.name)
        .limit(MOST_SCHEDULES)
    )
    return tuple(ScheduleMeasurements(**row._mapping) for row in found)
