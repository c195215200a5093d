"""What the attempts of a study say, read for `decide`: pure functions over rows."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator, Mapping
from datetime import datetime

from service.coordinator.decide import TrialPhase, TrialSnapshot
from service.models import Attempt
from service.states import LIVE_ATTEMPT_STATES, AttemptState


def has_ended(attempt: Attempt) -> bool:
    """Whether the attempt ended its trial, too: a lost attempt does not."""
    return attempt.state not in LIVE_ATTEMPT_STATES and attempt.state != AttemptState.LOST


def trial_snapshots(
    attempts: Iterable[Attempt],
    *,
    asked: Iterable[int],
    closed: Mapping[int, AttemptState],
    stops_sent: Collection[int],
) -> Iterator[TrialSnapshot]:
    """Where each trial stands, by number.

    Args:
        attempts: all of the study.
        asked: trials that Optuna was asked for, those without an attempt included.
        closed: what Optuna was told of the trials that have ended.
        stops_sent: attempts that a stop was sent to.
    """
    by_trial: dict[int, list[Attempt]] = {number: [] for number in asked}
    for attempt in attempts:
        by_trial.setdefault(attempt.trial_number, []).append(attempt)
    for number in sorted(by_trial):
        tries = sorted(by_trial[number], key=lambda a: a.ordinal)
        last = tries[-1] if tries else None
        lost = sum(a.state == AttemptState.LOST for a in tries)
        if last is not None and last.state in LIVE_ATTEMPT_STATES:
            yield TrialSnapshot(
                number=number,
                phase=TrialPhase.LIVE,
                lost_attempts=lost,
                live_attempt_id=last.id,
                stop_requested=last.id in stops_sent,
            )
        elif last is not None and has_ended(last):
            fatal = bool((last.outcome or {}).get("fatal_to_study"))
            yield TrialSnapshot(
                number=number,
                phase=TrialPhase.ENDED,
                lost_attempts=lost,
                outcome=AttemptState(last.state),
                fatal_reason=last.reason if fatal else None,
            )
        elif number in closed:
            yield TrialSnapshot(
                number=number, phase=TrialPhase.ENDED, lost_attempts=lost, outcome=closed[number]
            )
        else:
            yield TrialSnapshot(number=number, phase=TrialPhase.WAITING, lost_attempts=lost)


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
