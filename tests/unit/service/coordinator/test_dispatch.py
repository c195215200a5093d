"""How `RayWorkers` reads Ray's answers, with Ray itself replaced: its failures cannot be made to order."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
from ray.exceptions import ActorUnavailableError

from service.coordinator import dispatch
from service.coordinator.dispatch import Delivered, Delivery, Gone, RayWorkers, WorkerShape


class FakeRay:
    """Answers in the order given; an exception among them is raised."""

    def __init__(self) -> None:
        self.answers: dict[object, Any] = {}
        self.asked: list[tuple[Any, ...]] = []
        self.util = SimpleNamespace(list_named_actors=lambda: ["worker-s-1"])

    def init(self, **options: Any) -> None:
        pass

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
    monkeypatch.setattr(dispatch, "ray", fake)
    monkeypatch.setattr(dispatch, "find_worker", lambda name: handle)
    return fake


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    one = Clock()
    monkeypatch.setattr(dispatch, "time", one)
    return one


def unreachable() -> ActorUnavailableError:
    return ActorUnavailableError("the node does not answer", b"\0" * 16)


def listening(ray: FakeRay) -> RayWorkers:
    """Workers with one call of `events` under way."""
    workers = RayWorkers("address", orphan_timeout_s=1.0)
    workers.attach("s", WorkerShape(num_cpus=1.0, num_gpus=0.0))
    workers._calls.clear()
    workers.acknowledge("worker-s-1", 7)
    return workers


def fail_last_call(ray: FakeRay, workers: RayWorkers) -> list[Delivery]:
    [ref] = workers._calls
    ray.answers[ref] = unreachable()
    return workers.poll(0.0)


def test_an_unreachable_worker_is_asked_the_same_again_after_a_pause(ray: FakeRay, clock: Clock) -> None:
    workers = listening(ray)
    asked = list(ray.asked)
    assert fail_last_call(ray, workers) == []
    assert ray.asked == asked
    clock.now += dispatch.RETRY_SECONDS
    workers._idle.set()
    assert workers.poll(0.0) == []
    assert ray.asked == [*asked, asked[-1]]


def test_a_worker_that_stays_unreachable_is_given_up(ray: FakeRay, clock: Clock) -> None:
    workers = listening(ray)
    workers._idle.set()
    deliveries = fail_last_call(ray, workers)
    while not deliveries:
        clock.now += dispatch.RETRY_SECONDS
        workers.poll(0.0)
        deliveries = fail_last_call(ray, workers)
    assert deliveries == [Gone(worker_id="worker-s-1", reason="unreachable for 60 s")]


def test_an_answer_ends_the_silence(ray: FakeRay, clock: Clock) -> None:
    workers = listening(ray)
    workers._idle.set()
    fail_last_call(ray, workers)
    clock.now += dispatch.SILENCE_SECONDS
    workers.poll(0.0)
    [ref] = workers._calls
    ray.answers[ref] = ()
    assert workers.poll(0.0) == [Delivered(worker_id="worker-s-1", events=())]
    workers.acknowledge("worker-s-1", 7)
    assert fail_last_call(ray, workers) == []
