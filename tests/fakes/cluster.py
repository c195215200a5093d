"""A cluster that trains nothing: workers that keep the contract, in memory, one tick per poll.

It outlives coordinators, as detached Ray actors do, so a test can drop a coordinator at any moment and
start another. A trial's metric is a fixed function of its recipe and the rung, so a study's outcome can
be known in advance.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable
from dataclasses import dataclass, field

from search_spaces.definition import ResourcesSpec
from search_spaces.recipe import Recipe
from service.coordinator.dispatch import (
    DataSummary,
    Decision,
    Delivered,
    Delivery,
    Gone,
    NumberedEvent,
    OutcomeStatus,
    Ready,
    Refused,
    Report,
    TrialOrder,
    TrialOutcome,
    TrialStarted,
    Verdict,
    WorkerInfo,
    WorkerShape,
)

ROWS = 100


def loss_of(recipe: Recipe, rung: int) -> float:
    """Best near a learning rate of 1e-3, falling with examples seen."""
    return 1.0 + abs(math.log10(recipe.learning_rate) + 3.0) + 50.0 / rung


@dataclass
class _Training:
    order: TrialOrder
    total: int
    seen: int = 0
    best: tuple[float, int] | None = None
    verdict: Verdict | None = None


@dataclass
class _FakeWorker:
    worker_id: str
    study_id: str
    log: list[NumberedEvent] = field(default_factory=list)
    seq: int = 0
    training: _Training | None = None

    def say(self, event: object) -> None:
        self.seq += 1
        self.log.append(NumberedEvent(seq=self.seq, event=event))  # type: ignore[arg-type]


class FakeCluster:
    """Implements `Workers`.

    Args:
        cpus: how many workers fit.
        ending: what becomes of a trial that trained to its end; default: completed.
    """

    def __init__(
        self, cpus: int, *, ending: Callable[[TrialOrder], TrialOutcome | None] | None = None
    ) -> None:
        self.cpus = cpus
        self.orders: list[TrialOrder] = []
        self._ending = ending
        self._workers: dict[str, _FakeWorker] = {}
        self._ids = itertools.count(1)
        self._known: set[str] = set()
        self._asking: dict[str, int] = {}
        self._news: list[Delivery] = []

    # -- what a test does to it ----------------------------------------------------------------

    def lose_connection(self) -> None:
        """The coordinator died: nothing it had asked for will be answered."""
        self._known.clear()
        self._asking.clear()
        self._news.clear()

    def kill(self, worker_id: str) -> None:
        """A worker dies with all it knew."""
        del self._workers[worker_id]
        self._asking.pop(worker_id, None)
        if worker_id in self._known:
            self._news.append(Gone(worker_id=worker_id, reason="killed"))
            self._known.discard(worker_id)

    @property
    def alive(self) -> list[str]:
        return list(self._workers)

    @property
    def running(self) -> int:
        return sum(w.training is not None for w in self._workers.values())

    # -- Workers -------------------------------------------------------------------------------

    def shape(self, resources: ResourcesSpec) -> WorkerShape:
        gpus = resources.gpus_per_worker
        return WorkerShape(num_cpus=1.0, num_gpus=0.0 if gpus == "auto" else gpus)

    def capacity(self, shape: WorkerShape) -> int:
        return self.cpus if shape.num_gpus == 0 else 0

    def room(self, shape: WorkerShape) -> int:
        return self.capacity(shape) - len(self._workers) if shape.num_gpus == 0 else 0

    def start(self, study_id: str, shape: WorkerShape) -> str:
        worker = _FakeWorker(worker_id=f"w{next(self._ids)}", study_id=study_id)
        self._workers[worker.worker_id] = worker
        self._meet(worker)
        return worker.worker_id

    def attach(self, study_id: str, shape: WorkerShape) -> tuple[str, ...]:
        found = [
            w for w in self._workers.values() if w.study_id == study_id and w.worker_id not in self._known
        ]
        for worker in found:
            self._meet(worker)
        return tuple(w.worker_id for w in found)

    def poll(self, timeout_s: float) -> list[Delivery]:
        news, self._news = self._news, []
        for worker in self._workers.values():
            self._tick(worker)
        for worker_id, after in list(self._asking.items()):
            worker = self._workers[worker_id]
            worker.log = [e for e in worker.log if e.seq > after]
            if worker.log:
                del self._asking[worker_id]
                news.append(Delivered(worker_id=worker_id, events=tuple(worker.log)))
            elif after == 0:
                # The long poll of a silent worker comes back empty.
                del self._asking[worker_id]
                news.append(Delivered(worker_id=worker_id, events=()))
        return news

    def acknowledge(self, worker_id: str, seq: int) -> None:
        if worker_id in self._workers:
            self._asking[worker_id] = seq

    def submit(self, worker_id: str, order: TrialOrder) -> None:
        worker = self._workers.get(worker_id)
        if worker is None:
            return
        if worker.training is not None:
            self._news.append(Refused(worker_id=worker_id, attempt_id=order.attempt_id, reason="busy"))
            return
        self.orders.append(order)
        worker.training = _Training(order=order, total=round(ROWS * order.recipe.epochs))

    def send(self, worker_id: str, verdict: Verdict) -> None:
        worker = self._workers.get(worker_id)
        if worker and worker.training and worker.training.order.attempt_id == verdict.attempt_id:
            worker.training.verdict = verdict

    def stop(self, worker_id: str) -> None:
        self._workers.pop(worker_id, None)
        self.forget(worker_id)

    def forget(self, worker_id: str) -> None:
        self._known.discard(worker_id)
        self._asking.pop(worker_id, None)

    # -- training ------------------------------------------------------------------------------

    def _meet(self, worker: _FakeWorker) -> None:
        self._known.add(worker.worker_id)
        running = () if worker.training is None else (worker.training.order.attempt_id,)
        info = WorkerInfo(
            worker_id=worker.worker_id,
            node="n1",
            pid=1,
            device="cpu",
            slots=1,
            free_slots=1 - len(running),
            running_attempts=running,
            base=None,
        )
        self._news.append(Ready(worker_id=worker.worker_id, info=info))

    def _tick(self, worker: _FakeWorker) -> None:
        training = worker.training
        if training is None:
            return
        attempt_id = training.order.attempt_id
        if training.verdict is not None:
            pruned = training.verdict.decision is Decision.PRUNE
            status = OutcomeStatus.PRUNED if pruned else OutcomeStatus.CANCELLED
            self._end(
                worker, TrialOutcome(attempt_id=attempt_id, status=status, reason=training.verdict.reason)
            )
        elif training.seen == 0 and training.best is None:
            training.best = (math.inf, 0)
            worker.say(
                TrialStarted(
                    attempt_id=attempt_id,
                    total_examples=training.total,
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
                )
            )
        elif training.seen < training.total:
            self._reach_next_rung(worker, training)
        else:
            outcome = self._ending(training.order) if self._ending else None
            value, rung = training.best or (math.inf, 0)
            self._end(
                worker,
                outcome
                or TrialOutcome(
                    attempt_id=attempt_id,
                    status=OutcomeStatus.COMPLETED,
                    reason="trained to the end",
                    value=value,
                    best_rung=rung,
                    metrics={"eval_loss": value},
                    examples_seen=training.seen,
                ),
            )

    def _reach_next_rung(self, worker: _FakeWorker, training: _Training) -> None:
        every = training.order.evaluation.every_examples or training.total
        training.seen = min(training.total, training.seen + every)
        loss = loss_of(training.order.recipe, training.seen)
        better = training.best is None or loss < training.best[0]
        if better:
            training.best = (loss, training.seen)
        worker.say(
            Report(
                attempt_id=training.order.attempt_id,
                rung=training.seen,
                examples_seen=training.seen,
                step=training.seen,
                epoch=training.seen / ROWS,
                metrics={"eval_loss": loss},
                train_loss=loss,
                train_seconds=1.0,
                is_best=better,
            )
        )

    def _end(self, worker: _FakeWorker, outcome: TrialOutcome) -> None:
        worker.say(outcome)
        worker.training = None
