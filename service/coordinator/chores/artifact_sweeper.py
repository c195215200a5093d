"""Removes what studies that have ended leave behind: checkpoints, and the adapters that are not to be kept;
and all of deleted studies.

In a thread of its own, because a storage may take its time and leases must be renewed meanwhile. A study is
swept once; what is cut short is begun again.
"""

from __future__ import annotations

import logging
import threading
import time
from datetime import datetime

from sqlalchemy import select, update
from sqlalchemy.orm import Session

from search_spaces.wording import counted
from service.artifacts.commands import REFUSALS, carry_out, plan
from service.artifacts.layout import Place
from service.artifacts.places import open_places
from service.coordinator.chores import removal
from service.db.database import Database, database_now
from service.db.models import Study
from service.optuna_store.storage import Storage, remove_session
from service.settings import Settings
from service.states import TERMINAL_STUDY_STATES

log = logging.getLogger(__name__)

_EVERY_SECONDS = 30.0
_AT_ONCE = 20
_CLOSE_SECONDS = 5.0


class Sweeper:
    """Looks now and then for studies that have ended and were not swept, and for those to be removed.

    Any coordinator sweeps any study: no lease is needed, since doing it twice changes nothing.

    Args:
        settings: where artifacts lie, and how many adapters are kept.
        database: the service's tables.
        storage: Optuna's.
    """

    def __init__(self, settings: Settings, database: Database, storage: Storage) -> None:
        self._settings = settings
        self._database = database
        self._storage = storage
        self._thread: threading.Thread | None = None
        self._closing = threading.Event()
        self._next = (
            time.monotonic() + _EVERY_SECONDS
        )  # a coordinator that has just begun has other things to do
        self._complained: set[str] = set()

    def look(self) -> None:
        """Begins to sweep if there is something to sweep; returns at once."""
        if time.monotonic() < self._next or (self._thread is not None and self._thread.is_alive()):
            return
        self._next = time.monotonic() + _EVERY_SECONDS
        with self._database.read() as session:
            studies, deleted = unswept(session), removal.due(session)
        if studies or deleted:
            work = studies, deleted
            self._thread = threading.Thread(target=self._sweep, args=work, name="sweeper", daemon=True)
            self._thread.start()

    def close(self) -> None:
        """Ends after the removal in hand; what is left is found again."""
        self._closing.set()
        if self._thread is not None:
            self._thread.join(_CLOSE_SECONDS)

    def _sweep(self, studies: list[str], deleted: list[str]) -> None:
        try:
            places = open_places(self._settings)
            for study_id in deleted:
                if self._closing.is_set():
                    return
                self.remove_study(study_id, places)
            for study_id in studies:
                if self._closing.is_set():
                    return
                self.sweep_study(study_id, places)
        except Exception as error:  # noqa: BLE001 - a database that is away is the loop's to wait for
            if not self._closing.is_set():
                log.warning("studies that have ended are swept later: %s", error)
        finally:
            remove_session(self._storage)

    def remove_study(self, study_id: str, places: list[Place]) -> None:
        """Removes one study that was deleted; one that cannot be removed now is tried again later."""
        try:
            refused = removal.remove(self._database, self._storage, places, study_id)
        except REFUSALS as error:
            refused = str(error)
        if refused is not None and study_id not in self._complained:
            self._complained.add(study_id)
            log.warning("study %s is removed later: %s", study_id, refused)

    def sweep_study(self, study_id: str, places: list[Place]) -> None:
        """Sweeps one study that has ended; one whose artifacts cannot be removed is tried again later."""
        keep = self._settings.keep_best_adapters
        with self._database.read() as session:
            ended_at = session.scalars(select(Study.ended_at).where(Study.id == study_id)).one_or_none()
        refused: list[str] = []
        removed = freed = 0
        try:
            planned = list(plan(self._database, self._storage, places, keep=keep, studies=[study_id]))
            for removal, why in carry_out(self._database, planned, stop=self._closing.is_set):
                if why is not None:
                    refused.append(f"{removal.place}: {why}")
                    continue
                removed, freed = removed + 1, freed + removal.bytes
        except REFUSALS as error:
            refused.append(str(error))
        if self._closing.is_set():
            return
        if removed:
            log.info("swept %s (%.1f MB) of study %s", counted(removed, "folder"), freed / 1e6, study_id)
        if refused:
            if study_id not in self._complained:
                self._complained.add(study_id)
                log.warning("artifacts of study %s are swept later: %s", study_id, refused[0])
            return
        self._database.transact(lambda session: _note(session, study_id, ended_at))


def unswept(session: Session) -> list[str]:
    """Some of the studies that have ended and were not swept, the oldest first."""
    query = select(Study.id).where(Study.state.in_(TERMINAL_STUDY_STATES), Study.swept_at.is_(None))
    return list(session.scalars(query.order_by(Study.ended_at).limit(_AT_ONCE)))


def _note(session: Session, study_id: str, ended_at: datetime | None) -> None:
    """Of a study that was extended meanwhile, another end is swept."""
    now, ended_then = database_now(session), Study.ended_at == ended_at
    session.execute(update(Study).where(Study.id == study_id, ended_then).values(swept_at=now))
