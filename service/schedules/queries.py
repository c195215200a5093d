"""Reading schedules."""

from __future__ import annotations

from collections.abc import Sequence

from sqlalchemy import func, or_, select
from sqlalchemy.orm import Session

from service.errors import NotFound
from service.models import Schedule, Study
from service.schedules.schemas import ScheduleView
from service.studies.queries import NAME


def get_schedule(session: Session, ref: str, *, lock: bool = False) -> Schedule:
    """The schedule of this name or id. Raises `NotFound`."""
    query = (
        select(Schedule).where(or_(Schedule.id == ref, Schedule.name == ref)).order_by(Schedule.name != ref)
    )
    found = None
    if NAME.fullmatch(ref):
        found = session.scalars(query.with_for_update() if lock else query).first()
    if found is None:
        raise NotFound(f"There is no schedule {ref[:200]!r}.")
    return found


def list_schedules(session: Session) -> Sequence[Schedule]:
    """All schedules, by name."""
    return session.scalars(select(Schedule).order_by(Schedule.name)).all()


def show(session: Session, schedules: Sequence[Schedule]) -> list[ScheduleView]:
    """Schedules as the API shows them."""
    rows = session.execute(
        select(Study.schedule_id, func.count().label("studies"))
        .where(Study.schedule_id.in_([schedule.id for schedule in schedules]))
        .group_by(Study.schedule_id)
    ).all()
    studies = {row.schedule_id: row.studies for row in rows}
    return [
        ScheduleView(
            id=s.id,
            name=s.name,
            cron=s.cron,
            timezone=s.timezone,
            enabled=s.enabled,
            definition=s.definition,
            created_at=s.created_at,
            next_fire_at=s.next_fire_at,
            last_fired_for=s.last_fired_for,
            studies=studies.get(s.id, 0),
        )
        for s in schedules
    ]
