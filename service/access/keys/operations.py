"""What the commands do with keys in the database itself: as over REST, with an entry in the audit log."""

from __future__ import annotations

import getpass
import socket
from collections.abc import Callable
from datetime import timedelta
from typing import Any

from sqlalchemy.orm import Session

from service.access.keys import commands, queries
from service.access.keys.documents import read_add, read_change, read_rotation
from service.access.keys.schemas import KeyView, NewKeyView
from service.access.keys.views import new_key_view, view
from service.db.database import database_now
from service.db.kinds import Role
from service.db.models import NOBODY
from service.rest.authorization import audit
from service.rest.authorization.callers import Caller, Origin, Via, printable


def add(document: dict[str, Any]) -> Callable[[Session, timedelta], NewKeyView]:
    """Make a key. Raises `Invalid`."""
    wanted = read_add(document)

    def work(session: Session, keep: timedelta) -> NewKeyView:
        made = commands.add(
            session, wanted.owner, role=wanted.role, label=wanted.label, lifetime=wanted.lifetime
        )
        summary = f"add key {made.row.id} of {wanted.owner}, {wanted.role}"
        _record(session, "nightsweep keys add", made.row.id, summary, keep)
        return new_key_view(session, made)

    return work


def list_keys(session: Session, _: timedelta) -> list[KeyView]:
    """All keys, those that do not work any more too."""
    now = database_now(session)
    return [view(row, now) for row in queries.list_keys(session)]


def change(ref: str, document: dict[str, Any]) -> Callable[[Session, timedelta], KeyView]:
    """Change a key. Raises `Invalid`, and when it is run `NotFound` and `Conflict`."""
    role, label = read_change(document)

    def work(session: Session, keep: timedelta) -> KeyView:
        row = commands.change(session, commands.resolve(session, ref), role=role, label=label)
        session.flush()
        summary = f"change key {row.id} of {row.owner}: {commands.in_words(role, label)}"
        _record(session, "nightsweep keys change", row.id, summary, keep)
        return view(row, database_now(session))

    return work


def rotate(ref: str, document: dict[str, Any]) -> Callable[[Session, timedelta], NewKeyView]:
    """Make a key in place of another. Raises `Invalid`, and when it is run `NotFound` and `Conflict`."""
    overlap = read_rotation(document)

    def work(session: Session, keep: timedelta) -> NewKeyView:
        old = commands.resolve(session, ref)
        made = commands.rotate(session, old, overlap=overlap)
        summary = f"rotate key {old} of {made.row.owner} to {made.row.id}"
        _record(session, "nightsweep keys rotate", old, summary, keep)
        return new_key_view(session, made)

    return work


def revoke(ref: str) -> Callable[[Session, timedelta], str]:
    """Take a key away; its id. Raises `NotFound` and `Conflict` when it is run."""

    def work(session: Session, keep: timedelta) -> str:
        row = commands.revoke(session, commands.resolve(session, ref))
        _record(session, "nightsweep keys revoke", row.id, f"revoke key {row.id} of {row.owner}", keep)
        return row.id

    return work


def _record(session: Session, command: str, key_id: str, summary: str, keep: timedelta) -> None:
    caller = Caller(owner=NOBODY, role=Role.ADMIN, via=Via.COMMAND, subject=_account())
    origin = Origin(address=None, user_agent=None)
    audit.write(
        session,
        caller,
        origin,
        method="-",
        route=command,
        kind="key",
        ref=key_id,
        summary=summary,
        outcome=audit.DONE,
        keep=keep,
    )


def _account() -> str:
    """Who runs the command, as the operating system says."""
    try:
        user = getpass.getuser()
    except (KeyError, OSError):  # an account without a name, as in some containers
        user = "unknown"
    return printable(f"{user}@{socket.gethostname()}", 255)
