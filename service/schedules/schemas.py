"""Schedules as the REST API shows them."""

from __future__ import annotations

from datetime import datetime
from typing import Any

from pydantic import BaseModel, Field


class ScheduleView(BaseModel):
    id: str
    name: str
    cron: str
    timezone: str
    enabled: bool
    definition: dict[str, Any]
    created_at: datetime
    next_fire_at: datetime | None = Field(description="null while disabled")
    last_fired_for: datetime | None = Field(description="The cron instant of the latest sweep")
    studies: int = Field(description="How many sweeps it has made")


class ScheduleList(BaseModel):
    items: list[ScheduleView]
