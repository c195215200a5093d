"""What the coordinator does while a database does not answer: wait, and come back by itself.

It does not end: it lets go of its studies in memory, whose workers train on, and asks both databases again
and again, less and less often. When they answer it takes up the studies as any coordinator would, with a
repair of each (`study.recovery`). What was being committed when the connection broke may have been stored or
not; the repair is the same for both.
"""

from __future__ import annotations

import logging
import random
import threading
import time
from collections.abc import Callable
from typing import TypeVar

from sqlalchemy.orm import Session
from tenacity import RetryCallState, Retrying, retry_if_exception, retry_if_exception_type, wait_exponential

from search_spaces.errors import machine_fault
from service.db.database import Database
from service.db.errors import is_outage, is_transient
from service.log_limit import LogLimit, short
from service.optuna_store.storage import Storage, ping

log = logging.getLogger(__name__)

T = TypeVar("T")

FIRST_PAUSE_SECONDS = 0.1
LONGEST_PAUSE_SECONDS = 5.0
CALM_SECONDS = 60.0
"""After so long without another outage the next one is asked after often again."""


def is_trouble(error: BaseException) -> bool:
    """Whether to wait: for a database that is away or has been in the hands of others for too long, or for
    this machine, which has run out of a resource, such as disk space or file descriptors."""
    return is_outage(error) or is_transient(error) or machine_fault(error) is not None


def until_it_answers(work: Callable[[], T]) -> T:
    """What `work` returns once the databases it needs answer: for the start of a process.

    A wrong address looks like a database that is not there yet, so what it says is logged.
    """

    def say_once(state: RetryCallState) -> None:
        error = state.outcome.exception() if state.outcome else None
        if state.attempt_number == 1 and error is not None:
            log.warning("a database does not answer yet, waiting for it: %s", short(error))

    retrying = Retrying(
        retry=retry_if_exception_type(Exception) & retry_if_exception(is_trouble),
        wait=wait_exponential(multiplier=FIRST_PAUSE_SECONDS, max=LONGEST_PAUSE_SECONDS),
        before_sleep=say_once,
        reraise=True,
    )
    return retrying(work)


class Outages:
    """Waits for both databases.

    Args:
        database: the service's tables.
        storage: Optuna's.
        write: writes a row to the service's tables, to see whether that works.
    """

    def __init__(self, database: Database, storage: Storage, write: Callable[[Session], None]) -> None:
        self._database = database
        self._storage = storage
        self._write = write
        self._log_limit = LogLimit()
        self._pause = FIRST_PAUSE_SECONDS
        self._over_since = 0.0

    def sit_out(self, error: BaseException, stop: threading.Event, each: Callable[[], None]) -> None:
        """Return when both databases answer, or when `stop` is set.

        Outages that follow each other within `CALM_SECONDS` count as one that goes on: a database that
        answers and then fails again at once is not asked ever more often.

        Args:
            error: what the outage was noticed by.
            stop: set when the coordinator is to end.
            each: called before every question, to show that the process lives.
        """
        began = time.monotonic()
        if began - self._over_since > CALM_SECONDS:
            self._pause = FIRST_PAUSE_SECONDS
        cause = short(error)
        what = (
            "this machine has run out of a resource" if machine_fault(error) else "a database does not answer"
        )
        suffix = self._log_limit.suffix(cause)
        if suffix is not None:
            log.warning("%s, waiting for it; workers keep training: %s%s", what, cause, suffix)
        while not stop.wait(random.uniform(self._pause / 2, self._pause)):
            each()
            self._pause = min(2 * self._pause, LONGEST_PAUSE_SECONDS)
            if self._answer():
                self._over_since = time.monotonic()
                if suffix is not None:
                    log.warning("the databases answer again after %.1f s", self._over_since - began)
                return

    def _answer(self) -> bool:
        try:
            with self._database.write() as session:
                self._write(session)  # one that is read-only, or whose disk is full, can still be read
            ping(self._storage)
        except Exception as error:
            if is_trouble(error):
                return False
            raise
        return True
