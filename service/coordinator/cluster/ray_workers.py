"""The coordinator's side of Ray: start workers, send orders and verdicts, collect events.

The only module of the service that imports Ray or what workers run. Nothing here blocks on a worker: every
call is a future that `poll` collects, so one slow or dead worker never holds up the others.
"""

from __future__ import annotations

import logging
import math
import threading
import time
import uuid
from dataclasses import dataclass, field
from typing import Any

import ray
from ray.exceptions import (
    ActorDiedError,
    ActorUnavailableError,
    OutOfMemoryError,
    RayActorError,
    RayError,
    WorkerCrashedError,
)

from search_spaces.definition import ResourcesSpec
from service.coordinator.cluster.deliveries import Delivered, Delivery, Gone, Ready, Refused
from service.coordinator.cluster.ray_deaths import first_line, read_death
from service.coordinator.cluster.silence import LONG_POLL_SECONDS, Attention, SilenceLimits
from service.coordinator.policy.placement import WorkerShape
from service.devices.cluster import Node
from service.errors import Unavailable
from service.states import LossCause
from workers.contract import (
    NumberedEvent,
    PackCapacity,
    PassCosts,
    Preparing,
    Stalled,
    TrialOrder,
    Verdict,
    WorkerSpec,
)
from workers.gpu_worker import NAMESPACE, WorkerStage, find_worker, stage_of, start_worker

log = logging.getLogger(__name__)

ClusterError = RayError
"""What calls of `Workers` raise when the cluster itself does not answer."""

RESOURCES_SECONDS = 2.0
"""How long an answer about the cluster's resources is good for: it costs Ray's control process work."""

RETRY_SECONDS = 1.0
"""Pause before an unreachable worker is asked again."""

STAGE_SECONDS = 5.0
"""How often Ray is asked how far it has come with a worker that has not answered yet."""


@dataclass(kw_only=True)
class _Worker:
    handle: Any
    shape: WorkerShape
    preparing: set[int] = field(default_factory=set)
    """Attempts that it loads something for. Libraries may keep it from answering meanwhile."""


@dataclass(kw_only=True)
class _Call:
    kind: str
    worker_id: str
    order: TrialOrder | None = None
    after: int = 0
    asked: float = 0.0
    """When, in seconds of attention."""
    stage: WorkerStage = WorkerStage.QUEUED
    """Of a worker that has not answered yet, when Ray was last asked for it."""
    stage_asked: float = -math.inf


