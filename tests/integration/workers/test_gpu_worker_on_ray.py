"""A worker as a detached Ray actor: found by name, driven through orders, events and verdicts."""

from __future__ import annotations

import os
import signal
import time
import uuid
from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import ray
from ray.exceptions import RayActorError, RaySystemError

from search_spaces.recipe import Recipe
from service.coordinator.cluster.deliveries import Delivered, Delivery, Gone, Ready
from service.coordinator.cluster.ray_workers import RayWorkers
from service.coordinator.cluster.silence import SilenceLimits
from service.coordinator.policy.placement import WorkerShape
from service.states import LossCause
from tests.support.waiting import wait_until
from tests.support.workers.packs import Recorder, assert_equal_trials
from tests.support.workers.trials import of_type, trial_order, worker_spec
from workers.actor.ray_actors import WorkerStage, find_worker, stage_of, start_worker
from workers.contract import (
    Decision,
    Event,
    OutcomeStatus,
    PackCapacity,
    Progress,
    Report,
    TrialOrder,
    TrialOutcome,
    TrialStarted,
    Verdict,
    WorkerInfo,
)

# Ray leaves its sockets and log files to the interpreter's end.
# And PEFT 0.21 reads a property that transformers 5.23 renamed, whenever it wraps a model.
pytestmark = [
    pytest.mark.filterwarnings("ignore::ResourceWarning"),
    pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing` is deprecated:FutureWarning"),
]

DEADLINE_S = 240.0  # a worker imports torch first, with the lowest priority of all processes


@pytest.fixture(scope="module")
def cluster() -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")
        ray.init(
            num_cpus=2,
            num_gpus=0,
            include_dashboard=False,
            log_to_driver=False,
            object_store_memory=80 * 2**20,
        )
        yield
        ray.shutdown()


@pytest.fixture
def worker(cluster: None) -> Iterator[Any]:
    name = f"worker-{uuid.uuid4().hex}"
    handle = start_worker(worker_spec(name))
    yield handle
    ray.kill(handle)


def follow(worker: Any, until: type, *, after: int = 0) -> tuple[list[Event], int]:
    """Long-polls, acknowledging as it goes, until an event of a type arrives."""
    seen: list[Event] = []
    deadline = time.monotonic() + DEADLINE_S
    while not of_type(seen, until):
        assert time.monotonic() < deadline
        for numbered in ray.get(worker.events.remote("study", after, timeout_s=2.0)):
            assert numbered.seq > after
            after = numbered.seq
            seen.append(numbered.event)
    return seen, after


def train_all(worker: Any, orders: Sequence[TrialOrder]) -> list[Event]:
    """Sends orders whenever they are taken, and follows their trials to the last outcome."""
    waiting, seen = list(orders), list[Event]()
    after, deadline = 0, time.monotonic() + DEADLINE_S
    while len(of_type(seen, TrialOutcome)) < len(orders):
        assert time.monotonic() < deadline
        while waiting and ray.get(worker.submit.remote(waiting[0])):
            waiting.pop(0)
        for numbered in ray.get(worker.events.remote("study", after, timeout_s=2.0)):
            after = numbered.seq
            seen.append(numbered.event)
    return seen


def test_two_orders_run_one_after_the_other_and_the_second_is_pruned(
    worker: Any, tmp_path: Path, tiny_base_dir: Path
) -> None:
    def lone_order(attempt_id: int, **fields: Any) -> TrialOrder:
        order = trial_order(tmp_path, tiny_base_dir, attempt_id=attempt_id, **fields)
        return replace(order, trials_per_worker=1)

    info: WorkerInfo = ray.get(worker.info.remote(), timeout=DEADLINE_S)
    assert (info.device, info.slots, info.free_slots, info.base) == ("cpu", 1, 1, None)
    assert find_worker(info.worker_id) == worker

    first = lone_order(1, every_examples=8)
    assert ray.get(worker.submit.remote(first)) is True
    seen, after = follow(worker, TrialOutcome)
    assert len(of_type(seen, TrialStarted)) == 1
    assert [report.rung for report in of_type(seen, Report)] == [8, 16, 24]
    (outcome,) = of_type(seen, TrialOutcome)
    assert (outcome.status, Path(outcome.best_adapter_dir or "").is_dir()) == (OutcomeStatus.COMPLETED, True)

    endless = Recipe(learning_rate=1e-3, batch_size=2, epochs=10_000, lora_r=2)
    second = lone_order(2, recipe=endless, every_examples=100)
    assert ray.get(worker.submit.remote(second)) is True
    # While it trains, the worker answers: another order has no place, and the same one is known.
    third = lone_order(3)
    assert ray.get([worker.submit.remote(third), worker.submit.remote(second)]) == [False, True]
    seen, after = follow(worker, Report, after=after)
    assert [p.attempt_id for p in of_type(seen, Progress)][-1] == 2
    verdict = Verdict(attempt_id=2, decision=Decision.PRUNE, reason="below the median at 100 examples")
    assert ray.get(worker.verdict.remote(verdict)) is True
    seen, after = follow(worker, TrialOutcome, after=after)
    (outcome,) = of_type(seen, TrialOutcome)
    assert (outcome.status, outcome.reason, outcome.value) == (
        OutcomeStatus.PRUNED,
        "below the median at 100 examples",
        None,
    )
    assert ray.get(worker.events.remote("study", after)) == ()
    assert ray.get(worker.info.remote()).free_slots == 1


def test_a_worker_trains_several_trials_at_once_as_each_would_train_alone(
    worker: Any, tmp_path: Path, tiny_base_dir: Path
) -> None:
    # A pass of one short row on a tiny base is nearly all fixed cost, so further trials pay anywhere.
    recipes = [
        Recipe(learning_rate=1e-2, batch_size=1, epochs=epochs, lora_r=rank, lora_dropout=0.1, seed=rank)
        for epochs, rank in ((10, 2), (1, 4), (2, 8))
    ]
    orders = [
        trial_order(tmp_path, tiny_base_dir, attempt_id=number, recipe=recipe, every_examples=8)
        for number, recipe in enumerate(recipes, start=1)
    ]
    together = Recorder()
    together.events = train_all(worker, orders)
    told = of_type(together.events, PackCapacity)[-1]
    info: WorkerInfo = ray.get(worker.info.remote())
    assert (info.slots, info.free_slots, info.running_attempts) == (told.slots, told.slots, ())
    assert info.newest_attempt == 3
    assert told.slots > 1
    kinds = [(event.attempt_id, type(event)) for event in together.events if type(event) is not PackCapacity]
    assert kinds.index((2, TrialStarted)) < kinds.index((1, TrialOutcome))
    for order in orders:
        assert_equal_trials(together, order, progress=False)


def test_events_that_were_not_acknowledged_are_there_for_the_next_coordinator(
    worker: Any, tmp_path: Path, tiny_base_dir: Path
) -> None:
    ray.get(worker.submit.remote(trial_order(tmp_path, tiny_base_dir)))
    follow(worker, TrialOutcome)
    # A new coordinator has read nothing; what the old one did acknowledge is gone, the outcome is not.
    successor = find_worker(ray.get(worker.info.remote()).worker_id)
    assert successor is not None
    events = ray.get(successor.events.remote("study", 0))
    assert type(events[-1].event) is TrialOutcome


@pytest.mark.usefixtures("cluster")
def test_nobody_has_that_name() -> None:
    assert find_worker("nobody") is None


@pytest.mark.usefixtures("cluster")
def test_shutdown_ends_the_process_and_frees_the_name() -> None:
    name = f"worker-{uuid.uuid4().hex}"
    worker = start_worker(worker_spec(name))
    assert ray.get(worker.shutdown.remote(), timeout=DEADLINE_S) is None
    assert_gone(name, worker)


@pytest.mark.usefixtures("cluster")
def test_a_worker_that_nobody_polls_ends_itself() -> None:
    name = f"worker-{uuid.uuid4().hex}"
    worker = start_worker(worker_spec(name, orphan_timeout_s=0.5))
    assert_gone(name, worker)


def assert_gone(name: str, worker: Any) -> None:
    """Waits until the actor is dead: its calls fail and its name is free."""
    wait_until(
        lambda: not is_alive(worker) and find_worker(name) is None,
        "the end of the worker",
        seconds=DEADLINE_S,
    )


def is_alive(worker: Any) -> bool:
    """Asks with `info`, because `events` would keep an orphan alive."""
    try:
        ray.get(worker.info.remote(), timeout=DEADLINE_S)
    except RayActorError:
        return False
    return True


def test_a_stopped_worker_is_noticed_killed_and_its_room_given_back(
    cluster: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(ray, "init", lambda **_: None)  # this process is connected already
    silence = SilenceLimits(answer_s=2.0, training_s=300.0, loading_s=DEADLINE_S)
    workers = RayWorkers("auto", orphan_timeout_s=600, silence=silence)
    shape = WorkerShape(num_cpus=1.0, num_gpus=0.0)
    study_id = uuid.uuid4().hex
    worker_id = workers.start(study_id, shape, "base")
    [ready] = _said(workers)
    assert isinstance(ready, Ready)
    workers.acknowledge(worker_id, 0)
    os.kill(ready.info.pid, signal.SIGSTOP)
    try:
        [gone] = _said(workers)
        assert isinstance(gone, Gone)
        assert (gone.worker_id, gone.cause) == (worker_id, LossCause.UNREACHABLE)
        assert gone.reason.startswith("it did not answer within ")
        second = workers.start(study_id, shape, "base")
        [ready_again] = _said(workers)
        assert isinstance(ready_again, Ready)
        assert ready_again.worker_id == second
        workers.stop(second)
        _wait_for_end(ready.info.pid)
    finally:
        with suppress(ProcessLookupError):
            os.kill(ready.info.pid, signal.SIGKILL)


def test_ray_says_how_far_it_has_come_with_a_worker(cluster: None) -> None:
    first, waiting = (
        start_worker(worker_spec(f"worker-{uuid.uuid4().hex}", num_cpus=cpus)) for cpus in (1, 99)
    )
    seen = {stage_of(first)}
    deadline = time.monotonic() + DEADLINE_S
    while WorkerStage.READY not in seen:
        assert time.monotonic() < deadline
        seen.add(stage_of(first))
    assert WorkerStage.STARTING in seen
    assert stage_of(waiting) is WorkerStage.QUEUED
    ray.kill(first)
    ray.kill(waiting)


def test_a_ray_whose_folder_was_removed_is_asked_for_no_worker(
    cluster: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(os.path, "isdir", lambda path: "session_" not in str(path))
    with pytest.raises(RaySystemError, match="was removed, so Ray starts no more processes"):
        start_worker(worker_spec(f"worker-{uuid.uuid4().hex}"))


def _said(workers: RayWorkers) -> list[Delivery]:
    """The next that is said of any worker, but for polls that come back empty."""
    deadline = time.monotonic() + DEADLINE_S
    while True:
        assert time.monotonic() < deadline
        said = workers.poll(0.5)
        for each in said:
            if isinstance(each, Delivered):
                workers.acknowledge(each.worker_id, 0)
        if others := [each for each in said if not isinstance(each, Delivered)]:
            return others


def _wait_for_end(pid: int) -> None:
    wait_until(lambda: not Path(f"/proc/{pid}").exists(), "the end of the process", seconds=DEADLINE_S)
