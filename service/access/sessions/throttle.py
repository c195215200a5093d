"""What slows guessers of keys down at the login page.

Failures are counted for each address, and for each beginning of a key. After a few of them an address must
wait, longer each time; while many have failed with one beginning, it must wait after the first. A correct key
from an address that need not wait always gets in, so nobody can lock an owner out, and keys that programs
send are not looked at here at all: they are 256 random bits.
"""

from __future__ import annotations

import hashlib
import ipaddress
from datetime import datetime, timedelta

from sqlalchemy import delete, select
from sqlalchemy.orm import Session

from service.db.database import database_now
from service.db.models import LoginFailure
from service.db.rows import insert_unless

FREE = 5
"""Failures of an address without a wait."""
FREE_OF_A_PREFIX = 20
"""Failures with one beginning, from wherever, until each address is allowed one alone."""
LONGEST = timedelta(minutes=15)
FORGOTTEN = timedelta(hours=1)
"""After the last failure."""

_PREFIX = 8
_PURGED_AT_ONCE = 1000


def seconds_to_wait(session: Session, address: str) -> int:
    """How long an address must wait before it may try again; 0: not at all. Locks its count.

    Args:
        session: a writing transaction, in which `count` is called if the try fails, so that tries at the
            same time are counted one after the other.
        address: of the peer.
    """
    now = database_now(session)
    _purge(session, now)
    row = _locked(session, "address", network(address))
    if row.blocked_until is None or row.blocked_until <= now:
        return 0
    # A clock that was set back must not lock an address out for longer than any wait is.
    row.blocked_until = min(row.blocked_until, now + LONGEST)
    return max(1, round((row.blocked_until - now).total_seconds()))


def count(session: Session, address: str, credential: bytes) -> int:
    """Count a failure. Returns how long the address must wait now, in seconds.

    Raises nothing: what is given here was refused already.
    """
    now = database_now(session)
    prefix = _add(_locked(session, "prefix", _beginning(credential)), now)
    mine = _locked(session, "address", network(address))
    failures = _add(mine, now)
    free = 0 if prefix > FREE_OF_A_PREFIX else FREE
    if failures <= free:
        return 0
    pause = min(timedelta(seconds=2.0 ** min(failures - free, 20)), LONGEST)
    mine.blocked_until = now + pause
    return round(pause.total_seconds())


def network(address: str) -> str:
    """What is counted together: an IPv4 address, or the /64 of an IPv6 address, which one host has whole."""
    try:
        parsed = ipaddress.ip_address(address)
    except ValueError:
        return address[:64]
    if parsed.version == 4:
        return str(parsed)
    mapped = parsed.ipv4_mapped
    return str(mapped) if mapped is not None else str(ipaddress.ip_network((parsed, 64), strict=False))


def _add(row: LoginFailure, now: datetime) -> int:
    if row.failed_at <= now - FORGOTTEN:
        row.failures, row.blocked_until = 0, None
    row.failures, row.failed_at = row.failures + 1, now
    return row.failures


def _locked(session: Session, kind: str, value: str) -> LoginFailure:
    now = database_now(session)
    new = insert_unless(session.connection(), LoginFailure).values(
        kind=kind, value=value, failures=0, failed_at=now
    )
    session.execute(new.on_conflict_do_nothing())
    query = select(LoginFailure).where(LoginFailure.kind == kind, LoginFailure.value == value)
    return session.scalars(query.with_for_update().execution_options(populate_existing=True)).one()


def _beginning(credential: bytes) -> str:
    """A digest: whoever mistypes a key of theirs would leave half of it here otherwise."""
    return hashlib.sha256(b"prefix " + credential[:_PREFIX]).hexdigest()


def _purge(session: Session, now: datetime) -> None:
    this = (LoginFailure.kind, LoginFailure.value)
    old = (
        select(*this)
        .where(LoginFailure.failed_at < now - FORGOTTEN)
        .limit(_PURGED_AT_ONCE)
        .with_for_update(skip_locked=True)
    )
    for kind, value in session.execute(old).all():
        gone = delete(LoginFailure).where(LoginFailure.kind == kind, LoginFailure.value == value)
        session.execute(gone.execution_options(synchronize_session=False))
