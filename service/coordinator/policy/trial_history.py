"""What the attempts of a study say, read for `decide`: pure functions over rows."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from datetime import datetime
from typing import Any

from service.coordinator.policy.retries import Deaths, losses
from service.coordinator.policy.snapshot import TrialPhase, TrialSnapshot
from service.db.kinds import Contestant
from service.db.models import Attempt
from service.states import (
    LIVE_ATTEMPT_STATES,
    TERMINAL_ATTEMPT_STATES,
    UNFINISHED_ATTEMPT_STATES,
    AttemptState,
)

_ENDS = TERMINAL_ATTEMPT_STATES - UNFINISHED_ATTEMPT_STATES
END_EVENTS = frozenset(f"{subject}_{state}" for subject in ("attempt", "trial") for state in _ENDS)
"""Kinds of events that end a trial: with its last attempt, or without one."""


@dataclass(frozen=True, kw_only=True)
class AskedTrial:
    """A trial that Optuna was asked for."""

    params: Mapping[str, Any]
    repeat_of: int | None = None
    seed: int | None = None
    evaluates: Mapping[str, Any] | None = None
    """Of one that trains nothing: whose adapter it evaluates, and where that is."""

    @property
    def role(self) -> Contestant | None:
        """Whose adapter it evaluates."""
        return None if self.evaluates is None else Contestant(self.evaluates["role"])


def has_ended(attempt: Attempt) -> bool:
    """Whether the attempt ended its trial, too: a lost or paused one does not."""
    return attempt.state not in LIVE_ATTEMPT_STATES | UNFINISHED_ATTEMPT_STATES


def trial_snapshots(
    attempts: Iterable[Attempt],
    *,
    asked: Mapping[int, AskedTrial],
    ends: Mapping[int, TrialSnapshot],
    stops: Mapping[int, str],
    deaths: Deaths,
    base_of: Callable[[int], str],
    now: datetime,
    since: int = 0,
) -> Iterator[TrialSnapshot]:
    """Where each trial stands, by number.

    Args:
        attempts: all of the trials that have not ended; those of others are passed over.
        asked: every trial of the study, those without an attempt included.
        ends: the trials that have ended.
        stops: those that a person wants to end, or wanted to, and why.
        deaths: of the study; may be empty where no trial was lost that has not ended.
        base_of: the base that a trial trains on, in words.
        now: by the clock of the attempts' ends.
        since: the number of the first trial after the study was last extended when it had ended.
    """
    by_trial: dict[int, list[Attempt]] = {}
    for attempt in attempts:
        by_trial.setdefault(attempt.trial_number, []).append(attempt)
    for number in sorted(asked):
        if number in ends:
            end = ends[number]
            stopped = (number in stops or number < since) and end.outcome is AttemptState.CANCELLED
            yield replace(end, settled=True) if stopped else end
            continue
        tries = sorted(by_trial.get(number, ()), key=lambda a: a.ordinal)
        last = tries[-1] if tries else None
        lost = losses(tries, deaths, now)
        common: dict[str, Any] = {
            "number": number,
            "base": base_of(number),
            "repeat_of": asked[number].repeat_of,
            "seed": asked[number].seed,
            "evaluates": asked[number].role,
            "lost_attempts": lost.counted,
            "suspect": lost.suspect,
            "avoid": lost.avoid,
            "stop_reason": stops.get(number),
        }
        if last is not None and last.state in LIVE_ATTEMPT_STATES:
            yield TrialSnapshot(
                phase=TrialPhase.LIVE,
                live_attempt_id=last.id,
                worker_id=last.worker_id,
                seconds_left=_seconds_left(last, now),
                **common,
            )
        else:
            yield TrialSnapshot(
                phase=TrialPhase.WAITING,
                rested=lost.rested,
                poison=lost.poison,
                fatal_reason=lost.fatal,
                **common,
            )


def _seconds_left(attempt: Attempt, now: datetime) -> float | None:
    """As `TrialSnapshot.seconds_left`."""
    seen = attempt.examples_seen - attempt.resumed_at_examples
    if attempt.started_at is None or attempt.total_examples is None or seen <= 0:
        return None
    passed = max(0.0, (now - attempt.started_at).total_seconds())
    return passed * (attempt.total_examples - attempt.examples_seen) / seen
