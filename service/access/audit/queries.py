"""Reading the audit log, newest first."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from datetime import datetime

from sqlalchemy import or_, select
from sqlalchemy.orm import Session

from service.access.audit.schemas import AuditView
from service.db.database import Database
from service.db.models import AuditEntry

_AT_ONCE = 500


@dataclass(frozen=True, kw_only=True)
class Filters:
    """What entries must match; None: any.

    Attributes:
        about: the id or the name of the object.
        since: the earliest time.
        until: entries are earlier than this.
    """

    owner: str | None = None
    about: str | None = None
    since: datetime | None = None
    until: datetime | None = None


def list_entries(
    session: Session, filters: Filters, *, before: int | None, limit: int
) -> Sequence[AuditEntry]:
    """At most `limit` entries with an id below `before`."""
    query = select(AuditEntry).order_by(AuditEntry.id.desc()).limit(limit)
    if before is not None:
        query = query.where(AuditEntry.id < before)
    if filters.owner is not None:
        query = query.where(AuditEntry.owner == filters.owner)
    if filters.about is not None:
        query = query.where(
            or_(AuditEntry.object_id == filters.about, AuditEntry.object_name == filters.about)
        )
    if filters.since is not None:
        query = query.where(AuditEntry.at >= filters.since)
    if filters.until is not None:
        query = query.where(AuditEntry.at < filters.until)
    return session.scalars(query).all()


def export(database: Database, filters: Filters, before: int | None) -> Iterator[bytes]:
    """All entries, a JSON object in each line, read as they are sent."""
    while True:
        with database.read() as session:
            page = list_entries(session, filters, before=before, limit=_AT_ONCE)
        for entry in page:
            yield AuditView.model_validate(entry).model_dump_json().encode() + b"\n"
        if len(page) < _AT_ONCE:
            return
        before = page[-1].id
