"""Where trials may go: what the workers of a study would take now, as a frozen value, and how many it needs.

A worker holds one base at a time, so trials of different bases never share one. A trial that may have killed
its last worker gets one for itself. `decide` counts on a placement and the worker group sends by it: both see
the same workers.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Literal

from service.coordinator.policy.limits import Limits


@dataclass(frozen=True, kw_only=True)
class WorkerShape:
    """What one worker reserves on the cluster."""

    num_cpus: float
    num_gpus: float


@dataclass(frozen=True, kw_only=True)
class WorkerSlots:
    """How many trials one worker would take now, and which."""

    worker_id: str
    trials: int = 0
    """Those it has."""
    free: int
    """How many more it would take, within its share of the study's trials."""
    spare: int = 0
    """How many more beyond that."""
    base: str | None = None
    """What its trials train on, or what it is reserved for. None: it is idle, and takes any."""
    loaded: str | None = None
    """The base in its memory, if any. Another one costs loading it."""
    reserved: bool = False
    """It is reserved for a trial that trains by itself."""
    device_id: str | None = None
    """Its GPU."""


@dataclass(frozen=True, kw_only=True)
class Placement:
    """Which trials the workers of a study would take now; those that are not ready are left out."""

    workers: tuple[WorkerSlots, ...] = ()
    devices: frozenset[str | None] = frozenset()
    """The GPUs of all workers, those included that take nothing now; none of one that is starting."""

    @property
    def free(self) -> int:
        """Trials that would find a worker if their bases were the right ones."""
        return sum(worker.free for worker in self.workers if not worker.reserved)

    def suits(self, device_id: str | None, *, avoid: str | None) -> bool:
        """Whether a suspect may go to a GPU: not back to the one it avoids, unless there is no other."""
        return avoid is None or device_id != avoid or self.devices <= {avoid}

    def pick(self, base: str, *, isolated: bool = False, avoid: str | None = None) -> WorkerSlots | None:
        """The worker for one more trial of a base; None: none would take it.

        A worker that has the base before an idle one that would have to load it, then the least busy. Shares
        spread trials evenly over workers of one base. Where several bases divide the workers, a share may be
        full while others cannot help: then the trial goes to a fuller pack of its own base, if there is one.

        Args:
            base: what it trains on.
            isolated: it trains by itself, so it takes an idle worker, first one that is reserved for such.
            avoid: the GPU that it does not go back to while there is another.
        """
        if isolated:
            idle = [w for w in self.workers if w.trials == 0 and w.free > 0 and w.base in (None, base)]
            idle = [w for w in idle if self.suits(w.device_id, avoid=avoid)]
            return min(
                idle, key=lambda w: (not w.reserved, w.loaded not in (None, base), w.worker_id), default=None
            )
        open_to_it = [w for w in self.workers if w.base in (None, base) and not w.reserved]
        fitting = [w for w in open_to_it if w.free > 0]
        if not fitting and len(open_to_it) < len(self.workers):
            fitting = [w for w in open_to_it if w.spare > 0]
        return min(fitting, key=lambda w: (w.loaded not in (None, base), w.trials, w.worker_id), default=None)

    def filled(self, worker: WorkerSlots, base: str, *, isolated: bool = False) -> Placement:
        """What is left when a worker has taken a trial of a base."""
        changed = replace(
            worker,
            trials=worker.trials + 1,
            free=0 if isolated else max(0, worker.free - 1),
            spare=0 if isolated else worker.spare - (worker.free == 0),
            base=base,
            loaded=base,
            reserved=False,
        )
        return replace(self, workers=tuple(changed if other == worker else other for other in self.workers))


def trials_at_once(limits: Limits) -> int:
    """Trials of a study that are ever alive together, at most."""
    repeats = limits.repeats
    again = 0 if repeats is None else repeats.top_k * len(repeats.seeds)
    return min(limits.max_parallel_trials, max(limits.trials, again))


def wanted_workers(limits: Limits, unsent: int, *, busy: int, most: int | Literal["auto"]) -> int:
    """How many workers have something to do.

    Breadth first: beside those that train, one for each trial that is still to be sent out, since a trial
    trains faster by itself than in a pack. Packs fill where the cluster has no capacity for more workers.

    Args:
        limits: of the study.
        unsent: trials still to be sent out, after what `decide` wanted was done.
        busy: workers with a trial, likewise.
        most: `resources.workers` of the definition.
    """
    wanted = min(busy + unsent, limits.max_parallel_trials)
    return wanted if most == "auto" else min(wanted, most)
