"""Studies and schedules to which things happen, and a server whose streams are read."""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Iterator
from typing import Any

import httpx

from service import web_server
from service.app import create_app
from service.client.event_stream import Message, messages
from service.db.database import Database
from service.db.kinds import ScheduleEventKind
from service.db.models import EventRow, Schedule, ScheduleEvent, Study
from service.embedded.ports import free_port
from service.events.queries import EVERYTHING, Filters, read_page
from service.events.schemas import EventView
from service.settings import Settings
from tests.support.waiting import wait_until

SILENCE_SECONDS = 60.0
"""After which a stream that should send something has failed."""


def a_study(database: Database, name: str = "tone", **columns: Any) -> str:
    """The id of a new study, to which nothing has happened."""
    with database.write() as session:
        study = Study(name=name, definition={"name": name}, **columns)
        session.add(study)
        session.flush()
        return study.id


def a_schedule(database: Database, name: str = "nightly", **columns: Any) -> str:
    """The id of a new schedule."""
    with database.write() as session:
        schedule = Schedule(name=name, cron="0 22 * * *", timezone="UTC", definition={}, **columns)
        session.add(schedule)
        session.flush()
        return schedule.id


def happened(study_id: str | None, message: str, kind: str = "waiting") -> EventRow:
    return EventRow(study_id=study_id, kind=kind, message=message)


def scheduled(schedule_id: str, message: str, kind: str = ScheduleEventKind.SKIPPED) -> ScheduleEvent:
    return ScheduleEvent(
        schedule_id=schedule_id, schedule_name="nightly", owner="ann", kind=kind, message=message
    )


def happen(database: Database, *rows: EventRow | ScheduleEvent) -> None:
    """Commit these in one transaction."""
    with database.write() as session:
        session.add_all(rows)


def all_events(
    database: Database, filters: Filters = EVERYTHING, *, after: int = 0, limit: int = 1000
) -> list[EventView]:
    """Every event that matches, by pages."""
    found: list[EventView] = []
    more = True
    while more:
        with database.read() as session:
            page = read_page(session, filters, after=after, limit=limit)
        found += [event.view for event in page.events]
        after, more = page.upto, page.more
    return found


@contextlib.contextmanager
def serving(settings: Settings) -> Iterator[web_server.Server]:
    """The server in a thread of its own; `config.port` is its port."""
    config = web_server.configuration(create_app(settings), port=free_port(), log_level="error")
    server = web_server.Server(config)
    thread = threading.Thread(target=server.run)
    thread.start()
    try:
        wait_until(lambda: server.started or not thread.is_alive(), "the start of the server")
        assert server.started
        yield server
    finally:
        server.should_exit = True
        thread.join(60)
        assert not thread.is_alive(), "the server did not stop"


class Listening:
    """A stream that is read; `last_id` is the last id it has sent."""

    def __init__(self, response: httpx.Response) -> None:
        self.response = response
        self.last_id = 0
        self.comments: list[bytes] = []
        self._pieces = messages(response.iter_bytes())
        self._waiting: list[Message] = []

    def message(self) -> Message | None:
        """The next message; None: the stream has ended."""
        while not self._waiting:
            piece = next(self._pieces, None)
            if piece is None:
                return None
            self._waiting = piece
        found = self._waiting.pop(0)
        self.last_id = found.id or self.last_id
        return found

    def events(self, count: int) -> list[EventView]:
        """The next events."""
        found: list[EventView] = []
        while len(found) < count:
            message = self.message()
            assert message is not None, f"the stream ended after {len(found)} of {count} events"
            if message.data is not None:
                found.append(EventView.model_validate_json(message.data))
        return found

    def ends(self) -> bool:
        """True, once the stream has ended; events before its end are passed over."""
        while self.message() is not None:
            pass
        return True


@contextlib.contextmanager
def listening(
    port: int, path: str = "/v1/events/stream", *, key: str | None = None, **headers: str
) -> Iterator[Listening]:
    """A stream whose server has begun to send it. Underscores in the names of headers are hyphens."""
    given = {name.replace("_", "-"): value for name, value in headers.items()}
    if key is not None:
        given["Authorization"] = f"Bearer {key}"
    with (
        httpx.Client(base_url=f"http://127.0.0.1:{port}", timeout=SILENCE_SECONDS) as client,
        client.stream("GET", path, headers=given) as response,
    ):
        assert response.status_code == 200, response.read()
        assert response.headers["content-type"].startswith("text/event-stream")
        found = Listening(response)
        assert found.message() is not None  # the greeting: from here on nothing is missed
        yield found
