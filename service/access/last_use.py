"""When keys and sessions were last used, to the minute, without keeping anybody waiting for it."""

from __future__ import annotations

import logging
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from datetime import timedelta

from sqlalchemy import or_, update
from sqlalchemy.exc import SQLAlchemyError
from sqlalchemy.orm import Session

from service.db.database import Clock, Database, database_now
from service.db.models import ApiKey, LoginSession

log = logging.getLogger(__name__)

EVERY = timedelta(minutes=1)
_MOST = 10_000
"""Remembered at a time; more keys than that are only written more often."""


class LastUse:
    """Notes uses in a thread of its own, each key's and session's at most once a minute.

    A database that is locked or away costs a note and nothing else.
    """

    def __init__(self, database: Database) -> None:
        self._database = database
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="last-use")
        self._noted: dict[str, float] = {}
        self._lock = threading.Lock()

    def note(self, *, key_id: str | None, session_id: str | None) -> None:
        """Have a use written, unless this process has had one written within the minute."""
        name = session_id or key_id
        if name is None:
            return
        now = time.monotonic()
        with self._lock:
            noted = self._noted.get(name)
            if noted is not None and now - noted < EVERY.total_seconds():
                return
            if len(self._noted) >= _MOST:
                self._noted.clear()
            self._noted[name] = now
        self._thread.submit(self._write, key_id, session_id)

    def close(self) -> None:
        """Write what is to be written still."""
        self._thread.shutdown()

    def _write(self, key_id: str | None, session_id: str | None) -> None:
        try:
            self._database.transact(lambda session: _used(session, key_id, session_id))
        except SQLAlchemyError as error:
            log.warning("the last use of a key was not written: %s", type(error).__name__)


def _used(session: Session, key_id: str | None, session_id: str | None) -> None:
    before = database_now(session) - EVERY
    if key_id is not None:
        stale = or_(ApiKey.last_used_at.is_(None), ApiKey.last_used_at < before)
        session.execute(update(ApiKey).where(ApiKey.id == key_id, stale).values(last_used_at=Clock()))
    if session_id is not None:
        seen = update(LoginSession).where(LoginSession.id == session_id, LoginSession.last_seen_at < before)
        session.execute(seen.values(last_seen_at=Clock()))
