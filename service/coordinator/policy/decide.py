"""What to do next for one study: a pure function from a snapshot to actions.

No I/O, no clock, no randomness: the runner reads the snapshot and performs the actions. `stops` says what
ends a study, and in which order that is checked. When the search is over by itself, what still runs of it is
stopped, and then its best recipes are run again where the definition wants repeats. A sweep that has a
champion to compare with evaluates that first, and its own winner last, whatever has ended the search.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

from search_spaces.wording import counted
from service.coordinator.policy import hand_over
from service.coordinator.policy.limits import Limits
from service.coordinator.policy.snapshot import Snapshot, TrialPhase, TrialSnapshot
from service.coordinator.policy.stops import Stop, budget_stop, forced_stop, ranking, search_end
from service.db.kinds import Contestant
from service.states import AttemptState, StudyState


@dataclass(frozen=True, kw_only=True)
class Ask:
    """Ask the sampler for the next trial, and dispatch it if a worker takes its base; else it waits."""


@dataclass(frozen=True, kw_only=True)
class AskRepeat:
    """Make a trial of another's recipe with a further seed, and dispatch it likewise."""

    of: int
    seed: int


@dataclass(frozen=True, kw_only=True)
class AskEvaluation:
    """Make a trial that evaluates an adapter and trains nothing, and dispatch it likewise."""

    role: Contestant


@dataclass(frozen=True, kw_only=True)
class Dispatch:
    """Send a waiting trial to a worker, as its next attempt."""

    trial_number: int
    isolated: bool = False
    """It trains by itself, so the worker must be idle and takes no other meanwhile."""
    avoid: str | None = None
    """The GPU that it does not go back to while there is another."""


@dataclass(frozen=True, kw_only=True)
class StopAttempt:
    """Tell the worker to end a live attempt."""

    attempt_id: int
    reason: str


@dataclass(frozen=True, kw_only=True)
class PauseAttempt:
    """Tell the worker to put a live attempt down with a checkpoint."""

    attempt_id: int
    reason: str


@dataclass(frozen=True, kw_only=True)
class KillWorker:
    """End the worker of a live attempt that does not obey: it is lost, or ended by what it was told."""

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


@dataclass(frozen=True, kw_only=True)
class PauseStudy:
    """Nothing of it is alive any more: give its workers and its lease back."""

    reason: str


Asking = Ask | AskRepeat | AskEvaluation

Action = Asking | Dispatch | StopAttempt | PauseAttempt | KillWorker | EndTrial | PauseStudy | EndStudy


def decide(snapshot: Snapshot) -> list[Action]:
    """The next actions for a study that is queued or running.

    Never makes more than `limits.trials` trials of the search, and never lets more than
    `limits.max_parallel_trials` be alive or waiting for their base, whatever its workers would take: budgets
    are reserved here, before anything is dispatched. An ask that no worker takes yet keeps its reservation,
    and goes before any later one.
    """
    return list(_decide(snapshot))


def _decide(snapshot: Snapshot) -> Iterator[Action]:
    forced = forced_stop(snapshot)
    yield from _stop_wanted(snapshot.trials)
    if forced is not None:
        yield from _wind_down(snapshot.trials, _end(snapshot, forced))
        return
    over, cut, pause = search_end(snapshot), budget_stop(snapshot), snapshot.pause_reason
    if over is None and pause is not None:
        yield from _put_down(snapshot.trials, pause)
    elif over is None and cut is None:
        unasked = 0 if snapshot.exhausted else snapshot.limits.trials - len(snapshot.search)
        yield from _go_on(snapshot, [*_evaluations_to_ask(snapshot, Contestant.CHAMPION), *[Ask()] * unasked])
    elif over is None and cut is not None:
        yield from _finish(snapshot, _end(snapshot, cut))
    elif any(t.phase is not TrialPhase.ENDED for t in snapshot.search):
        open_ones = [t for t in snapshot.search if t.stop_reason is None]
        yield from _close(open_ones, f"the search ended: {over}")
    elif pause is not None and (_repeats_are_left(snapshot) or _evaluations_are_left(snapshot)):
        yield from _put_down((*snapshot.again, *snapshot.evaluations), pause)
    else:
        yield from _repeat(snapshot, str(over), _cut_of_repeats(snapshot, cut))


