"""Workers and GPUs as the REST API shows them."""

from __future__ import annotations

from datetime import datetime

from pydantic import BaseModel, Field


class WorkerTrial(BaseModel):
    number: int
    attempt: int = Field(description="1 for the trial's first attempt, and so on")
    state: str


class WorkerView(BaseModel):
    """A worker that has a trial. One that waits for its first, or for the next, is not known here."""

    id: str
    study: str = Field(description="The study's name")
    device: str | None = Field(description="What it trains on, as it names it; null until it has said")
    device_id: str | None = Field(description="Its GPU; null: it trains on the CPU")
    gpus: float
    trials: list[WorkerTrial]
    since: datetime = Field(description="When the oldest of its trials was sent to it")


class DeviceView(BaseModel):
    """A GPU that was put aside, or was once."""

    id: str = Field(description="Its machine's name and its own UUID, or its index where that is not known")
    put_aside_at: datetime | None = Field(description="null: it was given back, and gets trials again")
    reason: str
    restored_at: datetime | None = Field(description="What was before this does not count any more")


class Fleet(BaseModel):
    workers: list[WorkerView]
    devices: list[DeviceView] = Field(description="GPUs that were put aside, the latest first")
