"""Reading schedules."""

from __future__ import annotations

from collections.abc import Sequence

from sqlalchemy import func, or_, select, tuple_
from sqlalchemy.orm import Session

from service.errors import NotFound
from service.models import Schedule, Study
from service.schedules.schemas import ScheduleView, SweepView
from service.states import StudyState
from service.studies.queries import NAME, begins_with


def get_schedule(session: Session, ref: str, *, lock: bool = False) -> Schedule:
    """The schedule of this name or id. Raises `NotFound`."""
    query = select(Schedule).where(or_(Schedule.id == ref, Schedule.name == ref)).order_by(Schedule.id != ref)
    found = None
    if NAME.fullmatch(ref):
        if lock:  # and read again what this session read before it had the lock
            query = query.with_for_update().execution_options(populate_existing=True)
        found = session.scalars(query).first()
    if found is None:
        raise NotFound(f"There is no schedule {ref[:200]!r}.")
    return found


def list_schedules(
    session: Session, *, prefix: str | None = None, owner: str | None = None, enabled: bool | None = None
) -> Sequence[Schedule]:
    """The schedules that match everything that is given, by name."""
    query = select(Schedule).order_by(Schedule.name)
    if prefix is not None:
        query = query.where(begins_with(Schedule.name, prefix))
    if owner is not None:
        query = query.where(Schedule.owner == owner)
    if enabled is not None:
        query = query.where(Schedule.enabled.is_(enabled))
    return session.scalars(query).all()


def show(session: Session, schedules: Sequence[Schedule]) -> list[ScheduleView]:
    """Schedules as the API shows them."""
    ids = [schedule.id for schedule in schedules]
    rows = session.execute(
        select(Study.schedule_id, func.count().label("studies"), func.max(Study.fired_for).label("latest"))
        .where(Study.schedule_id.in_(ids))
        .group_by(Study.schedule_id)
    ).all()
    studies = {row.schedule_id: row.studies for row in rows}
    found = select(Study).where(
        tuple_(Study.schedule_id, Study.fired_for).in_([(row.schedule_id, row.latest) for row in rows])
    )
    latest = {study.schedule_id: study for study in session.scalars(found)}
    return [
        ScheduleView(
            id=s.id,
            name=s.name,
            cron=s.cron,
            timezone=s.timezone,
            enabled=s.enabled,
            owner=s.owner,
            definition=s.definition,
            created_at=s.created_at,
            next_fire_at=s.next_fire_at,
            last_fired_for=s.last_fired_for,
            studies=studies.get(s.id, 0),
            last_sweep=_sweep(latest.get(s.id)),
        )
        for s in schedules
    ]


def _sweep(study: Study | None) -> SweepView | None:
    if study is None:
        return None
    return SweepView(name=study.name, state=StudyState(study.state), reason=study.reason)
