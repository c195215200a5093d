"""Authentication: a request carries the server's key, the key of an owner, or the cookie of a session.

A server for which no key was ever made, and that has no identity provider, is open; revoking the last key
does not open it again.
"""

from __future__ import annotations

import base64
import binascii
import hmac
from urllib.parse import quote

from sqlalchemy.exc import SQLAlchemyError
from starlette.concurrency import run_in_threadpool
from starlette.datastructures import Headers
from starlette.requests import Request
from starlette.responses import RedirectResponse
from starlette.types import ASGIApp, Receive, Scope, Send

from service.access.keys import queries as keys
from service.access.last_use import LastUse
from service.access.sessions import commands as sessions
from service.access.sessions import cookies
from service.db.database import Database
from service.db.errors import is_outage, is_transient
from service.db.kinds import Role
from service.db.models import NOBODY
from service.errors import Forbidden, ServiceError, Unauthorized, Unavailable
from service.rest import problems
from service.rest.authorization.callers import Caller, Via
from service.settings import Settings

OPEN_PATHS = frozenset({"/healthz", "/readyz"})
"""For load balancers, which carry no key."""
LOGIN_PATHS = frozenset({"/login", "/login/openid", "/login/openid/callback"})
"""For browsers that have not come in yet."""
FORM_PATHS = frozenset({"/login", "/logout"})
"""Their endpoints look for the token in the form."""
CSRF_HEADER = "X-CSRF-Token"

_READING = ("GET", "HEAD", "OPTIONS")


class ForgedRequest(Forbidden):
    title = "CSRF token missing or wrong"


class ApiKeyGuard:
    """ASGI middleware: 401 for every request, but on open paths, of which nobody knows who sends it.

    Accepted are `Authorization: Bearer <key>`, HTTP Basic with any user name and the key as the password, and
    the cookie of a session. Who it is goes into `scope["state"]["caller"]`. A browser that asks for a page is
    led to the login page instead of a 401. A change by a session needs its token in `X-CSRF-Token`.

    Tables are read for every request, so that a revoked key stops working at once. The server's own key
    needs no database.

    Args:
        app: the application behind it; its `state` has `resources` and `last_use`.
        settings: the server's key, and how long sessions last.
    """

    def __init__(self, app: ASGIApp, *, settings: Settings) -> None:
        self._app = app
        self._settings = settings

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http" or scope["path"] in OPEN_PATHS:
            await self._app(scope, receive, send)
            return
        headers = Headers(scope=scope)
        try:
            caller = await _caller_of(scope, headers, self._settings)
            if caller is None and scope["path"] not in LOGIN_PATHS:
                if _wants_page(scope, headers):
                    await _to_login(scope)(scope, receive, send)
                    return
                raise Unauthorized(
                    "This server needs an API key: send `Authorization: Bearer <key>`, or HTTP Basic with "
                    "any user name and the key as the password. Browsers log in at /login."
                )
            if caller is not None:
                _require_csrf_token(scope, headers, caller)
        except ServiceError as error:
            await problems.render_error(error, scope["path"])(scope, receive, send)
            return
        if caller is not None:
            scope.setdefault("state", {})["caller"] = caller
        await self._app(scope, receive, send)


async def still_admitted(request: Request) -> bool:
    """Whether a request that is being answered for long would be let in now, as the same caller.

    Yes while the database of keys is away: then there is nothing to tell either.
    """
    try:
        settings = request.app.state.resources.settings
        caller = await _caller_of(request.scope, request.headers, settings)
    except Unavailable:
        return True
    return bool(caller == request.state.caller)


async def _caller_of(scope: Scope, headers: Headers, settings: Settings) -> Caller | None:
    """Who sends a request; None: nobody who is known."""
    authorization = headers.get("authorization")
    given = None if authorization is None else _credential(authorization.encode("latin-1"))
    key = None if settings.api_key is None else settings.api_key.get_secret_value().encode()
    if given is not None and key is not None and keys.same_key(given, key):
        return Caller(owner=NOBODY, role=Role.ADMIN, via=Via.SERVER_KEY)
    # A key that was sent decides alone: a wrong one is not made good by a cookie.
    token = cookies.read(cookies.SESSION, scope) if authorization is None else None
    state = scope["app"].state
    caller = await run_in_threadpool(_look_up, state.resources.database, given, token, settings)
    if caller is not None:
        last_use: LastUse = state.last_use
        last_use.note(key_id=caller.key_id, session_id=caller.session_id)
    return caller


def _look_up(database: Database, given: bytes | None, token: str | None, settings: Settings) -> Caller | None:
    """Who gave this; where nobody needs a key, `default`. None: nobody who is known.

    Raises:
        Unavailable: the database does not answer; then nobody is let in.
    """
    try:
        with database.read() as session:
            if given is not None and (row := keys.find_key(session, given)) is not None:
                return Caller(owner=row.owner, role=Role(row.role), via=Via.KEY, key_id=row.id)
            if token is not None and (caller := sessions.find(session, token, settings)) is not None:
                return caller
            if not settings.guarded and not keys.any_key(session):
                return Caller(owner=NOBODY, role=Role.ADMIN, via=Via.OPEN)
            return None
    except SQLAlchemyError as error:
        if is_outage(error) or is_transient(error):
            raise Unavailable("The database of API keys does not answer; try again.") from error
        raise


def _require_csrf_token(scope: Scope, headers: Headers, caller: Caller) -> None:
    if caller.csrf_token is None or scope["method"] in _READING or scope["path"] in FORM_PATHS:
        return
    given = headers.get(CSRF_HEADER, "")
    if not hmac.compare_digest(given.encode("utf-8", "replace"), caller.csrf_token.encode()):
        raise ForgedRequest(
            f"A change by a browser's session needs the header {CSRF_HEADER} with the csrf_token of "
            "GET /v1/me. Programs send a key instead."
        )


def _wants_page(scope: Scope, headers: Headers) -> bool:
    """Whether this is a browser on its way to a page. A program that sent a key wants to know that it is
    wrong."""
    return (
        scope["method"] in ("GET", "HEAD")
        and "text/html" in headers.get("accept", "").lower()
        and "authorization" not in headers
    )


def _to_login(scope: Scope) -> RedirectResponse:
    path = (scope.get("raw_path") or quote(scope["path"], errors="replace").encode()).partition(b"?")[0]
    query = scope["query_string"]
    wanted = (path + (b"?" + query if query else b"")).decode("latin-1")
    where = "/login" if wanted == "/" else f"/login?next={quote(wanted, safe='')}"
    return RedirectResponse(where, 303, headers={"Cache-Control": "no-store"})


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
