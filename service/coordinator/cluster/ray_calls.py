"""Calls to workers that are under way, and for how long each may stay unanswered."""

from __future__ import annotations

import math
import time
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any

import ray

from service.coordinator.cluster.silence import LONG_POLL_SECONDS, Attention, SilenceLimits
from service.coordinator.policy.placement import WorkerShape
from service.coordinator.policy.warm_pool import Waiting
from workers.actor.ray_actors import WorkerStage, stage_of
from workers.contract import NumberedEvent, PackCapacity, PassCosts, Preparing, Stalled, TrialOrder

STAGE_SECONDS = 5.0
"""How often Ray is asked how far it has come with a worker that has not answered yet."""


class Role(StrEnum):
    """What a worker is to this coordinator."""

    STUDY = "study"
    """It trains for one of its studies."""
    POOL = "pool"
    """It waits for a study."""
    LEAVING = "leaving"
    """It was given back by a study, and has not said yet that it waits."""
    STRANGER = "stranger"
    """It is another coordinator's, or has not said yet what it is."""


@dataclass(kw_only=True)
class Worker:
    """A worker as this coordinator knows it."""

    handle: Any
    shape: WorkerShape
    role: Role
    study_id: str = ""
    """Of `Role.STUDY` and `Role.LEAVING`."""
    ready: bool = False
    """It has answered."""
    base: str | None = None
    """What it had in memory when it last waited."""
    queued: int = 0
    """How often in a row Ray was asked and no machine had room for it."""
    preparing: set[int] = field(default_factory=set)
    """Attempts that it loads something for. Libraries may keep it from answering meanwhile."""

    def waiting(self, worker_id: str) -> Waiting:
        return Waiting(worker_id=worker_id, shape=self.shape, ready=self.ready, base=self.base)

    def note_preparing(self, events: tuple[NumberedEvent, ...]) -> None:
        for numbered in events:
            if isinstance(event := numbered.event, Preparing):
                self.preparing.add(event.attempt_id)
            elif not isinstance(event, PackCapacity | PassCosts | Stalled):
                self.preparing.discard(event.attempt_id)


class Question(StrEnum):
    """What a worker is asked; each is a method of `GpuWorker`."""

    INFO = "info"
    ASSIGN = "assign"
    ATTEND = "attend"
    RELEASE = "release"
    EVENTS = "events"
    SUBMIT = "submit"


@dataclass(kw_only=True)
class Call:
    """One question that has not been answered."""

    question: Question
    worker_id: str
    order: TrialOrder | None = None
    after: int = 0
    asked: float = 0.0
    """When, in seconds of attention."""
    stage: WorkerStage = WorkerStage.QUEUED
    """Of a worker that has not answered yet, when Ray was last asked for it."""
    stage_asked: float = -math.inf

    def overdue(self, worker: Worker, limits: SilenceLimits, now: float) -> str | None:
        """What the worker that is asked has not done in its time, in words; None: it has time left.

        Args:
            worker: which.
            limits: how long it may be silent.
            now: in seconds of attention.
        """
        limit, what = limits.answer_s, "it did not answer within"
        sent = self.question in (Question.EVENTS, Question.SUBMIT)  # to one that has answered before
        if not (worker.ready or sent) and now - self.asked > min(limit, STAGE_SECONDS):
            if self._look_at_stage(worker, now) is not WorkerStage.READY:
                limit = limits.loading_s
            queued = self.stage is WorkerStage.QUEUED
            what = "Ray did not start it within" if queued else "it was not ready within"
        elif self.question is Question.EVENTS:
            limit += LONG_POLL_SECONDS
        # One that waited may be another coordinator's by now, which knows what it does, and load something.
        if worker.preparing or (worker.ready and worker.role is Role.POOL):
            limit = max(limit, limits.loading_s)
        silent = now - self.asked  # each stage has its own time
        return f"{what} {silent:.0f} s" if silent > limit else None

    def _look_at_stage(self, worker: Worker, now: float) -> WorkerStage:
        """How far Ray has come with the worker, asked now and then."""
        if now - self.stage_asked >= STAGE_SECONDS:
            stage, self.stage_asked = stage_of(worker.handle), now
            worker.queued = worker.queued + 1 if stage is WorkerStage.QUEUED else 0
            if stage is not self.stage:
                self.stage, self.asked = stage, now
        return self.stage


class Calls:
    """All calls under way: whoever asks does not wait.

    Args:
        limits: how long each may stay unanswered.
    """

    def __init__(self, limits: SilenceLimits) -> None:
        self.pending: dict[Any, Call] = {}
        """By Ray's reference to the answer."""
        self._limits = limits
        self._attention = Attention(time.monotonic())
        self._later: list[tuple[float, Call]] = []
        self._unreachable_since: dict[str, float] = {}

    def ask(
        self,
        worker_id: str,
        worker: Worker,
        question: Question,
        *,
        order: TrialOrder | None = None,
        after: int = 0,
    ) -> None:
        """Call a method of a worker; safe to repeat."""
        arguments: tuple[Any, ...] = ()
        if question is Question.EVENTS:
            arguments = worker.study_id, after, LONG_POLL_SECONDS
        elif question is Question.SUBMIT:
            arguments = (order,)
        elif question in (Question.ASSIGN, Question.RELEASE):
            arguments = (worker.study_id,)
        ref = getattr(worker.handle, question).remote(*arguments)
        asked = self._attention.seconds
        self.pending[ref] = Call(
            question=question, worker_id=worker_id, order=order, after=after, asked=asked
        )

    def ask_later(self, call: Call, seconds: float) -> None:
        """Have a question asked after a pause."""
        self._later.append((time.monotonic() + seconds, call))

    def due(self) -> list[Call]:
        """Note that answers are looked for now; the questions whose pause is over."""
        now = time.monotonic()
        self._attention.look(now)
        due = [call for at, call in self._later if at <= now]
        self._later = [(at, call) for at, call in self._later if at > now]
        return due

    def wait(self, seconds: float) -> list[Any]:
        """The references that have answers, waiting so long for the first of them."""
        ray.wait(list(self.pending), num_returns=1, timeout=seconds)
        ready, _ = ray.wait(list(self.pending), num_returns=len(self.pending), timeout=0)
        return list(ready)

    def drop(self, worker_id: str) -> None:
        """Wait for no answer of a worker any more."""
        self._unreachable_since.pop(worker_id, None)
        self.pending = {ref: c for ref, c in self.pending.items() if c.worker_id != worker_id}
        self._later = [(at, call) for at, call in self._later if call.worker_id != worker_id]

    def unreachable(self, worker_id: str) -> bool:
        """Note that a worker could not be reached; whether that has been so for too long."""
        since = self._unreachable_since.setdefault(worker_id, time.monotonic())
        return time.monotonic() - since > self._limits.answer_s

    def reached(self, worker_id: str) -> None:
        """Note that a worker has answered."""
        self._unreachable_since.pop(worker_id, None)

    def overdue(self, call: Call, worker: Worker) -> str | None:
        """As `Call.overdue`."""
        return call.overdue(worker, self._limits, self._attention.seconds)
