"""Schedules and their history."""

from __future__ import annotations

from datetime import datetime
from typing import Any

from sqlalchemy import (
    JSON,
    BigInteger,
    CheckConstraint,
    Index,
    String,
    false,
)
from sqlalchemy.orm import Mapped, mapped_column

from service.db.column_types import Sentence
from service.db.kinds import Overlap
from service.db.models.base import NOBODY, Base, new_id, one_of, utc_now


class Schedule(Base):
    """A cron expression, a timezone and a definition. Each firing makes one study, a sweep."""

    __tablename__ = "schedules"
    __table_args__ = (CheckConstraint(one_of("overlap", Overlap), name="ck_schedules_overlap"),)

    id: Mapped[str] = mapped_column(String(32), primary_key=True, default=new_id)
    name: Mapped[str] = mapped_column(String(200), unique=True)
    cron: Mapped[str] = mapped_column(String(200))
    timezone: Mapped[str] = mapped_column(String(64))
    definition: Mapped[dict[str, Any]]
    enabled: Mapped[bool] = mapped_column(default=True)
    owner: Mapped[str] = mapped_column(String(64), default=NOBODY, server_default=NOBODY)
    """The API key that made it; its sweeps are this owner's, too."""
    revision: Mapped[int] = mapped_column(default=1, server_default="1")
    """Raised by every change a person makes: the schedule's ETag."""
    created_at: Mapped[datetime] = mapped_column(default=utc_now)
    next_fire_at: Mapped[datetime | None] = mapped_column(index=True)
    last_fired_for: Mapped[datetime | None]
    overlap: Mapped[str] = mapped_column(String(16), default=Overlap.SKIP, server_default=Overlap.SKIP)
    repeat_configurations: Mapped[bool] = mapped_column(default=False, server_default=false())
    """Whether sweeps evaluate again what earlier ones have evaluated on the same data."""


class ScheduleEvent(Base):
    """One thing that happened to a schedule. Append-only, and kept when the schedule is removed."""

    __tablename__ = "schedule_events"
    __table_args__ = (Index("ix_schedule_events_schedule", "schedule_id", "id"),)

    id: Mapped[int] = mapped_column(primary_key=True, autoincrement=True)
    at: Mapped[datetime] = mapped_column(default=utc_now)
    schedule_id: Mapped[str] = mapped_column(String(32))
    """No foreign key: the schedule may have been removed."""
    schedule_name: Mapped[str] = mapped_column(String(200), index=True)
    """At that time."""
    kind: Mapped[str] = mapped_column(String(40))
    """A `ScheduleEventKind`."""
    asked_by: Mapped[str | None] = mapped_column(String(64))
    """The API key of who asked for it; none: a coordinator, at its time."""
    message: Mapped[str] = mapped_column(Sentence)
    changes: Mapped[dict[str, Any] | None] = mapped_column(JSON(none_as_null=True))
    """What was changed: key -> {"from": ..., "to": ...}."""
    fired_for: Mapped[datetime | None]
    """The cron instant of a firing that was skipped or failed."""
    owner: Mapped[str | None] = mapped_column(String(64))
    """Whose schedule it was; none: of one that was removed before this was written down."""
    position: Mapped[int | None] = mapped_column(BigInteger, index=True, unique=True)
    """As of `EventRow`, in the same order."""
