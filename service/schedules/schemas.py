"""Schedules as the REST API shows them."""

from __future__ import annotations

from datetime import datetime
from typing import Any

from pydantic import BaseModel, Field

from service.states import StudyState


class SweepView(BaseModel):
    """The latest study of a schedule, in short."""

    name: str
    state: StudyState
    reason: str = Field(description="Why it is in this state, in words")


class ScheduleView(BaseModel):
    id: str
    name: str
    cron: str
    timezone: str
    enabled: bool
    owner: str = Field(description="Whose API key made it; its sweeps count for this owner")
    definition: dict[str, Any]
    created_at: datetime
    next_fire_at: datetime | None = Field(description="null while disabled")
    last_fired_for: datetime | None = Field(description="The cron instant of the latest sweep")
    studies: int = Field(description="How many sweeps it has made")
    last_sweep: SweepView | None = Field(
        description="The latest sweep. One over its owner's limits is `failed`, and its reason says so"
    )


class ScheduleList(BaseModel):
    items: list[ScheduleView]
