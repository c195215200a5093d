"""What to do next for one study: a pure function from a snapshot to actions.

No I/O, no clock, no randomness: the loop reads the snapshot and performs the actions. The order in
which ends are looked at is fixed, and it is the order of `decide`'s body: a person's cancel, a fault
that every trial would share, too many failures, the wall clock, the GPU-hours, and last the natural
end. A study that meets several of them ends with the first one's reason.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from enum import StrEnum

from service.states import AttemptState, StudyState


class TrialPhase(StrEnum):
    WAITING = "waiting"
    """Asked, but no attempt is alive: never dispatched, or its worker was lost."""
    LIVE = "live"
    ENDED = "ended"


@dataclass(frozen=True, kw_only=True)
class TrialSnapshot:
    number: int
    phase: TrialPhase
    lost_attempts: int = 0
    live_attempt_id: int | None = None
    stop_requested: bool = False
    """A stop was already sent to the live attempt."""
    outcome: AttemptState | None = None
    """Set when the phase is ended."""
    fatal_reason: str | None = None
    """The trial failed for a reason in the study's model or data."""


@dataclass(frozen=True, kw_only=True)
class Limits:
    """The part of the definition that bounds a study. Times in seconds."""

    trials: int
    max_parallel_trials: int
    max_failed_trials: int | None
    max_retries: int
    timeout_seconds: float | None
    max_gpu_hours: float | None


@dataclass(frozen=True, kw_only=True)
class Snapshot:
    state: StudyState
    cancel_requested: bool
    limits: Limits
    trials: tuple[TrialSnapshot, ...]
    free_slots: int
    running_seconds: float
    """Wall clock since the first trial was dispatched."""
    gpu_hours: float
    unplaceable_reason: str | None = None
    """Set when the cluster could not give this study any worker for too long."""


@dataclass(frozen=True, kw_only=True)
class Ask:
    """Ask the sampler for the next trial and dispatch it."""


@dataclass(frozen=True, kw_only=True)
class Dispatch:
    """Send a waiting trial to a worker, as its next attempt."""

    trial_number: int


@dataclass(frozen=True, kw_only=True)
class StopAttempt:
    """Tell the worker to end a live attempt."""

    attempt_id: int
    reason: str


@dataclass(frozen=True, kw_only=True)
class EndTrial:
    """End a waiting trial without a further attempt."""

    trial_number: int
    outcome: AttemptState
    reason: str


@dataclass(frozen=True, kw_only=True)
class EndStudy:
    state: StudyState
    reason: str
    cause: str = field(default="", compare=False)
    """What brought the end about, where `reason` also says what came of the trials."""


Action = Ask | Dispatch | StopAttempt | EndTrial | EndStudy


def decide(snapshot: Snapshot) -> list[Action]:
    """The next actions for a study that is queued or running.

    Never asks for more than `limits.trials` trials and never lets more than
    `limits.max_parallel_trials` be alive, whatever `free_slots` says: budgets are reserved here, before
    anything is dispatched.
    """
    end = _end_of_study(snapshot)
    if end is not None:
        return list(_wind_down(snapshot, end))
    return list(_go_on(snapshot))


def _end_of_study(snapshot: Snapshot) -> EndStudy | None:
    """The first end that holds, in the documented order; None while the study goes on."""
    limits = snapshot.limits
    ended = [t for t in snapshot.trials if t.phase is TrialPhase.ENDED]
    failed = sum(t.outcome is AttemptState.FAILED for t in ended)
    fatal = next((t for t in ended if t.fatal_reason is not None), None)

    if snapshot.cancel_requested:
        return EndStudy(state=StudyState.CANCELLED, reason="cancelled on request")
    if fatal is not None:
        return EndStudy(state=StudyState.FAILED, reason=str(fatal.fatal_reason))
    if snapshot.unplaceable_reason is not None:
        return EndStudy(state=StudyState.FAILED, reason=snapshot.unplaceable_reason)
    if limits.max_failed_trials is not None and failed > limits.max_failed_trials:
        return EndStudy(
            state=StudyState.FAILED,
            reason=f"{'1 trial' if failed == 1 else f'{failed} trials'} failed; "
            f"budget.max_failed_trials allows {limits.max_failed_trials}",
        )
    if limits.timeout_seconds is not None and snapshot.running_seconds >= limits.timeout_seconds:
        return _natural_end(snapshot, f"budget.timeout of {limits.timeout_seconds:g} s reached")
    if limits.max_gpu_hours is not None and snapshot.gpu_hours >= limits.max_gpu_hours:
        spent = f"({snapshot.gpu_hours:.2f} spent)"
        return _natural_end(snapshot, f"budget.max_gpu_hours of {limits.max_gpu_hours:g} reached {spent}")
    if len(ended) >= limits.trials:
        return _natural_end(snapshot, f"all {limits.trials} trials ended")
    return None


def _natural_end(snapshot: Snapshot, why: str) -> EndStudy:
    """Completed if anything completed; a study without a single result has failed, and says how."""
    outcomes = [t.outcome for t in snapshot.trials if t.outcome is not None]
    if AttemptState.COMPLETED in outcomes:
        return EndStudy(state=StudyState.COMPLETED, reason=why)
    tally = ", ".join(
        f"{outcomes.count(state)} {state.replace('_', ' ')}" for state in AttemptState if state in outcomes
    )
    reason = f"{why}, and none completed ({tally or 'none was run'})"
    return EndStudy(state=StudyState.FAILED, reason=reason, cause=why)


def _wind_down(snapshot: Snapshot, end: EndStudy) -> Iterator[Action]:
    """Stop what lives, close what waits; the study ends once nothing is alive."""
    live = [t for t in snapshot.trials if t.phase is TrialPhase.LIVE]
    reason = f"the study ended: {end.cause or end.reason}"
    for trial in live:
        if not trial.stop_requested and trial.live_attempt_id is not None:
            yield StopAttempt(attempt_id=trial.live_attempt_id, reason=reason)
    for trial in snapshot.trials:
        if trial.phase is TrialPhase.WAITING:
            yield EndTrial(trial_number=trial.number, outcome=AttemptState.CANCELLED, reason=reason)
    if not live:
        yield end


def _go_on(snapshot: Snapshot) -> Iterator[Action]:
    """Fill free slots: lost trials first, oldest first, then new ones."""
    limits = snapshot.limits
    live = sum(t.phase is TrialPhase.LIVE for t in snapshot.trials)
    room = min(snapshot.free_slots, limits.max_parallel_trials - live)
    for trial in snapshot.trials:
        if trial.phase is not TrialPhase.WAITING:
            continue
        if trial.lost_attempts > limits.max_retries:
            yield EndTrial(
                trial_number=trial.number,
                outcome=AttemptState.FAILED,
                reason=f"its worker was lost {trial.lost_attempts} times; "
                f"budget.max_retries allows {limits.max_retries} further attempts",
            )
        elif room > 0:
            yield Dispatch(trial_number=trial.number)
            room -= 1
    for _ in range(min(max(room, 0), limits.trials - len(snapshot.trials))):
        yield Ask()