class RayWorkers:
    """Workers as detached, named Ray actors: they outlive the coordinator that started them.

    Raises:
        Unavailable: this machine has no node of the cluster.
    """

    def __init__(
        self, address: str, *, orphan_timeout_s: float, silence: SilenceLimits | None = None
    ) -> None:
        try:
            # Ray's own logging set-up would take over the root logger.
            ray.init(
                address=address,
                namespace=NAMESPACE,
                log_to_driver=False,
                configure_logging=False,
                logging_level=logging.ERROR,
            )
        except (ConnectionError, RuntimeError, RayError) as error:
            raise Unavailable(
                f"Ray did not connect to the cluster at {address}: {first_line(str(error))}. A coordinator "
                f"needs a Ray node on its own machine; `ray start --address {address} --num-cpus 0` starts "
                "one."
            ) from error
        self._orphan_timeout_s = orphan_timeout_s
        self._limits = silence or SilenceLimits()
        self._attention = Attention(time.monotonic())
        self._workers: dict[str, _Worker] = {}
        self._calls: dict[Any, _Call] = {}
        self._found_dead: list[Delivery] = []
        self._silent_since: dict[str, float] = {}
        self._later: list[tuple[float, _Call]] = []
        self._resources: tuple[float, dict[str, float]] = (-math.inf, {})
        self._idle = threading.Event()

    def shape(self, resources: ResourcesSpec) -> WorkerShape:
        """What a worker of this study reserves: a GPU where there are any, one core otherwise.

        One single-threaded worker per core beats one many-threaded worker on small batches.
        """
        gpus = resources.gpus_per_worker
        if gpus == "auto":
            gpus = 1.0 if self._cluster_resources().get("GPU", 0) >= 1 else 0.0
        return WorkerShape(num_cpus=1.0, num_gpus=float(gpus))

    def nodes(self) -> tuple[Node, ...]:
        """What the machines of the cluster have."""
        resources = [node["Resources"] for node in _live_nodes()]
        return tuple(sorted(Node(cpus=has.get("CPU", 0.0), gpus=has.get("GPU", 0.0)) for has in resources))

    def capacity(self, shape: WorkerShape) -> int:
        """How many such workers fit on the cluster if nothing else ran there."""
        return sum(_fits(node["Resources"], shape) for node in _live_nodes())

    def capacity_left(self, shape: WorkerShape) -> int:
        """How many more such workers fit beside those this coordinator already has."""
        free = dict(self._cluster_resources())
        for worker in self._workers.values():
            free["CPU"] = free.get("CPU", 0) - worker.shape.num_cpus
            free["GPU"] = free.get("GPU", 0) - worker.shape.num_gpus
        return _fits(free, shape)

    def gpus_in_all(self) -> float:
        """How many GPUs the cluster has, whoever uses them."""
        return self._cluster_resources().get("GPU", 0.0)

    def _cluster_resources(self) -> dict[str, float]:
        at, resources = self._resources
        if time.monotonic() - at > RESOURCES_SECONDS:
            resources = ray.cluster_resources()
            self._resources = (time.monotonic(), resources)
        return resources

    def start(self, study_id: str, shape: WorkerShape) -> str:
        """Start a worker for one study; `poll` says `Ready` once it can take orders."""
        worker_id = f"{_prefix(study_id)}{uuid.uuid4().hex[:8]}"
        handle = start_worker(
            WorkerSpec(
                name=worker_id,
                num_cpus=shape.num_cpus,
                num_gpus=shape.num_gpus,
                orphan_timeout_s=self._orphan_timeout_s,
                training_silence_s=self._limits.training_s,
                loading_silence_s=self._limits.loading_s,
            )
        )
        self._add(worker_id, handle, shape)
        return worker_id

    def attach(self, study_id: str, shape: WorkerShape) -> tuple[str, ...]:
        """Find the study's workers that an earlier coordinator started and that still live."""
        found = []
        for worker_id in ray.util.list_named_actors():
            if worker_id in self._workers or not worker_id.startswith(_prefix(study_id)):
                continue
            handle = find_worker(worker_id)
            if handle is None:
                continue
            self._add(worker_id, handle, shape)
            found.append(worker_id)
        return tuple(found)

    def poll(self, timeout_s: float) -> list[Delivery]:
        """What arrived, waiting at most `timeout_s` for the first of it."""
        if self._found_dead:
            deliveries, self._found_dead = self._found_dead, []
            return deliveries
        now = time.monotonic()
        self._attention.look(now)
        due = [call for at, call in self._later if at <= now]
        self._later = [(at, call) for at, call in self._later if at > now]
        for call in due:
            self._ask_again(call)
        if not self._calls:
            self._idle.wait(timeout_s)
            return []
        ray.wait(list(self._calls), num_returns=1, timeout=timeout_s)
        ready, _ = ray.wait(list(self._calls), num_returns=len(self._calls), timeout=0)
        deliveries = [d for ref in ready if (d := self._collect(ref)) is not None]
        return deliveries + self._give_up_silent()

    def acknowledge(self, worker_id: str, seq: int) -> None:
        """Let the worker forget events up to `seq`, and ask for what comes after."""
        worker = self._workers.get(worker_id)
        if worker is not None:
            ref = worker.handle.events.remote(seq, LONG_POLL_SECONDS)
            self._calls[ref] = self._call("events", worker_id, after=seq)

    def submit(self, worker_id: str, order: TrialOrder) -> None:
        """Send an order. A worker that does not take it shows up in `poll` as `Refused` or `Gone`."""
        worker = self._workers.get(worker_id)
        if worker is None:
            self._found_dead.append(
                Gone(
                    worker_id=worker_id,
                    reason="the worker was gone before dispatch",
                    cause=LossCause.NEVER_ARRIVED,
                )
            )
            return
        ref = worker.handle.submit.remote(order)
        self._calls[ref] = self._call("submit", worker_id, order=order)

    def send(self, worker_id: str, verdict: Verdict) -> None:
        """Send a verdict; safe to repeat."""
        worker = self._workers.get(worker_id)
        if worker is not None:
            worker.handle.verdict.remote(verdict)

    def stop(self, worker_id: str) -> None:
        """End a worker and give its resources back. Idle ones only: nothing is saved."""
        worker = self._workers.get(worker_id)
        if worker is not None:
            self.forget(worker_id)
            ray.kill(worker.handle)

    def close(self) -> None:
        """Leave the cluster; the workers stay."""
        ray.shutdown()

    def _add(self, worker_id: str, handle: Any, shape: WorkerShape) -> None:
        self._workers[worker_id] = _Worker(handle=handle, shape=shape)
        self._calls[handle.info.remote()] = self._call("info", worker_id)

    def _call(self, kind: str, worker_id: str, **of: Any) -> _Call:
        return _Call(kind=kind, worker_id=worker_id, asked=self._attention.seconds, **of)

    def forget(self, worker_id: str) -> None:
        """Stop listening to a worker, and leave it alone."""
        self._workers.pop(worker_id, None)
        self._silent_since.pop(worker_id, None)
        self._calls = {ref: c for ref, c in self._calls.items() if c.worker_id != worker_id}
        self._later = [(at, call) for at, call in self._later if call.worker_id != worker_id]

    def _collect(self, ref: Any) -> Delivery | None:
        call = self._calls.pop(ref, None)
        if call is None:
            return None
        try:
            answer = ray.get(ref)
        except ActorUnavailableError as error:
            since = self._silent_since.setdefault(call.worker_id, time.monotonic())
            if time.monotonic() - since > self._limits.answer_s:
                # If it lives on somewhere, it must not keep its GPU.
                self.stop(call.worker_id)
                return Gone(
                    worker_id=call.worker_id,
                    reason=f"unreachable for {self._limits.answer_s:g} s",
                    cause=LossCause.UNREACHABLE,
                )
            # Perhaps a network hiccup: the same question again.
            log.warning("worker %s did not answer: %s", call.worker_id, first_line(str(error)))
            self._later.append((time.monotonic() + RETRY_SECONDS, call))
            return None
        except RayError as error:
            return self._gone(call.worker_id, error)
        self._silent_since.pop(call.worker_id, None)
        if call.kind == "info":
            return Ready(worker_id=call.worker_id, info=answer)
        if call.kind == "events":
            self._note_preparing(call.worker_id, answer)
            return Delivered(worker_id=call.worker_id, events=answer)
        if call.order is not None and answer is not True:
            return Refused(
                worker_id=call.worker_id,
                attempt_id=call.order.attempt_id,
                reason="the worker had no free slot",
            )
        return None

    def _gone(self, worker_id: str, error: RayError) -> Gone:
        died = isinstance(error, ActorDiedError | OutOfMemoryError | WorkerCrashedError)
        preempted = isinstance(error, RayActorError) and error.preempted
        message = str(error) or type(error).__name__
        reason, cause = read_death(message, died=died, preempted=preempted, alive=_addresses)
        if died:
            self.forget(worker_id)
        else:
            self.stop(worker_id)
        return Gone(worker_id=worker_id, reason=reason, cause=cause)

    def _note_preparing(self, worker_id: str, events: tuple[NumberedEvent, ...]) -> None:
        worker = self._workers.get(worker_id)
        for numbered in events if worker is not None else ():
            assert worker is not None
            if isinstance(event := numbered.event, Preparing):
                worker.preparing.add(event.attempt_id)
            elif not isinstance(event, PackCapacity | PassCosts | Stalled):
                worker.preparing.discard(event.attempt_id)

    def _give_up_silent(self) -> list[Delivery]:
        """End the workers that have not answered in time. Ray kills a process that does not end by itself."""
        gone: list[Delivery] = []
        for call in list(self._calls.values()):
            worker = self._workers.get(call.worker_id)
            if worker is None:
                continue  # it had another call, and has been given up
            silent = self._attention.seconds - call.asked
            limit = self._limits.answer_s
            if call.kind == "info" and silent > min(limit, STAGE_SECONDS):
                if self._stage(call, worker) is not WorkerStage.READY:
                    limit = self._limits.loading_s
                silent = self._attention.seconds - call.asked  # each stage has its own time
            elif call.kind == "events":
                limit += LONG_POLL_SECONDS
            if worker.preparing:
                limit = max(limit, self._limits.loading_s)
            if silent <= limit:
                continue
            what = "it did not answer within"
            if call.kind == "info":
                queued = call.stage is WorkerStage.QUEUED
                what = "Ray did not start it within" if queued else "it was not ready within"
            reason = f"{what} {silent:.0f} s, so it was killed"
            log.warning("worker %s is given up: %s", call.worker_id, reason)
            self.stop(call.worker_id)
            gone.append(Gone(worker_id=call.worker_id, reason=reason, cause=LossCause.UNREACHABLE))
        return gone

    def _stage(self, call: _Call, worker: _Worker) -> WorkerStage:
        """How far Ray has come with a worker, asked now and then."""
        now = self._attention.seconds
        if now - call.stage_asked >= STAGE_SECONDS:
            stage, call.stage_asked = stage_of(worker.handle), now
            if stage is not call.stage:
                call.stage, call.asked = stage, now
        return call.stage

    def _ask_again(self, call: _Call) -> None:
        worker = self._workers.get(call.worker_id)
        if worker is None:
            return
        if call.kind == "info":
            self._calls[worker.handle.info.remote()] = self._call("info", call.worker_id)
        elif call.order is not None:
            # Whether the order arrived is unknown; the same attempt twice changes nothing.
            self.submit(call.worker_id, call.order)
        else:
            self.acknowledge(call.worker_id, call.after)


def _prefix(study_id: str) -> str:
    return f"worker-{study_id}-"


def _live_nodes() -> list[dict[str, Any]]:
    return [node for node in ray.nodes() if node.get("Alive", node.get("alive"))]


def _addresses() -> set[str]:
    """Of the nodes that live."""
    return {str(node["NodeManagerAddress"]) for node in _live_nodes()}


def _fits(resources: dict[str, float], shape: WorkerShape) -> int:
    by_cpu = resources.get("CPU", 0.0) / shape.num_cpus
    if shape.num_gpus <= 0:
        return max(0, int(by_cpu))
    return max(0, int(min(by_cpu, resources.get("GPU", 0.0) / shape.num_gpus)))
