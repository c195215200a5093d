"""The coordinator's side of Ray: start workers, send orders and verdicts, collect events.

The only module of the service that imports what workers run. Nothing here blocks on a worker: every call is a
future that `poll` collects, so one slow or dead worker never holds up the others.

Workers that no study has wait in a pool, which all coordinators of the cluster share: a worker itself decides
who gets it, and says who has it.
"""

from __future__ import annotations

import logging
import math
import threading
import time
import uuid
from collections.abc import Collection
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
from service.coordinator.cluster import ray_resources
from service.coordinator.cluster.deliveries import Delivered, Delivery, Found, Gone, Ready, Refused
from service.coordinator.cluster.ray_calls import Call, Calls, Question, Role, Worker
from service.coordinator.cluster.ray_deaths import first_line, read_death
from service.coordinator.cluster.ray_resources import RayMachines
from service.coordinator.cluster.silence import SilenceLimits
from service.coordinator.policy import warm_pool
from service.coordinator.policy.placement import WorkerShape
from service.coordinator.policy.warm_pool import PoolLimits, Waiting
from service.errors import Unavailable
from service.states import LossCause
from workers.actor.ray_actors import NAMESPACE, find_worker, start_worker
from workers.contract import TrialOrder, Verdict, WorkerInfo, WorkerSpec

log = logging.getLogger(__name__)

ClusterError = RayError
"""What calls of `Workers` raise when the cluster itself does not answer."""

RETRY_SECONDS = 1.0
"""Pause before an unreachable worker is asked again."""

LOOK_SECONDS = 5.0
"""How often it is looked for workers of others, and how often a waiting worker is asked whether it lives."""

LONGEST_PAUSE_SECONDS = 300.0
"""Before another worker is started to wait, after several died while starting."""

_PREFIX = "worker-"
_ANY_SHAPE = WorkerShape(num_cpus=1.0, num_gpus=0.0)
"""Of a worker that has not said what it reserves."""


