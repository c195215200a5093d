"""A cluster that trains nothing: workers that keep the contract, in memory, one tick per poll.

It outlives coordinators, as detached Ray actors do, so a test can drop a coordinator at any moment and
start another. A trial's metric is a fixed function of its recipe and the rung, so a study's outcome can
be known in advance, wherever and however often its trials were begun.

Each trial of a pack goes one rung further per tick. At a rung it writes a checkpoint and is evaluated then;
checkpoints outlive the workers, as those on a shared disk do. A worker holds one base at a time, as real
ones do: it refuses an order of another while it has any, and loads the other when it has none.
"""

from __future__ import annotations

import copy
import itertools
import math
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, field

from search_spaces.definition import ResourcesSpec
from service.coordinator.cluster.deliveries import Delivered, Delivery, Found, Gone, Ready, Refused
from service.coordinator.policy.placement import WorkerShape
from service.devices.cluster import Node
from service.states import LossCause
from tests.support.fakes.training import ROWS, base_of, costs_of, curve_of, evaluated, loss_of
from workers.actor.event_log import EventLog
from workers.contract import (
    DataSummary,
    Event,
    OutcomeStatus,
    PackCapacity,
    Report,
    Stalled,
    TrialOrder,
    TrialOutcome,
    TrialStarted,
    UnusableCheckpoint,
    Verdict,
    WorkerInfo,
)


@dataclass
class _Training:
    order: TrialOrder
    total: int
    seen: int = 0
    best: tuple[float, int] = (math.inf, 0)
    """The objective, negated where it is maximized, and its rung."""
    started: bool = False
    passed_over: tuple[UnusableCheckpoint, ...] = ()
    evaluated: bool = True
    """Whether the rung at `seen` has been reported."""
    verdict: Verdict | None = None


@dataclass
class _FakeWorker:
    worker_id: str
    study_id: str | None
    slots: int = 1
    most_slots: int = 1
    base: str | None = None
    device_id: str | None = None
    log: EventLog = field(default_factory=EventLog)
    waiting: list[TrialOrder] = field(default_factory=list)
    known: set[int] = field(default_factory=set)
    """Every attempt that it ever took: taking one again changes nothing."""
    pack: dict[int, _Training] = field(default_factory=dict)
    wedged: bool = False
    """It neither trains nor obeys, and does not die either."""

    @property
    def live(self) -> tuple[int, ...]:
        return (*self.pack, *(order.attempt_id for order in self.waiting))

    @property
    def bases(self) -> set[str]:
        """Of the orders it has: never more than one."""
        return {base_of(o) for o in (*self.waiting, *(training.order for training in self.pack.values()))}

    def announce(self, slots: int, reason: str) -> None:
        self.slots, self.most_slots = slots, max(self.most_slots, slots)
        self.log.append(PackCapacity(slots=slots, reason=reason))