def trials_to_come(snapshot: Snapshot) -> int:
    """Trials still to be sent out as far as anybody knows, those that wait or are handed over included."""
    over, cut = search_end(snapshot), budget_stop(snapshot)
    if forced_stop(snapshot) is not None or snapshot.pause_reason is not None:
        return 0
    to_come = _evaluations_to_come(snapshot)
    if _cut_of_repeats(snapshot, cut) is not None:
        return to_come
    if over is None:
        unasked = 0 if snapshot.exhausted else snapshot.limits.trials - len(snapshot.search)
        to_come += unasked + len(_waiting(snapshot, snapshot.search))
    elif any(t.phase is not TrialPhase.ENDED for t in snapshot.search):
        return to_come
    else:
        to_come += len(_repeats_to_ask(snapshot)) + len(_waiting(snapshot, snapshot.again))
    return to_come + len(hand_over.moving(snapshot)) if to_come else hand_over.kept_for(snapshot)


def suspects_waiting(snapshot: Snapshot) -> list[TrialSnapshot]:
    """Trials that wait and train by themselves, for which a worker has to be idle."""
    return [t for t in _waiting(snapshot, snapshot.trials) if t.suspect]


def starving_bases(snapshot: Snapshot) -> tuple[str, ...]:
    """Bases of waiting trials that no worker would take and that enough newer trials have overtaken.

    A trial that waits a little for its base lets the packs of other bases stay full. One that as many newer
    trials have passed as may run at once waits no longer: a worker has to be emptied for it.
    """
    newest = max((t.number for t in snapshot.trials), default=0)
    overdue = newest - snapshot.limits.max_parallel_trials
    waiting = [t for t in _waiting(snapshot, snapshot.trials) if t.number <= overdue and not t.suspect]
    return tuple(dict.fromkeys(t.base for t in waiting if snapshot.placement.pick(t.base) is None))


def _end(snapshot: Snapshot, stop: Stop) -> EndStudy:
    if stop.state is not None:
        return EndStudy(state=stop.state, reason=stop.reason)
    return _natural_end(snapshot, stop.reason)


def _natural_end(snapshot: Snapshot, why: str, then: str = "", cause: str = "") -> EndStudy:
    """Completed if any trial of the search is; a study without a single result has failed, and says how."""
    cause = cause or why
    outcomes = [t.outcome for t in snapshot.search if t.outcome is not None]
    if AttemptState.COMPLETED in outcomes:
        if not ranking(snapshot):
            then = f", and no completed trial meets the constraints{then}"
        return EndStudy(state=StudyState.COMPLETED, reason=f"{why}{then}", cause=cause)
    tally = ", ".join(
        f"{outcomes.count(state)} {state.replace('_', ' ')}" for state in AttemptState if state in outcomes
    )
    reason = f"{why}, and no trial completed ({tally or 'no trial was run'})"
    return EndStudy(state=StudyState.FAILED, reason=reason, cause=cause)


def _close(trials: Sequence[TrialSnapshot], reason: str) -> Iterator[Action]:
    """Stop what lives, end what waits."""
    for trial in trials:
        if trial.live_attempt_id is None:
            continue
        if trial.overdue and trial.stop_requested:
            yield KillWorker(attempt_id=trial.live_attempt_id, reason=reason)
        elif trial.send_again or not trial.stop_requested:
            yield StopAttempt(attempt_id=trial.live_attempt_id, reason=reason)
    for trial in trials:
        if trial.phase is TrialPhase.WAITING:
            yield EndTrial(trial_number=trial.number, outcome=AttemptState.CANCELLED, reason=reason)


def _stop_wanted(trials: Sequence[TrialSnapshot]) -> Iterator[Action]:
    """End the trials that a person wants to end."""
    for trial in trials:
        if trial.stop_reason is not None:
            yield from _close([trial], trial.stop_reason)


def _is_to_be_ended(trial: TrialSnapshot) -> bool:
    return trial.phase is not TrialPhase.ENDED and trial.stop_reason is not None


