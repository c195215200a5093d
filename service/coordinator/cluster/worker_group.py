"""The workers of one study, as its coordinator sees them: who is ready, who is busy, how many more."""

from __future__ import annotations

import logging
import math
import time
from collections.abc import Callable, Collection, Mapping

from service.coordinator.cluster.deliveries import Workers
from service.coordinator.cluster.members import Member
from service.coordinator.cluster.orders import base_of
from service.coordinator.cluster.ray_deaths import full_disk, without_process
from service.coordinator.policy import waiting
from service.coordinator.policy.placement import Placement, WorkerShape, WorkerSlots
from service.devices.cluster import Node
from service.states import LossCause
from workers.contract import TrialOrder, Verdict, WorkerInfo

log = logging.getLogger(__name__)

LONGEST_PAUSE_SECONDS = 60.0
"""Between two workers that are started after others died while starting: 1, 2, 4, ... seconds, up to this."""


class WorkerGroup:
    """Starts, fills and dismisses the workers of one study.

    Args:
        cluster: where workers run.
        study_id: whose they are.
        shape: what each reserves.
        base: what most of its trials train on.
        at_once: trials of the study that are ever alive together, at most.
        patience: seconds without any worker after which `unplaceable_reason` speaks, and seconds that
            trials wait for a worker that is starting while others could take them.
        seen: the machines that the cluster had lately. One that is away now may come back.
    """

    def __init__(
        self,
        cluster: Workers,
        study_id: str,
        shape: WorkerShape,
        *,
        base: str,
        at_once: int,
        patience: float,
        seen: Callable[[], Collection[Node]] = tuple,
    ) -> None:
        self._cluster = cluster
        self._study_id = study_id
        self.shape = shape
        self._base = base
        self._at_once = at_once
        self._patience = patience
        self._seen = seen
        self._members: dict[str, Member] = {}
        self._failed_starts = 0
        self._start_again_at = 0.0
        self._last_death = ""
        self._no_capacity_since: float | None = None
        self._devices_aside: frozenset[str] = frozenset()
        self._stranded_since: float | None = None

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
    def placement(self) -> Placement:
        """What the ready workers would take now, each no more than its share while there are others."""
        share = self._share()
        usable = self._usable
        expecting = any(not (m.ready and m.measured) and self._is_awaited(m) for m in usable.values())
        workers = []
        for worker_id, member in usable.items():
            if not member.ready or member.isolated or (member.reserved_for_suspect and member.attempts):
                continue
            has = len(member.attempts)
            free = max(0, min(member.slots, share) - has)
            base = member.base if member.attempts else None
            if member.reserved_for is not None and base is None:
                base = member.reserved_for
            elif member.reserved_for not in (None, base):
                continue
            spare = 0 if expecting else max(0, member.slots - has - free)
            workers.append(
                WorkerSlots(
                    worker_id=worker_id,
                    trials=has,
                    free=free,
                    spare=spare,
                    base=base,
                    loaded=member.base,
                    reserved=member.reserved_for_suspect,
                    device_id=member.device_id,
                )
            )
        # Trials that avoid the GPUs of the others do not wait for a worker that does not come.
        devices = frozenset(m.device_id for m in usable.values() if self._is_awaited(m))
        return Placement(workers=tuple(workers), devices=devices)

    @property
    def _usable(self) -> dict[str, Member]:
        """Those whose GPUs were not put aside."""
        return {worker_id: m for worker_id, m in self._members.items() if not m.put_aside}

    def _is_awaited(self, member: Member) -> bool:
        return member.ready or time.monotonic() - member.since < self._patience

    def _share(self) -> int:
        """Most trials for one worker, so that all of them together are spread as evenly as slots allow.

        A worker that is starting, or has trained nothing yet, counts as one that may take any number.
        Otherwise the first to be ready, or to be measured, would get every trial and the others none.
        """
        limits = [self._limit(m) for m in self._usable.values() if self._is_awaited(m)]
        if sum(limits) < self._at_once:
            return self._at_once
        share = math.ceil(self._at_once / len(limits))
        while sum(min(limit, share) for limit in limits) < self._at_once:
            share += 1
        return share

    def _limit(self, member: Member) -> int:
        if member.isolated or member.reserved_for_suspect:
            return 1
        return member.slots if member.measured else self._at_once

    def attach(self, worker_ids: Collection[str]) -> None:
        """Take over workers that an earlier coordinator of this study left running, as far as they live."""
        for worker_id in self._cluster.attach(self._study_id, self.shape, worker_ids):
            self._members[worker_id] = Member(to_verify=True)

    def detach(self) -> None:
        """Let go of the workers without ending them: they are another coordinator's now."""
        for worker_id in self._members:
            self._cluster.forget(worker_id)
        self._members.clear()

    def dismiss(self) -> None:
        """Give all workers back, since their study is over; end those that no other study should get."""
        for worker_id in list(self._members):
            self._give_back(worker_id)

    def _give_back(self, worker_id: str) -> None:
        if self._members.pop(worker_id).reusable:
            self._cluster.release(worker_id)
        else:
            self._cluster.stop(worker_id)

    def kill(self, worker_id: str) -> None:
        """End a worker that does not obey, with whatever it has."""
        self._cluster.stop(worker_id)
        self._members.pop(worker_id, None)

    def resize(self, wanted: int) -> None:
        """Get the workers that are wanted, as far as the cluster has capacity; give idle ones beyond back."""
        usable = self._usable
        idle = [w for w, m in usable.items() if m.ready and not m.attempts]
        for worker_id in idle[: max(0, len(usable) - wanted)]:
            self._give_back(worker_id)
            del usable[worker_id]
        missing = wanted - len(usable)
        if self._failed_starts:  # one shows whether the next ones would die, too
            starting = any(not m.ready for m in usable.values())
            missing = min(missing, 0 if starting or time.monotonic() < self._start_again_at else 1)
        if missing > 0:
            for _ in range(min(missing, self._cluster.capacity_left(self.shape))):
                worker_id = self._cluster.start(self._study_id, self.shape, self._base)
                self._members[worker_id] = Member()
        self._watch_capacity(wanted)

    def _watch_capacity(self, wanted: int) -> None:
        if wanted > 0 and not self._members and self._cluster.capacity(self.shape) == 0:
            self._no_capacity_since = self._no_capacity_since or time.monotonic()
        else:
            self._no_capacity_since = None

    def unplaceable_reason(self) -> str | None:
        """Why this study will get no worker however long it waits; None while it may.

        It may where a machine that could hold one was there lately, or none is there at all: the cluster is
        away, or is about to start. Workers that die while starting are the machine's fault, not the study's.
        """
        since = self._no_capacity_since
        if since is None or time.monotonic() - since < self._patience:
            return None
        if not any(node.cpus for node in self._cluster.nodes()):
            return None
        if any(
            node.cpus >= self.shape.num_cpus and node.gpus >= self.shape.num_gpus for node in self._seen()
        ):
            return None
        need = waiting.needs(self.shape)
        hint = "; set resources.gpus_per_worker: 0 to train on CPU" if self.shape.num_gpus else ""
        return f"no node of the Ray cluster has {need}, which one worker needs{hint}"

    @property
    def started(self) -> int:
        """Workers that can take trials, those included whose GPU was put aside."""
        return sum(m.ready or m.to_verify for m in self._members.values())

    def no_worker_reason(self, wanted: int) -> str | None:
        """Why it has no worker that can take a trial, though it wants some; None: it has, or wants none."""
        if self.started or wanted <= 0:
            return None
        if self._failed_starts:
            return waiting.for_a_worker_that_starts(self._last_death)
        if self._members:
            return waiting.for_workers(started=0, starting=len(self._members))
        capacity = self._cluster.capacity(self.shape)
        return waiting.for_the_cluster(self.shape, capacity=capacity, gpus=self._cluster.gpus_in_all())

    def put_aside(self, device_ids: Collection[str]) -> None:
        """Send no trials to workers with these GPUs, and to all others again.

        Their workers stay where they are: if they were ended, the next ones would get the same GPUs.
        """
        self._devices_aside = frozenset(device_ids)
        for member in self._members.values():
            member.put_aside = member.device_id in self._devices_aside
        if not self._is_stranded():
            self._stranded_since = None
        elif self._stranded_since is None:
            self._stranded_since = time.monotonic()

    def _is_stranded(self) -> bool:
        """Whether all GPUs that this study could have are put aside."""
        if not self._members or self._usable or self.live:
            return False
        workers_per_gpu = max(1, int(1 / self.shape.num_gpus)) if self.shape.num_gpus else 1
        aside = len(self._devices_aside) * workers_per_gpu
        return self._cluster.capacity_left(self.shape) == 0 and self._cluster.capacity(self.shape) <= aside

    def stranded_reason(self) -> str | None:
        """Why this study should be paused until somebody has looked at the GPUs; None: it need not."""
        since = self._stranded_since
        if since is None or time.monotonic() - since < self._patience:
            return None
        aside = ", ".join(sorted({str(m.device_id) for m in self._members.values()}))
        return (
            f"every GPU that this study could use was put aside ({aside}): `nightsweep workers` says why,"
            " and `nightsweep workers restore` gives one back"
        )

    def device_of(self, worker_id: str) -> str | None:
        """The GPU of a worker; None: it has none, or has not said yet."""
        return self._members[worker_id].device_id

    def isolate(self, attempts: Collection[int], *, waiting: Collection[str | None]) -> None:
        """Say which live attempts train by themselves: their workers take no other trial.

        Args:
            attempts: those that do.
            waiting: of each that waits, the GPU that it avoids. A worker is emptied for one of them, the
                least busy. None is while one is starting.
        """
        for member in self._members.values():
            member.isolated = not member.attempts.isdisjoint(attempts)
            member.reserved_for_suspect = False
        usable = self._usable.values()
        open_to_it = [m for m in usable if m.ready and not m.is_reserved]
        placement = self.placement
        open_to_it = [
            m for m in open_to_it if any(placement.suits(m.device_id, avoid=gpu) for gpu in waiting)
        ]
        if not open_to_it:
            return
        least_busy = min(open_to_it, key=lambda m: len(m.attempts))
        starting = any(not m.ready and self._is_awaited(m) for m in usable)
        least_busy.reserved_for_suspect = not (least_busy.attempts and starting)

    def pick(self, base: str, *, isolated: bool = False, avoid: str | None = None) -> str | None:
        """A worker for one more trial of a base (`Placement.pick`); None: no worker would take it now."""
        worker = self.placement.pick(base, isolated=isolated, avoid=avoid)
        return None if worker is None else worker.worker_id

    def reserve_for(self, bases: Collection[str]) -> None:
        """See that a worker is emptied for each of these bases, unless one has it; and for no other."""
        for member in self._members.values():
            if member.reserved_for not in bases:
                member.reserved_for = None
        for base in bases:
            if any(base in (m.reserved_for, m.base if m.attempts else None) for m in self._members.values()):
                continue
            ready = [w for w, m in self._usable.items() if m.ready and not m.is_reserved]
            if ready:
                least_busy = min(ready, key=lambda w: (len(self._members[w].attempts), w))
                self._members[least_busy].reserved_for = base

    def submit(self, worker_id: str, order: TrialOrder, *, isolated: bool = False) -> None:
        member = self._members[worker_id]
        member.attempts.add(order.attempt_id)
        member.base = base_of(order.model)
        member.reserved_for = None
        member.isolated = isolated
        member.suspect = member.suspect or isolated
        member.reserved_for_suspect = False
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
        member.measured = info.base is not None and info.newest_attempt is not None
        member.attempts |= set(info.running_attempts)
        member.device_id = info.device_id
        member.put_aside = info.device_id in self._devices_aside
        self._failed_starts = 0
        log.info(
            "worker %s is ready on %s (%s, process %d)", info.worker_id, info.node, info.device, info.pid
        )
        self._cluster.acknowledge(info.worker_id, 0)

    def on_delivered(self, worker_id: str, last_seq: int | None) -> None:
        """Acknowledge what was applied, and ask for more."""
        member = self._members[worker_id]
        if last_seq is not None:
            member.acknowledged = last_seq
        self._cluster.acknowledge(worker_id, member.acknowledged)

    def unknown_orders(self, worker_id: str, live: Callable[[], Mapping[int, str]]) -> list[int]:
        """Once per worker found after a restart: live attempts it does not know.

        Args:
            worker_id: the worker.
            live: reads the study's live attempts and the workers they were sent to.
        """
        member = self._members[worker_id]
        if not member.to_verify:
            return []
        member.to_verify = False
        member.ready = True
        return [a for a, owner in live().items() if owner == worker_id and a not in member.attempts]

    def on_capacity(self, worker_id: str, slots: int) -> None:
        """The worker has measured how many trials it takes at once."""
        member = self._members[worker_id]
        member.slots = slots
        member.measured = True

    def on_started(self, worker_id: str, attempt_id: int) -> None:
        """It has an order, which may have come after it was asked which it has."""
        self._members[worker_id].attempts.add(attempt_id)

    def on_ended(self, worker_id: str, attempt_id: int) -> None:
        member = self._members[worker_id]
        member.attempts.discard(attempt_id)
        member.measured = True

    def on_gone(self, worker_id: str, reason: str, cause: LossCause) -> None:
        member = self._members.pop(worker_id)
        others_fault = cause in (LossCause.NODE_DIED, LossCause.NEVER_ARRIVED)  # it was another study's
        if not (member.ready or member.to_verify or others_fault):
            reason = "; ".join(filter(None, (full_disk(), reason)))
            self._failed_starts += 1
            pause = min(LONGEST_PAUSE_SECONDS, 2.0 ** min(self._failed_starts - 1, 10))
            self._start_again_at = time.monotonic() + pause
            log.warning(
                "worker %s died while starting, the next one starts in %g s: %s", worker_id, pause, reason
            )
        self._last_death = without_process(reason)
