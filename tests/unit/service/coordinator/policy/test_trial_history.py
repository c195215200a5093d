"""GPU-hours, from attempts."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

import pytest

from service.analysis.gpu_hours import gpu_hours
from service.db.models import Attempt

NOW = datetime(2026, 7, 1, 12, tzinfo=UTC)


def attempt(worker_id: str, start: float | None, end: float | None, *, gpus: float = 1.0) -> Attempt:
    """Trained from one hour of the day to another; None: not yet."""

    def hour(at: float | None) -> datetime | None:
        return None if at is None else NOW.replace(hour=0) + timedelta(hours=at)

    return Attempt(worker_id=worker_id, gpus=gpus, started_at=hour(start), ended_at=hour(end))


@pytest.mark.parametrize(
    ("attempts", "hours"),
    [
        ([], 0.0),
        ([attempt("a", None, 3)], 0.0),
        ([attempt("a", 1, 3), attempt("b", 1, 2, gpus=0.5)], 2.5),
        ([attempt("a", 11, None)], 1.0),
        ([attempt("a", 1, 3), attempt("a", 1, 3), attempt("a", 2, 5)], 4.0),
        ([attempt("a", 1, 9), attempt("a", 2, 3), attempt("a", 4, 5)], 8.0),
        ([attempt("a", 6, 7), attempt("a", 1, 2), attempt("a", 7, 8)], 3.0),
    ],
    ids=["none", "never trained", "apart", "still training", "in a pack", "one within another", "with a gap"],
)
def test_the_hours_of_a_worker_count_once_however_many_trials_share_it(
    attempts: list[Attempt], hours: float
) -> None:
    assert gpu_hours(attempts, NOW) == pytest.approx(hours)
