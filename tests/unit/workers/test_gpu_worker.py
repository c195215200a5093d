"""The worker's calls, on the plain class: idempotent orders, slots, verdicts, long polls."""

from __future__ import annotations

import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from search_spaces.recipe import Recipe
from tests.tiny_trials import of_type, trial_order
from workers import gpu_worker
from workers.contract import Decision, Event, OutcomeStatus, TrialOutcome, TrialStarted, Verdict
from workers.gpu_worker import GpuWorker

# PEFT 0.21 reads a property that transformers 5.23 renamed; it does so whenever it wraps a model.
pytestmark = pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing` is deprecated:FutureWarning")

DEADLINE_S = 60.0
LONG = Recipe(learning_rate=1e-3, batch_size=1, epochs=1000, lora_r=2)


@pytest.fixture
def ended(monkeypatch: pytest.MonkeyPatch) -> threading.Event:
    """Set in place of ending the process, with which the tests would end, too."""
    event = threading.Event()
    monkeypatch.setattr(gpu_worker, "_end_process", lambda status: event.set())
    return event


@pytest.fixture
def worker(ended: threading.Event) -> Iterator[GpuWorker]:
    worker = GpuWorker("w1", num_cpus=1, num_gpus=0, orphan_timeout_s=600)
    yield worker
    worker.shutdown()
    assert has_ended(worker, ended)


def has_ended(worker: GpuWorker, ended: threading.Event) -> bool:
    """Waits for the worker to end its process, and for its threads: none may outlive the fixture `ended`."""
    for thread in (worker._watching, worker._training):
        thread.join(DEADLINE_S)
        assert not thread.is_alive()
    return ended.is_set()


def follow(worker: GpuWorker, until: type) -> list[Event]:
    """Polls and acknowledges until an event of a type arrives."""
    seen: list[Event] = []
    after, deadline = 0, time.monotonic() + DEADLINE_S
    while not of_type(seen, until):
        assert time.monotonic() < deadline
        for numbered in worker.events(after, timeout_s=1.0):
            after = numbered.seq
            seen.append(numbered.event)
    return seen


def test_the_module_is_light_to_import() -> None:
    code = "import sys, workers.gpu_worker; print([m for m in ('torch', 'ray', 'peft') if m in sys.modules])"
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert found.stdout.strip() == "[]"


def test_an_order_is_trained_to_its_outcome_and_frees_the_slot(
    worker: GpuWorker, tmp_path: Path, tiny_base_dir: Path
) -> None:
    order = trial_order(tmp_path, tiny_base_dir)
    assert worker.submit(order) is True
    assert worker.info().free_slots == 0
    (outcome,) = of_type(follow(worker, TrialOutcome), TrialOutcome)
    assert outcome.status is OutcomeStatus.COMPLETED
    info = worker.info()
    assert (info.worker_id, info.device, info.slots, info.free_slots, info.running_attempts, info.base) == (
        "w1",
        "cpu",
        1,
        1,
        (),
        f"{tiny_base_dir} nf4",
    )


def test_the_same_attempt_again_is_accepted_and_changes_nothing(
    worker: GpuWorker, tmp_path: Path, tiny_base_dir: Path
) -> None:
    order = trial_order(tmp_path, tiny_base_dir)
    assert [worker.submit(order), worker.submit(order)] == [True, True]
    seen = follow(worker, TrialOutcome)
    assert worker.submit(order) is True
    assert worker.info().free_slots == 1
    assert len(of_type(seen, TrialStarted)) == 1


def test_an_order_without_a_free_slot_is_refused_and_a_verdict_frees_it(
    worker: GpuWorker, tmp_path: Path, tiny_base_dir: Path
) -> None:
    assert worker.submit(trial_order(tmp_path, tiny_base_dir, recipe=LONG)) is True
    second = trial_order(tmp_path, tiny_base_dir, attempt_id=2)
    assert worker.submit(second) is False
    follow(worker, TrialStarted)
    assert worker.verdict(Verdict(attempt_id=1, decision=Decision.PRUNE, reason="poor")) is True
    (outcome,) = of_type(follow(worker, TrialOutcome), TrialOutcome)
    assert (outcome.status, outcome.reason) == (OutcomeStatus.PRUNED, "poor")
    assert worker.verdict(Verdict(attempt_id=1, decision=Decision.STOP, reason="late")) is False
    assert worker.submit(second) is True


def test_a_verdict_that_comes_before_the_trial_has_started_counts(
    worker: GpuWorker, tmp_path: Path, tiny_base_dir: Path
) -> None:
    worker.submit(trial_order(tmp_path, tiny_base_dir, recipe=LONG))
    worker.verdict(Verdict(attempt_id=1, decision=Decision.STOP, reason="cancelled by a person"))
    (outcome,) = of_type(follow(worker, TrialOutcome), TrialOutcome)
    assert (outcome.status, outcome.reason) == (OutcomeStatus.CANCELLED, "cancelled by a person")


def test_a_worker_that_shuts_down_refuses_orders(
    worker: GpuWorker, tmp_path: Path, tiny_base_dir: Path
) -> None:
    worker.shutdown()
    assert worker.submit(trial_order(tmp_path, tiny_base_dir)) is False


def test_a_worker_that_nobody_polls_ends_itself(ended: threading.Event) -> None:
    worker = GpuWorker("orphan", num_cpus=1, num_gpus=0, orphan_timeout_s=0.1)
    assert has_ended(worker, ended)


def test_a_worker_that_is_polled_does_not_end_itself(ended: threading.Event) -> None:
    worker = GpuWorker("kept", num_cpus=1, num_gpus=0, orphan_timeout_s=1.0)
    deadline = time.monotonic() + 2.0
    while time.monotonic() < deadline:
        worker.events(0, timeout_s=0.2)
    assert not ended.is_set()
    worker.shutdown()
    assert has_ended(worker, ended)


def test_a_training_thread_that_breaks_ends_the_process(
    worker: GpuWorker,
    ended: threading.Event,
    tmp_path: Path,
    tiny_base_dir: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def broken(order: object) -> None:
        raise SystemError("the pack itself broke")

    monkeypatch.setattr(worker._pack, "admit", broken)
    worker.submit(trial_order(tmp_path, tiny_base_dir))
    assert ended.wait(DEADLINE_S)
