"""Times that a wrong clock must have set, because they lie too far in the future.

Coordinators repair them when they see them (`service.coordinator.leases`, `service.schedules.commands`).
"""

from __future__ import annotations

from sqlalchemy import Connection, select
from sqlalchemy.orm import Session

from service.db.database import database_now
from service.db.lease_times import LONGEST_LEASE_SECONDS, lease_in_reach
from service.db.models import Schedule, Study
from service.maintenance.integrity.violations import Violation
from service.schedules.commands import earlier_firing

LEASES, FIRINGS = "leases-in-reach", "firings-in-reach"

CLOCKS = {
    LEASES: f"No lease runs for longer than {LONGEST_LEASE_SECONDS:g} s from now.",
    FIRINGS: "No schedule fires later than at the next time of its cron expression.",
}


def find_from_wrong_clocks(connection: Connection) -> list[Violation]:
    """Leases and firings that a clock has set that was ahead."""
    with Session(bind=connection) as session:
        now = database_now(session)
        held = select(Study.name, Study.lease_owner, Study.lease_expires_at).where(
            Study.lease_expires_at.is_not(None), ~lease_in_reach(now)
        )
        found = [
            Violation(rule=LEASES, study=name, trial=None, found=f"{owner} holds it until {expires}")
            for name, owner, expires in session.execute(held)
        ]
        for schedule in session.scalars(
            select(Schedule).where(Schedule.enabled, Schedule.next_fire_at > now)
        ):
            expected = earlier_firing(schedule, now)
            if expected is not None:
                what = f"the schedule {schedule.name!r} fires at {schedule.next_fire_at}, not at {expected}"
                found.append(Violation(rule=FIRINGS, study="", trial=None, found=what))
    return found
