"""Studies as the REST API shows them."""

from __future__ import annotations

from datetime import datetime
from typing import Any

from pydantic import BaseModel, Field

from service.states import StudyState


class Counts(BaseModel):
    """The study's trials by state. A trial whose worker was lost waits for its next attempt."""

    running: int = 0
    completed: int = 0
    pruned: int = 0
    diverged: int = 0
    out_of_memory: int = 0
    failed: int = 0
    cancelled: int = 0
    waiting: int = 0
    total: int = Field(default=0, description="Trials that exist so far")


class BestTrial(BaseModel):
    trial_number: int
    value: float = Field(description="The objective at the trial's best rung")
    params: dict[str, Any]


class StudyView(BaseModel):
    id: str
    name: str
    state: StudyState
    reason: str = Field(description="Why it is in this state, in words")
    definition: dict[str, Any] = Field(description="As accepted: defaults, preset and paths resolved")
    created_at: datetime
    started_at: datetime | None
    ended_at: datetime | None
    schedule: str | None = Field(description="The name of the schedule that made it")
    fired_for: datetime | None = Field(description="The cron instant that this sweep belongs to")
    trials_requested: int | None = Field(
        description="None when this version cannot read the stored definition"
    )
    counts: Counts
    best: BestTrial | None
    dashboard_path: str | None = Field(description="None until its first trial is asked for")


class StudyPage(BaseModel):
    items: list[StudyView]
    next_cursor: str | None = Field(description="Pass it as `cursor` to go on; null at the end")


class EventView(BaseModel):
    id: int
    at: datetime
    trial_number: int | None
    kind: str
    message: str


class EventPage(BaseModel):
    items: list[EventView]
