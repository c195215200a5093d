"""The pool of waiting workers as `RayWorkers` keeps it, with Ray itself and its workers replaced."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
from ray.exceptions import ActorDiedError

from service.coordinator.cluster import ray_calls, ray_resources, ray_workers
from service.coordinator.cluster.deliveries import Delivery, Found, Gone, Ready
from service.coordinator.cluster.ray_workers import RayWorkers
from service.coordinator.cluster.silence import SilenceLimits
from service.coordinator.policy.placement import WorkerShape
from service.coordinator.policy.warm_pool import PoolLimits
from service.states import LossCause
from workers.actor.ray_actors import WorkerStage
from workers.contract import WorkerInfo, WorkerSpec

CORE = WorkerShape(num_cpus=1.0, num_gpus=0.0)
TWO = WorkerShape(num_cpus=2.0, num_gpus=0.0)


class Actor:
    """A worker that answers at once, or is not there yet."""

    def __init__(self, cluster: Cluster, spec: WorkerSpec) -> None:
        self.cluster, self.spec = cluster, spec
        self.study_id, self.base = spec.study_id, None
        self.alive, self.placed = True, cluster.places > 0
        self.reusable = True
        self.calls: list[str] = []

    def __getattr__(self, method: str) -> Any:
        def remote(*arguments: Any) -> Any:
            self.calls.append(method)
            ref = object()
            self.cluster.refs[ref] = (self, method, arguments)
            return ref

        return SimpleNamespace(remote=remote)

    def answer(self, method: str, arguments: tuple[Any, ...]) -> Any:
        if not self.alive:
            raise ActorDiedError
        if method == "assign":
            self.study_id = self.study_id or arguments[0]
            return self._info() if self.study_id == arguments[0] else None
        if method == "release":
            if not self.reusable:
                return None
            self.study_id = None if self.study_id == arguments[0] else self.study_id
        return self._info()

    def _info(self) -> WorkerInfo:
        return WorkerInfo(
            worker_id=self.spec.name,
            node="n",
            pid=1,
            device="cpu",
            slots=1,
            free_slots=1,
            running_attempts=(),
            base=self.base,
            study_id=self.study_id,
            num_cpus=self.spec.num_cpus,
            num_gpus=self.spec.num_gpus,
        )


class Cluster:
    """Ray, with a number of cores: every actor that has a place is ready at once."""

    def __init__(self, cpus: int) -> None:
        self.cpus = cpus
        self.actors: dict[str, Actor] = {}
        self.refs: dict[object, Any] = {}
        self.silent: set[str] = set()
        """Workers that do not answer for now."""
        self.util = SimpleNamespace(list_named_actors=lambda: [n for n, a in self.actors.items() if a.alive])

    @property
    def places(self) -> float:
        held = (a.spec.num_cpus for a in self.actors.values() if a.alive and a.placed)
        return self.cpus - sum(held)

    def init(self, **_: Any) -> None:
        pass

    def nodes(self) -> list[dict[str, Any]]:
        return [{"Alive": True, "NodeManagerAddress": "a", "Resources": {"CPU": float(self.cpus)}}]

    def cluster_resources(self) -> dict[str, float]:
        return {"CPU": float(self.cpus)}

    def available_resources(self) -> dict[str, float]:
        return {"CPU": float(max(0, self.places))}

    def start_worker(self, spec: WorkerSpec) -> Actor:
        self.actors[spec.name] = Actor(self, spec)
        return self.actors[spec.name]

    def kill(self, actor: Actor) -> None:
        actor.alive = False
        for other in self.actors.values():
            if other.alive and not other.placed and self.places >= other.spec.num_cpus:
                other.placed = True

    def wait(self, refs: list[object], **_: Any) -> tuple[list[object], list[object]]:
        answered = [r for r in refs if self.refs[r][1] not in ("events", "submit")]
        return [r for r in answered if (a := self.refs[r][0]).placed and a.spec.name not in self.silent], []

    def get(self, ref: object) -> Any:
        actor, method, arguments = self.refs.pop(ref)
        return actor.answer(method, arguments)

    def stage_of(self, actor: Actor) -> WorkerStage:
        return WorkerStage.READY if actor.placed else WorkerStage.QUEUED

    def of(self, study_id: str | None) -> list[str]:
        """The workers that are a study's; None: that wait."""
        return [n for n, a in self.actors.items() if a.alive and a.placed and a.study_id == study_id]


