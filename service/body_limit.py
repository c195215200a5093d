"""Refuses large request bodies before they are in memory, announced or not."""

from __future__ import annotations

from starlette.types import ASGIApp, Message, Receive, Scope, Send

from service import problems
from service.errors import TooLarge


class BodyLimit:
    """ASGI middleware: 413 for a body over `max_bytes`.

    A body of a stated length is refused at once; a chunked one as soon as it grows too long, without
    reading the rest.
    """

    def __init__(self, app: ASGIApp, *, max_bytes: int) -> None:
        self._app = app
        self._max_bytes = max_bytes

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        too_large = TooLarge(f"The body is larger than {self._max_bytes:,} bytes.")
        stated = dict(scope["headers"]).get(b"content-length", b"")
        if stated.isdigit() and int(stated[:20]) > self._max_bytes:
            await problems.render_error(too_large, scope["path"])(scope, receive, send)
            return
        seen = 0

        async def limited() -> Message:
            nonlocal seen
            message = await receive()
            seen += len(message.get("body", b""))
            if seen > self._max_bytes:
                raise too_large  # where the endpoint reads; the application renders it
            return message

        await self._app(scope, limited, send)