class RayWorkers(RayMachines):
    """Workers as detached, named Ray actors: they outlive the coordinator that started them.

    Args:
        address: of the cluster's head.
        orphan_timeout_s: seconds after which a worker ends that no coordinator asks for anything.
        silence: how long a call may stay unanswered.
        pool: how many workers may wait, and for how long.

    Raises:
        Unavailable: this machine has no node of the cluster.
    """

    def __init__(
        self,
        address: str,
        *,
        orphan_timeout_s: float,
        silence: SilenceLimits | None = None,
        pool: PoolLimits | None = None,
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
        self._pool = pool or PoolLimits()
        self._workers: dict[str, Worker] = {}
        self._calls = Calls(self._limits)
        self._found_dead: list[Delivery] = []
        self._looked_at = -math.inf
        self._failed_starts = 0
        self._start_again_at = -math.inf
        self._idle = threading.Event()

    def capacity_left(self, shape: WorkerShape) -> int:
        """How many more such workers fit beside those that this coordinator's studies have."""
        return ray_resources.fits(self._left([Role.STUDY, Role.LEAVING]), shape)

    def _left(self, roles: Collection[Role]) -> dict[str, float]:
        """What the cluster has beside this coordinator's workers of these roles."""
        left = dict(self._in_all())
        for worker in self._workers.values():
            if worker.role in roles:
                left["CPU"] = left.get("CPU", 0) - worker.shape.num_cpus
                left["GPU"] = left.get("GPU", 0) - worker.shape.num_gpus
        return left

    # -- a study's workers ---------------------------------------------------------------------

    def start(self, study_id: str, shape: WorkerShape, base: str) -> str:
        """Give a study one that waits, or else start one; `poll` says `Ready` once it can take orders.

        Args:
            study_id: the study.
            shape: what the worker reserves.
            base: what it is to train on; a worker that has it comes first.
        """
        chosen = warm_pool.pick(self._waiting(), shape, base)
        if chosen is not None:
            worker = self._workers[chosen.worker_id]
            self._calls.drop(chosen.worker_id)
            worker.role, worker.study_id = Role.STUDY, study_id
            self._ask(Question.ASSIGN, chosen.worker_id)
            return chosen.worker_id
        left = self._left([Role.STUDY, Role.LEAVING, Role.POOL])
        cpus, gpus = left.get("CPU", 0.0), left.get("GPU", 0.0)
        for worker_id in warm_pool.in_the_way(self._waiting(), shape, cpus=cpus, gpus=gpus):
            self.stop(worker_id)
        return self._start(shape, study_id)

    def _start(self, shape: WorkerShape, study_id: str | None) -> str:
        worker_id = f"{_PREFIX}{uuid.uuid4().hex[:12]}"
        handle = start_worker(
            WorkerSpec(
                name=worker_id,
                num_cpus=shape.num_cpus,
                num_gpus=shape.num_gpus,
                orphan_timeout_s=self._orphan_timeout_s,
                training_silence_s=self._limits.training_s,
                loading_silence_s=self._limits.loading_s,
                study_id=study_id,
                keep_base_s=self._pool.keep_base_s,
            )
        )
        self._add(worker_id, handle, shape, study_id)
        return worker_id

    def attach(self, study_id: str, shape: WorkerShape, sent_to: Collection[str]) -> tuple[str, ...]:
        """Find the study's workers that an earlier coordinator left and that still live.

        Others of its workers, which have none of its trials, come as `Found`.

        Args:
            study_id: the study.
            shape: what each of its workers reserves.
            sent_to: those that have its trials, as the database knows them.
        """
        found = []
        for worker_id in sorted(set(sent_to) & set(ray.util.list_named_actors())):
            known = self._workers.get(worker_id)
            if known is not None and known.role in (Role.STUDY, Role.LEAVING):
                continue
            handle = known.handle if known is not None else find_worker(worker_id)
            if handle is not None:
                self.forget(worker_id)
                self._add(worker_id, handle, shape, study_id)
                found.append(worker_id)
        return tuple(found)

    def release(self, worker_id: str) -> None:
        """Give an idle worker back. It waits for another study, or ends if it is of no use to one."""
        worker = self._workers.get(worker_id)
        if worker is None or self._pool.per_node == 0:
            self.stop(worker_id)
            return
        self._calls.drop(worker_id)
        worker.role = Role.LEAVING
        self._ask(Question.RELEASE, worker_id)

    # -- the pool ------------------------------------------------------------------------------

    def keep_warm(self) -> None:
        """See that as many workers wait as should: called now and then."""
        now = time.monotonic()
        if now - self._looked_at < LOOK_SECONDS:
            return
        self._looked_at = now
        self._look_for_others()
        others = [w for w in self._workers.values() if w.role is Role.STRANGER]
        waiting = self._waiting()
        in_vain = [w.worker_id for w in waiting if self._workers[w.worker_id].queued]
        if self._somebody_queues():
            in_vain = [w.worker_id for w in waiting]
        shape = self.shape(ResourcesSpec())
        most = warm_pool.most_waiting(self.nodes(), shape, per_node=self._pool.per_node)
        for worker_id in in_vain or warm_pool.surplus(waiting, most):
            self.stop(worker_id)
        if not all(each.ready for each in others):
            self._looked_at -= LOOK_SECONDS - 1.0  # they may be waiting ones
        elif not in_vain and now >= self._start_again_at and len(waiting) < most:
            free = ray_resources.fits(ray_resources.free(), shape)
            for _ in range(min(most - len(waiting), free)):
                self._start(shape, None)

    def _somebody_queues(self) -> bool:
        """Whether a study's worker waits for a place: it has its turn first, on whichever machine it is.

        Another coordinator's may be one that is to wait in the pool, which that one ends soon.
        """
        looks = {Role.STUDY: 1, Role.STRANGER: 4}
        return any(w.role in looks and w.queued >= looks[w.role] for w in self._workers.values())

    def _waiting(self) -> list[Waiting]:
        return [w.waiting(worker_id) for worker_id, w in self._workers.items() if w.role is Role.POOL]

    def _look_for_others(self) -> None:
        """Ask workers that are not this coordinator's who they are: some may wait, or be a dead one's."""
        asked = {call.worker_id for call in self._calls.pending.values()}
        names = {name for name in ray.util.list_named_actors() if name.startswith(_PREFIX)}
        for worker_id in [w for w, known in self._workers.items() if known.role is Role.STRANGER]:
            if worker_id not in names:
                self.forget(worker_id)
        for worker_id in sorted(names):
            known = self._workers.get(worker_id)
            handle = find_worker(worker_id) if known is None else known.handle
            if known is None and handle is not None:
                self._workers[worker_id] = Worker(handle=handle, shape=_ANY_SHAPE, role=Role.STRANGER)
            elif known is None or known.role is not Role.STRANGER or worker_id in asked:
                continue
            self._ask(Question.INFO, worker_id)

    def _meet(self, worker_id: str, info: WorkerInfo) -> Delivery | None:
        """Take in what a worker says that no study of this coordinator has."""
        worker = self._workers[worker_id]
        worker.base = info.base
        worker.shape = WorkerShape(num_cpus=info.num_cpus, num_gpus=info.num_gpus)
        if info.study_id is not None:
            worker.role = Role.STRANGER
            return Found(worker_id=worker_id, study_id=info.study_id)
        worker.role, self._failed_starts = Role.POOL, 0
        self._calls.ask_later(Call(question=Question.ATTEND, worker_id=worker_id), LOOK_SECONDS)
        return None

    # -- questions and answers -----------------------------------------------------------------

    def poll(self, timeout_s: float) -> list[Delivery]:
        """What arrived, waiting at most `timeout_s` for the first of it."""
        if self._found_dead:
            deliveries, self._found_dead = self._found_dead, []
            return deliveries
        for call in self._calls.due():
            self._ask(call.question, call.worker_id, order=call.order, after=call.after)
        if not self._calls.pending:
            self._idle.wait(timeout_s)
            return []
        ready = self._calls.wait(timeout_s)
        deliveries = [d for ref in ready if (d := self._collect(ref)) is not None]
        return deliveries + self._give_up_silent()

    def acknowledge(self, worker_id: str, seq: int) -> None:
        """Let the worker forget events up to `seq`, and ask for what comes after."""
        self._ask(Question.EVENTS, worker_id, after=seq)

    def submit(self, worker_id: str, order: TrialOrder) -> None:
        """Send an order. A worker that does not take it shows up in `poll` as `Refused` or `Gone`."""
        if worker_id in self._workers:
            self._ask(Question.SUBMIT, worker_id, order=order)
        else:
            reason = "the worker was gone before dispatch"
            self._found_dead.append(Gone(worker_id=worker_id, reason=reason, cause=LossCause.NEVER_ARRIVED))

    def send(self, worker_id: str, verdict: Verdict) -> None:
        """Send a verdict; safe to repeat."""
        worker = self._workers.get(worker_id)
        if worker is not None:
            worker.handle.verdict.remote(verdict)

    def stop(self, worker_id: str) -> None:
        """End an idle worker and give its resources back; another coordinator's is only forgotten."""
        worker = self._workers.get(worker_id)
        if worker is not None:
            self.forget(worker_id)
            if worker.role is not Role.STRANGER:
                ray.kill(worker.handle)

    def close(self) -> None:
        """Leave the cluster; the workers stay."""
        ray.shutdown()

    def _add(self, worker_id: str, handle: Any, shape: WorkerShape, study_id: str | None) -> None:
        role = Role.POOL if study_id is None else Role.STUDY
        self._workers[worker_id] = Worker(handle=handle, shape=shape, role=role, study_id=study_id or "")
        self._ask(Question.ATTEND if study_id is None else Question.INFO, worker_id)

    def _ask(self, question: Question, worker_id: str, **of: Any) -> None:
        worker = self._workers.get(worker_id)
        if worker is not None:
            self._calls.ask(worker_id, worker, question, **of)

    def forget(self, worker_id: str) -> None:
        """Stop listening to a worker, and leave it alone."""
        self._workers.pop(worker_id, None)
        self._calls.drop(worker_id)

    def _collect(self, ref: Any) -> Delivery | None:
        call = self._calls.pending.pop(ref, None)
        if call is None:
            return None
        try:
            answer = ray.get(ref)
        except ActorUnavailableError as error:
            if self._calls.unreachable(call.worker_id):
                # If it lives on somewhere, it must not keep its GPU.
                self.stop(call.worker_id)
                reason = f"unreachable for {self._limits.answer_s:g} s"
                return Gone(worker_id=call.worker_id, reason=reason, cause=LossCause.UNREACHABLE)
            # Perhaps a network hiccup: the same question again.
            log.warning("worker %s did not answer: %s", call.worker_id, first_line(str(error)))
            self._calls.ask_later(call, RETRY_SECONDS)
            return None
        except RayError as error:
            return self._gone(call.worker_id, error)
        self._calls.reached(call.worker_id)
        return self._take(call, answer)

    def _take(self, call: Call, answer: Any) -> Delivery | None:
        """Take in an answer."""
        worker_id, worker = call.worker_id, self._workers[call.worker_id]
        worker.ready, worker.queued = True, 0
        if worker.role is Role.LEAVING and (answer is None or answer.study_id == worker.study_id):
            self.stop(worker_id)  # it ends by itself, or trains what nobody wants any more
        elif worker.role is not Role.STUDY:
            return self._meet(worker_id, answer)
        elif call.question is Question.SUBMIT:
            if call.order is not None and answer is not True:
                reason = "the worker had no free slot"
                return Refused(worker_id=worker_id, attempt_id=call.order.attempt_id, reason=reason)
        elif answer is None or (call.question is Question.INFO and answer.study_id != worker.study_id):
            self.forget(worker_id)
            reason = "the worker was given to another study"
            return Gone(worker_id=worker_id, reason=reason, cause=LossCause.NEVER_ARRIVED)
        elif call.question is Question.EVENTS:
            worker.note_preparing(answer)
            return Delivered(worker_id=worker_id, events=answer)
        else:
            return Ready(worker_id=worker_id, info=answer)
        return None

    def _gone(self, worker_id: str, error: RayError) -> Gone:
        died = isinstance(error, ActorDiedError | OutOfMemoryError | WorkerCrashedError)
        preempted = isinstance(error, RayActorError) and error.preempted
        message = str(error) or type(error).__name__
        reason, cause = read_death(
            message, died=died, preempted=preempted, alive=lambda: ray_resources.addresses()
        )
        worker = self._workers[worker_id]
        if worker.role is Role.POOL and not worker.ready:
            self._failed_starts += 1
            pause = min(LONGEST_PAUSE_SECONDS, LOOK_SECONDS * 2.0 ** min(self._failed_starts, 10))
            self._start_again_at = time.monotonic() + pause
            log.warning("a waiting worker died, the next one starts in %g s: %s", pause, reason)
        if died:
            self.forget(worker_id)
        else:
            self.stop(worker_id)
        return Gone(worker_id=worker_id, reason=reason, cause=cause)

    def _give_up_silent(self) -> list[Delivery]:
        """End the workers that have not answered in time. Ray kills a process that does not end by itself."""
        gone: list[Delivery] = []
        for call in list(self._calls.pending.values()):
            worker = self._workers.get(call.worker_id)
            if worker is None:
                continue  # it had another call, and has been given up
            what = self._calls.overdue(call, worker)
            if what is None or worker.role is Role.STRANGER:
                continue
            reason = f"{what}, so it was killed"
            log.warning("worker %s is given up: %s", call.worker_id, reason)
            self.stop(call.worker_id)
            gone.append(Gone(worker_id=call.worker_id, reason=reason, cause=LossCause.UNREACHABLE))
        return gone
