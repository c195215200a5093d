"""API keys with an owner: made, listed, revoked, and recognised.

Beside the server's one key (`NIGHTSWEEP_API_KEY`, whose owner is `default`) anybody may have a key of their
own. Only its SHA-256 is stored. All owners are one team: everybody sees and may change everything. Owners
exist for the limits: see `service.studies.limits`.
"""

from __future__ import annotations

import hashlib
import hmac
import re
import secrets
from collections.abc import Sequence

from sqlalchemy import exists, select
from sqlalchemy.orm import Session

from search_spaces.errors import Fault
from search_spaces.faults import shown
from service.db.database import database_now
from service.db.models import NOBODY, ApiKey
from service.db.rows import insert
from service.errors import Conflict, Invalid, NotFound

PREFIX = "nsk_"
"""What a key begins with, so that people and scanners for leaked secrets know one when they see it."""

_SECRET_BYTES = 32
_OWNER = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}")
_OWNER_FORM = "1 to 64 letters, digits, dots, hyphens and underscores, beginning with a letter or a digit"


def add(session: Session, owner: str) -> str:
    """Give an owner a key, the first one or one after the last was revoked.

    Args:
        session: a writing transaction; the caller commits it.
        owner: a name for a person or a team.

    Returns:
        The key, which cannot be read again.

    Raises:
        Invalid: `owner` is not a valid name, or is `default`.
        Conflict: the owner has a key.
    """
    if not _OWNER.fullmatch(owner):
        raise Invalid(
            "The owner",
            [Fault(path="owner", value=shown(owner), message="not a valid name", allowed=_OWNER_FORM)],
        )
    if owner == NOBODY:
        message = "is reserved for the server's own key, NIGHTSWEEP_API_KEY"
        raise Invalid("The owner", [Fault(path="owner", value=owner, message=message, allowed=_OWNER_FORM)])
    has_one = Conflict(
        f"{owner!r} already has a key. To replace it, run `nightsweep keys revoke {owner}` and add a new one."
    )
    row = session.scalars(select(ApiKey).where(ApiKey.owner == owner).with_for_update()).one_or_none()
    if row is not None and row.revoked_at is None:
        raise has_one
    key = PREFIX + secrets.token_urlsafe(_SECRET_BYTES)
    digest, now = _digest(key.encode()).hex(), database_now(session)
    if row is not None:
        row.key_sha256, row.created_at, row.revoked_at = digest, now, None
        return key
    if not insert(session, ApiKey(owner=owner, key_sha256=digest, created_at=now)):
        raise has_one
    return key


def revoke(session: Session, owner: str) -> ApiKey:
    """Take an owner's key away. It opens nothing from the next request on; the owner's studies go on.

    Raises:
        NotFound: the owner has no key.
    """
    row = session.scalars(select(ApiKey).where(ApiKey.owner == owner).with_for_update()).one_or_none()
    if row is None or row.revoked_at is not None:
        raise NotFound(f"{owner[:64]!r} has no key; `nightsweep keys list` lists all owners who have one.")
    row.revoked_at = database_now(session)
    return row


def list_keys(session: Session) -> Sequence[ApiKey]:
    """All keys, revoked ones too, by owner."""
    return session.scalars(select(ApiKey).order_by(ApiKey.owner)).all()


def find_owner(session: Session, credential: bytes) -> str | None:
    """Whose key this is; None for nobody's, and for a revoked one.

    What is looked up is the digest of what was given, so the time it takes tells nothing about any key: a
    guesser cannot choose digests. It is still compared in constant time.
    """
    digest = _digest(credential)
    query = select(ApiKey).where(ApiKey.key_sha256 == digest.hex(), ApiKey.revoked_at.is_(None))
    row = session.scalars(query).one_or_none()
    if row is None or not hmac.compare_digest(row.key_sha256, digest.hex()):
        return None
    return row.owner


def any_key(session: Session) -> bool:
    """Whether a key was ever made. From then on every request needs one."""
    return bool(session.scalar(select(exists().select_from(ApiKey))))


def same_key(given: bytes, key: bytes) -> bool:
    """Whether two keys are one, in a time that tells neither where they differ nor how long they are."""
    return hmac.compare_digest(_digest(given), _digest(key))


def _digest(key: bytes) -> bytes:
    return hashlib.sha256(key).digest()