class FakeCluster:
    """Implements `Workers`.

    Args:
        cpus: how many workers fit.
        slots: how many trials a worker wants at once, which it finds out with its first; 1 until then.
        ending: what becomes of a trial that trained to its end; default: completed.
        start_polls: how many polls a worker takes to start, by its id; default: 0. The first worker is `w1`.
        lethal: whether a trial kills its worker when it goes on from that many examples; default: never.
        unloadable: whether an order kills its worker while that loads model and data; default: never.
        gpus: so many workers fit in place of `cpus`, each with one of them, the lowest that is free.
        measures: the metrics of an order at a rung; default: its eval loss.
        pools: workers that a study gives back wait for the next one, in place of ending.
    """

    def __init__(
        self,
        cpus: int,
        *,
        slots: int = 1,
        ending: Callable[[TrialOrder], TrialOutcome | None] | None = None,
        start_polls: Mapping[str, int] | None = None,
        lethal: Callable[[TrialOrder, int], bool] | None = None,
        unloadable: Callable[[TrialOrder], bool] = lambda _: False,
        gpus: int = 0,
        measures: Callable[[TrialOrder, int], Mapping[str, float]] | None = None,
        pools: bool = False,
    ) -> None:
        self.cpus = cpus
        self.gpus = gpus
        self.orders: list[TrialOrder] = []
        self.started: list[str] = []
        self.loads: list[tuple[str, str]] = []
        """Workers and the bases they loaded, in order."""
        self.refused: list[int] = []
        """Attempts that a worker did not take."""
        self.reported: list[tuple[int, int]] = []
        """Attempts and their rungs, in the order in which they were evaluated."""
        self._slots = slots
        self._pools = pools
        self._ending = ending
        self._lethal = lethal
        self._unloadable = unloadable
        self._measures = measures or (lambda order, rung: {"eval_loss": loss_of(order.recipe, rung)})
        self._start_polls = dict(start_polls or {})
        self._workers: dict[str, _FakeWorker] = {}
        self._checkpoints: dict[str, tuple[int, tuple[float, int]]] = {}
        self._spoilt: dict[str, str] = {}
        self._ids = itertools.count(1)
        self._known: set[str] = set()
        self._asking: dict[str, int] = {}
        self._starting: set[str] = set()
        self._news: list[Delivery] = []

    # -- what a test does to it ----------------------------------------------------------------

    def another_view(self) -> FakeCluster:
        """The same cluster, as a second coordinator sees it."""
        view = copy.copy(self)
        view._known, view._asking, view._starting, view._news = set(), {}, set(), []
        return view

    def lose_connection(self) -> None:
        """The coordinator died: nothing it had asked for will be answered."""
        self._known.clear()
        self._asking.clear()
        self._starting.clear()
        self._news.clear()

    def kill(self, worker_id: str, cause: LossCause = LossCause.NODE_DIED) -> None:
        """A worker dies with all it knew: its machine went away, unless something else was the cause."""
        del self._workers[worker_id]
        self._asking.pop(worker_id, None)
        self._starting.discard(worker_id)
        if worker_id in self._known:
            self._news.append(Gone(worker_id=worker_id, reason="killed", cause=cause))
            self._known.discard(worker_id)

    def wedge(self, *worker_ids: str) -> None:
        """Workers hang: they train no more and hear nothing, but are alive."""
        for worker_id in worker_ids:
            self._workers[worker_id].wedged = True

    def stall(self, worker_id: str, reason: str) -> None:
        """The training of a worker hangs, and the worker says so."""
        worker = self._workers[worker_id]
        worker.wedged = True
        worker.log.append(Stalled(reason=reason))

    def spoil(self, folder: str, reason: str) -> None:
        """A checkpoint can be used no more, and workers say why."""
        del self._checkpoints[folder]
        self._spoilt[folder] = reason

    def remove_checkpoint(self, folder: str) -> None:
        """A checkpoint is gone."""
        del self._checkpoints[folder]

    def say(self, worker_id: str, event: Event) -> None:
        """A worker says something of its own accord."""
        self._workers[worker_id].log.append(event)

    def announce(self, worker_id: str, slots: int, reason: str = "as measured") -> None:
        """A worker finds out that it wants another number of trials."""
        self._workers[worker_id].announce(slots, reason)

    @property
    def alive(self) -> list[str]:
        return list(self._workers)

    @property
    def packs(self) -> dict[str, int]:
        """How many trials each worker trains."""
        return {worker_id: len(worker.pack) for worker_id, worker in self._workers.items()}

    @property
    def together(self) -> list[set[int]]:
        """The numbers of the trials that each worker trains."""
        packs = (worker.pack.values() for worker in self._workers.values())
        return [{training.order.trial_number for training in pack} for pack in packs]

    @property
    def waiting(self) -> int:
        """Orders that a worker has taken and its pack has no room for."""
        return sum(len(worker.waiting) for worker in self._workers.values())

    @property
    def running(self) -> int:
        return sum(len(worker.live) for worker in self._workers.values())

    # -- Workers -------------------------------------------------------------------------------

    def shape(self, resources: ResourcesSpec) -> WorkerShape:
        gpus = resources.gpus_per_worker
        return WorkerShape(num_cpus=1.0, num_gpus=float(self.gpus > 0) if gpus == "auto" else gpus)

    def nodes(self) -> tuple[Node, ...]:
        return (Node(cpus=self.cpus, gpus=self.gpus),)

    def capacity(self, shape: WorkerShape) -> int:
        return self.cpus if shape.num_gpus == 0 else self.gpus

    def capacity_left(self, shape: WorkerShape) -> int:
        return max(0, self.capacity(shape) - sum(w.study_id is not None for w in self._workers.values()))

    def gpus_in_all(self) -> float:
        return float(self.gpus)

    def start(self, study_id: str, shape: WorkerShape, base: str) -> str:
        waiting = [w for w in self._workers.values() if w.study_id is None]
        if waiting:
            chosen = min(waiting, key=lambda w: (w.base != base, w.worker_id))
            chosen.study_id = study_id
            self._meet(chosen)
            return chosen.worker_id
        worker = _FakeWorker(worker_id=f"w{next(self._ids)}", study_id=study_id)
        if shape.num_gpus > 0:
            taken = {w.device_id for w in self._workers.values()}
            worker.device_id = next(d for i in itertools.count() if (d := f"n1/GPU-{i}") not in taken)
        self._workers[worker.worker_id] = worker
        self.started.append(worker.worker_id)
        self._meet(worker)
        return worker.worker_id

    def attach(self, study_id: str, shape: WorkerShape, sent_to: Collection[str]) -> tuple[str, ...]:
        here = [self._workers[w] for w in sorted(sent_to) if w in self._workers and w not in self._known]
        found = [worker for worker in here if worker.study_id == study_id]
        for worker in found:
            self._meet(worker)
        return tuple(w.worker_id for w in found)

    def poll(self, timeout_s: float) -> list[Delivery]:
        news, self._news = self._news, []
        for worker in self._workers.values():
            if worker.study_id is not None and worker.worker_id not in self._known:
                news.append(Found(worker_id=worker.worker_id, study_id=worker.study_id))
        for worker_id in sorted(self._known - set(self._workers)):  # ended through another view
            self.forget(worker_id)
            news.append(Gone(worker_id=worker_id, reason="killed", cause=LossCause.NODE_DIED))
        for worker_id in sorted(self._starting):
            left = self._start_polls.get(worker_id, 0)
            self._start_polls[worker_id] = left - 1
            if left <= 0:
                self._starting.discard(worker_id)
                news.append(Ready(worker_id=worker_id, info=_info(self._workers[worker_id])))
        for worker in list(self._workers.values()):
            self._tick(worker)
        news += self._news  # of those that died just now
        self._news = []
        for worker_id, after in list(self._asking.items()):
            events = self._workers[worker_id].log.events(after)
            # The long poll of a silent worker comes back empty.
            if events or after == 0:
                del self._asking[worker_id]
                news.append(Delivered(worker_id=worker_id, events=events))
        return news

    def acknowledge(self, worker_id: str, seq: int) -> None:
        if worker_id in self._workers:
            self._asking[worker_id] = seq

    def submit(self, worker_id: str, order: TrialOrder) -> None:
        worker = self._workers.get(worker_id)
        if worker is None or order.attempt_id in worker.known:
            return
        if len(worker.live) >= worker.most_slots or not worker.bases <= {base_of(order)}:
            self.refused.append(order.attempt_id)
            self._news.append(Refused(worker_id=worker_id, attempt_id=order.attempt_id, reason="busy"))
            return
        self.orders.append(order)
        worker.known.add(order.attempt_id)
        worker.waiting.append(order)

    def send(self, worker_id: str, verdict: Verdict) -> None:
        worker = self._workers.get(worker_id)
        if worker is None or worker.wedged:
            return
        if verdict.attempt_id in worker.pack:
            worker.pack[verdict.attempt_id].verdict = verdict
        for order in [o for o in worker.waiting if o.attempt_id == verdict.attempt_id]:
            worker.waiting.remove(order)
            worker.log.append(_stopped(verdict))

    def stop(self, worker_id: str) -> None:
        self._workers.pop(worker_id, None)
        self.forget(worker_id)

    def release(self, worker_id: str) -> None:
        worker = self._workers.get(worker_id)
        if not self._pools or worker is None or worker.live or worker.wedged:
            self.stop(worker_id)
            return
        self.forget(worker_id)
        self._workers[worker_id] = _FakeWorker(
            worker_id=worker_id, study_id=None, base=worker.base, device_id=worker.device_id
        )

    def keep_warm(self) -> None:
        """Nobody waits but those that were given back."""

    def forget(self, worker_id: str) -> None:
        self._known.discard(worker_id)
        self._asking.pop(worker_id, None)
        self._starting.discard(worker_id)

    # -- training ------------------------------------------------------------------------------

    def _meet(self, worker: _FakeWorker) -> None:
        self._known.add(worker.worker_id)
        self._starting.add(worker.worker_id)

    def _tick(self, worker: _FakeWorker) -> None:
        if worker.wedged:
            return
        while worker.waiting and len(worker.pack) < worker.slots:
            self._admit(worker, worker.waiting.pop(0))
        for training in list(worker.pack.values()):
            if worker.worker_id in self._workers:
                self._step(worker, training)

    def _admit(self, worker: _FakeWorker, order: TrialOrder) -> None:
        training = _Training(order=order, total=round(ROWS * order.recipe.epochs))
        found = next((self._checkpoints[f] for f in order.resume_from if f in self._checkpoints), None)
        training.passed_over = tuple(
            UnusableCheckpoint(folder=f, reason=self._spoilt.get(f, ""), missing=f not in self._spoilt)
            for f in itertools.takewhile(lambda f: f not in self._checkpoints, order.resume_from)
        )
        if found is not None:
            training.seen, training.best = found
            training.evaluated = False
        worker.pack[order.attempt_id] = training
        if worker.base != base_of(order):
            first = worker.base is None
            worker.base = base_of(order)
            self.loads.append((worker.worker_id, worker.base))
            if first and self._slots != worker.slots:
                worker.announce(min(self._slots, order.trials_per_worker or self._slots), "as measured")

    def _step(self, worker: _FakeWorker, training: _Training) -> None:
        if training.verdict is not None:
            self._end(worker, _stopped(training.verdict))
        elif not training.started and self._unloadable(training.order):
            self.kill(worker.worker_id, LossCause.WORKER_DIED)
        elif not training.started:
            training.started = True
            worker.log.append(_started(training))
        elif training.order.rate_sweep is not None:
            outcome = self._ending(training.order) if self._ending else None
            self._end(worker, outcome or _swept(training.order))
        elif training.order.evaluates is not None:
            outcome = self._ending(training.order) if self._ending else None
            self._end(worker, outcome or self._evaluation(training.order))
        elif not training.evaluated:
            self._evaluate(worker, training)
        elif self._lethal is not None and self._lethal(training.order, training.seen):
            self.kill(worker.worker_id, LossCause.WORKER_DIED)
        elif training.seen < training.total:
            every = training.order.evaluation.every_examples or training.total
            training.seen = min(training.total, training.seen + every)
            checkpoint = (training.seen, training.best)
            self._checkpoints[f"{training.order.artifact_dir}/checkpoint"] = checkpoint
            self._evaluate(worker, training)
        else:
            outcome = self._ending(training.order) if self._ending else None
            self._end(worker, outcome or self._completed(training))

    def _evaluate(self, worker: _FakeWorker, training: _Training) -> None:
        training.evaluated = True
        attempt_id, seen = training.order.attempt_id, training.seen
        self.reported.append((attempt_id, seen))
        metrics = dict(self._measures(training.order, seen))
        objective = training.order.objective
        value = metrics.get(objective.metric, math.inf if objective.direction == "minimize" else -math.inf)
        rank = value if objective.direction == "minimize" else -value
        better = rank < training.best[0]
        if better:
            training.best = (rank, seen)
        worker.log.append(
            Report(
                attempt_id=attempt_id,
                rung=seen,
                examples_seen=seen,
                step=seen,
                epoch=seen / ROWS,
                metrics=metrics,
                train_loss=metrics["eval_loss"],
                gradient_noise_scale=100.0,
                train_seconds=1.0,
                is_best=better,
            )
        )

    def _completed(self, training: _Training) -> TrialOutcome:
        order, (_, rung) = training.order, training.best
        metrics = self._measures(order, rung)
        return TrialOutcome(
            attempt_id=order.attempt_id,
            status=OutcomeStatus.COMPLETED,
            reason="trained to the end",
            value=metrics[order.objective.metric],
            best_rung=rung,
            metrics=metrics,
            best_adapter_dir=f"{order.artifact_dir}/best",
            examples_seen=training.seen,
            **costs_of(order.recipe),
        )

    def _evaluation(self, order: TrialOrder) -> TrialOutcome:
        metrics = self._measures(order, round(ROWS * order.recipe.epochs))
        value = metrics[order.objective.metric]
        return TrialOutcome(
            attempt_id=order.attempt_id,
            status=OutcomeStatus.COMPLETED,
            reason="evaluated",
            value=value,
            metrics=metrics,
            final_metrics=metrics,
            evaluated=evaluated(value),
        )

    def _end(self, worker: _FakeWorker, outcome: TrialOutcome) -> None:
        del worker.pack[outcome.attempt_id]
        worker.log.append(outcome)


