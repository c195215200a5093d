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
    Text,
    false,
    true,
)
from sqlalchemy.orm import Mapped, mapped_column

from service.db.column_types import Sentence
from service.db.kinds import CatchUp, Overlap, UntilAction
from service.db.models.base import NOBODY, Base, new_id, one_of, utc_now


class Schedule(Base):
    """A cron expression, a timezone and a definition. Each firing makes one study, a sweep."""

    __tablename__ = "schedules"
    __table_args__ = (
        CheckConstraint(one_of("overlap", Overlap), name="ck_schedules_overlap"),
        CheckConstraint(one_of("catch_up", CatchUp), name="ck_schedules_catch_up"),
        CheckConstraint(one_of("until_action", UntilAction), name="ck_schedules_until_action"),
    )

    id: Mapped[str] = mapped_column(String(32), primary_key=True, default=new_id)
    name: Mapped[str] = mapped_column(String(200), unique=True)
    cron: Mapped[str] = mapped_column(String(200))
    timezone: Mapped[str] = mapped_column(String(64))
    definition: Mapped[dict[str, Any]]
    enabled: Mapped[bool] = mapped_column(default=True)
    owner: Mapped[str] = mapped_column(String(64), default=NOBODY, server_default=NOBODY)
    """The API key that made it; its sweeps are this owner's, too."""
    shared: Mapped[list[str] | None] = mapped_column(JSON(none_as_null=True))
    """As of a study; its sweeps are shared likewise."""
    revision: Mapped[int] = mapped_column(default=1, server_default="1")
    """Raised by every change a person makes: the schedule's ETag."""
    created_at: Mapped[datetime] = mapped_column(default=utc_now)
    next_fire_at: Mapped[datetime | None] = mapped_column(index=True)
    last_fired_for: Mapped[datetime | None]
    overlap: Mapped[str] = mapped_column(String(16), default=Overlap.SKIP, server_default=Overlap.SKIP)
    repeat_configurations: Mapped[bool] = mapped_column(default=False, server_default=false())
    """Whether sweeps evaluate again what earlier ones have evaluated on the same data."""
    start: Mapped[str | None] = mapped_column("starts", String(16))
    """`2026-12-01` or `2026-12-01T18:00` in its timezone: nothing fires before."""
    end: Mapped[str | None] = mapped_column("ends", String(16))
    """Likewise: nothing fires after. A date's day is a part of it."""
    catch_up: Mapped[str] = mapped_column(String(16), default=CatchUp.LATEST, server_default=CatchUp.LATEST)
    until: Mapped[str | None] = mapped_column(String(5))
    """A time of day, `06:00`, in its timezone, at which a sweep's window ends."""
    until_action: Mapped[str] = mapped_column(
        String(16), default=UntilAction.END, server_default=UntilAction.END
    )
    sweep_name: Mapped[str | None] = mapped_column(String(200))
    """The pattern of its sweeps' names (`service.schedules.templates`); none: name and local time."""
    sweeps_made: Mapped[int] = mapped_column(default=0, server_default="0")
    """How many sweeps it has made: the number of the latest one."""
    queued_for: Mapped[datetime | None]
    """The cron instant of the firing that waits for an earlier sweep's end."""
    champion: Mapped[bool] = mapped_column(default=True, server_default=true())
    """Whether its sweeps' winners compete for being its champion."""
    tags: Mapped[list[str] | None] = mapped_column(JSON(none_as_null=True))
    """Which the sweeps that it makes from now on have, too."""
    note: Mapped[str | None] = mapped_column(Text)
    """What people have written down about it."""


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
    """The cron instant of the firing that it is about; of several, the last."""
    missed: Mapped[dict[str, Any] | None] = mapped_column(JSON(none_as_null=True))
    """Of firings that were missed: {"count": ..., "first": ..., "last": ...}, the times in ISO 8601."""
    owner: Mapped[str | None] = mapped_column(String(64))
    """Whose schedule it was; none: of one that was removed before this was written down."""
    position: Mapped[int | None] = mapped_column(BigInteger, index=True, unique=True)
    """As of `EventRow`, in the same order."""
