"""What the losses of a trial mean for its next attempt (docs/reference/attempts.md): pure, over rows.

A worker that dies takes all trials of its pack along, and nothing tells which of them did it. So each of
them is under suspicion and trains by itself, on another GPU if there is one, until it is past the point where
it was lost. Only a trial that was isolated at its last death can be called poisonous: no mate pays for it.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta

from service.db.models import Attempt
from service.states import LIVE_ATTEMPT_STATES, AttemptState, LossCause

DEATHS_BEFORE_A_FIRST_STEP = 3
"""Workers that one trial may lose before any trial of its study has made a step; then the study ends."""

COUNTED = frozenset({LossCause.WORKER_DIED, LossCause.UNREACHABLE, LossCause.STALLED})
"""Losses that may be the trial's own doing: they alone count against `budget.max_retries`."""

DEATHS_OF_A_POISONOUS_TRIAL = 2
"""Deaths of its workers at one point, the last with no other trial beside it."""

LOSSES_OF_A_POISONOUS_TRIAL = 10
"""Losses at one point for whatever cause: something there ends machines, too."""

LONGEST_REST_SECONDS = 60.0

STORAGE_FAULTS = 3
"""Attempts of a study that could not write, without a rung of any trial between, after which it is paused."""

RUNGS_SO_FAR = "rungs_of_the_study"
"""In the outcome of an attempt that could not write: rung reports that the study had by then."""


@dataclass(frozen=True, kw_only=True)
class Losses:
    """What a trial's attempts so far say about the next one."""

    counted: int = 0
    """Losses that count against `max_retries`."""
    rested: bool = True
    """The back-off after the last loss is over."""
    suspect: bool = False
    """It may have killed its last worker, and has not got past that point since."""
    avoid: str | None = None
    """Of a suspect: the GPU on which that worker was. It may have been the GPU's doing."""
    poison: str | None = None
    """Why it must not be tried again."""
    fatal: str | None = None
    """Why the study must not go on."""


class Deaths:
    """Which attempts of a study ended in the same moment on the same worker, and whether any ever began.

    Args:
        attempts: all of the study.
    """

    def __init__(self, attempts: Iterable[Attempt]) -> None:
        attempts = list(attempts)
        self.any_began = any(a.started_at is not None for a in attempts)
        """Whether the study's model and data have been loaded and a trial has begun to train."""
        self._together = Counter((a.worker_id, a.ended_at) for a in attempts if a.ended_at is not None)

    def was_isolated(self, attempt: Attempt) -> bool:
        """Whether a lost attempt had no other beside it on its worker."""
        return attempt.ended_at is None or self._together[attempt.worker_id, attempt.ended_at] <= 1


def counts(attempt: Attempt) -> bool:
    """Whether an attempt is a loss that counts. Losses without a recorded cause count, as they did then."""
    return attempt.state == AttemptState.LOST and (
        attempt.loss_cause is None or attempt.loss_cause in COUNTED
    )


def died_before_it_began(attempt: Attempt) -> bool:
    """Whether a worker died with an attempt whose model and data it had not loaded yet."""
    return attempt.loss_cause == LossCause.WORKER_DIED and attempt.started_at is None


def points_reached(tries: Sequence[Attempt]) -> list[int]:
    """How far each attempt of a trial is known to have come, in training examples.

    That is its last rung, or the checkpoint that it went on from. One that never started is where its
    predecessor was.
    """
    found: list[int] = []
    for attempt in tries:
        before = found[-1] if found else 0
        started = attempt.started_at is not None
        found.append(max(attempt.resumed_at_examples, attempt.last_rung) if started else before)
    return found


def losses(tries: Sequence[Attempt], deaths: Deaths, now: datetime) -> Losses:
    """What the attempts of one trial, oldest first, mean for the next one.

    Args:
        tries: ended ones, and at most one that is alive.
        deaths: of the study.
        now: by the clock of the attempts' ends.
    """
    if not any(a.state == AttemptState.LOST for a in tries):
        return Losses()
    if not deaths.any_began and (early := [a for a in tries if died_before_it_began(a)]):
        # Every trial loads the same, so it is no trial's doing.
        return Losses(rested=_rested(tries, now), fatal=_unloadable(early))
    death = next((a for a in reversed(tries) if a.loss_cause == LossCause.WORKER_DIED), None)
    suspect = _is_suspect(tries)
    return Losses(
        counted=sum(map(counts, tries)),
        rested=_rested(tries, now),
        suspect=suspect,
        avoid=death.device_id if suspect and death is not None else None,
        poison=_poison(tries, deaths),
    )


