"""Authentication: a request carries the server's key, or the key of an owner.

A server for which no key was ever made is open; revoking the last key does not open it again.
"""

from __future__ import annotations

import base64
import binascii

from pydantic import SecretStr
from sqlalchemy.exc import SQLAlchemyError
from starlette.concurrency import run_in_threadpool
from starlette.requests import Request
from starlette.types import ASGIApp, Receive, Scope, Send

from service.access import keys
from service.db.database import Database
from service.db.errors import is_outage, is_transient
from service.db.models import NOBODY
from service.errors import ServiceError, Unauthorized, Unavailable
from service.rest import problems

OPEN_PATHS = frozenset({"/healthz", "/readyz"})
"""For load balancers, which carry no key."""


class ApiKeyGuard:
    """ASGI middleware: 401 for every request but the health checks that does not carry a key.

    Accepted are `Authorization: Bearer <key>`, and HTTP Basic with any user name and the key as the
    password, which is what a browser can be asked for. Whose key it is goes into `scope["state"]["owner"]`.

    The table of keys is read for every request, so that a revoked key stops working at once. The server's
    own key needs no database.

    Args:
        app: the application behind it; its `state.resources` has the database.
        key: the server's own; None: it has none.
    """

    def __init__(self, app: ASGIApp, *, key: SecretStr | None) -> None:
        self._app = app
        self._key = None if key is None else key.get_secret_value().encode()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http" or scope["path"] in OPEN_PATHS:
            await self._app(scope, receive, send)
            return
        try:
            owner = await _owner_of(scope, self._key)
        except ServiceError as error:
            await problems.render_error(error, scope["path"])(scope, receive, send)
            return
        scope.setdefault("state", {})["owner"] = owner
        await self._app(scope, receive, send)


async def still_admitted(request: Request) -> bool:
    """Whether a request that is being answered for long would be let in now, as the same owner.

    Yes while the database of keys is away: then there is nothing to tell either.
    """
    key = request.app.state.resources.settings.api_key
    try:
        owner = await _owner_of(request.scope, None if key is None else key.get_secret_value().encode())
    except Unavailable:
        return True
    except Unauthorized:
        return False
    return bool(owner == request.state.owner)


async def _owner_of(scope: Scope, key: bytes | None) -> str:
    given = _credential(dict(scope["headers"]).get(b"authorization", b""))
    if given is not None and key is not None and keys.same_key(given, key):
        return NOBODY
    owner = await run_in_threadpool(
        _look_up, scope["app"].state.resources.database, given, guarded=key is not None
    )
    if owner is None:
        raise Unauthorized(
            "This server needs an API key: send `Authorization: Bearer <key>`, or HTTP Basic with any "
            "user name and the key as the password."
        )
    return owner


def _look_up(database: Database, given: bytes | None, *, guarded: bool) -> str | None:
    """The owner of what was given, or `default` where no key is required. None: the request is refused.

    Raises:
        Unavailable: the database does not answer; then nobody is let in.
    """
    try:
        with database.read() as session:
            owner = keys.find_owner(session, given) if given else None
            if owner is None and not guarded and not keys.any_key(session):
                return NOBODY
            return owner
    except SQLAlchemyError as error:
        if is_outage(error) or is_transient(error):
            raise Unavailable("The database of API keys does not answer; try again.") from error
        raise


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
