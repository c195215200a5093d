"""Schedules as the REST API shows them."""

from __future__ import annotations

from datetime import datetime
from typing import Any

from pydantic import Field

from service.answers import Answer, Open
from service.db.kinds import Overlap, ScheduleEventKind
from service.states import StudyState


class SweepView(Answer):
    """The latest study of a schedule, in short."""

    name: str
    state: Open[StudyState]
    reason: str = Field(description="Why it is in this state, in words")


class SkipView(Answer):
    """A firing that made no sweep."""

    fired_for: datetime | None = Field(description="The cron instant")
    reason: str


class ListedSchedule(Answer):
    """A schedule in a list. Its definition is at its own address."""

    id: str
    name: str
    cron: str
    timezone: str
    enabled: bool
    owner: str = Field(description="Whose API key made it; its sweeps count for this owner")
    overlap: Open[Overlap] = Field(
        description="What a firing does while an earlier sweep is queued or running: `skip` makes none"
    )
    repeat_configurations: bool = Field(
        description="Whether sweeps evaluate again what earlier ones have evaluated on the same data"
    )
    created_at: datetime
    next_fire_at: datetime | None = Field(description="null while disabled")
    last_fired_for: datetime | None = Field(description="The cron instant of the latest sweep")
    studies: int = Field(description="How many sweeps it has made")
    last_sweep: SweepView | None = Field(
        description="The latest sweep. One over its owner's limits is `failed`, and its reason says so"
    )
    last_skipped: SkipView | None = Field(
        description="The latest firing that made no sweep, since an earlier one was under way"
    )


class ScheduleView(ListedSchedule):
    definition: dict[str, Any] = Field(
        description="Of its sweeps, but for `name` and `search.seed`, which are each sweep's own"
    )


class ScheduleList(Answer):
    items: list[ListedSchedule]


class ScheduleEventView(Answer):
    id: int
    at: datetime
    schedule: str = Field(description="The schedule's name at that time")
    schedule_id: str
    kind: Open[ScheduleEventKind]
    asked_by: str | None = Field(description="Whose API key asked for it; null: a coordinator, at its time")
    message: str
    changes: dict[str, dict[str, Any]] | None = Field(
        description="Of `changed`: each key, dotted within the definition, with `from` and `to`; long lists"
        " and texts are shortened"
    )
    fired_for: datetime | None = Field(description="Of `skipped` and `failed`: the cron instant")


class ScheduleHistory(Answer):
    items: list[ScheduleEventView]
