"""A cluster of real packs in this process: everything of a worker but Ray and its thread.

So a test can run whole studies that really train, through the coordinator, in a second or two each.
"""

from __future__ import annotations

import itertools
from collections import deque
from collections.abc import Collection
from dataclasses import dataclass, field

import torch

from search_spaces.definition import ResourcesSpec
from service.coordinator.cluster.deliveries import Delivered, Delivery, Ready
from service.coordinator.policy.placement import WorkerShape
from service.devices.cluster import Node
from workers.actor.event_log import EventLog
from workers.contract import Event, TrialOrder, TrialOutcome, Verdict, WorkerInfo
from workers.pack.pack import Pack


@dataclass
class _Worker:
    worker_id: str
    study_id: str | None
    slots: int
    log: EventLog = field(default_factory=EventLog)
    waiting: deque[TrialOrder] = field(default_factory=deque)
    live: set[int] = field(default_factory=set)

    def __post_init__(self) -> None:
        self.pack = Pack(self._record, device=torch.device("cpu"), slots=self.slots)

    def _record(self, event: Event) -> None:
        if isinstance(event, TrialOutcome):
            self.live.discard(event.attempt_id)
        self.log.append(event)

    def tick(self) -> None:
        """Takes what there is room for, and trains one shared pass."""
        while self.waiting and self.pack.accepts(self.waiting[0]):
            self.pack.admit(self.waiting.popleft())
        self.pack.step()

    def obey(self, verdict: Verdict) -> None:
        """Passes a verdict on, or ends the order that still waits."""
        waiting = next((o for o in self.waiting if o.attempt_id == verdict.attempt_id), None)
        if waiting is None:
            self.pack.apply(verdict)
            return
        self.waiting.remove(waiting)
        ends_as = verdict.decision.ends_as
        self._record(TrialOutcome(attempt_id=verdict.attempt_id, status=ends_as, reason=verdict.reason))

    def info(self) -> WorkerInfo:
        return WorkerInfo(
            worker_id=self.worker_id,
            node="here",
            pid=1,
            device="cpu",
            slots=self.slots,
            free_slots=max(0, self.slots - len(self.live)),
            running_attempts=tuple(self.live),
            base=self.pack.base,
        )


class PackCluster:
    """Implements `Workers`.

    Args:
        cpus: Workers that fit.
        slots: Trials that each trains together.
        gpus: GPUs that each is said to hold, for budgets of GPU-hours; it trains on the CPU all the same.
    """

    def __init__(self, *, cpus: int = 1, slots: int = 3, gpus: float = 0.0) -> None:
        self.orders: list[TrialOrder] = []
        self._gpus = gpus
        self._cpus, self._slots = cpus, slots
        self._workers: dict[str, _Worker] = {}
        self._ids = itertools.count(1)
        self._ready: list[str] = []
        self._asking: dict[str, int] = {}

    def shape(self, resources: ResourcesSpec) -> WorkerShape:
        return WorkerShape(num_cpus=1.0, num_gpus=self._gpus)

    def nodes(self) -> tuple[Node, ...]:
        return (Node(cpus=self._cpus, gpus=self._gpus),)

    def capacity(self, shape: WorkerShape) -> int:
        return self._cpus

    def capacity_left(self, shape: WorkerShape) -> int:
        return self._cpus - sum(w.study_id is not None for w in self._workers.values())

    def start(self, study_id: str, shape: WorkerShape, base: str) -> str:
        waiting = (w for w in self._workers.values() if w.study_id is None)
        worker = next(waiting, None) or _Worker(f"w{next(self._ids)}", None, self._slots)
        worker.study_id = study_id
        self._workers[worker.worker_id] = worker
        self._ready.append(worker.worker_id)
        return worker.worker_id

    def attach(self, study_id: str, shape: WorkerShape, sent_to: Collection[str]) -> tuple[str, ...]:
        found = tuple(w.worker_id for w in self._workers.values() if w.study_id == study_id)
        self._ready += found
        return found

    def poll(self, timeout_s: float) -> list[Delivery]:
        news: list[Delivery] = [Ready(worker_id=w, info=self._workers[w].info()) for w in self._ready]
        self._ready.clear()
        for worker in self._workers.values():
            worker.tick()
        for worker_id, after in list(self._asking.items()):
            events = self._workers[worker_id].log.events(after)
            if events or after == 0:
                del self._asking[worker_id]
                news.append(Delivered(worker_id=worker_id, events=events))
        return news

    def acknowledge(self, worker_id: str, seq: int) -> None:
        if worker_id in self._workers:
            self._asking[worker_id] = seq

    def submit(self, worker_id: str, order: TrialOrder) -> None:
        worker = self._workers[worker_id]
        self.orders.append(order)
        worker.live.add(order.attempt_id)
        worker.waiting.append(order)

    def send(self, worker_id: str, verdict: Verdict) -> None:
        worker = self._workers.get(worker_id)
        if worker is None:
            return
        worker.obey(verdict)

    def release(self, worker_id: str) -> None:
        worker = self._workers[worker_id]
        self.forget(worker_id)
        worker.pack.leave_study()
        worker.study_id, worker.log = None, EventLog()

    def keep_warm(self) -> None:
        """Nobody waits but those that were given back."""

    def stop(self, worker_id: str) -> None:
        self._workers.pop(worker_id, None)
        self.forget(worker_id)

    def forget(self, worker_id: str) -> None:
        self._asking.pop(worker_id, None)
        if worker_id in self._ready:
            self._ready.remove(worker_id)
