"""What any coordinator does for all of them, without a lease: due schedules, cancels of studies that wait.

Each step is one short transaction that looks again whether it is still to be done, so that two coordinators
side by side do it once.
"""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Sequence
from functools import partial
from pathlib import Path

from sqlalchemy import select
from sqlalchemy.orm import Session

from service.coordinator import leases
from service.coordinator.outages import is_trouble
from service.coordinator.policy import waiting
from service.db.database import Database, database_now
from service.db.lease_times import is_leased
from service.db.models import Study
from service.db.transitions import advance_study, append_event
from service.schedules import commands as schedules
from service.schedules import sweeps, templates, windows
from service.schedules.templates import Files
from service.states import StudyState
from service.studies.limits import UNLIMITED, Limits

log = logging.getLogger(__name__)


def cancel_unstarted(database: Database) -> None:
    """Cancel queued studies that are to be cancelled: they need not start first."""

    def cancel(session: Session) -> None:
        for study in leases.cancelled_while_queued(session):
            advance_study(session, study, StudyState.CANCELLED, "cancelled on request before it started")

    database.transact(cancel)


def say_who_waits(
    database: Database, said: dict[str, tuple[int, str]], *, limit: int, per_owner: int | None
) -> None:
    """Say of every queued study that other studies keep from running which limit it is.

    Args:
        database: the service's.
        said: by study, its revision and what this coordinator last said of it. Another one may have other
            limits and other words; each says its own once.
        limit: how many studies a coordinator runs.
        per_owner: how many of one owner run at a time; None: any number.
    """
    with database.read() as session:
        words = _words(session, limit=limit, per_owner=per_owner)
    new = {study_id: word for study_id, word in words.items() if said.get(study_id) != word}
    said.clear()
    said.update(words)
    if not new:
        return

    def write(session: Session) -> None:
        query = select(Study).where(Study.id.in_(new), Study.state == StudyState.QUEUED).with_for_update()
        for study in session.scalars(query):
            revision, word = new[study.id]
            if study.revision == revision and study.reason != word:
                study.reason = word
                append_event(session, study.id, waiting.WAITING, word)

    database.transact(write)


def _words(session: Session, *, limit: int, per_owner: int | None) -> dict[str, tuple[int, str]]:
    """By study that waits for its turn: its revision, and which limit it is that it waits for."""
    now = database_now(session)
    leased = is_leased(now)
    queued = session.execute(
        select(Study.id, Study.owner, Study.revision).where(
            Study.state == StudyState.QUEUED, ~leased, ~Study.cancel_requested, ~leases.waits_for_stages()
        )
    ).all()
    if not queued:
        return {}
    runs = session.execute(select(Study.owner, Study.lease_owner).where(leased)).all()
    of_owner, coordinators = Counter(run.owner for run in runs), len({run.lease_owner for run in runs})
    found: dict[str, tuple[int, str]] = {}
    for study in queued:
        if per_owner is not None and of_owner[study.owner] >= per_owner:
            word = waiting.for_its_turn(of_owner[study.owner], per_owner, owner=study.owner)
        elif len(runs) >= limit * coordinators > 0:
            word = waiting.for_its_turn(len(runs), limit, coordinators=coordinators)
        else:
            continue  # it is about to be taken
        found[study.id] = study.revision, word
    return found


def repair_schedules(database: Database) -> None:
    """Set right the next firing of schedules that a clock has put too far into the future."""
    with database.read() as session:
        wrong = schedules.fires_too_late(session, database_now(session))
    for schedule_id in wrong:
        database.transact(partial(schedules.repair, schedule_id=schedule_id))


def close_windows(database: Database) -> None:
    """Pause or end the sweeps whose window has ended while they waited for a coordinator."""
    with database.read() as session:
        closed = windows.over_while_waiting(session, database_now(session))
    for study_id in closed:
        database.transact(partial(windows.close, study_id=study_id))


def _fire(database: Database, schedule_id: str, limits: Limits, files: Files) -> Study | None:
    return database.transact(lambda session: sweeps.fire(session, schedule_id, limits=limits, files=files))


def fire_schedules(database: Database, limits: Limits = UNLIMITED, data_roots: Sequence[Path] = ()) -> None:
    """Make the study of every schedule that is due. One that cannot be fired does not hold up the others.

    Args:
        database: the service's.
        limits: how much one owner may have; a sweep over them is a failed study.
        data_roots: folders that paths with `{date}` and the like may lead to; a sweep of others is one, too.
    """
    with database.read() as session:
        due = sweeps.due(session, database_now(session))
    for schedule_id in due:
        try:
            study = templates.with_files(partial(_fire, database, schedule_id, limits), data_roots)
        except Exception as error:
            if is_trouble(error):
                raise  # every schedule's
            log.exception("the schedule %s could not be fired", schedule_id)
            reason = f"{type(error).__name__}: {error}"
            database.transact(partial(sweeps.skip, schedule_id=schedule_id, reason=reason))
        else:
            if study is not None and study.state == StudyState.FAILED:
                log.warning("a schedule fired: study %s will not run: %s", study.name, study.reason)
            elif study is not None:
                log.info("a schedule fired: study %s", study.name)
