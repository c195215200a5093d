"""Which coordinators are alive: each writes so every few seconds, by the database's clock.

In the database and not in the home folder, which the API and the coordinators of a cluster do not share.
"""

from __future__ import annotations

from datetime import timedelta

from sqlalchemy import delete, func, select
from sqlalchemy.orm import Session

from service.db.database import database_now
from service.db.models import Coordinator

BEAT_SECONDS = 5.0
"""How often a coordinator writes that it lives."""
SILENCE_SECONDS = 30.0
"""One that has not written for this long is taken for dead."""
_FORGET = timedelta(days=1)


def beat(session: Session, owner: str, trouble: str | None = None) -> None:
    """Write that a coordinator lives; forget those that have not for a day.

    Args:
        session: a writing transaction.
        owner: the coordinator, as in its leases.
        trouble: what keeps it from working, in words; None: nothing.
    """
    now = database_now(session)
    row = session.get(Coordinator, owner)
    if row is None:
        session.add(Coordinator(owner=owner, seen_at=now, trouble=trouble))
        session.execute(delete(Coordinator).where(Coordinator.seen_at < now - _FORGET))
    else:
        row.seen_at, row.trouble = now, trouble


def end(session: Session, owner: str) -> None:
    """Forget a coordinator that ends."""
    session.execute(delete(Coordinator).where(Coordinator.owner == owner))


def living(session: Session) -> list[Coordinator]:
    """The coordinators that have written lately; those that wrote last come first."""
    now = database_now(session)
    rows = session.scalars(select(Coordinator).order_by(Coordinator.seen_at.desc()))
    # A clock that was set back leaves times from the future behind.
    return [row for row in rows if abs((now - row.seen_at).total_seconds()) <= SILENCE_SECONDS]


def missing(session: Session) -> str | None:
    """Why no coordinator works, in words; None: at least one does."""
    troubles = [row.trouble for row in living(session)]
    if troubles:
        return None if None in troubles else troubles[0]
    last = session.scalar(select(func.max(Coordinator.seen_at)))
    if last is None:
        return "no coordinator is running"
    return f"no coordinator has written to the database since {last:%Y-%m-%d %H:%M:%S} UTC"
