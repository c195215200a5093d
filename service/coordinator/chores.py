"""What any coordinator does for all of them, without a lease: due schedules, cancels of studies that wait.

Each step is one short transaction that looks again whether it is still to be done, so that two coordinators
side by side do it once.
"""

from __future__ import annotations

import logging
from functools import partial

from sqlalchemy.orm import Session

from service.coordinator import leases
from service.coordinator.outages import is_trouble
from service.database import Database, database_now
from service.owners.limits import UNLIMITED, Limits
from service.schedules import commands as schedules
from service.states import StudyState, advance_study

log = logging.getLogger(__name__)


def cancel_unstarted(database: Database) -> None:
    """Cancel studies that wait for a free place, without one."""

    def cancel(session: Session) -> None:
        for study in leases.cancelled_while_queued(session):
            advance_study(session, study, StudyState.CANCELLED, "cancelled on request before it started")

    database.transact(cancel)


def fire_schedules(database: Database, limits: Limits = UNLIMITED) -> None:
    """Make the study of every schedule that is due. One that cannot be fired does not hold up the others.

    Args:
        database: the service's.
        limits: how much one owner may have; a sweep over them is a failed study.
    """
    with database.read() as session:
        due = schedules.due(session, database_now(session))
    for schedule_id in due:
        try:
            study = database.transact(partial(schedules.fire, schedule_id=schedule_id, limits=limits))
        except Exception as error:
            if is_trouble(error):
                raise  # every schedule's
            log.exception("the schedule %s could not be fired", schedule_id)
            reason = f"{type(error).__name__}: {error}"
            database.transact(partial(schedules.skip, schedule_id=schedule_id, reason=reason))
        else:
            if study is not None and study.state == StudyState.FAILED:
                log.warning("a schedule fired: study %s will not run: %s", study.name, study.reason)
            elif study is not None:
                log.info("a schedule fired: study %s", study.name)
