"""The workers of one study, as its coordinator sees them: who is ready, who is busy, how many more."""

from __future__ import annotations

import logging
import math
import time
from collections.abc import Collection, Mapping
from dataclasses import dataclass, field

from service.coordinator.dispatch import TrialOrder, Verdict, WorkerInfo, Workers, WorkerShape
from service.coordinator.orders import base_of
from service.coordinator.room import Place, Room

log = logging.getLogger(__name__)

MAX_FAILED_STARTS = 3
"""Workers that died before they were ready, in a row, after which starting more is pointless."""


@dataclass(kw_only=True)
class _Member:
    since: float = field(default_factory=time.monotonic)
    ready: bool = False
    slots: int = 0
    """Trials it wants at once; they may fall below those it has."""
    settled: bool = False
    """It has had a trial, so `slots` is a measurement and no longer a guess."""
    attempts: set[int] = field(default_factory=set)
    base: str | None = None
    """What its trials train on; of an idle worker what it has in memory, if anything."""
    kept_for: str | None = None
    """It gets no trials but those of this base, for which it is being emptied."""
    acknowledged: int = 0
    to_verify: bool = False
    """Found after a coordinator's restart: its first events tell which orders it never got."""


class Crew:
    """Starts, fills and dismisses the workers of one study.

    Args:
        cluster: where workers run.
        study_id: whose they are.
        shape: what each reserves.
        at_once: trials of the study that are ever alive together, at most.
        patience: seconds without any worker after which `unplaceable_reason` speaks, and seconds that
            trials wait for a worker that is starting while others could take them.
    """

    def __init__(
        self, cluster: Workers, study_id: str, shape: WorkerShape, *, at_once: int, patience: float
    ) -> None:
        self._cluster = cluster
        self._study_id = study_id
        self.shape = shape
        self._at_once = at_once
        self._patience = patience
        self._members: dict[str, _Member] = {}
        self._failed_starts = 0
        self._last_death = ""
        self._no_capacity_since: float | None = None

    @property
    def members(self) -> set[str]:
        return set(self._members)

    @property
    def busy(self) -> int:
        """Workers that have a trial."""
        return sum(bool(m.attempts) for m in self._members.values())

    @property
    def live(self) -> int:
        """Trials that workers have."""
        return sum(len(m.attempts) for m in self._members.values())

    @property
    def room(self) -> Room:
        """What the ready workers would take now, each no more than its share while there are others."""
        share = self._share()
        expecting = any(not (m.ready and m.settled) and self._is_awaited(m) for m in self._members.values())
        places = []
        for worker_id, member in self._members.items():
            if not member.ready:
                continue
            has = len(member.attempts)
            free = max(0, min(member.slots, share) - has)
            base = member.base if member.attempts else None
            if member.kept_for is not None and base is None:
                base = member.kept_for
            elif member.kept_for not in (None, base):
                continue
            spare = 0 if expecting else max(0, member.slots - has - free)
            places.append(
                Place(worker_id=worker_id, trials=has, free=free, spare=spare, base=base, loaded=member.base)
            )
        return Room(places=tuple(places))

    def _is_awaited(self, member: _Member) -> bool:
        return member.ready or time.monotonic() - member.since < self._patience

    def _share(self) -> int:
        """Most trials for one worker, so that all of them together are spread as evenly as slots allow.

        A worker that is starting, or has trained nothing yet, counts as one that may take any number.
        Otherwise the first to be ready, or to be measured, would get every trial and the others none.
        """
        limits = [
            m.slots if m.settled else self._at_once for m in self._members.values() if self._is_awaited(m)
        ]
        if sum(limits) < self._at_once:
            return self._at_once
        share = math.ceil(self._at_once / len(limits))
        while sum(min(limit, share) for limit in limits) < self._at_once:
            share += 1
        return share

    def attach(self) -> None:
        """Take over the workers that an earlier coordinator of this study left running."""
        for worker_id in self._cluster.attach(self._study_id, self.shape):
            self._members[worker_id] = _Member(to_verify=True)

    def detach(self) -> None:
        """Let go of the workers without ending them: they are another coordinator's now."""
        for worker_id in self._members:
            self._cluster.forget(worker_id)
        self._members.clear()

    def dismiss(self) -> None:
        """End all workers: their study is over."""
        for worker_id in self._members:
            self._cluster.stop(worker_id)
        self._members.clear()

    def resize(self, wanted: int) -> None:
        """Start workers while fewer than wanted and the cluster has room; end idle ones beyond it."""
        idle = [w for w, m in self._members.items() if m.ready and not m.attempts]
        for worker_id in idle[: max(0, len(self._members) - wanted)]:
            self._cluster.stop(worker_id)
            del self._members[worker_id]
        missing = wanted - len(self._members)
        if missing > 0 and self._failed_starts < MAX_FAILED_STARTS:
            for _ in range(min(missing, self._cluster.room(self.shape))):
                self._members[self._cluster.start(self._study_id, self.shape)] = _Member()
        self._watch_capacity(wanted)

    def _watch_capacity(self, wanted: int) -> None:
        if wanted > 0 and not self._members and self._cluster.capacity(self.shape) == 0:
            self._no_capacity_since = self._no_capacity_since or time.monotonic()
        else:
            self._no_capacity_since = None

    def unplaceable_reason(self) -> str | None:
        """Why this study will get no worker however long it waits; None while it may."""
        if self._failed_starts >= MAX_FAILED_STARTS and not self._members:
            return f"{self._failed_starts} workers in a row died while starting: {self._last_death}"
        since = self._no_capacity_since
        if since is None or time.monotonic() - since < self._patience:
            return None
        need = f"{self.shape.num_cpus:g} CPU and {self.shape.num_gpus:g} GPU"
        hint = "; set resources.gpus_per_worker: 0 to train on CPU" if self.shape.num_gpus else ""
        return f"no node of the Ray cluster has the {need} that one worker needs{hint}"

    def pick(self, base: str) -> str | None:
        """A worker for one more trial of a base; None: nobody would take it now."""
        place = self.room.pick(base)
        return None if place is None else place.worker_id

    def make_way(self, bases: Collection[str]) -> None:
        """See that a worker is emptied for each of these bases, unless one has it; and for no other."""
        for member in self._members.values():
            if member.kept_for not in bases:
                member.kept_for = None
        for base in bases:
            if any(base in (m.kept_for, m.base if m.attempts else None) for m in self._members.values()):
                continue
            ready = [w for w, m in self._members.items() if m.ready and m.kept_for is None]
            if ready:
                least_busy = min(ready, key=lambda w: (len(self._members[w].attempts), w))
                self._members[least_busy].kept_for = base

    def submit(self, worker_id: str, order: TrialOrder) -> None:
        member = self._members[worker_id]
        member.attempts.add(order.attempt_id)
        member.base = base_of(order.model)
        member.kept_for = None
        self._cluster.submit(worker_id, order)

    def send(self, worker_id: str, verdict: Verdict) -> None:
        self._cluster.send(worker_id, verdict)

    def on_ready(self, info: WorkerInfo, *, base: str | None = None) -> None:
        """A worker has started, or was found again.

        Args:
            info: what it says of itself.
            base: what the orders that it has are to train on; it may still be loading that.
        """
        member = self._members[info.worker_id]
        member.base = base or info.base
        member.ready = not member.to_verify
        member.slots = info.slots
        member.settled = info.base is not None
        member.attempts |= set(info.running_attempts)
        self._failed_starts = 0
        log.info("worker %s is ready on %s (%s)", info.worker_id, info.node, info.device)
        self._cluster.acknowledge(info.worker_id, 0)

    def on_delivered(self, worker_id: str, last_seq: int | None) -> None:
        """Acknowledge what was applied, and ask for more."""
        member = self._members[worker_id]
        if last_seq is not None:
            member.acknowledged = last_seq
        self._cluster.acknowledge(worker_id, member.acknowledged)

    def unknown_orders(self, worker_id: str, live: Mapping[int, str]) -> list[int]:
        """Once per worker found after a restart: live attempts it does not know."""
        member = self._members[worker_id]
        if not member.to_verify:
            return []
        member.to_verify = False
        member.ready = True
        return [a for a, owner in live.items() if owner == worker_id and a not in member.attempts]

    def on_capacity(self, worker_id: str, slots: int) -> None:
        """The worker has measured how many trials it takes at once."""
        member = self._members[worker_id]
        member.slots = slots
        member.settled = True

    def on_ended(self, worker_id: str, attempt_id: int) -> None:
        member = self._members[worker_id]
        member.attempts.discard(attempt_id)
        member.settled = True

    def on_gone(self, worker_id: str, reason: str) -> None:
        member = self._members.pop(worker_id)
        if not member.ready and not member.to_verify:
            self._failed_starts += 1
        self._last_death = reason
