"""How `RayWorkers` reads Ray's answers, with Ray itself replaced: its failures cannot be made to order."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any, cast

import pytest
from ray.core.generated.common_pb2 import ActorDiedErrorContext, NodeDeathInfo
from ray.exceptions import (
    ActorDiedError,
    ActorUnavailableError,
    OutOfMemoryError,
    RayError,
    RaySystemError,
)

from service.coordinator.cluster import ray_calls, ray_resources, ray_workers
from service.coordinator.cluster.deliveries import Delivered, Delivery, Gone
from service.coordinator.cluster.ray_workers import RayWorkers
from service.coordinator.cluster.silence import SilenceLimits
from service.coordinator.policy.placement import WorkerShape
from service.errors import Unavailable
from service.states import LossCause
from workers.actor.ray_actors import WorkerStage
from workers.contract import NumberedEvent, Preparing, Progress

CORE = WorkerShape(num_cpus=1.0, num_gpus=0.0)


class FakeRay:
    """Answers in the order given; an exception among them is raised."""

    def __init__(self) -> None:
        self.answers: dict[object, Any] = {}
        self.asked: list[tuple[Any, ...]] = []
        self.util = SimpleNamespace(list_named_actors=lambda: ["worker-s-1"])

        self.killed = 0
        self.stage = WorkerStage.READY
        self.alive = ["10.0.0.1"]

    def init(self, **options: Any) -> None:
        pass

    def kill(self, handle: Any) -> None:
        self.killed += 1

    def nodes(self) -> list[dict[str, Any]]:
        return [
            {"NodeManagerAddress": address, "Alive": address in self.alive}
            for address in ("10.0.0.1", "10.0.0.2")
        ]

    def wait(
        self, refs: list[object], *, num_returns: int, timeout: float
    ) -> tuple[list[object], list[object]]:
        ready = [ref for ref in refs if ref in self.answers]
        return ready, []

    def get(self, ref: object) -> Any:
        answer = self.answers.pop(ref)
        if isinstance(answer, Exception):
            raise answer
        return answer

    def method(self, name: str) -> Any:
        def remote(*arguments: Any) -> object:
            ref = (name, len(self.asked))
            self.asked.append((name, *arguments))
            return ref

        return SimpleNamespace(remote=remote)


class Clock:
    def __init__(self) -> None:
        self.now = 1000.0

    def monotonic(self) -> float:
        return self.now


@pytest.fixture
def ray(monkeypatch: pytest.MonkeyPatch) -> FakeRay:
    fake = FakeRay()
    handle = SimpleNamespace(info=fake.method("info"), events=fake.method("events"))
    for module in (ray_workers, ray_calls, ray_resources):
        monkeypatch.setattr(module, "ray", fake)
    monkeypatch.setattr(ray_workers, "find_worker", lambda name: handle)
    monkeypatch.setattr(ray_calls, "stage_of", lambda handle: fake.stage)
    return fake


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    one = Clock()
    for module in (ray_workers, ray_calls, ray_resources):
        monkeypatch.setattr(module, "time", one)
    return one


def unreachable() -> ActorUnavailableError:
    return ActorUnavailableError("the node does not answer", b"\0" * 16)


def listening(ray: FakeRay) -> RayWorkers:
    """Workers with one call of `events` under way."""
    workers = RayWorkers("address", orphan_timeout_s=1.0)
    workers.attach("s", CORE, ["worker-s-1"])
    workers._calls.pending.clear()
    workers.acknowledge("worker-s-1", 7)
    return workers


def fail_last_call(ray: FakeRay, workers: RayWorkers) -> list[Delivery]:
    [ref] = workers._calls.pending
    ray.answers[ref] = unreachable()
    return workers.poll(0.0)


def test_a_machine_that_is_no_node_of_the_cluster_is_told_how_to_become_one(
    ray: FakeRay, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(**_: Any) -> None:
        raise ConnectionError("Could not find a node to connect to\nand more")

    monkeypatch.setattr(ray, "init", refuse)
    with pytest.raises(Unavailable) as refused:
        RayWorkers("head-node:6379", orphan_timeout_s=1.0)
    assert refused.value.detail == (
        "Ray did not connect to the cluster at head-node:6379: Could not find a node to connect to. A "
        "coordinator needs a Ray node on its own machine; `ray start --address head-node:6379 --num-cpus 0` "
        "starts one."
    )


def test_an_unreachable_worker_is_asked_the_same_again_after_a_pause(ray: FakeRay, clock: Clock) -> None:
    workers = listening(ray)
    asked = list(ray.asked)
    assert fail_last_call(ray, workers) == []
    assert ray.asked == asked
    clock.now += ray_workers.RETRY_SECONDS
    workers._idle.set()
    assert workers.poll(0.0) == []
    assert ray.asked == [*asked, asked[-1]]


def test_a_worker_that_stays_unreachable_is_given_up(ray: FakeRay, clock: Clock) -> None:
    workers = listening(ray)
    workers._idle.set()
    deliveries = fail_last_call(ray, workers)
    while not deliveries:
        clock.now += ray_workers.RETRY_SECONDS
        workers.poll(0.0)
        deliveries = fail_last_call(ray, workers)
    assert deliveries == [
        Gone(worker_id="worker-s-1", reason="unreachable for 60 s", cause=LossCause.UNREACHABLE)
    ]
    assert ray.killed == 1  # it may live on somewhere, and must not keep its GPU


def test_an_answer_ends_the_silence(ray: FakeRay, clock: Clock) -> None:
    workers = listening(ray)
    workers._idle.set()
    fail_last_call(ray, workers)
    clock.now += SilenceLimits().answer_s
    workers.poll(0.0)
    [ref] = workers._calls.pending
    ray.answers[ref] = ()
    assert workers.poll(0.0) == [Delivered(worker_id="worker-s-1", events=())]
    workers.acknowledge("worker-s-1", 7)
    assert fail_last_call(ray, workers) == []


def death(message: str, *, address: str = "10.0.0.1", reason: int | None = None) -> ActorDiedError:
    """As Ray makes it of what its control process says."""
    context = ActorDiedErrorContext(
        error_message=message,
        actor_id=b"\0" * 16,
        class_name="GpuWorker",
        node_ip_address=address,
        name="worker-s-1",
        pid=7,
    )
    if reason is not None:
        context.node_death_info.reason = reason
    return ActorDiedError(context)


PROCESS = (
    "The actor is dead because its worker process has died. Worker exit type: SYSTEM_ERROR Worker exit "
    "detail: Worker unexpectedly exits with a connection error code 2. End of file."
)
MEMORY = (
    "The actor is dead because its worker process has died. Worker exit type: NODE_OUT_OF_MEMORY Worker "
    "exit detail: Task was killed due to the node running low on memory."
)
NODE = (
    "The actor died because its node has died. Node Id: 17\n"
    "\tthe actor's node was terminated unexpectedly: health check failed due to missing too many heartbeats"
)
DRAINED = (
    "The actor died because its node has died. Node Id: 17\n"
    "\tthe actor's node was terminated expectedly: received SIGTERM"
)


@pytest.mark.parametrize(
    ("error", "cause", "reason"),
    [
        (death(PROCESS), LossCause.WORKER_DIED, PROCESS),
        (death(MEMORY), LossCause.WORKER_DIED, MEMORY),
        (death(NODE), LossCause.NODE_DIED, NODE.splitlines()[0]),
        (death(DRAINED), LossCause.NODE_DIED, DRAINED.splitlines()[0]),
        (death(PROCESS, address="10.0.0.2"), LossCause.NODE_DIED, f"its machine is gone: {PROCESS}"),
        (
            death(NODE, reason=NodeDeathInfo.AUTOSCALER_DRAIN_PREEMPTED),
            LossCause.NODE_DIED,
            f"its machine was taken away: {NODE.splitlines()[0]}",
        ),
        (
            ActorDiedError(),
            LossCause.WORKER_DIED,
            "The actor died unexpectedly before finishing this task.",
        ),
        (OutOfMemoryError("Memory on the node was 31 / 32 GB"), LossCause.WORKER_DIED, "Memory on the"),
        (RaySystemError("cannot unpickle"), LossCause.UNREACHABLE, "System error: cannot unpickle"),
    ],
    ids=[
        "killed",
        "too much memory",
        "a machine that crashed",
        "a machine that was shut down",
        "a machine that is not known to be gone yet",
        "a spot machine",
        "no words",
        "the memory monitor's error",
        "an answer nobody can read",
    ],
)
def test_a_process_that_died_is_told_from_a_machine_that_did(
    ray: FakeRay, clock: Clock, error: RayError, cause: LossCause, reason: str
) -> None:
    workers = listening(ray)
    [ref] = workers._calls.pending
    ray.answers[ref] = error
    [gone] = workers.poll(0.0)
    assert isinstance(gone, Gone)
    assert (gone.cause, gone.reason[: len(reason)]) == (cause, reason)
    assert ray.killed == (cause is LossCause.UNREACHABLE)


def test_an_order_for_a_worker_that_is_gone_never_arrived(ray: FakeRay, clock: Clock) -> None:
    workers = RayWorkers("address", orphan_timeout_s=1.0)
    workers.submit("worker-s-2", cast(Any, None))
    [gone] = workers.poll(0.0)
    assert isinstance(gone, Gone)
    assert gone.cause is LossCause.NEVER_ARRIVED


def test_what_a_worker_was_to_be_asked_again_is_not_asked_once_it_was_let_go_of(
    ray: FakeRay, clock: Clock
) -> None:
    workers = listening(ray)
    fail_last_call(ray, workers)
    workers.forget("worker-s-1")
    workers.attach("s", CORE, ["worker-s-1"])
    asked = list(ray.asked)
    clock.now += ray_workers.RETRY_SECONDS
    workers.poll(0.0)
    assert ray.asked == asked


def silent_for(workers: RayWorkers, clock: Clock, seconds: float) -> list[Delivery]:
    """What the coordinator is told in so many rounds of a second."""
    said: list[Delivery] = []
    for _ in range(round(seconds)):
        clock.now += 1.0
        said += workers.poll(0.0)
    return said


def test_a_worker_that_does_not_answer_a_poll_is_killed_and_given_up(ray: FakeRay, clock: Clock) -> None:
    workers = listening(ray)
    assert silent_for(workers, clock, 65) == []
    assert silent_for(workers, clock, 1) == [
        Gone(
            worker_id="worker-s-1",
            reason="it did not answer within 66 s, so it was killed",
            cause=LossCause.UNREACHABLE,
        )
    ]
    assert ray.killed == 1
    assert silent_for(workers, clock, 100) == []


def test_an_order_that_is_not_answered_is_a_silence_too(ray: FakeRay, clock: Clock) -> None:
    workers = listening(ray)
    workers._workers["worker-s-1"].handle.submit = ray.method("submit")
    workers.submit("worker-s-1", cast(Any, None))
    [gone] = silent_for(workers, clock, 61)
    assert isinstance(gone, Gone)
    assert gone.cause is LossCause.UNREACHABLE


def test_a_coordinator_that_stood_still_does_not_hold_it_against_its_workers(
    ray: FakeRay, clock: Clock
) -> None:
    workers = listening(ray)
    clock.now += 10_000.0
    assert workers.poll(0.0) == []
    [ref] = workers._calls.pending
    ray.answers[ref] = ()
    assert silent_for(workers, clock, 1) == [Delivered(worker_id="worker-s-1", events=())]


def test_a_worker_that_loads_has_longer_until_it_trains(ray: FakeRay, clock: Clock) -> None:
    workers = listening(ray)
    for event, limit in (
        (Preparing(attempt_id=1, stage="loading"), 3600),
        (Progress(attempt_id=1, examples_seen=1, step=1, train_loss=1.0, learning_rate=1.0), 65),
    ):
        [ref] = workers._calls.pending
        ray.answers[ref] = (NumberedEvent(seq=8, event=event),)
        assert len(workers.poll(0.0)) == 1
        workers.acknowledge("worker-s-1", 8)
        assert silent_for(workers, clock, limit - 1) == []
    assert len(silent_for(workers, clock, 2)) == 1


@pytest.mark.parametrize(
    ("stage", "limit", "what"),
    [
        (WorkerStage.READY, 60, "it was not ready within "),
        (WorkerStage.STARTING, 3600, "it was not ready within "),
        (WorkerStage.QUEUED, 3600, "Ray did not start it within "),
    ],
)
def test_a_worker_has_a_limit_for_each_stage_of_getting_ready(
    ray: FakeRay, clock: Clock, stage: WorkerStage, limit: int, what: str
) -> None:
    workers = RayWorkers("address", orphan_timeout_s=1.0)
    ray.stage = WorkerStage.QUEUED
    workers.attach("s", CORE, ["worker-s-1"])
    if stage is not WorkerStage.QUEUED:
        assert silent_for(workers, clock, 3000) == []
        ray.stage = stage
    assert silent_for(workers, clock, limit - 1) == []
    [gone] = silent_for(workers, clock, 20)
    assert isinstance(gone, Gone)
    assert (gone.cause, ray.killed) == (LossCause.UNREACHABLE, 1)
    assert gone.reason.startswith(what)
