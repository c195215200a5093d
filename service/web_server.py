"""The HTTP server of the REST process: uvicorn, with bounds on connections and on the time for a header.

uvicorn waits forever for the end of a header, so a client that sends half of one occupies a connection, and
a descriptor, before any key is checked. Its `limit_concurrency` is looked at only when a header is complete.
"""

from __future__ import annotations

import asyncio
import logging
import resource
import socket
from contextlib import suppress
from typing import Any, cast

import h11
import uvicorn
from starlette.types import ASGIApp
from uvicorn.protocols.http.h11_impl import H11Protocol

from service.app import create_app
from service.log_limit import RepeatFilter
from service.settings import Settings
from service.telemetry.logs import configure_logging

HEADER_SECONDS = 15.0
"""For the first byte of a connection's first request, and for a whole header from its first byte on."""
KEEP_ALIVE_SECONDS = 5
WRITE_SECONDS = 30.0
"""How long a client may read nothing of an answer of which more is ready."""
MAX_HEADER_BYTES = 64 * 1024
MAX_CONNECTIONS = 512
_DESCRIPTORS_FOR_OTHERS = 64
"""Left for databases, files and child processes."""
_BACKLOG = 128
"""Also how often Python 3.11 logs one failed `accept`, each time with a traceback."""


class BoundedConnection(H11Protocol):
    """A connection that is closed if a header is not complete in time, and refused if there are too many.

    It is cut off, too, if its client reads nothing for `WRITE_SECONDS`: a stream of events has no end, and
    its connection must not be held up for ever.

    The same time is allowed for the rest of a body that is still being sent when its answer is complete, as
    after a 401.
    """

    _waiting: asyncio.TimerHandle | None = None
    _unread: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(transport)
        if len(self.connections) > max_connections():
            self._answer(503, "Too many connections")
            return
        self._watch()

    def data_received(self, data: bytes) -> None:
        super().data_received(data)
        self._watch()

    def on_response_complete(self) -> None:
        super().on_response_complete()
        self._stop_waiting()
        if self.conn.their_state is h11.SEND_BODY:
            self._watch()

    def connection_lost(self, exc: Exception | None) -> None:
        self._stop_waiting()
        self._is_read()
        super().connection_lost(exc)

    def pause_writing(self) -> None:
        super().pause_writing()
        self._unread = self.loop.call_later(WRITE_SECONDS, self.transport.abort)

    def resume_writing(self) -> None:
        self._is_read()
        super().resume_writing()

    def _is_read(self) -> None:
        if self._unread is not None:
            self._unread.cancel()
            self._unread = None

    def _watch(self) -> None:
        late = self.conn.our_state is h11.DONE and self.conn.their_state is h11.SEND_BODY
        if self.conn.their_state is not h11.IDLE and not late:
            self._stop_waiting()
        elif self._waiting is None and not self.transport.is_closing():
            self._waiting = self.loop.call_later(HEADER_SECONDS, self._give_up)

    def _stop_waiting(self) -> None:
        if self._waiting is not None:
            self._waiting.cancel()
            self._waiting = None

    def _give_up(self) -> None:
        self._waiting = None
        if self.conn.our_state is h11.IDLE:
            self._answer(408, "Request Timeout")
        else:
            self.transport.close()

    def _answer(self, status: int, reason: str) -> None:
        """Say why, as far as the other side reads it, and close."""
        self.transport.write(
            f"HTTP/1.1 {status} {reason}\r\nContent-Length: 0\r\nConnection: close\r\n\r\n".encode()
        )
        self.transport.close()


class Server(uvicorn.Server):
    """uvicorn's server, which ends streams and waits before it waits for the ends of answers."""

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        broadcaster = getattr(cast(Any, self.config.app).state, "broadcaster", None)
        if broadcaster is not None:  # else it has not started
            broadcaster.close()
        await super().shutdown(sockets)


def max_connections() -> int:
    """How many connections are open at most: fewer than this process may have descriptors."""
    descriptors = resource.getrlimit(resource.RLIMIT_NOFILE)[0]
    return max(1, min(MAX_CONNECTIONS, descriptors - _DESCRIPTORS_FOR_OTHERS))


def configuration(app: ASGIApp, **options: Any) -> uvicorn.Config:
    """uvicorn's configuration with these bounds; further `options` are uvicorn's own."""
    return uvicorn.Config(
        cast(Any, app),
        http=BoundedConnection,
        ws="none",  # nothing here speaks WebSocket
        h11_max_incomplete_event_size=MAX_HEADER_BYTES,
        timeout_keep_alive=KEEP_ALIVE_SECONDS,
        backlog=_BACKLOG,
        server_header=False,
        **options,
    )


def run(settings: Settings) -> None:
    """Serve the REST API until SIGTERM or SIGINT."""
    configure_logging(settings)
    config = configuration(
        create_app(settings),
        host=settings.host,
        port=settings.port,
        proxy_headers=bool(settings.trusted_proxies),
        forwarded_allow_ips=list(settings.trusted_proxies),
        log_config=None,  # uvicorn's records and ours go to one log, in one format
        log_level=settings.log_level.lower(),
        access_log=settings.log_level == "DEBUG",  # a watched study is asked for every second
    )
    for name in ("asyncio", "uvicorn.error"):  # after uvicorn has set up its loggers
        logging.getLogger(name).addFilter(RepeatFilter())
    server = Server(config)
    with suppress(KeyboardInterrupt):  # Ctrl-C, which uvicorn raises again when it has ended in good order
        server.run()
    if not server.started:
        raise SystemExit(3)  # as uvicorn.run does; the log has the cause
