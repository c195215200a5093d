"""The audit log: who changed what, from where, and how it ended.

An entry is written in the transaction that makes the change, so neither is there without the other.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import timedelta
from typing import Any

from pydantic import BaseModel
from sqlalchemy import delete, select
from sqlalchemy.orm import Session

from service.db.database import database_now
from service.db.models import AuditEntry, Schedule, Study
from service.rest.authorization.callers import Caller, Origin, Via, printable

DONE = "done"
REFUSED = "refused"

_PURGED_AT_ONCE = 1000
_KINDS = {
    "studies": "study",
    "range-tests": "range test",
    "schedules": "schedule",
    "workers": "device",
    "keys": "key",
}
"""What a path's first segment is about."""


@dataclass(frozen=True, kw_only=True)
class Request:
    """What the log says of a request beside its outcome.

    Attributes:
        caller: who sent it; None: nobody who was known.
        action: the endpoint in a word, such as `cancel`.
        route: the path as it is declared.
        parameters: of the path.
        keep: how long entries are kept.
    """

    caller: Caller | None
    origin: Origin
    method: str
    route: str
    action: str
    parameters: Mapping[str, Any]
    keep: timedelta

    def record(
        self,
        session: Session,
        outcome: str,
        *,
        found: Study | Schedule | None = None,
        made: BaseModel | None = None,
        summary: str = "",
    ) -> None:
        """Write an entry in the caller's transaction.

        Args:
            session: a writing transaction.
            outcome: `DONE` or `REFUSED`.
            found: what was changed, if it is a row that has been read.
            made: the answer, for what has only now been made.
            summary: instead of the action and the object's name.
        """
        kind, ref, name = self._object(found, made)
        write(
            session,
            self.caller,
            self.origin,
            method=self.method,
            route=self.route,
            kind=kind,
            ref=ref,
            name=name,
            summary=summary
            or " ".join(word for word in (self.action.replace("_", " "), kind, name or ref) if word),
            outcome=outcome,
            keep=self.keep,
        )

    def _object(
        self, found: Study | Schedule | None, made: BaseModel | None
    ) -> tuple[str | None, str | None, str | None]:
        """Its kind, id and name."""
        segment = self.route.removeprefix("/v1/").partition("/")[0]
        kind = _KINDS.get(segment)
        if found is not None:
            return kind, found.id, found.name
        named = next(iter(self.parameters.values()), None)
        if named is not None:
            return kind, printable(str(named), 200), None
        ref, name = getattr(made, "id", None), getattr(made, "name", None)
        return kind, None if ref is None else str(ref), None if name is None else str(name)


def write(
    session: Session,
    caller: Caller | None,
    origin: Origin,
    *,
    method: str,
    route: str,
    kind: str | None = None,
    ref: str | None = None,
    name: str | None = None,
    summary: str,
    outcome: str,
    keep: timedelta,
) -> None:
    """Add an entry, and remove some of those that are older than `keep`."""
    _purge(session, keep)
    session.add(
        AuditEntry(
            at=database_now(session),
            owner=None if caller is None else caller.owner,
            role=None if caller is None else caller.role,
            via=Via.UNKNOWN if caller is None else caller.via,
            key_id=None if caller is None else caller.key_id,
            session_id=None if caller is None else caller.session_id,
            subject=None if caller is None or caller.subject is None else caller.subject[:255],
            method=method,
            route=route,
            object_kind=kind,
            object_id=ref,
            object_name=name,
            summary=summary,
            outcome=outcome,
            address=origin.address,
            user_agent=origin.user_agent,
        )
    )


def _purge(session: Session, keep: timedelta) -> None:
    """Rows that another transaction is removing are left to it."""
    old = (
        select(AuditEntry.id)
        .where(AuditEntry.at < database_now(session) - keep)
        .limit(_PURGED_AT_ONCE)
        .with_for_update(skip_locked=True)
    )
    found = session.scalars(old).all()
    if found:
        gone = delete(AuditEntry).where(AuditEntry.id.in_(found))
        session.execute(gone.execution_options(synchronize_session=False))