def _info(worker: _FakeWorker) -> WorkerInfo:
    return WorkerInfo(
        worker_id=worker.worker_id,
        node="n1",
        pid=1,
        device="cpu",
        slots=worker.slots,
        free_slots=max(0, worker.slots - len(worker.live)),
        running_attempts=worker.live,
        base=worker.base,
        newest_attempt=max(worker.known, default=None),
        device_id=worker.device_id,
    )


def _started(training: _Training) -> TrialStarted:
    return TrialStarted(
        attempt_id=training.order.attempt_id,
        total_examples=0 if training.order.evaluates is not None else training.total,
        total_steps=training.total,
        micro_batch_size=1,
        device="cpu",
        trainable_parameters=1,
        data=DataSummary(
            train_rows=ROWS,
            train_skipped=0,
            train_truncated=0,
            eval_rows=10,
            eval_skipped=0,
            eval_truncated=0,
        ),
        resumed_at_examples=training.seen,
        passed_over=training.passed_over,
    )


def _stopped(verdict: Verdict) -> TrialOutcome:
    return TrialOutcome(attempt_id=verdict.attempt_id, status=verdict.decision.ends_as, reason=verdict.reason)


def _swept(order: TrialOrder) -> TrialOutcome:
    curve = curve_of(order)
    return TrialOutcome(
        attempt_id=order.attempt_id,
        status=OutcomeStatus.COMPLETED,
        reason="the loss diverged",
        value=min(loss for _, loss in curve),
        steps=len(curve),
        rate_curve=curve,
    )
