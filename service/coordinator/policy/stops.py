"""What ends a study, in the order in which it is checked (docs/reference/stops.md).

1. a person's cancel; 2. a fault that every trial would share; 3. too many failures: `forced_stop`.
4. the target value; 5. no improvement; 6. all trials ended, or the space is exhausted: `search_end`.
7. a pause, which ends nothing: `Snapshot.pause_reason`.
8. no worker can be had; 9. the wall clock; 10. the time of day; 11. the GPU-hours: `budget_stop`.

Of several that hold, the first counts. 4 to 6 end the search by itself, and repeats may follow it; they
come before 8 to 11, so that what a search has reached is not rewritten by the clock afterwards. A pause
comes before those, too: what is put down can be taken up again, and what is ended cannot. But for the pause,
which a person may take back, nothing here can cease to hold: each looks at counts that only grow, or at ends
in the order in which they were recorded.

In a study that was extended after its end, 2 to 5 look at the trials since then alone: what had ended it does
not end it again at once. The best value that there is to improve on is still the best of all.
"""

from __future__ import annotations

from dataclasses import dataclass

from search_spaces.wording import counted
from service.coordinator.policy.snapshot import Snapshot, TrialPhase, TrialSnapshot
from service.states import AttemptState, StudyState


@dataclass(frozen=True, kw_only=True)
class Stop:
    """Why no further trial is sent out."""

    reason: str
    state: StudyState | None = None
    """What the study becomes; None: completed if any trial has, else failed."""


def forced_stop(snapshot: Snapshot) -> Stop | None:
    """What ends a study at once, whatever has come of it.

    Repeats count for none but the cancel: they come when the search has its result, and cannot take it back.
    """
    if snapshot.cancel_requested:
        return Stop(state=StudyState.CANCELLED, reason="cancelled on request")
    search = [t for t in snapshot.search if t.number >= snapshot.limits.since]
    fatal = next((t for t in search if t.fatal_reason is not None), None)
    if fatal is not None:
        return Stop(state=StudyState.FAILED, reason=str(fatal.fatal_reason))
    allowed = snapshot.limits.max_failed_trials
    failed = sum(t.outcome is AttemptState.FAILED for t in search)
    if allowed is not None and failed > allowed:
        return Stop(
            state=StudyState.FAILED,
            reason=f"{counted(failed, 'trial')} failed; budget.max_failed_trials allows {allowed}",
        )
    return None


def search_end(snapshot: Snapshot) -> str | None:
    """Why the search is over by itself; None while it is not."""
    return _target_reached(snapshot) or _no_improvement(snapshot) or _all_ended(snapshot)


def budget_stop(snapshot: Snapshot) -> Stop | None:
    """What stops trials, of the search or repeats, that would otherwise go on."""
    limits = snapshot.limits
    if snapshot.unplaceable_reason is not None:
        return Stop(state=StudyState.FAILED, reason=snapshot.unplaceable_reason)
    if limits.timeout_seconds is not None and snapshot.running_seconds >= limits.timeout_seconds:
        return Stop(reason=f"budget.timeout of {limits.timeout_seconds:g} s reached")
    if snapshot.deadline_reason is not None:
        return Stop(reason=snapshot.deadline_reason)
    if limits.max_gpu_hours is not None and snapshot.gpu_hours >= limits.max_gpu_hours:
        spent = f"({snapshot.gpu_hours:.2f} spent)"
        return Stop(reason=f"budget.max_gpu_hours of {limits.max_gpu_hours:g} reached {spent}")
    return None


def ranking(snapshot: Snapshot) -> list[TrialSnapshot]:
    """The search's completed trials that break no constraint, the best objective first; ties by number."""
    sign = 1.0 if snapshot.limits.minimize else -1.0
    eligible = [(sign * t.value, t.number, t) for t in snapshot.search if t.value is not None and t.feasible]
    return [trial for _, _, trial in sorted(eligible, key=lambda entry: entry[:2])]


def _by_end(snapshot: Snapshot) -> list[TrialSnapshot]:
    """The search's trials that have ended of themselves, in the order in which that was recorded.

    A cancelled trial was ended by a stop, so it is no reason for one.
    """
    ended = (t for t in snapshot.search if t.phase is TrialPhase.ENDED)
    own = [t for t in ended if t.outcome is not AttemptState.CANCELLED]
    return sorted(own, key=lambda t: (t.end_order, t.number))


def _better(snapshot: Snapshot, value: float, than: float) -> bool:
    return value < than if snapshot.limits.minimize else value > than


def _target_reached(snapshot: Snapshot) -> str | None:
    """By the first trial, in the order of their ends, that is completed, feasible and at least as good."""
    limits, target = snapshot.limits, snapshot.limits.target_value
    if target is None:
        return None
    for trial in _by_end(snapshot):
        value = trial.value if trial.number >= limits.since else None
        if value is not None and trial.feasible and not _better(snapshot, target, than=value):
            has = f"trial {trial.number} has {limits.metric} {value:.6g}"
            return f"budget.target_value of {target:g} reached: {has}"
    return None


def _no_improvement(snapshot: Snapshot) -> str | None:
    """Once that many trials in a row have ended, however, without a feasible value strictly better than all
    before them. The count begins with the first such value: before it there is nothing to improve."""
    limits, patience = snapshot.limits, snapshot.limits.no_improvement_trials
    if patience is None:
        return None
    best: TrialSnapshot | None = None
    since = 0
    for trial in _by_end(snapshot):
        value = trial.value if trial.feasible else None
        if value is not None and (
            best is None or best.value is None or _better(snapshot, value, than=best.value)
        ):
            best, since = trial, 0
        elif best is not None and trial.number >= limits.since:
            since += 1
        if best is not None and since >= patience:
            held = f"trial {best.number} has the best {limits.metric}, {best.value:.6g}"
            after = "1 trial" if patience == 1 else f"{patience:,} trials in a row"
            return f"budget.no_improvement_trials of {patience} reached: {held}, and {after} ended after it"
    return None


def _all_ended(snapshot: Snapshot) -> str | None:
    """A trial that a person has stopped is one of `search.trials`, and none takes its place."""
    limits = snapshot.limits
    ended = len(_by_end(snapshot)) + sum(t.settled for t in snapshot.search)
    if snapshot.exhausted and ended == len(snapshot.search) < limits.trials:
        return f"{_all(ended)} ended: the search space is exhausted"
    if ended < limits.trials:
        return None
    what = f": the {limits.exhausts} is exhausted" if limits.exhausts is not None else ""
    return f"{_all(limits.trials)} ended{what}"


def _all(trials: int) -> str:
    return f"{'' if trials == 1 else 'all '}{counted(trials, 'trial')}"
