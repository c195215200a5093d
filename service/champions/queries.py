"""Reading champions."""

from __future__ import annotations

from typing import Any

from sqlalchemy import select
from sqlalchemy.orm import Session

from service.champions.schemas import ChampionHistory, ChampionView, ContestView, ReignView
from service.db import reigns
from service.db.kinds import ContestDecision, ScheduleEventKind
from service.db.models import ContestRow, Reign, Schedule, ScheduleEvent
from service.errors import NotFound
from service.schedules.queries import get_schedule


def reign_of(session: Session, schedule: Schedule) -> Reign:
    """The champion's reign. Raises `NotFound`."""
    reign = reigns.reigning(session, schedule.id)
    if reign is None:
        raise NotFound(f"The schedule {schedule.name!r} has no champion yet: {_why_none(schedule)}.")
    return reign


def _why_none(schedule: Schedule) -> str:
    if (schedule.definition.get("objective") or {}).get("costs"):
        return "its objective has costs, so its sweeps have several best trials"
    if not schedule.champion:
        return "its option champion is false, so its sweeps decide nothing"
    return "the winner of its first sweep that completes will be the first"


def get_champion(session: Session, schedule: Schedule) -> ChampionView:
    """A schedule's champion with everything that is known of it. Raises `NotFound`."""
    reign = reign_of(session, schedule)
    latest = _contests(session, schedule.id, before=None, limit=1)
    return ChampionView(
        **_fields(reign),
        schedule=schedule.name,
        url=f"/v1/schedules/{schedule.id}/champion/adapter",
        last_contest=latest[0] if latest else None,
        rollbacks=[ReignView(**_fields(earlier)) for earlier in reigns.predecessors(session, reign)],
    )


def get_history(session: Session, ref: str, *, before: int | None, limit: int) -> ChampionHistory:
    """What sweeps decided and who reigned, newest first, also after the schedule was removed.

    Args:
        session: reads.
        ref: the schedule's name or id.
        before: only contests with an id below.
        limit: of contests, and of reigns.

    Raises:
        NotFound: there is no such schedule, and none had a champion.
    """
    schedule_id = _schedule_id(session, ref)
    found = select(Reign).where(Reign.schedule_id == schedule_id).order_by(Reign.id.desc()).limit(limit)
    return ChampionHistory(
        contests=_contests(session, schedule_id, before=before, limit=limit),
        reigns=[ReignView(**_fields(reign)) for reign in session.scalars(found)],
    )


def _schedule_id(session: Session, ref: str) -> str:
    try:
        return get_schedule(session, ref).id
    except NotFound:
        by_name = select(ScheduleEvent.schedule_id).where(
            ScheduleEvent.kind == ScheduleEventKind.REMOVED, ScheduleEvent.schedule_name == ref[:200]
        )
        removed = session.scalars(by_name.order_by(ScheduleEvent.id.desc()).limit(1)).one_or_none()
        known = select(ContestRow.id).where(ContestRow.schedule_id == (removed or ref[:32])).limit(1)
        if session.scalars(known).first() is None:
            raise
        return removed or ref[:32]


def _contests(session: Session, schedule_id: str, *, before: int | None, limit: int) -> list[ContestView]:
    query = select(ContestRow).where(ContestRow.schedule_id == schedule_id)
    if before is not None:
        query = query.where(ContestRow.id < before)
    return [
        ContestView(
            id=row.id,
            at=row.at,
            study=row.study_name,
            study_id=row.study_id,
            decision=ContestDecision(row.decision),
            why=row.why,
            metric=row.metric,
            champion_value=row.champion_value,
            challenger_trial=row.challenger_trial,
            challenger_value=row.challenger_value,
            data=row.data,
            data_changed=row.data_changed,
            evidence=row.evidence,
        )
        for row in session.scalars(query.order_by(ContestRow.id.desc()).limit(limit))
    ]


def _fields(reign: Reign) -> dict[str, Any]:
    return {
        "id": reign.id,
        "study": reign.study_name,
        "study_id": reign.study_id,
        "trial": reign.trial_number,
        "adapter": reign.adapter,
        "since": reign.since,
        "until": reign.until,
        "why": reign.why,
        "ended_why": reign.ended_why,
        "promoted_by": reign.promoted_by,
        "lineage": reign.lineage,
    }
