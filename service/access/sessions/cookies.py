"""Cookies: their names, their flags, and where a browser may be sent after a login."""

from __future__ import annotations

from typing import Literal
from urllib.parse import quote

from starlette.requests import HTTPConnection
from starlette.responses import Response
from starlette.types import Scope

SESSION = "nightsweep"
LOGIN = "nightsweep_login"
"""Binds the form of the login page to the browser that was given it."""
OPENID = "nightsweep_openid"
"""Binds a login at an identity provider to the browser that began it."""

HOME = "/dashboard"
_LONGEST = 2000
_HOST_ONLY = "__Host-"
"""A browser takes a cookie of such a name from this host alone, over HTTPS alone."""


def is_secure(scope: Scope) -> bool:
    """Whether the request came over HTTPS, here or, as a trusted proxy says, there."""
    return bool(scope["scheme"] == "https")


def name_of(cookie: str, scope: Scope) -> str:
    """What a cookie is called in the browser."""
    return _HOST_ONLY + cookie if is_secure(scope) else cookie


def read(cookie: str, scope: Scope) -> str | None:
    """A cookie's value, if it is there and short enough to be one of ours."""
    value = HTTPConnection(scope).cookies.get(name_of(cookie, scope))
    return value if value and len(value) <= 200 else None


def give(
    response: Response,
    scope: Scope,
    cookie: str,
    value: str,
    *,
    seconds: int,
    same_site: Literal["strict", "lax"] = "strict",
) -> None:
    """Set a cookie that no script can read and no other site sends."""
    response.set_cookie(
        name_of(cookie, scope),
        value,
        max_age=seconds,
        path="/",
        secure=is_secure(scope),
        httponly=True,
        samesite=same_site,
    )


def take_back(response: Response, scope: Scope, cookie: str) -> None:
    response.delete_cookie(
        name_of(cookie, scope), path="/", secure=is_secure(scope), httponly=True, samesite="strict"
    )


def destination(wanted: str | None) -> str:
    """Where to go after a login: a path of ours, whatever was asked for.

    Browsers take `//host` and `/\\host` for another host, and leave out tabs and line breaks, so that neither
    is let through; nor is a way back to the login itself.
    """
    if not wanted or len(wanted) > _LONGEST or not wanted.isprintable() or " " in wanted:
        return HOME
    if not wanted.startswith("/") or wanted.startswith(("//", "/login", "/logout")) or "\\" in wanted:
        return HOME
    return quote(wanted, safe="/?&=%+:,;@!$'()*~-._#[]")
