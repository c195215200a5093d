"""The reigns of champions: who reigns, whom a rollback would bring back, and how one follows another.

Each function is one part of a transaction; those that write are called with the schedule's row locked.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from sqlalchemy import select, update
from sqlalchemy.orm import Session

from search_spaces.wording import SENTENCE_CHARACTERS, shortened
from service.db.database import database_now
from service.db.models import Reign, Schedule, Study

ROLLBACKS = 3
"""Earlier champions whose adapters are kept, so that a rollback can bring them back."""


def reigning(session: Session, schedule_id: str) -> Reign | None:
    """A schedule's champion."""
    query = select(Reign).where(Reign.schedule_id == schedule_id, Reign.until.is_(None))
    return session.scalars(query).one_or_none()


def predecessors(session: Session, reign: Reign) -> list[Reign]:
    """Those that rollbacks would bring back, one after the other; at most `ROLLBACKS`.

    Of a reign that a rollback began, these are the ones before the reign that it restores: so a second
    rollback goes one further back, and not forth again.
    """
    found: list[Reign] = []
    before = reign.restores or reign.id
    while len(found) < ROLLBACKS:
        earlier = select(Reign).where(Reign.schedule_id == reign.schedule_id, Reign.id < before)
        last = session.scalars(earlier.order_by(Reign.id.desc()).limit(1)).one_or_none()
        if last is None:
            break
        found.append(last)
        before = last.restores or last.id
    return found


def kept_trials(session: Session, study_id: str) -> frozenset[int]:
    """Trials of a study whose adapters must not be removed: a champion's, and those a rollback may need."""
    schedules = select(Reign.schedule_id).where(Reign.study_id == study_id).distinct()
    found: set[int] = set()
    for schedule_id in session.scalars(schedules).all():
        reign = reigning(session, schedule_id)
        if reign is not None:
            kept = (reign, *predecessors(session, reign))
            found.update(each.trial_number for each in kept if each.study_id == study_id)
    return frozenset(found)


def enthrone(
    session: Session,
    schedule: Schedule,
    *,
    study_id: str,
    study_name: str,
    trial_number: int,
    adapter: str,
    lineage: Mapping[str, Any],
    why: str,
    ended_why: str,
    contest_id: int | None = None,
    promoted_by: str | None = None,
    restores: int | None = None,
) -> Reign:
    """Begin a reign, and end the one before it.

    Args:
        session: writes; it has the schedule locked.
        schedule: whose champion.
        study_id: of the study whose trial made the adapter.
        study_name: likewise.
        trial_number: that trial.
        adapter: the path or URL of its folder.
        lineage: what it was made of.
        why: it reigns, in words.
        ended_why: the one before it does so no more.
        contest_id: the contest that it won.
        promoted_by: whose API key put it there.
        restores: of a rollback, the reign whose adapter it is.
    """
    before = reigning(session, schedule.id)
    kept = [] if before is None else [before, *predecessors(session, before)]
    now = database_now(session)
    _end(session, before, ended_why)
    reign = Reign(
        schedule_id=schedule.id,
        study_id=study_id,
        study_name=study_name,
        trial_number=trial_number,
        adapter=adapter,
        lineage=dict(lineage),
        # Clocks may be set back; a reign does not begin before the one before it.
        since=now if before is None else max(now, before.since),
        why=shortened(why, SENTENCE_CHARACTERS),
        contest_id=contest_id,
        promoted_by=promoted_by,
        restores=restores,
    )
    session.add(reign)
    session.flush()
    still = {each.study_id for each in (reign, *predecessors(session, reign))}
    _have_swept_again(session, {each.study_id for each in kept} - still)
    return reign


def close(session: Session, schedule: Schedule, why: str) -> None:
    """End the reign of a schedule's champion, without another: the schedule is about to be removed."""
    before = reigning(session, schedule.id)
    if before is not None:
        kept = {each.study_id for each in (before, *predecessors(session, before))}
        _end(session, before, why)
        _have_swept_again(session, kept)


def _end(session: Session, reign: Reign | None, why: str) -> None:
    if reign is not None:
        reign.until = max(database_now(session), reign.since)
        reign.ended_why = shortened(why, SENTENCE_CHARACTERS)
        session.flush()  # before another begins: there is one at most


def _have_swept_again(session: Session, study_ids: set[str]) -> None:
    """Studies have adapters that were kept as a champion's, and need not be any more."""
    ended = Study.id.in_(study_ids), Study.ended_at.is_not(None)
    if study_ids:
        session.execute(update(Study).where(*ended).values(swept_at=None))
