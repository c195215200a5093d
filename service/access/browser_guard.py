"""Refuses requests that a web page made a browser send, before anything else looks at them.

A page on another site can make a visitor's browser send requests to this server, with the password that
the browser keeps for it; and a name that its owner points to 127.0.0.1 (DNS rebinding) lets such a page read
the answers, too. Programs other than browsers are not affected.
"""

from __future__ import annotations

from collections.abc import Iterable
from urllib.parse import urlsplit

from starlette.types import ASGIApp, Message, Receive, Scope, Send

from service.access.auth import OPEN_PATHS
from service.access.exposure import is_loopback
from service.errors import Forbidden
from service.rest import problems

SAFE_METHODS = frozenset({"GET", "HEAD", "OPTIONS"})
"""They change nothing, and what they answer is kept from other sites by every browser."""

HEADERS = (
    (b"x-content-type-options", b"nosniff"),
    (b"x-frame-options", b"DENY"),
    (b"referrer-policy", b"same-origin"),
    (b"cross-origin-resource-policy", b"same-origin"),
)
"""On every answer: its type is as stated, and no other site may frame it, embed it, or learn where a reader
came from."""

_POLICY = (
    b"content-security-policy",
    b"default-src 'self' 'unsafe-inline' 'unsafe-eval' data: blob:; "
    b"frame-ancestors 'none'; base-uri 'self'; object-src 'none'",
)
"""No page loads anything from elsewhere. The dashboard's pages have a policy of their own, too; a browser
keeps to both."""


class ForeignHost(Forbidden):
    title = "Unknown host"


class CrossSite(Forbidden):
    title = "Cross-site request"


class RequestGuard:
    """ASGI middleware: 403 for requests from other sites that would change something, and for unknown hosts.

    Where a request comes from is told as Go's `http.CrossOriginProtection` does: by `Sec-Fetch-Site`, which
    browsers set and pages cannot, else by `Origin`. A request with neither is not a browser's.

    Args:
        app: what is guarded.
        local_only: whether the server is meant for this machine alone and needs no key: then it answers only
            to names that are always this machine's. With a key a foreign name is no danger, since a browser
            keeps the password for the name it was typed for.
    """

    def __init__(self, app: ASGIApp, *, local_only: bool) -> None:
        self._app = app
        self._local_only = local_only

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return

        async def hardened(message: Message) -> None:
            if message["type"] == "http.response.start":
                given = {name.lower() for name, _ in message["headers"]}
                added = [_POLICY, *((name, value) for name, value in HEADERS if name not in given)]
                message = {**message, "headers": [*message["headers"], *added]}
            await send(message)

        try:
            self._check(scope)
        except Forbidden as error:
            await problems.render_error(error, scope["path"])(scope, receive, hardened)
        else:
            await self._app(scope, receive, hardened)

    def _check(self, scope: Scope) -> None:
        hosts = _all(scope, b"host")
        unknown = [host for host in hosts if not is_loopback(_name(host))]
        if self._local_only and unknown and scope["path"] not in OPEN_PATHS:
            raise ForeignHost(
                f"This server has no API key, so it answers only as localhost, not as {unknown[0][:99]!r}. "
                "Use http://localhost or http://127.0.0.1, or set NIGHTSWEEP_API_KEY."
            )
        if scope["method"] in SAFE_METHODS:
            return
        sites = _all(scope, b"sec-fetch-site")
        if sites:
            foreign = any(site not in ("same-origin", "none") for site in sites)
        else:
            foreign = any(_origin_host(origin) not in hosts for origin in _all(scope, b"origin"))
        if foreign:
            raise CrossSite(
                f"A page of another site must not send {scope['method']} requests here. Use the command"
                " line, or a page of this server."
            )


def _origin_host(origin: str) -> str:
    """`host:port` of an origin, as `Host` would have it; empty for `null` and for what is no URL."""
    try:
        return urlsplit(origin).netloc
    except ValueError:
        return ""


def _all(scope: Scope, name: bytes) -> list[str]:
    headers: Iterable[tuple[bytes, bytes]] = scope["headers"]
    return [value.decode("latin-1").strip().lower() for given, value in headers if given == name]


def _name(host: str) -> str:
    """A `Host` without its port; an IPv6 address without its brackets."""
    if host.startswith("["):
        return host[1:].partition("]")[0]
    return host.partition(":")[0].removesuffix(".")
