"""Beginning, finding and ending the sessions of browsers.

The cookie holds 256 random bits, of which only the digest is stored. A session is never taken over from what
a browser brings along: each login makes a new one, so nobody can prepare a session for somebody else.
"""

from __future__ import annotations

import hashlib
import hmac
import secrets
from dataclasses import dataclass
from datetime import timedelta
from typing import Any

from sqlalchemy import delete, select
from sqlalchemy.orm import Session

from service.access.keys import queries as keys
from service.access.openid.people import role_of
from service.db.database import Clock, database_now
from service.db.kinds import Role
from service.db.models import NOBODY, ApiKey, LoginSession
from service.rest.authorization.callers import Caller, Via
from service.settings import Settings

_TOKEN_BYTES = 32
_PURGED_AT_ONCE = 1000


@dataclass(frozen=True, kw_only=True)
class Person:
    """Who logs in: by the server's own key, by a key, or at an identity provider.

    Attributes:
        identity: what the provider said that decides the role: `email` and `groups`.
    """

    owner: str
    role: Role
    key_id: str | None = None
    server_key: bool = False
    subject: str | None = None
    identity: dict[str, Any] | None = None


@dataclass(frozen=True, kw_only=True)
class Begun:
    """A session that has begun.

    Attributes:
        token: the cookie's value.
        seconds: how long the session lasts at most.
    """

    caller: Caller
    token: str
    seconds: int


def recognise(session: Session, credential: bytes, settings: Settings) -> Person | None:
    """Whose key this is; None: nobody's."""
    if settings.api_key is not None and keys.same_key(
        credential, settings.api_key.get_secret_value().encode()
    ):
        return Person(owner=NOBODY, role=Role.ADMIN, server_key=True)
    row = keys.find_key(session, credential)
    if row is None:
        return None
    return Person(owner=row.owner, role=Role(row.role), key_id=row.id)


def begin(session: Session, person: Person, settings: Settings) -> Begun:
    """Store a new session. Some of those that are over are removed."""
    _purge(session, settings)
    token, now = secrets.token_urlsafe(_TOKEN_BYTES), database_now(session)
    lifetime = timedelta(hours=settings.session_hours)
    row = LoginSession(
        id=secrets.token_hex(6),
        token_sha256=_digest(token),
        owner=person.owner,
        key_id=person.key_id,
        server_key=_server_key(settings) if person.server_key else None,
        subject=person.subject,
        identity=person.identity,
        created_at=now,
        last_seen_at=now,
        expires_at=now + lifetime,
    )
    session.add(row)
    session.flush()
    caller = _caller(row, person.role, token)
    return Begun(caller=caller, token=token, seconds=int(lifetime.total_seconds()))


def find(session: Session, token: str, settings: Settings) -> Caller | None:
    """Who has logged in with this cookie; None: nobody, or the session is over."""
    digest = _digest(token)
    query = (
        select(LoginSession, ApiKey, Clock())
        .outerjoin(ApiKey, ApiKey.id == LoginSession.key_id)
        .where(LoginSession.token_sha256 == digest)
    )
    found = session.execute(query).one_or_none()
    if found is None or not hmac.compare_digest(found[0].token_sha256, digest):
        return None
    row, key, now = found
    if row.expires_at <= now or row.last_seen_at <= now - timedelta(minutes=settings.session_idle_minutes):
        return None
    if row.key_id is not None:
        if key is None or keys.state_of(key, now) != "active":
            return None
        return _caller(row, Role(key.role), token)
    if row.server_key is not None:
        present = _server_key(settings)
        same = present is not None and hmac.compare_digest(row.server_key, present)
        return _caller(row, Role.ADMIN, token) if same else None
    # Who was taken off the lists of the settings has no role any more.
    role = None if row.identity is None or settings.openid_issuer is None else role_of(row.identity, settings)
    return None if role is None else _caller(row, role, token)


def end(session: Session, token: str) -> bool:
    """Remove a session; whether there was one."""
    gone = delete(LoginSession).where(LoginSession.token_sha256 == _digest(token))
    return session.execute(gone.returning(LoginSession.id)).first() is not None


def csrf_token(token: str) -> str:
    """What only pages of ours can send along: from the cookie, which no page can read."""
    return hmac.new(token.encode(), b"nightsweep csrf", hashlib.sha256).hexdigest()


def _caller(row: LoginSession, role: Role, token: str) -> Caller:
    return Caller(
        owner=row.owner,
        role=role,
        via=Via.SESSION if row.identity is None else Via.OPENID,
        key_id=row.key_id,
        session_id=row.id,
        subject=row.subject,
        csrf_token=csrf_token(token),
    )


def _server_key(settings: Settings) -> str | None:
    if settings.api_key is None:
        return None
    return hashlib.sha256(b"session of " + settings.api_key.get_secret_value().encode()).hexdigest()


def _digest(token: str) -> str:
    return hashlib.sha256(token.encode("utf-8", "surrogatepass")).hexdigest()


def _purge(session: Session, settings: Settings) -> None:
    now = database_now(session)
    idle = now - timedelta(minutes=settings.session_idle_minutes)
    over = (LoginSession.expires_at <= now) | (LoginSession.last_seen_at <= idle)
    old = select(LoginSession.id).where(over).limit(_PURGED_AT_ONCE).with_for_update(skip_locked=True)
    found = session.scalars(old).all()
    if found:
        gone = delete(LoginSession).where(LoginSession.id.in_(found))
        session.execute(gone.execution_options(synchronize_session=False))
