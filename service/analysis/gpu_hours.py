"""The time that workers spent on a study's attempts."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from datetime import datetime

from service.db.models import Attempt


@dataclass(frozen=True, kw_only=True)
class Busy:
    """A time in which a worker had trials."""

    start: datetime
    end: datetime
    gpus: float

    @property
    def hours(self) -> float:
        return (self.end - self.start).total_seconds() / 3600


def busy(attempts: Iterable[Attempt], now: datetime) -> list[Busy]:
    """When workers had trials. Trials that share a worker share its time, so no two of one worker overlap."""
    by_worker: dict[str, list[tuple[datetime, datetime, float]]] = {}
    for attempt in attempts:
        if attempt.started_at is not None:
            span = (attempt.started_at, attempt.ended_at or now, attempt.gpus)
            by_worker.setdefault(attempt.worker_id, []).append(span)
    found = []
    for spans in by_worker.values():
        counted_to = min(start for start, _, _ in spans)
        for start, end, gpus in sorted(spans):
            if end > max(start, counted_to):
                found.append(Busy(start=max(start, counted_to), end=end, gpus=gpus))
            counted_to = max(counted_to, end)
    return found


def gpu_hours(attempts: Iterable[Attempt], now: datetime) -> float:
    """GPU-hours in which workers had trials."""
    return sum(span.gpus * span.hours for span in busy(attempts, now))


def worker_hours(attempts: Iterable[Attempt], now: datetime) -> float:
    """Hours in which workers had trials, whatever they ran on."""
    return sum(span.hours for span in busy(attempts, now))