def _put_down(trials: Sequence[TrialSnapshot], reason: str) -> Iterator[Action]:
    """Pause what lives, and leave what waits as it is; the study is paused once nothing is alive.

    One that was told to stop is not told to pause: it ends.
    """
    for trial in trials:
        if trial.live_attempt_id is None or trial.stop_reason is not None:
            continue
        if trial.overdue:
            yield KillWorker(attempt_id=trial.live_attempt_id, reason=reason)
        elif not trial.stop_requested and (trial.send_again or not trial.pause_requested):
            yield PauseAttempt(attempt_id=trial.live_attempt_id, reason=reason)
    if not _live(trials) and not any(map(_is_to_be_ended, trials)):
        yield PauseStudy(reason=reason)


def _wind_down(trials: Sequence[TrialSnapshot], end: EndStudy) -> Iterator[Action]:
    """Close all trials; the study ends once nothing is alive."""
    reason = f"the study ended: {end.cause or end.reason}"
    yield from _close([t for t in trials if t.stop_reason is None], reason)
    if not _live(trials):
        yield end


def _finish(snapshot: Snapshot, end: EndStudy) -> Iterator[Action]:
    """Close all trials but evaluations, have those made that are due, and then end the study.

    An evaluation takes no longer than one of a trial's rungs, so a budget that is spent does not keep it from
    being made: a sweep that ends by its budget every night would never have a champion.
    """
    if end.state is not StudyState.COMPLETED or not _evaluations_are_left(snapshot):
        yield from _wind_down(snapshot.trials, end)
        return
    trained = [trial for trial in snapshot.trials if not trial.is_evaluation]
    yield from _close(trained, f"the study ended: {end.cause or end.reason}")
    if all(trial.phase is TrialPhase.ENDED for trial in trained):
        yield from _go_on(snapshot, _evaluations_to_ask(snapshot, *Contestant))


def _evaluations_are_left(snapshot: Snapshot) -> bool:
    return _evaluations_to_come(snapshot) > 0 or _live(snapshot.evaluations)


def _evaluations_to_come(snapshot: Snapshot) -> int:
    """Evaluations still to be sent out as far as anybody knows."""
    if snapshot.unplaceable_reason is not None:
        return 0
    return len(_evaluations_to_ask(snapshot, *Contestant)) + len(_waiting(snapshot, snapshot.evaluations))


def _evaluations_to_ask(snapshot: Snapshot, *roles: Contestant) -> list[AskEvaluation]:
    """Of these roles; the challenger's only where the search has anybody to put up."""
    present = {trial.evaluates for trial in snapshot.evaluations}
    due = [role for role in roles if role in snapshot.evaluations_due and role not in present]
    return [AskEvaluation(role=role) for role in due if role is Contestant.CHAMPION or ranking(snapshot)]


def _live(trials: Sequence[TrialSnapshot]) -> bool:
    return any(trial.phase is TrialPhase.LIVE for trial in trials)


def _waiting(snapshot: Snapshot, trials: Sequence[TrialSnapshot]) -> list[TrialSnapshot]:
    """Trials that wait and may be tried again, those whose back-off is not over included."""
    waiting = [t for t in trials if t.phase is TrialPhase.WAITING and t.stop_reason is None]
    return [t for t in waiting if _why_not_again(t, snapshot.limits) is None]


def _why_not_again(trial: TrialSnapshot, limits: Limits) -> str | None:
    """Why a trial that waits fails now; None: it is tried again (docs/reference/attempts.md)."""
    if trial.poison is not None:
        return trial.poison
    if trial.lost_attempts <= limits.max_retries:
        return None
    times = "once" if trial.lost_attempts == 1 else f"{trial.lost_attempts} times"
    allowed = counted(limits.max_retries, "further attempt")
    return f"its worker was lost {times}; budget.max_retries allows {allowed}"


