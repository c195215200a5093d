"""Who sends a request, as whom, and from where."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum
from typing import Annotated

from fastapi import Depends, Request
from starlette.requests import HTTPConnection
from starlette.types import Scope

from service.db.kinds import Role

LONGEST_AGENT = 200
"""Characters of a `User-Agent` that are kept."""


class Via(StrEnum):
    """How somebody has come in."""

    UNKNOWN = "unknown"
    """Nobody has come in: a login that was refused."""
    OPEN = "open"
    """Nobody needs a key."""
    SERVER_KEY = "server_key"
    KEY = "key"
    SESSION = "session"
    """A browser that logged in with a key."""
    OPENID = "openid"
    """A browser that logged in at an identity provider."""
    COMMAND = "command"
    """A command on a machine that reaches the database."""


@dataclass(frozen=True, kw_only=True)
class Caller:
    """Who sends a request.

    Attributes:
        owner: whose what they make is.
        role: what they may do.
        key_id: the key that they gave, or logged in with.
        session_id: the session of their browser.
        subject: who they are to the identity provider; of a command, the account that ran it.
        csrf_token: what a change by their session must send along; None: they have no session.
    """

    owner: str
    role: Role
    via: Via
    key_id: str | None = None
    session_id: str | None = None
    subject: str | None = None
    csrf_token: str | None = None


@dataclass(frozen=True, kw_only=True)
class Origin:
    """From where a request was sent."""

    address: str | None
    user_agent: str | None


def origin_of(scope: Scope) -> Origin:
    """The peer's address, or what a trusted proxy says it is, and how the program calls itself."""
    connection = HTTPConnection(scope)
    agent = connection.headers.get("user-agent")
    return Origin(
        address=None if connection.client is None else connection.client.host[:64],
        user_agent=None if agent is None else printable(agent, LONGEST_AGENT),
    )


def printable(text: str, longest: int) -> str:
    """Text of anybody's for a column or a terminal: without control characters, and cut."""
    return "".join(letter if letter.isprintable() else "?" for letter in text[:longest])


async def _caller(request: Request) -> Caller:
    caller: Caller = request.state.caller  # where `service.access.auth` put it
    return caller


CurrentCaller = Annotated[Caller, Depends(_caller)]
