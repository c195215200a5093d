"""Workers and GPUs as the REST API shows them."""

from __future__ import annotations

from datetime import datetime

from pydantic import Field

from service.answers import Answer


class WorkerTrial(Answer):
    number: int
    attempt: int = Field(description="1 for the trial's first attempt, and so on")
    state: str


class WorkerView(Answer):
    """A worker that has a trial. Workers without a trial are not listed."""

    id: str
    study: str = Field(description="The study's name")
    device: str | None = Field(
        description="The device on which it trains, as the worker names it; null until it has started"
    )
    device_id: str | None = Field(description="The id of its GPU; null: it trains on the CPU")
    gpus: float
    trials: list[WorkerTrial]
    since: datetime = Field(description="When the first of its present trials was sent to it")


class DeviceView(Answer):
    """A GPU that is put aside, so that it gets no trials, or once was."""

    id: str = Field(description="The machine's name and the GPU's UUID, or its index if it has no known UUID")
    put_aside_at: datetime | None = Field(
        description="Since when it has got no trials; null: it was restored and gets trials again"
    )
    reason: str
    restored_at: datetime | None = Field(
        description="When it was last restored; earlier deaths of workers no longer count"
    )


class Fleet(Answer):
    workers: list[WorkerView]
    devices: list[DeviceView] = Field(description="GPUs that are or once were put aside, the latest first")