class Clock:
    now = 1000.0

    def monotonic(self) -> float:
        return self.now


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    one = Clock()
    for module in (ray_workers, ray_calls, ray_resources):
        monkeypatch.setattr(module, "time", one)
    return one


@pytest.fixture
def cluster(monkeypatch: pytest.MonkeyPatch) -> Cluster:
    one = Cluster(2)
    for module in (ray_workers, ray_calls, ray_resources):
        monkeypatch.setattr(module, "ray", one)
    monkeypatch.setattr(ray_workers, "start_worker", one.start_worker)
    monkeypatch.setattr(ray_workers, "find_worker", one.actors.get)
    monkeypatch.setattr(ray_calls, "stage_of", one.stage_of)
    return one


def coordinator(per_node: int = 4) -> RayWorkers:
    return RayWorkers("address", orphan_timeout_s=1.0, pool=PoolLimits(per_node=per_node, keep_base_s=9.0))


def rounds(workers: RayWorkers, clock: Clock, number: int = 1) -> list[Delivery]:
    """Rounds in each of which the pool is looked after and all answers come."""
    workers._idle.set()
    said: list[Delivery] = []
    for _ in range(number):
        clock.now += ray_workers.LOOK_SECONDS
        workers.keep_warm()
        said += workers.poll(0.0)
    return said


def test_workers_wait_before_anybody_asks_and_a_study_gets_them(cluster: Cluster, clock: Clock) -> None:
    workers = coordinator()
    assert rounds(workers, clock, 2) == []
    waiting = cluster.of(None)
    assert len(waiting) == 2
    taken = [workers.start("s", CORE, "base") for _ in range(workers.capacity_left(CORE))]
    assert sorted(taken) == sorted(waiting)
    said = rounds(workers, clock, 2)
    assert sorted(d.worker_id for d in said if isinstance(d, Ready)) == sorted(waiting)
    assert (sorted(cluster.of("s")), len(cluster.actors)) == (sorted(waiting), 2)


def test_one_that_is_given_back_waits_with_its_base(cluster: Cluster, clock: Clock) -> None:
    workers = coordinator()
    rounds(workers, clock, 2)
    first = workers.start("s", CORE, "base")
    rounds(workers, clock)
    cluster.actors[first].base = "base"
    workers.release(first)
    assert workers.capacity_left(CORE) == 1  # until it has said that it waits
    rounds(workers, clock)
    assert workers.capacity_left(CORE) == 2
    assert workers.start("t", CORE, "base") == first


def test_one_that_is_of_no_use_to_another_study_is_replaced(cluster: Cluster, clock: Clock) -> None:
    workers = coordinator()
    rounds(workers, clock, 2)
    first = workers.start("s", CORE, "base")
    rounds(workers, clock)
    cluster.actors[first].reusable = False
    workers.release(first)
    rounds(workers, clock, 3)
    assert not cluster.actors[first].alive
    assert len(cluster.of(None)) == 2


def test_without_a_pool_workers_end_with_their_study(cluster: Cluster, clock: Clock) -> None:
    workers = coordinator(per_node=0)
    rounds(workers, clock, 2)
    assert cluster.actors == {}
    only = workers.start("s", CORE, "base")
    rounds(workers, clock)
    workers.release(only)
    assert not cluster.actors[only].alive


def test_waiting_workers_make_room_for_another_shape(cluster: Cluster, clock: Clock) -> None:
    workers = coordinator()
    rounds(workers, clock, 2)
    assert workers.capacity_left(TWO) == 1
    large = workers.start("s", TWO, "base")
    said = rounds(workers, clock)
    assert [d.worker_id for d in said] == [large]
    assert (cluster.of(None), cluster.of("s")) == ([], [large])


