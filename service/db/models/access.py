"""API keys and answers that are given again."""

from __future__ import annotations

from datetime import datetime
from typing import Any

from sqlalchemy import (
    String,
)
from sqlalchemy.orm import Mapped, mapped_column

from service.db.models.base import Base, utc_now


class ApiKey(Base):
    """Who may come in beside the holder of `NIGHTSWEEP_API_KEY`, and as whom. The key itself is not kept."""

    __tablename__ = "api_keys"

    owner: Mapped[str] = mapped_column(String(64), primary_key=True)
    key_sha256: Mapped[str] = mapped_column(String(64), unique=True)
    """In hexadecimal. A key is 256 random bits, so a plain hash cannot be guessed back."""
    created_at: Mapped[datetime] = mapped_column(default=utc_now)
    revoked_at: Mapped[datetime | None]


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
