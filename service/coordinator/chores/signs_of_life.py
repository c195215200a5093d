"""Shows that this coordinator lives: a file for a container's health check, a row for the REST process."""

from __future__ import annotations

import logging
import math
from functools import partial

from sqlalchemy.orm import Session

from service.coordinator.outages import is_trouble
from service.db.database import Database
from service.devices import heartbeats
from service.home_folder import trouble_writing
from service.log_limit import LogLimit
from service.settings import Settings

log = logging.getLogger(__name__)

ALIVE_FILE = "coordinator.alive"
"""Touched in every round, in the home folder: what a container's health check looks at."""


class SignsOfLife:
    """What one coordinator writes so that others know that it lives.

    Args:
        settings: which folders it needs.
        database: the service's tables.
        owner: the coordinator, as in its leases.
    """

    def __init__(self, settings: Settings, database: Database, owner: str) -> None:
        self._settings = settings
        self._database = database
        self._owner = owner
        self._beat_at = -math.inf
        self._log_limit = LogLimit()

    def show(self, now: float) -> None:
        """Touch the file, and write the row when that is due.

        Args:
            now: seconds, by a clock that never goes back.
        """
        self.touch()
        if now - self._beat_at >= heartbeats.BEAT_SECONDS:
            self._beat_at = now
            self._database.transact(partial(heartbeats.beat, owner=self._owner, trouble=self._trouble()))

    def touch(self) -> None:
        """Touch the file alone. A full home folder does not end the process."""
        try:
            (self._settings.home / ALIVE_FILE).touch()
        except OSError as error:
            self._warn(f"the home folder cannot be written: {error.strerror}")

    def write(self, session: Session) -> None:
        """Write the row alone."""
        heartbeats.beat(session, self._owner)

    def end(self) -> None:
        """Remove the row, if the database can be written."""
        try:
            self._database.transact(partial(heartbeats.end, owner=self._owner))
        except Exception as error:
            if not is_trouble(error):
                raise
            log.warning("the end of this coordinator was not recorded: %s", error)

    def _trouble(self) -> str | None:
        """What keeps trials from being trained here, in words; None: nothing that this process can see."""
        settings = self._settings
        folders = {"home folder": settings.home}
        if settings.artifacts_url is None and settings.artifacts_dir.is_dir():
            folders["artifacts folder"] = settings.artifacts_dir
        for what, folder in folders.items():
            trouble = trouble_writing(folder)
            if trouble is not None:
                words = f"the coordinator's {what} cannot be written: {trouble}"
                self._warn(words)
                return words
        return None

    def _warn(self, message: str) -> None:
        suffix = self._log_limit.suffix(message)
        if suffix is not None:
            log.warning("%s%s", message, suffix)
