"""Reading API keys, and recognising them."""

from __future__ import annotations

import hashlib
import hmac
import re
from collections.abc import Sequence
from datetime import datetime
from typing import Literal

from sqlalchemy import ColumnElement, exists, or_, select
from sqlalchemy.orm import Session

from service.db.database import Clock
from service.db.kinds import Role
from service.db.models import ApiKey
from service.errors import NotFound

State = Literal["active", "expired", "revoked"]
KEY_ID = r"^[0-9a-f]{12}$"


def list_keys(session: Session) -> Sequence[ApiKey]:
    """All keys, those that do not work any more too, by owner and age."""
    return session.scalars(select(ApiKey).order_by(ApiKey.owner, ApiKey.created_at, ApiKey.id)).all()


def get_key(session: Session, key_id: str, *, lock: bool = False) -> ApiKey:
    """The key with this id. Raises `NotFound`."""
    query = select(ApiKey).where(ApiKey.id == key_id)
    if lock:
        query = query.with_for_update().execution_options(populate_existing=True)
    found = session.scalars(query).one_or_none() if re.fullmatch(KEY_ID.strip("^$"), key_id) else None
    if found is None:
        raise NotFound(f"No key has the id {key_id[:64]!r}.")
    return found


def find_key(session: Session, credential: bytes) -> ApiKey | None:
    """The working key that this is; None for nobody's, and for one that expired or was revoked.

    What is looked up is the digest of what was given, so the time it takes tells nothing about any key: a
    guesser cannot choose digests. It is still compared in constant time.
    """
    given = digest(credential).hex()
    row = session.scalars(select(ApiKey).where(ApiKey.key_sha256 == given, *working())).one_or_none()
    if row is None or not hmac.compare_digest(row.key_sha256, given):
        return None
    return row


def working() -> tuple[ColumnElement[bool], ...]:
    """What is true of keys that open something, by the database's clock."""
    return ApiKey.revoked_at.is_(None), or_(ApiKey.expires_at.is_(None), ApiKey.expires_at > Clock())


def state_of(row: ApiKey, now: datetime) -> State:
    """What has become of a key by now, by the database's clock."""
    if row.revoked_at is not None:
        return "revoked"
    return "expired" if row.expires_at is not None and row.expires_at <= now else "active"


def any_key(session: Session) -> bool:
    """Whether a key was ever made. From then on every request needs one."""
    return bool(session.scalar(select(exists().select_from(ApiKey))))


def any_working(session: Session, role: Role | None = None) -> bool:
    """Whether a key opens something now; with a role, one that has it."""
    query = select(ApiKey.id).where(*working())
    if role is not None:
        query = query.where(ApiKey.role == role)
    return session.scalars(query.limit(1)).first() is not None


def same_key(given: bytes, key: bytes) -> bool:
    """Whether two keys are one, in a time that tells neither where they differ nor how long they are."""
    return hmac.compare_digest(digest(given), digest(key))


def digest(key: bytes) -> bytes:
    return hashlib.sha256(key).digest()
