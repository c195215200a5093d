"""Refuses request bodies that are too large or too slow, with or without a Content-Length."""

from __future__ import annotations

import asyncio

from starlette.types import ASGIApp, Message, Receive, Scope, Send

from service.errors import TooLarge, TooSlow
from service.rest import problems

BODY_SECONDS = 30.0
"""A body of the largest size allowed is here within it at 33 kB a second."""


class BodyLimit:
    """ASGI middleware: 413 for a body over `max_bytes`, 408 for one that takes longer than `max_seconds`.

    A body of a stated length is refused at once; a chunked one as soon as it grows too long, without
    reading the rest.
    """

    def __init__(self, app: ASGIApp, *, max_bytes: int, max_seconds: float = BODY_SECONDS) -> None:
        self._app = app
        self._max_bytes = max_bytes
        self._max_seconds = max_seconds

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        too_large = TooLarge(f"The body is larger than {self._max_bytes:,} bytes.")
        stated = dict(scope["headers"]).get(b"content-length", b"")
        if stated.isdigit() and int(stated[:20]) > self._max_bytes:
            await problems.render_error(too_large, scope["path"])(scope, receive, send)
            return
        give_up_at = asyncio.get_running_loop().time() + self._max_seconds
        seen = 0
        whole = False

        async def limited() -> Message:
            nonlocal seen, whole
            if whole:
                return await receive()  # waits for the end of the connection, for as long as it lasts
            # What is raised here arises where the endpoint reads; the application renders it.
            try:
                async with asyncio.timeout_at(give_up_at):
                    message = await receive()
            except TimeoutError:
                raise TooSlow(f"The body was not received within {self._max_seconds:g} s.") from None
            seen += len(message.get("body", b""))
            whole = not message.get("more_body", False)
            if seen > self._max_bytes:
                raise too_large
            return message

        await self._app(scope, limited, send)
