"""/login and /logout, for browsers."""

from __future__ import annotations

import secrets
from urllib.parse import quote

from fastapi import APIRouter, Request
from sqlalchemy.orm import Session
from starlette.responses import RedirectResponse, Response

from service.access.sessions import commands, cookies, pages, throttle
from service.access.sessions.forms import ForgedForm, Form, require_token
from service.access.sessions.log import record
from service.rest.authorization.callers import CurrentCaller, origin_of
from service.rest.dependencies import ServiceResources
from service.settings import Settings

router = APIRouter(include_in_schema=False)

_FORM_SECONDS = 12 * 3600
_LONGEST_KEY = 500


@router.get("/login")
async def show_login(request: Request, resources: ServiceResources) -> Response:
    """The login page; for whoever is logged in, the way to where they wanted."""
    wanted = cookies.destination(request.query_params.get("next"))
    if getattr(request.state, "caller", None) is not None:
        return _go(wanted)
    # A link on another site led here, without the cookie that this browser may have.
    from_elsewhere = request.headers.get("sec-fetch-site") == "cross-site"
    return _page(request, resources.settings, wanted, reload=from_elsewhere)


@router.post("/login")
def log_in(request: Request, form: Form, resources: ServiceResources) -> Response:
    """Exchange a key for a session. The page says no more than that a key is not valid."""
    settings, wanted = resources.settings, cookies.destination(form.get("next"))
    given = cookies.read(cookies.LOGIN, request.scope)
    try:
        require_token(form, None if given is None else commands.csrf_token(given))
    except ForgedForm as error:
        return _page(request, settings, wanted, wrong=error.detail, status=403)
    key = form.get("key", "").strip()[:_LONGEST_KEY].encode("utf-8", "replace")
    before = cookies.read(cookies.SESSION, request.scope)

    def work(session: Session) -> commands.Begun | int:
        return _try(session, request, key, before, settings)

    begun = resources.database.transact(work)
    if isinstance(begun, int):
        wrong = "This key is not valid, has expired or was revoked."
        if begun == 0:
            return _page(request, settings, wanted, wrong=wrong, status=403)
        wrong = f"Too many failed logins from your address. Try again in {begun} s."
        response = _page(request, settings, wanted, wrong=wrong, status=429)
        response.headers["Retry-After"] = str(begun)
        return response
    response = _go(wanted)
    cookies.give(response, request.scope, cookies.SESSION, begun.token, seconds=begun.seconds)
    cookies.take_back(response, request.scope, cookies.LOGIN)
    return response


def _try(
    session: Session, request: Request, key: bytes, before: str | None, settings: Settings
) -> commands.Begun | int:
    """One try, counted: the session, or after how many seconds there may be another; 0: at once."""
    address = origin_of(request.scope).address or "unknown"
    wait = throttle.seconds_to_wait(session, address)
    if wait:
        return wait
    person = commands.recognise(session, key, settings) if key else None
    if person is None:
        wait = throttle.count(session, address, key)
        record(session, request, None, "login refused: the key is not valid", settings)
        return wait
    if before is not None:
        commands.end(session, before)
    begun = commands.begin(session, person, settings)
    record(session, request, begun.caller, "logged in", settings)
    return begun


@router.get("/logout")
async def show_logout(caller: CurrentCaller) -> Response:
    """Who is logged in, and a button to log out."""
    return pages.respond(
        pages.logout_page(owner=caller.owner, role=caller.role, form_token=caller.csrf_token)
    )


@router.post("/logout")
def log_out(request: Request, form: Form, caller: CurrentCaller, resources: ServiceResources) -> Response:
    """End this browser's session."""
    require_token(form, caller.csrf_token)
    token = cookies.read(cookies.SESSION, request.scope)

    def work(session: Session) -> None:
        if token is not None and commands.end(session, token):
            record(session, request, caller, "logged out", resources.settings)

    resources.database.transact(work)
    response = RedirectResponse("/login", 303, headers={"Cache-Control": "no-store"})
    cookies.take_back(response, request.scope, cookies.SESSION)
    return response


def _go(path: str) -> Response:
    return RedirectResponse(path, 303, headers={"Cache-Control": "no-store"})


def _page(
    request: Request,
    settings: Settings,
    wanted: str,
    *,
    wrong: str = "",
    status: int = 200,
    reload: bool = False,
) -> Response:
    """The login page, with a cookie that its form is held against."""
    token = cookies.read(cookies.LOGIN, request.scope) or secrets.token_urlsafe(32)
    page = pages.login_page(
        next_path=wanted,
        form_token=commands.csrf_token(token),
        wrong=wrong,
        openid_path=None
        if settings.openid_issuer is None
        else f"/login/openid?next={quote(wanted, safe='')}",
        reload=reload,
    )
    response = pages.respond(page, status)
    cookies.give(response, request.scope, cookies.LOGIN, token, seconds=_FORM_SECONDS)
    return response
