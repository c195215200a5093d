"""API keys, sessions of browsers, the audit log, and answers that are given again."""

from __future__ import annotations

from datetime import datetime
from typing import Any

from sqlalchemy import JSON, CheckConstraint, Index, String, Text
from sqlalchemy.orm import Mapped, mapped_column

from service.db.column_types import Sentence
from service.db.kinds import Role
from service.db.models.base import Base, one_of, utc_now


class ApiKey(Base):
    """Who may come in beside the holder of `NIGHTSWEEP_API_KEY`, and as whom. The key itself is not kept."""

    __tablename__ = "api_keys"
    __table_args__ = (CheckConstraint(one_of("role", Role), name="ck_api_keys_role"),)

    id: Mapped[str] = mapped_column(String(12), primary_key=True)
    owner: Mapped[str] = mapped_column(String(64), index=True)
    label: Mapped[str] = mapped_column(String(100), default="")
    role: Mapped[str] = mapped_column(String(16))
    key_sha256: Mapped[str] = mapped_column(String(64), unique=True)
    """In hexadecimal. A key is 256 random bits, so a plain hash cannot be guessed back."""
    created_at: Mapped[datetime] = mapped_column(default=utc_now)
    expires_at: Mapped[datetime | None]
    """It opens nothing from then on; none: it does not expire."""
    last_used_at: Mapped[datetime | None]
    """To the minute."""
    replaced_by: Mapped[str | None] = mapped_column(String(12))
    """The key that it was rotated to; both work until this one expires."""
    revoked_at: Mapped[datetime | None]


class LoginSession(Base):
    """A browser that has logged in. Of the moment only, and in no backup.

    It ends with what it was made from: a key, the server's own key, or what OpenID Connect said of a person.
    """

    __tablename__ = "login_sessions"

    id: Mapped[str] = mapped_column(String(12), primary_key=True)
    """Not secret: the audit log names it."""
    token_sha256: Mapped[str] = mapped_column(String(64), unique=True)
    """Of the cookie's value, which is 256 random bits."""
    owner: Mapped[str] = mapped_column(String(64))
    key_id: Mapped[str | None] = mapped_column(String(12), index=True)
    server_key: Mapped[str | None] = mapped_column(String(64))
    """Digest of the server's own key at that time."""
    subject: Mapped[str | None] = mapped_column(String(255))
    """Of the identity provider."""
    identity: Mapped[dict[str, Any] | None] = mapped_column(JSON(none_as_null=True))
    """The verified e-mail address and the groups, from which the role follows by the present settings."""
    created_at: Mapped[datetime] = mapped_column(default=utc_now)
    last_seen_at: Mapped[datetime] = mapped_column(default=utc_now)
    """To the minute."""
    expires_at: Mapped[datetime] = mapped_column(index=True)


class LoginFailure(Base):
    """How often a login has failed of late, from an address or with a key that begins so."""

    __tablename__ = "login_failures"

    kind: Mapped[str] = mapped_column(String(8), primary_key=True)
    """`address` or `prefix`."""
    value: Mapped[str] = mapped_column(String(64), primary_key=True)
    """An address or network; or the digest of how a key begins."""
    failures: Mapped[int]
    failed_at: Mapped[datetime] = mapped_column(index=True)
    blocked_until: Mapped[datetime | None]


class PendingLogin(Base):
    """A browser that was sent to the identity provider and has not come back. It comes back once."""

    __tablename__ = "pending_logins"

    state_sha256: Mapped[str] = mapped_column(String(64), primary_key=True)
    browser_sha256: Mapped[str] = mapped_column(String(64))
    """Of a cookie: another browser cannot finish this login."""
    nonce: Mapped[str] = mapped_column(String(64))
    code_verifier: Mapped[str] = mapped_column(String(128))
    next: Mapped[str] = mapped_column(Text)
    created_at: Mapped[datetime] = mapped_column(default=utc_now, index=True)


class AuditEntry(Base):
    """Who changed what, from where, and how it ended. Append-only; old entries are removed as a whole."""

    __tablename__ = "audit_entries"
    __table_args__ = (
        Index("ix_audit_entries_owner", "owner", "id"),
        Index("ix_audit_entries_object_id", "object_id", "id"),
        Index("ix_audit_entries_object_name", "object_name", "id"),
    )

    id: Mapped[int] = mapped_column(primary_key=True, autoincrement=True)
    at: Mapped[datetime] = mapped_column(default=utc_now, index=True)
    owner: Mapped[str | None] = mapped_column(String(64))
    """None: nobody who was known, as of a login that was refused."""
    role: Mapped[str | None] = mapped_column(String(16))
    via: Mapped[str] = mapped_column(String(16))
    """A `service.rest.authorization.callers.Via`."""
    key_id: Mapped[str | None] = mapped_column(String(12))
    session_id: Mapped[str | None] = mapped_column(String(12))
    subject: Mapped[str | None] = mapped_column(String(255))
    method: Mapped[str] = mapped_column(String(8))
    route: Mapped[str] = mapped_column(String(200))
    """The path as the API document has it; of a command, the command."""
    object_kind: Mapped[str | None] = mapped_column(String(20))
    object_id: Mapped[str | None] = mapped_column(String(200))
    object_name: Mapped[str | None] = mapped_column(String(200))
    summary: Mapped[str] = mapped_column(Sentence, default="")
    outcome: Mapped[str] = mapped_column(String(16))
    """`done` or `refused`."""
    address: Mapped[str | None] = mapped_column(String(64))
    user_agent: Mapped[str | None] = mapped_column(String(200))


class IdempotencyKey(Base):
    """An answer that is given again to whoever sends the same request with the same `Idempotency-Key`.

    Written in the transaction that did what was asked, so either both are there or neither.
    """

    __tablename__ = "idempotency_keys"

    owner: Mapped[str] = mapped_column(String(64), primary_key=True)
    key: Mapped[str] = mapped_column(String(255), primary_key=True)
    request: Mapped[str] = mapped_column(String(64))
    """SHA-256 of method, path, query and body: the same key for another request is refused."""
    status: Mapped[int]
    headers: Mapped[dict[str, Any]]
    body: Mapped[dict[str, Any]]
    created_at: Mapped[datetime] = mapped_column(default=utc_now, index=True)
