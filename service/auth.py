"""Who may come in: nobody without the API key, once one is set."""

from __future__ import annotations

import base64
import binascii
import hmac

from pydantic import SecretStr
from starlette.types import ASGIApp, Receive, Scope, Send

from service import problems
from service.errors import Unauthorized

OPEN_PATHS = frozenset({"/healthz", "/readyz"})
"""For load balancers, which carry no key."""


class ApiKeyGuard:
    """ASGI middleware: 401 for every request but the health checks that does not carry the key.

    Accepted are `Authorization: Bearer <key>`, and HTTP Basic with any user name and the key as the
    password, which is what a browser can be asked for.
    """

    def __init__(self, app: ASGIApp, *, key: SecretStr) -> None:
        self._app = app
        self._key = key.get_secret_value().encode()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http" or scope["path"] in OPEN_PATHS or self._admits(scope):
            await self._app(scope, receive, send)
            return
        error = Unauthorized(
            "This server needs its API key: send `Authorization: Bearer <key>`, or HTTP Basic with any "
            "user name and the key as the password."
        )
        await problems.render_error(error, scope["path"])(scope, receive, send)

    def _admits(self, scope: Scope) -> bool:
        given = _credential(dict(scope["headers"]).get(b"authorization", b""))
        # Compared in constant time, so that the answer's delay tells nothing about the key.
        return given is not None and hmac.compare_digest(given, self._key)


def _credential(header: bytes) -> bytes | None:
    scheme, _, value = header.strip().partition(b" ")
    if scheme.lower() == b"bearer":
        return value.strip()
    if scheme.lower() == b"basic":
        try:
            _, colon, password = base64.b64decode(value.strip(), validate=True).partition(b":")
        except binascii.Error:
            return None
        return password if colon else None
    return None
