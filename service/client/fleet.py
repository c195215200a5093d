"""What the REST API answers about workers and GPUs."""

from __future__ import annotations

from datetime import datetime

from service.client.answers import Answer


class WorkerTrial(Answer):
    number: int
    attempt: int
    state: str


class Worker(Answer):
    """A worker that has a trial."""

    id: str
    study: str
    device: str | None = None
    device_id: str | None = None
    gpus: float = 0.0
    trials: tuple[WorkerTrial, ...] = ()
    since: datetime


class Device(Answer):
    """A GPU that was put aside, or was once (`put_aside_at` is none)."""

    id: str
    put_aside_at: datetime | None = None
    reason: str = ""
    restored_at: datetime | None = None


class Fleet(Answer):
    workers: tuple[Worker, ...]
    devices: tuple[Device, ...]
