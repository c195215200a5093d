"""The end of a study: idle workers take trials over from packs when nothing else is left to send out. Pure.

A trial that is handed over is paused with a checkpoint and goes on from it, as one that a person pauses.
"""

from __future__ import annotations

from collections.abc import Sequence

from service.coordinator.policy.placement import WorkerSlots
from service.coordinator.policy.snapshot import Snapshot, TrialPhase, TrialSnapshot

COST_SECONDS = 2.0
"""For so long a trial trains nowhere: its checkpoint is written, the trial sent, and the checkpoint read."""

LEAST_GAIN_SECONDS = 2.0
"""A pack must end so much sooner: estimates are rough, and a small pack may lose little by sharing."""

REASON = "handed over to an idle worker, where it goes on"


def hand_overs(snapshot: Snapshot) -> list[TrialSnapshot]:
    """Live trials to pause, each for an idle worker that has its base in memory.

    The caller sees that nothing else is to be sent out.
    """
    packs = _packs(snapshot)
    chosen = []
    for worker in _idle(snapshot):
        found = [
            (gain, trial)
            for pack in packs.values()
            for trial in pack
            if trial.base == worker.loaded and (gain := _gain(pack, trial)) >= LEAST_GAIN_SECONDS
        ]
        if not found:
            break
        _, best = max(found, key=lambda each: (each[0], -each[1].number))
        packs.pop(str(best.worker_id))  # what is left of it is judged when this one has gone
        chosen.append(best)
    return chosen


def moving(snapshot: Snapshot) -> list[TrialSnapshot]:
    """Trials that were told to pause, and are about to be sent out again."""
    return [t for t in snapshot.trials if t.phase is TrialPhase.LIVE and t.pause_requested]


def kept_for(snapshot: Snapshot) -> int:
    """How many idle workers stay for trials that move now, or may once it is known how long they take."""
    now = len(hand_overs(snapshot))
    begun = sum(len(p) > 1 and any(t.seconds_left is None for t in p) for p in _packs(snapshot).values())
    return len(moving(snapshot)) + now + min(begun, len(_idle(snapshot)) - now)


def _idle(snapshot: Snapshot) -> list[WorkerSlots]:
    """Workers for which no trial is on its way."""
    if not snapshot.resumes:
        return []
    idle = [w for w in snapshot.placement.workers if w.free > 0 and not (w.trials or w.reserved or w.base)]
    return [w for w in idle if w.loaded is not None][len(moving(snapshot)) :]


def _packs(snapshot: Snapshot) -> dict[str, list[TrialSnapshot]]:
    """The live trials by worker."""
    packs: dict[str, list[TrialSnapshot]] = {}
    for trial in snapshot.trials:
        if trial.phase is TrialPhase.LIVE and trial.worker_id is not None:
            packs.setdefault(trial.worker_id, []).append(trial)
    return packs


def _is_going_or_suspect(trial: TrialSnapshot) -> bool:
    is_going = trial.stop_requested or trial.pause_requested or trial.stop_reason is not None
    return is_going or trial.suspect


def _gain(pack: Sequence[TrialSnapshot], trial: TrialSnapshot) -> float:
    """Seconds by which a pack's last trial ends sooner if one trains elsewhere; below 0: it does not.

    As if trials shared a worker's time evenly, and a pack did no more in it than one trial by itself.
    """
    left = [t.seconds_left for t in pack]
    if len(pack) < 2 or any(_is_going_or_suspect(t) for t in pack):
        return -1.0
    if None in left:
        return -1.0  # one has only begun
    together = sum(seconds for seconds in left if seconds is not None) / len(pack)
    elsewhere = (trial.seconds_left or 0.0) / len(pack)
    return together - max(together - elsewhere, elsewhere + COST_SECONDS)
