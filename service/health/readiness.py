"""Which parts of the service work, for /readyz; checked at most every other second."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from enum import StrEnum

from sqlalchemy.exc import SQLAlchemyError

from service.db.database import Database
from service.devices import heartbeats
from service.errors import ServiceError
from service.home_folder import sqlite_databases, trouble_writing
from service.log_limit import LogLimit, short
from service.maintenance.schema import check_schema
from service.optuna_store.storage import Storage, StorageInternalError, check_storage, remove_session
from service.settings import Settings

log = logging.getLogger(__name__)

CACHE_SECONDS = 2.0
"""How long an answer is given again: asking often costs nothing."""
ANSWER_SECONDS = 5.0
"""A check that takes longer counts as failed."""


class Part(StrEnum):
    """What has to work for a study that is submitted to be run."""

    DATABASE = "database"
    OPTUNA = "optuna"
    DISK = "disk"
    COORDINATOR = "coordinator"


class ReadinessCheck:
    """Checks the parts in a thread of its own, one check at a time, and remembers the answer for a moment.

    So it needs none of the threads that requests wait for, and a check that hangs keeps nobody else waiting.

    Args:
        settings: where SQLite's files are.
        database: the service's.
        storage: Optuna's.
    """

    def __init__(self, settings: Settings, database: Database, storage: Storage) -> None:
        self._settings = settings
        self._database = database
        self._storage = storage
        self._threads = ThreadPoolExecutor(1, thread_name_prefix="readiness")
        self._running: asyncio.Future[dict[Part, str | None]] | None = None
        self._found: dict[Part, str | None] = {}
        self._found_at = float("-inf")
        self._log_limit = LogLimit()

    async def troubles(self) -> dict[Part, str | None]:
        """By part, what is wrong with it in words; None: nothing."""
        if time.monotonic() - self._found_at < CACHE_SECONDS:
            return self._found
        if self._running is None or self._running.done():
            self._running = asyncio.get_running_loop().run_in_executor(self._threads, self._check)
        try:
            return await asyncio.wait_for(asyncio.shield(self._running), ANSWER_SECONDS)
        except TimeoutError:
            return {**dict.fromkeys(Part), Part.DATABASE: f"no answer within {ANSWER_SECONDS:g} s"}

    def close(self) -> None:
        self._threads.shutdown(cancel_futures=True)  # waits: what runs uses both databases

    def _check(self) -> dict[Part, str | None]:
        checks: dict[Part, Callable[[], str | None]] = {
            Part.DATABASE: self._database_trouble,
            Part.OPTUNA: self._optuna_trouble,
            Part.DISK: self._disk_trouble,
            Part.COORDINATOR: self._coordinator_trouble,
        }
        found = {part: self._ask(part, check) for part, check in checks.items()}
        self._found, self._found_at = found, time.monotonic()
        return found

    def _ask(self, part: Part, check: Callable[[], str | None]) -> str | None:
        """The result of a check, without details for outsiders; the log has them, once per cause."""
        try:
            trouble = cause = check()
        except ServiceError as error:
            trouble, cause = error.title.lower(), error.detail
        except (SQLAlchemyError, StorageInternalError, OSError) as error:
            trouble, cause = "does not answer; the server's log has the cause", short(error)
        if cause is not None:
            suffix = self._log_limit.suffix(f"{part}: {cause}")
            if suffix is not None:
                log.warning("not ready: %s: %s%s", part, cause, suffix)
        return trouble

    def _database_trouble(self) -> None:
        check_schema(self._database.engine)

    def _optuna_trouble(self) -> None:
        try:
            check_storage(self._storage)
        finally:
            remove_session(self._storage)

    def _disk_trouble(self) -> str | None:
        folders = {database.parent for database in sqlite_databases(self._settings)}
        for folder in sorted(folders):
            trouble = trouble_writing(folder)
            if trouble is not None:
                return f"the databases' folder cannot be written: {trouble}"
        return None

    def _coordinator_trouble(self) -> str | None:
        with self._database.read() as session:
            return heartbeats.missing(session)
