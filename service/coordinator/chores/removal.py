"""Removes deleted studies for good, once their time of grace is over.

Nothing is left behind that nobody knows, and nothing that leads nowhere unsaid, because of the order:

1. The row says that the study is being removed. From here on it cannot be restored, and its adapters are
   answered with that.
2. Its artifacts go, wherever its attempts had them.
3. Its study in Optuna's storage goes, and its fence.
4. Its rows go, and a row that says so comes, in one transaction.

Each step may be done again, by any coordinator, beside another one: what was cut short is found by its row.
No lease is needed, since nothing works on a study that has ended and nothing can revive this one.
"""

from __future__ import annotations

import logging
from collections.abc import Iterable
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from sqlalchemy import func, select
from sqlalchemy.orm import Session

from service.artifacts.layout import Place
from service.artifacts.local_place import LocalPlace
from service.artifacts.places import place_behind
from service.control.needs import needed_by, own_range_test
from service.db import trials
from service.db.database import Database, database_now
from service.db.models import NOBODY, Attempt, RemovedStudy, Study, Trial
from service.db.transitions import append_event
from service.optuna_store.removal import remove_study
from service.optuna_store.storage import Storage

log = logging.getLogger(__name__)

REMOVING = "removing"
"""The kind of event that says that a study is being removed; the last one that anybody can read."""
_AT_ONCE = 20


@dataclass(frozen=True, kw_only=True)
class _Going:
    """A study that is being removed."""

    name: str
    roots: frozenset[str]
    """Paths and URLs below which its attempts had a folder."""


def due(session: Session) -> list[str]:
    """Some of the studies that are to be removed by now, the longest due first."""
    query = select(Study.id).where(Study.removal_at <= database_now(session))
    return list(session.scalars(query.order_by(Study.removal_at, Study.id).limit(_AT_ONCE)))


def remove(database: Database, storage: Storage, places: Iterable[Place], study_id: str) -> str | None:
    """Remove one study, or what is left of it.

    Args:
        database: the service's.
        storage: Optuna's.
        places: where artifacts may lie by today's settings.
        study_id: one that was due.

    Returns:
        Why it is still there, in words; None: it is gone, or was restored.

    Raises:
        OSError, Unavailable: a place does not answer, or does not let something be removed.
    """
    begun = database.transact(partial(_begin, study_id=study_id))
    if not isinstance(begun, _Going):
        return begun
    _remove_artifacts(places, begun, study_id)
    remove_study(storage, begun.name, study_id)
    database.transact(partial(_finish, study_id=study_id))
    log.info("removed study %s (%s) for good", begun.name, study_id)
    return None


def _begin(session: Session, study_id: str) -> _Going | str | None:
    """Say that it is being removed. None: it is not to be, any more."""
    study = session.get(Study, study_id, with_for_update=True)
    now = database_now(session)
    if study is None or study.removal_at is None or study.removal_at > now:
        return None
    if study.removing_at is None:
        reasons = list(needed_by(session, study))
        if reasons:
            return f"it is needed again: {'; '.join(reasons)}"
        for test in own_range_test(session, study):
            if test.removal_at is None:  # it had not ended when the study was deleted
                test.deleted_at, test.deleted_by, test.removal_at = now, study.deleted_by, now
        study.removing_at = now
        study.revision += 1
        numbers = session.scalars(select(Trial.number).where(Trial.study_id == study_id)).all()
        trials.touch(session, study_id, numbers)
        append_event(session, study_id, REMOVING, "its artifacts, trials and rows are being removed")
    folders = session.execute(
        select(Attempt.artifact_dir, Attempt.trial_number, Attempt.ordinal).where(
            Attempt.study_id == study_id
        )
    )
    roots = (
        row.artifact_dir.removesuffix(f"/{study_id}/{row.trial_number}/{row.ordinal}") for row in folders
    )
    return _Going(name=study.name, roots=frozenset(roots))


def _remove_artifacts(places: Iterable[Place], going: _Going, study_id: str) -> None:
    """From where settings say, and from where they said when its attempts were sent out."""
    known = list(places)
    shown = {place.shown for place in known}
    for root in sorted(going.roots - shown):
        if "://" in root:
            known.append(place_behind(root))
        elif Path(root).is_absolute():
            known.append(LocalPlace(Path(root)))
    for place in known:
        place.remove_study(study_id)


def _finish(session: Session, study_id: str) -> None:
    study = session.get(Study, study_id, with_for_update=True)
    if study is None or study.deleted_at is None:
        return  # another coordinator was faster
    count = select(func.count()).select_from(Trial).where(Trial.study_id == study_id)
    session.add(
        RemovedStudy(
            id=study.id,
            name=study.name,
            kind=study.kind,
            owner=study.owner,
            state=study.state,
            schedule_id=study.schedule_id,
            fired_for=study.fired_for,
            trials=session.scalars(count).one(),
            created_at=study.created_at,
            ended_at=study.ended_at,
            deleted_at=study.deleted_at,
            deleted_by=study.deleted_by or NOBODY,
            removed_at=database_now(session),
        )
    )
    session.delete(study)
