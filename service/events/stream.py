"""Server-sent events, as the HTML standard has them (https://html.spec.whatwg.org/#server-sent-events).

Each event is one message whose data is its JSON. Messages have no `event:` field, so that a browser's
`EventSource` gives all of them to `onmessage`, whatever kinds there will be.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator

from fastapi import Request
from starlette.responses import StreamingResponse
from starlette.types import Receive, Scope, Send

from service.access.auth import still_admitted
from service.events.broadcaster import Broadcaster, Follower
from service.events.queries import Filters

MEDIA_TYPE = "text/event-stream"
RETRY_MS = 2000
"""How long a browser waits before it connects again."""
HEARTBEAT_SECONDS = 15.0
CHECK_SECONDS = 20.0
"""How often the key of an open stream is looked up again."""

_HEADERS = {
    "Vary": "Accept",
    "Cache-Control": "no-store",
    "X-Accel-Buffering": "no",  # a proxy such as nginx would keep small messages back
}


def wants_stream(request: Request) -> bool:
    """Whether a browser's `EventSource` asks, or somebody who says the same."""
    kinds = request.headers.get("accept", "").split(",")
    return any(kind.partition(";")[0].strip().lower() == MEDIA_TYPE for kind in kinds)


class EventStream(StreamingResponse):
    """Sends what matches for as long as the client reads it and its key is valid.

    Args:
        request: whose key is looked up again and again.
        broadcaster: has the events.
        filters: which of them.
        after: only those with higher ids.
        heartbeat: seconds after which a comment is sent where nothing happens, so that both sides notice
            when the other is gone. It moves the client's last id on, past what its filters leave out.

    Raises (when it is sent, before its first byte):
        Unavailable: too many requests wait for events.
    """

    media_type = MEDIA_TYPE

    def __init__(
        self,
        request: Request,
        broadcaster: Broadcaster,
        filters: Filters,
        *,
        after: int,
        heartbeat: float,
    ) -> None:
        super().__init__((), headers=_HEADERS)
        self._request, self._broadcaster, self._heartbeat = request, broadcaster, heartbeat
        self._filters, self._after = filters, after

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        with self._broadcaster.follow(self._filters, self._after) as follower:
            self.body_iterator = _chunks(self._request, self._broadcaster, follower, self._heartbeat)
            await super().__call__(scope, receive, send)


async def _chunks(
    request: Request, broadcaster: Broadcaster, follower: Follower, heartbeat: float
) -> AsyncIterator[bytes]:
    loop = asyncio.get_running_loop()
    yield f"retry: {RETRY_MS}\nid: {follower.position}\n\n".encode()
    checked = sent = loop.time()
    while True:
        due = min(sent + heartbeat, checked + CHECK_SECONDS) - loop.time()
        events = await follower.next(due)
        if broadcaster.closed:
            yield b": the server is stopping\n\n"
            return
        if loop.time() >= checked + CHECK_SECONDS:
            if not await still_admitted(request):
                yield b": the API key is no longer valid\n\n"
                return
            checked = loop.time()
        if events:
            sent = loop.time()
            yield b"".join(event.message for event in events)
        elif loop.time() >= sent + heartbeat:
            sent = loop.time()
            yield f": heartbeat\nid: {follower.position}\n\n".encode()
