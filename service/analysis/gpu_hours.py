"""GPU-hours that the attempts of a study took."""

from __future__ import annotations

from collections.abc import Iterable
from datetime import datetime

from service.db.models import Attempt


def gpu_hours(attempts: Iterable[Attempt], now: datetime) -> float:
    """GPU-hours in which workers trained. Trials that share a worker share its time, so it counts once."""
    spans: dict[str, list[tuple[datetime, datetime, float]]] = {}
    for attempt in attempts:
        if attempt.started_at is not None:
            span = (attempt.started_at, attempt.ended_at or now, attempt.gpus)
            spans.setdefault(attempt.worker_id, []).append(span)
    seconds = 0.0
    for of_worker in spans.values():
        counted_to = datetime.min.replace(tzinfo=now.tzinfo)
        for start, end, gpus in sorted(of_worker):
            seconds += gpus * max(0.0, (end - max(start, counted_to)).total_seconds())
            counted_to = max(counted_to, end)
    return seconds / 3600
