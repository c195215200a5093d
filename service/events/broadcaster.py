"""New events, read once for all who wait for some: by one task of the process, however many they are.

The newest events are kept in memory. A follower is no more than the id up to which it has been served: while
that is among those in memory it is served from there, and otherwise by pages from the database, until it has
caught up. So one that reads slowly, or comes back after an hour, costs neither memory nor the others' time.
"""

from __future__ import annotations

import asyncio
import logging
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from typing import TypeVar

from anyio import CapacityLimiter
from anyio.to_thread import run_sync
from sqlalchemy.exc import SQLAlchemyError
from sqlalchemy.orm import Session

from service.db.database import Database
from service.db.errors import is_outage, is_transient
from service.errors import Unavailable
from service.events.queries import EVERYTHING, Event, Filters, Page, newest, read_page
from service.log_limit import LogLimit, short

log = logging.getLogger(__name__)

POLL_SECONDS = 0.5
"""How often the database is asked for new events, while anybody waits for some."""
KEPT = 2000
"""Events in memory, of at most some kilobytes each."""
MAX_FOLLOWERS = 384
"""Streams, long polls and waits at the same time: three quarters of the server's connections."""
_PAGE = 100
"""Events that a follower is given at once when it catches up; it has no more than these in memory."""
_READERS = 4
"""Threads, and with them database connections, for all followers together."""
_AGAIN_SECONDS = 1.0
"""Between two tries to catch up while the database is away."""

T = TypeVar("T")


class Broadcaster:
    """Reads new events while somebody follows them. All methods but the constructor are the event loop's.

    Args:
        database: the service's.
        poll_seconds: the time between two looks at the database.
        kept: how many of the newest events are kept in memory.
    """

    def __init__(self, database: Database, *, poll_seconds: float = POLL_SECONDS, kept: int = KEPT) -> None:
        self._database = database
        self._poll_seconds = poll_seconds
        self._recent: deque[Event] = deque(maxlen=kept)
        self._floor: int | None = None
        """All events above this id, up to `_upto`, are in memory. None: nothing has been read yet."""
        self._upto = 0
        self._followers = 0
        self._behind = True
        """Nobody followed for a while: what happened meanwhile is nobody's news."""
        self._wanted = asyncio.Event()
        self._news = asyncio.Event()
        self._polling: asyncio.Task[None] | None = None
        self._readers = CapacityLimiter(_READERS)
        self._log_limit = LogLimit()
        self.closed = False

    async def read(self, work: Callable[[Session], T]) -> T:
        """Read from the database in one of the threads that followers share."""

        def in_thread() -> T:
            with self._database.read() as session:
                return work(session)

        return await run_sync(in_thread, limiter=self._readers)

    @contextmanager
    def follow(self, filters: Filters, after: int) -> Iterator[Follower]:
        """Be served the events with ids above `after` that match.

        Raises:
            Unavailable: there are `MAX_FOLLOWERS`.
        """
        if self._followers >= MAX_FOLLOWERS:
            raise Unavailable(
                f"{MAX_FOLLOWERS} requests wait for events already; try again, or read lists of events."
            )
        self._followers += 1
        self._wanted.set()
        if (self._polling is None or self._polling.done()) and not self.closed:
            self._polling = asyncio.get_running_loop().create_task(self._poll())
        try:
            yield Follower(self, filters, after)
        finally:
            self._followers -= 1
            if self._followers == 0:
                self._behind = True
                self._wanted.clear()

    def recent(self, filters: Filters, after: int) -> tuple[list[Event], int] | None:
        """What is in memory above an id and matches, and up to where; None: not all of it is there."""
        if self._floor is None or self._behind or after < self._floor:
            return None
        found = []
        for event in reversed(self._recent):
            if event.view.id <= after:
                break
            if filters.match(event.view):
                found.append(event)
        found.reverse()
        return found, max(after, self._upto)

    @property
    def ready(self) -> bool:
        """Whether new events are being read."""
        return self._floor is not None and not self._behind

    async def news(self, seconds: float) -> None:
        """Wait until there may be something new, or the time is over."""
        news = self._news
        with suppress(TimeoutError):
            async with asyncio.timeout(max(0.0, seconds)):
                await news.wait()

    def close(self) -> None:
        """End all that wait, now and from now on."""
        self.closed = True
        if self._polling is not None:
            self._polling.cancel()
            self._polling = None
        self._announce()

    def _announce(self) -> None:
        self._news.set()
        self._news = asyncio.Event()

    async def _poll(self) -> None:
        while True:
            await self._wanted.wait()
            try:
                await self._look()
            except SQLAlchemyError as error:
                if not (is_outage(error) or is_transient(error)):
                    log.exception("new events cannot be read")
                elif (suffix := self._log_limit.suffix(short(error))) is not None:
                    log.warning("the database does not answer; new events wait%s: %s", suffix, short(error))
            await asyncio.sleep(self._poll_seconds)

    async def _look(self) -> None:
        if self._behind or self._floor is None:
            upto = await self.read(newest)
            self._recent.clear()
            self._floor = self._upto = upto
            self._behind = self._followers == 0
            self._announce()
            return
        more = True
        while more:
            page = await self.read(self._next_page)
            for event in page.events:
                if len(self._recent) == self._recent.maxlen:
                    self._floor = self._recent[0].view.id
                self._recent.append(event)
            self._upto, more = page.upto, page.more
            if page.events:
                self._announce()

    def _next_page(self, session: Session) -> Page:
        page = read_page(session, EVERYTHING, after=self._upto, limit=1000)
        for event in page.events:
            _ = event.message  # made here once, for all followers
        return page


class Follower:
    """One who waits for events; `position` is the id up to which it has been served."""

    def __init__(self, broadcaster: Broadcaster, filters: Filters, after: int) -> None:
        self._broadcaster = broadcaster
        self._filters = filters
        self.position = after

    async def next(self, seconds: float) -> Sequence[Event]:
        """The next events, as soon as there are some; none after that time, or when the server stops.

        While the database is away there are none.
        """
        loop = asyncio.get_running_loop()
        give_up_at = loop.time() + seconds
        while not self._broadcaster.closed:
            pause = give_up_at - loop.time()
            try:
                found = await self._take()
            except SQLAlchemyError as error:
                if not (is_outage(error) or is_transient(error)):
                    raise
                found, pause = (), min(pause, _AGAIN_SECONDS)
            if found:
                return found
            if loop.time() >= give_up_at:
                break
            await self._broadcaster.news(pause)
        return ()

    async def _take(self) -> Sequence[Event]:
        """What there is by now; nothing happens between the last look at memory and the return."""
        while self._broadcaster.ready and not self._broadcaster.closed:
            recent = self._broadcaster.recent(self._filters, self.position)
            if recent is not None:
                found, self.position = recent
                return found
            page = await self._broadcaster.read(
                lambda session: read_page(session, self._filters, after=self.position, limit=_PAGE)
            )
            self.position = page.upto
            if page.events:
                return page.events
        return ()