def _go_on(snapshot: Snapshot, to_ask: Sequence[Asking]) -> Iterator[Action]:
    """Fill the workers: trials that wait first, the oldest first, then new ones.

    Of those that wait, suspects go first: they need a worker for themselves, so one that is idle.
    """
    limits, placement = snapshot.limits, snapshot.placement
    waiting = _waiting(snapshot, snapshot.trials)
    for trial in snapshot.trials:
        reason = _why_not_again(trial, limits) if trial.phase is TrialPhase.WAITING else None
        if reason is not None and trial.stop_reason is None:
            yield EndTrial(trial_number=trial.number, outcome=AttemptState.FAILED, reason=reason)
    live = sum(t.phase is TrialPhase.LIVE for t in snapshot.trials)
    may_start = limits.max_parallel_trials - live
    may_ask = may_start - len(waiting)
    for trial in sorted(waiting, key=lambda t: not t.suspect):
        worker = None
        if trial.rested:
            worker = placement.pick(trial.base, isolated=trial.suspect, avoid=trial.avoid)
        if worker is not None and may_start > 0:
            yield Dispatch(trial_number=trial.number, isolated=trial.suspect, avoid=trial.avoid)
            placement = placement.filled(worker, trial.base, isolated=trial.suspect)
            may_start -= 1
    yield from to_ask[: max(0, min(may_ask, placement.free))]
    for trial in [] if waiting or to_ask else hand_over.hand_overs(snapshot):
        if trial.live_attempt_id is not None:
            yield PauseAttempt(attempt_id=trial.live_attempt_id, reason=hand_over.REASON)


# -- repeats -----------------------------------------------------------------------------------------


def _repeats_wanted(snapshot: Snapshot) -> list[AskRepeat]:
    """Every repeat there should be: each recipe with the first seed, then each with the second, and so on.

    Known once no trial of the search is open: until then the best may change.
    """
    repeats = snapshot.limits.repeats
    if repeats is None:
        return []
    best = ranking(snapshot)[: repeats.top_k]
    return [AskRepeat(of=trial.number, seed=seed) for seed in repeats.seeds for trial in best]


def _repeats_to_ask(snapshot: Snapshot) -> list[AskRepeat]:
    present = {(t.repeat_of, t.seed) for t in snapshot.again}
    return [wanted for wanted in _repeats_wanted(snapshot) if (wanted.of, wanted.seed) not in present]


def _cut_of_repeats(snapshot: Snapshot, cut: Stop | None) -> Stop | None:
    """What keeps repeats from going on: a budget, or a fault that all of them would share."""
    again = [t for t in snapshot.again if t.number >= snapshot.limits.since]
    fatal = next((t.fatal_reason for t in again if t.fatal_reason is not None), None)
    return Stop(reason=fatal) if fatal is not None else cut


def _repeat(snapshot: Snapshot, over: str, cut: Stop | None) -> Iterator[Action]:
    """The best recipes again, and then the study's end."""
    missing = _repeats_to_ask(snapshot)
    if not missing and all(t.phase is TrialPhase.ENDED for t in snapshot.again):
        yield from _finish(snapshot, _natural_end(snapshot, over, _repeats_in_words(snapshot)))
    elif cut is None:
        yield from _go_on(snapshot, missing)
    else:
        then = f"{_repeats_in_words(snapshot)}: {cut.reason}"
        yield from _finish(snapshot, _natural_end(snapshot, over, then, cause=cut.reason))


def _repeats_are_left(snapshot: Snapshot) -> bool:
    return bool(_repeats_to_ask(snapshot)) or any(t.phase is not TrialPhase.ENDED for t in snapshot.again)


def _repeats_in_words(snapshot: Snapshot) -> str:
    wanted = _repeats_wanted(snapshot)
    if not wanted:
        return ""
    recipes, seeds = len({w.of for w in wanted}), len({w.seed for w in wanted})
    who = "the best was" if recipes == 1 else f"the {recipes} best were"
    of_these = {(w.of, w.seed) for w in wanted}
    again = [t for t in snapshot.again if (t.repeat_of, t.seed) in of_these]
    completed = sum(t.outcome is AttemptState.COMPLETED for t in again)
    share = "" if completed == len(wanted) else f", {completed} of {len(wanted)} runs completed"
    return f"; {who} run again with {counted(seeds, 'seed')}{' each' if recipes > 1 else ''}{share}"