def test_waiting_workers_make_room_for_another_coordinators_study(cluster: Cluster, clock: Clock) -> None:
    """Which counts only its own workers, and waits in Ray's queue."""
    ours = coordinator()
    rounds(ours, clock, 2)
    theirs = cluster.start_worker(
        WorkerSpec(
            name="worker-large",
            num_cpus=2.0,
            num_gpus=0.0,
            orphan_timeout_s=1.0,
            training_silence_s=1.0,
            loading_silence_s=1.0,
            study_id="t",
        )
    )
    assert not theirs.placed
    rounds(ours, clock, 10)
    assert theirs.placed
    assert (cluster.of("t"), cluster.of(None)) == (["worker-large"], [])


def test_two_coordinators_share_a_pool_and_never_take_the_same_worker(cluster: Cluster, clock: Clock) -> None:
    one, other = coordinator(), coordinator()
    rounds(one, clock, 2)
    rounds(other, clock, 2)
    assert len(cluster.actors) == 2
    mine = one.start("s", CORE, "base")
    theirs = other.start("t", CORE, "base")
    assert mine == theirs  # neither knows of the other
    assert [type(d) for d in rounds(one, clock)] == [Ready]
    [gone] = [d for d in rounds(other, clock) if not isinstance(d, Found)]
    assert isinstance(gone, Gone)
    assert gone.cause is LossCause.NEVER_ARRIVED
    assert cluster.of("s") == [mine]
    assert other.start("t", CORE, "base") != mine


def test_one_that_waited_may_be_busy_for_another_coordinators_study(cluster: Cluster, clock: Clock) -> None:
    """Its own coordinator knows whether it loads something or hangs; nobody else ends it before it must be
    ready in any case."""
    one, other = coordinator(), coordinator()
    rounds(one, clock, 2)
    rounds(other, clock, 2)
    taken = other.start("t", CORE, "base")
    cluster.silent.add(taken)  # before it could tell the first one
    limits = SilenceLimits()
    rounds(one, clock, int(limits.answer_s / ray_workers.LOOK_SECONDS) + 3)
    assert cluster.actors[taken].alive
    rounds(one, clock, int(limits.loading_s / ray_workers.LOOK_SECONDS) + 3)
    assert not cluster.actors[taken].alive


def test_a_successor_finds_those_that_wait_and_those_assigned(cluster: Cluster, clock: Clock) -> None:
    dead = coordinator()
    rounds(dead, clock, 2)
    assigned = dead.start("s", CORE, "base")  # and it died before it had sent an order
    rounds(dead, clock)
    successor = coordinator()
    said = rounds(successor, clock, 2)
    assert Found(worker_id=assigned, study_id="s") in said
    assert successor.attach("s", CORE, [assigned]) == (assigned,)
    assert [type(d) for d in rounds(successor, clock)] == [Ready]
    assert successor.start("s", CORE, "base") in cluster.actors
    assert len(cluster.actors) == 2


def test_a_worker_that_was_given_to_another_study_meanwhile_is_not_attached(
    cluster: Cluster, clock: Clock
) -> None:
    dead = coordinator()
    rounds(dead, clock, 2)
    taken = dead.start("s", CORE, "base")
    rounds(dead, clock)
    cluster.actors[taken].study_id = "t"
    successor = coordinator()
    assert successor.attach("s", CORE, [taken]) == (taken,)
    [gone] = [d for d in rounds(successor, clock) if not isinstance(d, Found)]
    assert isinstance(gone, Gone)
    assert gone.cause is LossCause.NEVER_ARRIVED
    assert cluster.actors[taken].alive


def test_waiting_workers_that_die_are_replaced_ever_more_seldom(cluster: Cluster, clock: Clock) -> None:
    workers = coordinator()
    rounds(workers, clock, 2)
    for worker_id in cluster.of(None):
        cluster.actors[worker_id].alive = False
    assert rounds(workers, clock, 3) != []
    assert len(cluster.of(None)) == 2

    real = cluster.start_worker

    def broken(spec: WorkerSpec) -> Actor:
        actor = real(spec)
        actor.alive = False
        return actor

    ray_workers.start_worker = broken  # put back by the fixture's monkeypatch
    for worker_id in cluster.of(None):
        cluster.actors[worker_id].alive = False
    before = len(cluster.actors)
    rounds(workers, clock, 100)
    assert 2 < len(cluster.actors) - before < 20
