"""Making, changing, rotating and revoking API keys.

Beside the server's one key (`NIGHTSWEEP_API_KEY`, whose owner is `default`) anybody may have keys of their
own. Only their SHA-256 is stored. What a key may do is its role; whose its studies are is its owner.
"""

from __future__ import annotations

import re
import secrets
from dataclasses import dataclass
from datetime import timedelta

from sqlalchemy import select
from sqlalchemy.orm import Session

from search_spaces.errors import Fault
from search_spaces.faults import shown
from service.access.keys import queries
from service.db.database import database_now
from service.db.kinds import Role
from service.db.models import NOBODY, ApiKey
from service.errors import Conflict, Invalid, NotFound
from service.rest.dependencies import OWNER
from service.rest.problems import OWNER_FORM

PREFIX = "nsk_"
"""What a key begins with, so that people and scanners for leaked secrets know one when they see it."""
LONGEST_LABEL = 100
LONGEST_OVERLAP = timedelta(days=30)
NO_OVERLAP = timedelta(0)

_SECRET_BYTES = 32


@dataclass(frozen=True, kw_only=True)
class NewKey:
    """A key as only its maker sees it."""

    row: ApiKey
    key: str
    """Which cannot be read again."""


def add(
    session: Session,
    owner: str,
    *,
    role: Role = Role.SUBMITTER,
    label: str = "",
    lifetime: timedelta | None = None,
) -> NewKey:
    """Give an owner a key, beside those that the owner has.

    Args:
        session: a writing transaction; the caller commits it.
        owner: a name for a person or a team.
        role: what the key may do.
        label: what it is for.
        lifetime: how long it works; None: until it is revoked.

    Raises:
        Invalid: `owner` is not a valid name, or is `default`; or the label is not valid.
    """
    faults = [*owner_faults(owner), *label_faults(label)]
    if faults:
        raise Invalid("The key", faults)
    return _insert(session, owner, role, label, lifetime)


def _insert(session: Session, owner: str, role: Role, label: str, lifetime: timedelta | None) -> NewKey:
    key, now = PREFIX + secrets.token_urlsafe(_SECRET_BYTES), database_now(session)
    row = ApiKey(
        id=secrets.token_hex(6),
        owner=owner,
        role=role,
        label=label,
        key_sha256=queries.digest(key.encode()).hex(),
        created_at=now,
        expires_at=None if lifetime is None else now + lifetime,
    )
    session.add(row)
    session.flush()
    return NewKey(row=row, key=key)


def rotate(session: Session, key_id: str, *, overlap: timedelta = NO_OVERLAP) -> NewKey:
    """Give an owner another key in place of one, with the same role, label and lifetime.

    Args:
        session: a writing transaction; the caller commits it.
        key_id: of the old one.
        overlap: how long the old one still works; zero: it is revoked at once.

    Raises:
        NotFound: there is no such key.
        Conflict: it does not work any more, or was rotated before.
    """
    old = _working(session, key_id)
    if old.replaced_by is not None:
        raise Conflict(f"The key {old.id} was already rotated to {old.replaced_by}; rotate that one.")
    now = database_now(session)
    lifetime = None if old.expires_at is None else old.expires_at - old.created_at
    made = _insert(session, old.owner, Role(old.role), old.label, lifetime)
    old.replaced_by = made.row.id
    if overlap == NO_OVERLAP:
        old.revoked_at = now
    else:
        until = now + overlap
        old.expires_at = until if old.expires_at is None else min(old.expires_at, until)
    return made


def change(session: Session, key_id: str, *, role: Role | None, label: str | None) -> ApiKey:
    """Change what a key may do, or what it is for, from the next request on.

    Raises:
        NotFound: there is no such key.
        Conflict: it does not work any more.
        Invalid: the label is not valid.
    """
    row = _working(session, key_id)
    if label is not None:
        faults = label_faults(label)
        if faults:
            raise Invalid("The change", faults)
        row.label = label
    if role is not None:
        row.role = role
    return row


def revoke(session: Session, key_id: str) -> ApiKey:
    """Take a key away. It opens nothing from the next request on; its owner's studies go on.

    Raises:
        NotFound: there is no such key.
    """
    row = queries.get_key(session, key_id, lock=True)
    if row.revoked_at is None:
        row.revoked_at = database_now(session)
    return row


def resolve(session: Session, ref: str) -> str:
    """The id of a key by its id, or by its owner's name if they have one working key only.

    Raises:
        NotFound: there is no such key.
        Conflict: the owner has several.
    """
    if session.get(ApiKey, ref[:12]) is not None and len(ref) == 12:
        return ref
    working = select(ApiKey.id).where(ApiKey.owner == ref[:64], *queries.working())
    found = session.scalars(working.order_by(ApiKey.created_at)).all()
    if not found:
        raise NotFound(
            f"{ref[:64]!r} is not the id of a key, and no owner of that name has a working key; "
            "`nightsweep keys list` lists all keys."
        )
    if len(found) > 1:
        raise Conflict(f"{ref!r} has several keys; say which one by its id: {', '.join(found)}.")
    return found[0]


def in_words(role: Role | None, label: str | None) -> str:
    """What is changed of a key, for the audit log."""
    return ", ".join([f"role {role}"] * (role is not None) + ["label"] * (label is not None))


def _working(session: Session, key_id: str) -> ApiKey:
    row = queries.get_key(session, key_id, lock=True)
    state = queries.state_of(row, database_now(session))
    if state != "active":
        raise Conflict(f"The key {row.id} of {row.owner!r} is {state}; add a new one.")
    return row


def owner_faults(owner: str) -> list[Fault]:
    """What is wrong with the name of an owner of keys."""
    if not re.fullmatch(OWNER.strip("^$"), owner):
        return [Fault(path="owner", value=shown(owner), message="not a valid name", allowed=OWNER_FORM)]
    if owner == NOBODY:
        message = "is reserved for the server's own key, NIGHTSWEEP_API_KEY"
        return [Fault(path="owner", value=owner, message=message, allowed=OWNER_FORM)]
    return []


def label_faults(label: str) -> list[Fault]:
    """What is wrong with a label."""
    if len(label) <= LONGEST_LABEL and label.isprintable():
        return []
    allowed = f"at most {LONGEST_LABEL} printable characters"
    return [Fault(path="label", value=shown(label), message="is not valid", allowed=allowed)]
