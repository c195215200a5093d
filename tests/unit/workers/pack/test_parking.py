"""Trials that do not fit beside each other wait for one another, and end as if each had been alone."""

from __future__ import annotations

import errno
import json
import math
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from search_spaces.recipe import Recipe
from tests.support.workers.packs import LATENCY_BOUND, Device, Recorder, assert_equal_trials, with_costs
from tests.support.workers.trials import data_spec, of_type, trial_order
from workers.contract import (
    Decision,
    OutcomeStatus,
    PackCapacity,
    Progress,
    TrialOrder,
    TrialOutcome,
    TrialStarted,
    Verdict,
)
from workers.data.batches import MicroBatch
from workers.pack import attempt
from workers.training.trial_run import DueStep, TrialRun

# PEFT 0.21 reads a property that transformers 5.23 renamed; it does so whenever it wraps a model.
pytestmark = pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing` is deprecated:FutureWarning")

ROOM = 70_000
"""Beside the adapters: a row of up to 70 tokens can be evaluated, but none of 24 or more trained on."""


def order(folder: Path, base_dir: Path, number: int, *, rank: int, **fields: Any) -> TrialOrder:
    """Rows of data are of 30 tokens and more."""
    recipe = Recipe(learning_rate=1e-2, batch_size=4, lora_r=rank, lora_dropout=0.1, seed=number)
    return trial_order(folder, base_dir, attempt_id=number, recipe=recipe, every_examples=8, **fields)


def beside(*ranks: int) -> float:
    """A limit under which adapters of these ranks fit together, but cannot train."""
    return sum(ranks) * Device.RANK_BYTES + ROOM


@pytest.mark.parametrize("slots", [4, None], ids=["fixed", "measured"])
def test_trials_that_do_not_fit_together_wait_for_one_another(
    tmp_path: Path, tiny_base_dir: Path, monkeypatch: pytest.MonkeyPatch, slots: int | None
) -> None:
    with_costs(monkeypatch, LATENCY_BOUND)
    orders = [order(tmp_path, tiny_base_dir, n, rank=r) for n, r in enumerate((4, 4, 8, 16), start=1)]
    recorder = Recorder(slots)
    for each in orders:
        recorder.pack.admit(each)
    recorder.run_until(lambda: all(recorder.of(each.attempt_id, Progress) for each in orders))
    device = Device.installed(monkeypatch, limit_bytes=beside(4, 4, 8, 16))
    recorder.run_until(lambda: recorder.pack.slots == 1)
    assert set(recorder.pack.running_attempts) == {1, 2, 3, 4}
    assert recorder.pack.accepts(order(tmp_path, tiny_base_dir, 5, rank=2)) is False
    told = of_type(recorder.events, PackCapacity)[-1]
    assert told.slots == 1
    assert "out of memory training at micro-batch 1" in told.reason
    assert "beside 3 other trials, which now wait" in told.reason
    recorder.run()
    assert recorder.pack.slots > 1
    assert len(of_type(recorder.events, TrialStarted)) == 4
    device.limit_bytes = math.inf
    for each in orders:
        assert_equal_trials(recorder, each)


def test_a_trial_that_does_not_fit_when_it_comes_waits_and_the_others_go_on(
    tmp_path: Path, tiny_base_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    small, other, large = (order(tmp_path, tiny_base_dir, n, rank=r) for n, r in ((1, 4), (2, 4), (3, 64)))
    recorder = Recorder(slots=3)
    device = Device.installed(monkeypatch, limit_bytes=64 * Device.RANK_BYTES + 150_000)
    for each in (small, other, large):
        recorder.pack.admit(each)
    assert recorder.pack.slots == 2
    assert recorder.pack.running_attempts == (1, 2, 3)
    assert "2 at a time: " in of_type(recorder.events, PackCapacity)[-1].reason
    recorder.run()
    kinds = [(event.attempt_id, type(event)) for event in recorder.events if type(event) is not PackCapacity]
    started = kinds.index((3, TrialStarted))
    assert all(kinds.index((number, TrialOutcome)) < started for number in (1, 2))
    device.limit_bytes = math.inf
    for each in (small, other, large):
        assert_equal_trials(recorder, each)
    recorder.pack.admit(order(tmp_path, tiny_base_dir, 4, rank=4))
    assert recorder.pack.slots == 3  # the large one limits the pack no longer than it is there


def test_an_evaluation_that_does_not_fit_beside_the_others_waits_for_room(
    tmp_path: Path, tiny_base_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    train = tmp_path / "short.jsonl"
    train.write_text("".join(json.dumps({"prompt": "a", "completion": f" {n}"}) + "\n" for n in range(16)))
    data = data_spec(tmp_path).model_copy(update={"train": str(train)})
    orders = [order(tmp_path, tiny_base_dir, n, rank=4 * n, data=data) for n in (1, 2, 3)]
    recorder = Recorder(slots=3)
    for each in orders:
        recorder.pack.admit(each)
    device = Device.installed(monkeypatch, limit_bytes=sum((4, 8, 12)) * Device.RANK_BYTES + 20_000)
    recorder.run_until(lambda: recorder.pack.slots == 1)
    assert "out of memory evaluating one example" in of_type(recorder.events, PackCapacity)[-1].reason
    recorder.run()
    device.limit_bytes = math.inf
    for each in orders:
        assert_equal_trials(recorder, each)


@pytest.mark.parametrize("slots", [3, None], ids=["fixed", "measured"])
def test_one_that_fits_nowhere_ends_out_of_memory_and_takes_no_slot_with_it(
    tmp_path: Path, tiny_base_dir: Path, monkeypatch: pytest.MonkeyPatch, slots: int | None
) -> None:
    with_costs(monkeypatch, LATENCY_BOUND)
    recorder = Recorder(slots)
    fitting = [order(tmp_path, tiny_base_dir, n, rank=4) for n in (1, 2)]
    huge = order(tmp_path, tiny_base_dir, 3, rank=64)
    device = Device.installed(monkeypatch, limit_bytes=32 * Device.RANK_BYTES + 200_000)
    for each in (*fitting, huge):
        recorder.pack.admit(each)
    slots_before = of_type(recorder.events, PackCapacity)[0].slots if slots is None else slots
    recorder.run()
    outcome = recorder.outcomes()[3]
    assert outcome.status is OutcomeStatus.OUT_OF_MEMORY
    assert outcome.reason.startswith("Out of memory evaluating one example of ")
    assert recorder.of(3, TrialStarted) == []
    again = [order(tmp_path, tiny_base_dir, n, rank=4) for n in (4, 5)]
    recorder.pack.admit(again[0])
    assert recorder.pack.slots == slots_before
    recorder.run(again[1])
    device.limit_bytes = math.inf
    for each in (*fitting, *again):
        assert_equal_trials(recorder, each)


def test_a_trial_that_outgrows_the_device_ends_alone_and_the_others_go_on(
    tmp_path: Path, tiny_base_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    large = order(tmp_path, tiny_base_dir, 1, rank=32)
    others = [order(tmp_path, tiny_base_dir, n, rank=4) for n in (2, 3)]
    recorder = Recorder(slots=3)
    for each in (large, *others):
        recorder.pack.admit(each)
    recorder.run_until(lambda: recorder.pack.running_attempts[0] == 1)
    device = Device.installed(monkeypatch, limit_bytes=beside(32))
    recorder.run()
    outcome = recorder.outcomes()[1]
    assert outcome.status is OutcomeStatus.OUT_OF_MEMORY
    assert outcome.reason.startswith("Out of memory training at micro-batch 1, on an example of ")
    assert "with LoRA rank 32 (65,536 trainable parameters) beside the base" in outcome.reason
    assert recorder.pack.slots == 3
    device.limit_bytes = math.inf
    for each in others:
        assert_equal_trials(recorder, each)


def test_a_step_that_does_not_fit_beside_the_others_waits_and_is_done_again(
    tmp_path: Path, tiny_base_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse_in_company(run: TrialRun, norm: float) -> DueStep:
        steps = recorder.of(2, Progress)
        if (
            run.adapter.trainable_parameters == 8 * 2_048
            and len(steps) == 2
            and len(recorder.pack._running) > 1
        ):
            raise torch.OutOfMemoryError("Tried to allocate 20.00 MiB")
        return due(run, norm)

    orders = [order(tmp_path, tiny_base_dir, n, rank=r) for n, r in ((1, 4), (2, 8), (3, 4))]
    recorder = Recorder(slots=3)
    due = TrialRun._due
    monkeypatch.setattr(TrialRun, "_due", refuse_in_company)
    recorder.run(*orders)
    told = of_type(recorder.events, PackCapacity)
    assert (told[0].slots, told[0].reason) == (
        2,
        "2 at a time: out of memory outside a forward pass: Tried to allocate 20.00 MiB",
    )
    assert len(recorder.of(2, TrialStarted)) == 1
    for each in orders:
        assert_equal_trials(recorder, each, repeats=True)


def test_a_trial_that_waited_and_finds_no_checkpoint_says_that_it_begins_again(
    tmp_path: Path, tiny_base_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    orders = [order(tmp_path, tiny_base_dir, n, rank=r) for n, r in ((1, 4), (2, 8))]
    checkpoint = Path(orders[1].artifact_dir) / "checkpoint"

    def refuse_in_company(run: TrialRun, norm: float) -> DueStep:
        steps = recorder.of(2, Progress)
        if (
            run.adapter.trainable_parameters == 8 * 2_048
            and len(steps) == 2
            and len(recorder.pack._running) > 1
        ):
            shutil.rmtree(checkpoint)
            raise torch.OutOfMemoryError("Tried to allocate 20.00 MiB")
        return due(run, norm)

    recorder = Recorder(slots=2)
    due = TrialRun._due
    monkeypatch.setattr(TrialRun, "_due", refuse_in_company)
    recorder.run(*orders)
    _, again = recorder.of(2, TrialStarted)
    assert again.resumed_at_examples == 0
    assert [(passed.folder, passed.missing) for passed in again.passed_over] == [(str(checkpoint), True)]
    assert recorder.outcomes()[2].status is OutcomeStatus.COMPLETED


def test_a_verdict_reaches_a_trial_that_waits(
    tmp_path: Path, tiny_base_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    orders = [order(tmp_path, tiny_base_dir, n, rank=4) for n in (1, 2, 3)]
    recorder = Recorder(slots=3)
    for each in orders:
        recorder.pack.admit(each)
    recorder.run_until(lambda: all(recorder.of(each.attempt_id, Progress) for each in orders))
    device = Device.installed(monkeypatch, limit_bytes=beside(4, 4, 4))
    recorder.run_until(lambda: recorder.pack.slots == 1)
    running, pruned, cancelled = recorder.pack.running_attempts
    steps = len(recorder.of(pruned, Progress))
    folders = [Path(orders[number - 1].artifact_dir) / "checkpoint" for number in (pruned, cancelled)]
    assert all(folder.exists() for folder in folders)
    recorder.pack.apply(Verdict(attempt_id=pruned, decision=Decision.PRUNE, reason="below the median"))
    recorder.pack.apply(Verdict(attempt_id=cancelled, decision=Decision.STOP, reason="deadline"))
    recorder.pack.step()
    outcomes = recorder.outcomes()
    assert (outcomes[pruned].status, outcomes[pruned].reason) == (OutcomeStatus.PRUNED, "below the median")
    assert (outcomes[pruned].steps, outcomes[pruned].examples_seen) == (steps, 4 * steps)
    assert (outcomes[cancelled].status, outcomes[cancelled].reason) == (OutcomeStatus.CANCELLED, "deadline")
    assert recorder.pack.running_attempts == (running,)
    assert not any(folder.exists() for folder in folders)
    recorder.run()
    device.limit_bytes = math.inf
    assert_equal_trials(recorder, orders[running - 1])


def test_a_full_disk_does_not_keep_trials_from_waiting(
    tmp_path: Path, tiny_base_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*args: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    orders = [order(tmp_path, tiny_base_dir, n, rank=4) for n in (1, 2, 3)]
    recorder = Recorder(slots=3)
    for each in orders:
        recorder.pack.admit(each)
    recorder.run_until(lambda: all(len(recorder.of(each.attempt_id, Progress)) > 2 for each in orders))
    device = Device.installed(monkeypatch, limit_bytes=beside(4, 4, 4))
    monkeypatch.setattr(attempt, "write_checkpoint", full)
    recorder.run()
    assert of_type(recorder.events, PackCapacity)[0].slots == 1
    device.limit_bytes = math.inf
    for each in orders:
        assert_equal_trials(recorder, each, repeats=True)


def test_checkpoints_of_earlier_attempts_are_forgotten_though_the_trial_has_waited(
    tmp_path: Path, tiny_base_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    earlier = [tmp_path / f"earlier-{number}" for number in (1, 2)]
    orders = [order(tmp_path, tiny_base_dir, n, rank=4) for n in (1, 2)]
    recorder = Recorder(slots=2)
    for each, folder in zip(orders, earlier, strict=True):
        folder.mkdir()
        recorder.pack.admit(replace(each, resume_from=(str(folder),)))
    Device.installed(monkeypatch, limit_bytes=beside(4, 4))
    recorder.run()
    assert of_type(recorder.events, PackCapacity)[0].slots == 1
    assert not any(folder.exists() for folder in earlier)
    assert not any((Path(each.artifact_dir) / "checkpoint").exists() for each in orders)


def test_trials_that_are_taken_apart_for_a_fault_may_run_out_of_memory_too(
    tmp_path: Path, tiny_base_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse_shared_passes(batch: MicroBatch, trained: bool) -> None:
        if trained and batch.rows > 1:
            raise ArithmeticError("too much for one pass")

    orders = [order(tmp_path, tiny_base_dir, n, rank=4, micro_batch_size=1) for n in (1, 2, 3)]
    recorder = Recorder(slots=3)
    for each in orders:
        recorder.pack.admit(each)
    # Room for a pass of three rows is asked for first, so the fault comes before the lack of memory.
    device = Device.installed(monkeypatch)
    device.fault = refuse_shared_passes
    limits = iter([math.inf])

    def needed(*args: Any, **kwargs: Any) -> float:
        device.limit_bytes = next(limits, beside(4, 4, 4))
        return Device.needed(device, *args, **kwargs)

    monkeypatch.setattr(device, "needed", needed)
    recorder.run_until(lambda: recorder.pack.slots == 1)
    recorder.run()
    monkeypatch.undo()
    for each in orders:
        assert_equal_trials(recorder, each)