def _unloadable(early: Sequence[Attempt]) -> str | None:
    """Why a study ends whose workers die before its first step; None: it may have been by chance."""
    if len(early) < DEATHS_BEFORE_A_FIRST_STEP:
        return None
    return (
        f"the workers of trial {early[-1].trial_number} died {len(early)} times before any trial of the "
        f"study made its first step; the last time: {early[-1].reason}"
    )


def rest_seconds(tries: Sequence[Attempt]) -> float:
    """The back-off after a trial's last loss: 1, 2, 4, ... seconds after the first, second, ... that counts.

    One that does not count is no reason to wait, unless such losses follow each other: then likewise, from
    the second on.
    """
    if not tries or tries[-1].state != AttemptState.LOST:
        return 0.0
    if counts(tries[-1]):
        doublings = sum(map(counts, tries)) - 1
    else:
        in_a_row = 0
        for attempt in reversed(tries):
            if attempt.state != AttemptState.LOST or counts(attempt):
                break
            in_a_row += 1
        doublings = in_a_row - 2
    if doublings < 0:
        return 0.0
    return min(LONGEST_REST_SECONDS, 2.0 ** min(doublings, 10))


def _rested(tries: Sequence[Attempt], now: datetime) -> bool:
    rest, ended_at = rest_seconds(tries), tries[-1].ended_at
    # A clock that was put back must not make it wait for longer than it should.
    return ended_at is None or not timedelta(0) <= now - ended_at < timedelta(seconds=rest)


def _is_suspect(tries: Sequence[Attempt]) -> bool:
    reached = points_reached(tries)
    of_deaths = [p for a, p in zip(tries, reached, strict=True) if a.loss_cause == LossCause.WORKER_DIED]
    return bool(of_deaths) and reached[-1] <= of_deaths[-1]


def _poison(tries: Sequence[Attempt], deaths: Deaths) -> str | None:
    last = tries[-1]
    if last.state in LIVE_ATTEMPT_STATES:
        return None
    reached = points_reached(tries)
    here: list[LossCause] = []
    for attempt, point in zip(reversed(tries), reversed(reached), strict=True):
        if point != reached[-1]:
            break
        if attempt.loss_cause is not None:
            here.append(LossCause(attempt.loss_cause))
    where = f"after {reached[-1]:,} examples" if reached[-1] else "before its first rung"
    died = here.count(LossCause.WORKER_DIED)
    if (
        last.loss_cause == LossCause.WORKER_DIED
        and died >= DEATHS_OF_A_POISONOUS_TRIAL
        and deaths.was_isolated(last)
    ):
        return (
            f"poisonous: its worker died {died} times in a row at the same point, {where}, "
            "the last time with no other trial on it"
        )
    lost = len(here) - here.count(LossCause.NEVER_ARRIVED) - here.count(LossCause.STORAGE)
    if lost >= LOSSES_OF_A_POISONOUS_TRIAL:
        tally = ", ".join(f"{here.count(c)} {c.replace('_', ' ')}" for c in LossCause if c in here)
        return f"poisonous: it was lost {lost} times in a row at the same point, {where} ({tally})"
    return None


def storage_trouble(
    attempts: Iterable[Attempt], *, rungs: Callable[[], int], resumed_at: datetime | None
) -> str | None:
    """Why a study should be paused for want of a place to write to; None: it need not.

    Args:
        attempts: all of the study that were lost.
        rungs: counts the study's rung reports; asked only where there may be trouble.
        resumed_at: when its last pause ended: what was before that, a person has seen to.
    """
    faults = [
        (a.ended_at, a)
        for a in attempts
        if a.loss_cause == LossCause.STORAGE
        and a.ended_at is not None
        and (resumed_at is None or a.ended_at > resumed_at)
    ]
    if len(faults) < STORAGE_FAULTS:
        return None
    present = rungs()
    recent = [(at, a) for at, a in faults if (a.outcome or {}).get(RUNGS_SO_FAR) == present]
    if len(recent) < STORAGE_FAULTS:
        return None
    _, newest = max(recent, key=lambda fault: (fault[0], fault[1].id))
    return (
        f"{len(recent)} attempts in a row could not write their artifacts; the last reason: {newest.reason}"
    )
