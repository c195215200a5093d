"""The history of schedules: who changed what, which firings made no sweep, and why."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import datetime
from typing import Any

from sqlalchemy.orm import Session

from search_spaces.faults import shown
from service.db.kinds import ScheduleEventKind
from service.db.models import Schedule, ScheduleEvent

Changes = Mapping[str, Mapping[str, Any]]
"""Key, dotted within the definition -> `from` and `to`, each left out where there is no value."""


def record(
    session: Session,
    schedule: Schedule,
    kind: ScheduleEventKind,
    message: str,
    *,
    asked_by: str | None = None,
    changes: Changes | None = None,
    fired_for: datetime | None = None,
    missed: Mapping[str, Any] | None = None,
) -> None:
    """Append an event to a schedule's history."""
    session.add(
        ScheduleEvent(
            schedule_id=schedule.id,
            schedule_name=schedule.name,
            owner=schedule.owner,
            kind=kind,
            message=message,
            asked_by=asked_by,
            changes=shortened_changes(changes),
            fired_for=fired_for,
            missed=None if missed is None else dict(missed),
        )
    )


def shortened_changes(changes: Changes | None) -> dict[str, dict[str, Any]] | None:
    """The same with long lists and texts cut: a history lists many changes of whole definitions."""
    if changes is None:
        return None
    return {key: {end: shown(value) for end, value in change.items()} for key, change in changes.items()}


def differences(before: Any, after: Any, path: str = "") -> dict[str, dict[str, Any]]:
    """What changed between two documents, leaf by leaf; lists are compared whole."""
    if not (isinstance(before, Mapping) and isinstance(after, Mapping)):
        return (
            {} if before == after and type(before) is type(after) else {path: {"from": before, "to": after}}
        )
    found: dict[str, dict[str, Any]] = {}
    for key in dict.fromkeys([*before, *after]):
        below = f"{path}.{key}" if path else str(key)
        if key not in before:
            found[below] = {"to": after[key]}
        elif key not in after:
            found[below] = {"from": before[key]}
        else:
            found |= differences(before[key], after[key], below)
    return found
