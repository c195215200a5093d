"""Trials that train together: each as if alone, each with one outcome, slots taken as they fall free."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from safetensors.torch import load_file, save_file

from search_spaces.definition import DataSpec
from search_spaces.recipe import Recipe
from tests.support.workers.models import TURN, build_tiny_base
from tests.support.workers.packs import LATENCY_BOUND, Device, Recorder, assert_equal_trials, with_costs
from tests.support.workers.trials import data_spec, of_type, trial_order
from workers.contract import (
    Decision,
    OutcomeStatus,
    PackCapacity,
    Preparing,
    Report,
    TrialOrder,
    TrialOutcome,
    TrialStarted,
    Verdict,
)
from workers.data.batches import MicroBatch, epoch_order
from workers.pack.attempt import Attempt
from workers.pack.learned_costs import LearnedCosts
from workers.training import optimizers
from workers.training.objectives.language import Totals

# PEFT 0.21 reads a property that transformers 5.23 renamed; it does so whenever it wraps a model.
pytestmark = pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing` is deprecated:FutureWarning")

MIXED = (
    Recipe(learning_rate=1e-2, batch_size=4, lora_r=2, lora_dropout=0.2, seed=1),
    Recipe(learning_rate=3e-3, batch_size=8, epochs=2, lora_r=8, weight_decay=0.1, seed=2),
    Recipe(learning_rate=5e-3, batch_size=1, lora_r=4, lora_dropout=0.1, lr_scheduler="constant", seed=3),
    Recipe(learning_rate=1e-2, batch_size=24, epochs=3, lora_r=16, target_modules="attention", seed=4),
)
POISON_ID = 2
"""The token of `TURN`, which no other row holds."""


@pytest.fixture
def orders(tmp_path: Path, tiny_base_dir: Path) -> list[TrialOrder]:
    """One for each mixed recipe."""
    return [
        trial_order(tmp_path, tiny_base_dir, attempt_id=number, every_examples=8, recipe=recipe)
        for number, recipe in enumerate(MIXED, start=1)
    ]


def poisoned(folder: Path, *, poison_at: int = 20) -> DataSpec:
    """Train data of 24 rows, of which one holds a token that no other data holds."""
    spec = data_spec(folder)
    lines = Path(str(spec.train)).read_text().splitlines()
    lines[poison_at] = json.dumps({"prompt": TURN, "completion": "on"})
    file = folder / "poisoned.jsonl"
    file.write_text("\n".join(lines) + "\n")
    return spec.model_copy(update={"train": str(file)})


def test_trials_train_together_as_each_would_train_alone(orders: list[TrialOrder]) -> None:
    together = Recorder(slots=4)
    together.run(*orders)
    for order in orders:
        assert_equal_trials(together, order)


def test_a_slot_that_is_freed_is_taken_at_once_and_nobody_else_notices(orders: list[TrialOrder]) -> None:
    together = Recorder(slots=3)
    long, middle, late = orders[1], orders[2], orders[3]
    short = replace(orders[0], recipe=MIXED[0].model_copy(update={"epochs": 0.25}))
    for order in (long, short, middle):
        together.pack.admit(order)
    assert together.pack.accepts(late) is False
    together.run_until(lambda: bool(together.of(short.attempt_id, TrialOutcome)))
    assert together.pack.accepts(late) is True
    together.pack.admit(late)
    assert set(together.pack.running_attempts) == {long.attempt_id, middle.attempt_id, late.attempt_id}
    together.run()
    for order in (long, short, middle, late):
        assert_equal_trials(together, order)


def test_evaluations_that_fall_due_together_run_together(
    tmp_path: Path, tiny_base_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    data = data_spec(tmp_path, train_rows=8, eval_rows=4)
    recipe = Recipe(learning_rate=1e-2, batch_size=4, lora_r=2)

    def evaluations(trials: int) -> list[int]:
        """Rows of each evaluation pass of so many trials with the same rungs."""
        recorder = Recorder(slots=trials)
        for number in range(trials):
            some = recipe.model_copy(update={"seed": number, "lora_r": 2 + number})
            recorder.pack.admit(
                trial_order(
                    tmp_path, tiny_base_dir, attempt_id=number, recipe=some, data=data, every_examples=4
                )
            )
        with monkeypatch.context() as patch:
            device = Device.installed(patch)
            recorder.run()
        return [one.rows for one in device.of_kind(trained=False)]

    assert evaluations(1) == [4, 4]
    assert evaluations(3) == [12, 12]


def test_trials_with_other_eval_data_are_evaluated_apart(
    tmp_path: Path, tiny_base_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    recorder = Recorder(slots=2)
    for number, rows in ((1, 3), (2, 5)):
        data = data_spec(tmp_path, train_rows=8, eval_rows=rows)
        recorder.pack.admit(
            trial_order(tmp_path, tiny_base_dir, attempt_id=number, study_id=f"study-{number}", data=data)
        )
    device = Device.installed(monkeypatch)
    recorder.run()
    assert sorted(one.rows for one in device.of_kind(trained=False)) == [3, 5]


def test_what_one_trial_brings_fails_that_trial_only(
    orders: list[TrialOrder], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    def refuse_poison(batch: MicroBatch, trained: bool) -> None:
        if trained and (batch.input_ids == POISON_ID).any():
            raise ArithmeticError("poisoned row")

    Device.installed(monkeypatch).fault = refuse_poison
    bad = replace(orders[1], attempt_id=9, study_id="other", data=poisoned(tmp_path))
    together = Recorder(slots=3)
    for order in (orders[0], bad, orders[2]):
        together.pack.admit(order)
    together.run()
    outcome = together.outcomes()[9]
    assert (outcome.status, outcome.reason) == (OutcomeStatus.FAILED, "ArithmeticError: poisoned row")
    assert outcome.fatal_to_study is False
    for order in (orders[0], orders[2]):
        assert_equal_trials(together, order)


def test_a_step_that_breaks_fails_that_trial_only(
    orders: list[TrialOrder], monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*args: Any, weight_decay: float, **options: Any) -> None:
        if weight_decay == MIXED[1].weight_decay:
            raise ArithmeticError("no step of this one")
        adamw(*args, weight_decay=weight_decay, **options)

    adamw = optimizers.adamw
    monkeypatch.setattr(optimizers, "adamw", refuse)
    together = Recorder(slots=3)
    together.run(*orders[:3])
    outcome = together.outcomes()[2]
    assert (outcome.status, outcome.reason) == (OutcomeStatus.FAILED, "ArithmeticError: no step of this one")
    for order in (orders[0], orders[2]):
        assert_equal_trials(together, order)


def test_an_evaluation_that_breaks_together_is_done_one_by_one(
    tmp_path: Path, tiny_base_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse_shared_evaluations(batch: MicroBatch, trained: bool) -> None:
        if not trained and batch.rows > 8:
            raise ArithmeticError("too much for one evaluation")

    def report(self: Attempt, totals: Totals, written: Sequence[str] | None) -> Report:
        if self.order.attempt_id == 2:
            raise ArithmeticError("no report of this one")
        return own_report(self, totals, written)

    own_report = Attempt.report
    recorder = Recorder(slots=3)
    for number in (1, 2, 3):
        recorder.pack.admit(trial_order(tmp_path, tiny_base_dir, attempt_id=number))
    Device.installed(monkeypatch).fault = refuse_shared_evaluations
    monkeypatch.setattr(Attempt, "report", report)
    recorder.run()
    assert {number: outcome.status for number, outcome in recorder.outcomes().items()} == {
        1: "completed",
        2: "failed",
        3: "completed",
    }
    assert recorder.outcomes()[2].reason == "ArithmeticError: no report of this one"


def test_a_trial_that_diverges_and_one_that_meets_a_bad_row_leave_the_others_alone(tmp_path: Path) -> None:
    folder = build_tiny_base(tmp_path / "base")
    tensors = load_file(folder / "model.safetensors")
    (embedding,) = (name for name in tensors if "embed_tokens" in name)
    tensors[embedding][POISON_ID] = float("nan")
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    orders = [
        trial_order(tmp_path, folder, attempt_id=number, every_examples=8, recipe=recipe)
        for number, recipe in enumerate(MIXED, start=1)
    ]
    wild = replace(orders[1], recipe=MIXED[1].model_copy(update={"learning_rate": 1e6}))
    # After the first rung, and among the examples that the start is measured on, which is then not finite.
    thirteenth = epoch_order(24, MIXED[2].seed, epoch=0)[12]
    bad = replace(orders[2], study_id="other", data=poisoned(tmp_path, poison_at=thirteenth))
    together = Recorder(slots=4)
    together.run(orders[0], wild, bad, orders[3])
    outcomes = together.outcomes()
    assert {number: outcome.status for number, outcome in outcomes.items()} == {
        1: "completed",
        2: "diverged",
        3: "diverged",
        4: "completed",
    }
    assert "train loss nan" in outcomes[3].reason
    assert [report.rung for report in together.of(3, Report)] == [8]
    for order in (orders[0], orders[3]):
        assert_equal_trials(together, order)


def test_every_order_has_one_outcome_and_it_is_the_attempts_last_event(
    tmp_path: Path, tiny_base_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def order(number: int, *, divergence_factor: float = 4.0, **fields: Any) -> TrialOrder:
        recipe = Recipe(batch_size=4, seed=number, **({"learning_rate": 1e-2, "lora_r": 2} | fields))
        return trial_order(
            tmp_path,
            tiny_base_dir,
            attempt_id=number,
            recipe=recipe,
            every_examples=8,
            divergence_factor=divergence_factor,
        )

    recorder = Recorder(slots=3)
    orders = [
        order(1),
        order(2, divergence_factor=1.001),  # its first batch is harder than most
        order(3, target_modules=("nothing",)),
        replace(order(4), data=data_spec(tmp_path).model_copy(update={"train": "gone.jsonl"}), study_id="b"),
        order(5, lora_r=400),
        order(6, epochs=1_000),
        order(7, epochs=1_000),
        order(8),
    ]
    device = Device.installed(monkeypatch)
    device.limit_bytes = 100 * Device.RANK_BYTES
    while orders or recorder.pack.running_attempts:
        while orders and recorder.pack.accepts(orders[0]):
            recorder.pack.admit(orders.pop(0))
        recorder.pack.step()
        for number, decision in ((6, Decision.PRUNE), (7, Decision.STOP)):
            if len(recorder.of(number, Report)) > 1:
                recorder.pack.apply(Verdict(attempt_id=number, decision=decision, reason="enough"))
    assert {number: str(outcome.status) for number, outcome in sorted(recorder.outcomes().items())} == {
        1: "completed",
        2: "diverged",
        3: "failed",
        4: "failed",
        5: "out_of_memory",
        6: "pruned",
        7: "cancelled",
        8: "completed",
    }
    last: dict[int, object] = {event.attempt_id: event for event in of_attempts(recorder.events)}
    assert {number: type(event) for number, event in last.items()} == dict.fromkeys(range(1, 9), TrialOutcome)


def of_attempts(events: Sequence[Any]) -> list[Any]:
    return [event for event in events if not isinstance(event, PackCapacity)]


def test_verdicts_reach_running_trials_and_not_ended_ones(orders: list[TrialOrder]) -> None:
    together = Recorder(slots=3)
    for order in orders[:3]:
        together.pack.admit(order)
    together.run_until(lambda: bool(together.of(1, TrialOutcome)))
    assert 2 in together.pack.running_attempts
    for number in (1, 2):
        together.pack.apply(Verdict(attempt_id=number, decision=Decision.PRUNE, reason="below the median"))
    together.run()
    outcomes = together.outcomes()
    assert {number: outcome.status for number, outcome in outcomes.items()} == {
        1: "completed",
        2: "pruned",
        3: "completed",
    }
    assert outcomes[2].reason == "below the median"
    assert outcomes[2].best_rung == min(together.of(2, Report), key=lambda r: r.metrics["eval_loss"]).rung
    assert_equal_trials(together, orders[2])


def test_a_pack_with_a_free_slot_refuses_another_base(tmp_path: Path, tiny_base_dir: Path) -> None:
    pack = Recorder(slots=2).pack
    pack.admit(trial_order(tmp_path, tiny_base_dir))
    assert pack.accepts(trial_order(tmp_path, tiny_base_dir, attempt_id=2)) is True
    assert pack.accepts(trial_order(tmp_path, tiny_base_dir, attempt_id=2, quantization="none")) is False


def test_a_pack_of_fixed_size_measures_nothing_and_announces_nothing(
    orders: list[TrialOrder], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(LearnedCosts, "learn", lambda *args, **kwargs: 1 / 0)
    together = Recorder(slots=2)
    together.run(*orders[:2])
    assert together.pack.slots == 2
    assert of_type(together.events, PackCapacity) == []
    assert [outcome.predicted_memory_bytes for outcome in together.outcomes().values()] == [None, None]


def test_a_pack_that_measures_announces_its_slots_with_the_first_trial(
    orders: list[TrialOrder], monkeypatch: pytest.MonkeyPatch
) -> None:
    with_costs(monkeypatch, LATENCY_BOUND, base_bytes=1_000)
    recorder = Recorder(slots=None)
    assert recorder.pack.slots == 1
    recorder.pack.admit(orders[0])
    started, announced = [event for event in recorder.events if not isinstance(event, Preparing)]
    assert isinstance(started, TrialStarted)
    assert isinstance(announced, PackCapacity)
    assert announced.slots == recorder.pack.slots > 4
    assert f"{announced.slots}" in announced.reason
    assert announced.predicted_bytes is not None
    assert announced.predicted_bytes > 1_000
    assert announced.measured_bytes is not None
    assert announced.measured_bytes > 0
    recorder.run(*orders[1:])
    outcomes = recorder.outcomes()
    assert outcomes[1].predicted_memory_bytes == announced.predicted_bytes
    assert all((outcome.predicted_memory_bytes or 0) > 1_000 for outcome in outcomes.values())
    for order in orders:
        assert_equal_trials(recorder, order)


def test_a_pack_that_learns_speaks_only_of_changes(
    tmp_path: Path, tiny_base_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with_costs(monkeypatch, LATENCY_BOUND)
    recorder = Recorder(slots=None)
    for number in (1, 2, 3):
        recorder.run(trial_order(tmp_path, tiny_base_dir, attempt_id=number))
    assert len(of_type(recorder.events, PackCapacity)) == 1


@pytest.mark.parametrize("most", [1, 2, 3])
def test_no_more_trials_are_wanted_than_the_order_allows(
    tmp_path: Path, tiny_base_dir: Path, monkeypatch: pytest.MonkeyPatch, most: int
) -> None:
    with_costs(monkeypatch, LATENCY_BOUND)
    recorder = Recorder(slots=None)
    orders = [
        replace(trial_order(tmp_path, tiny_base_dir, attempt_id=number), trials_per_worker=most)
        for number in range(1, 6)
    ]
    recorder.pack.admit(orders[0])
    assert recorder.pack.slots == most
    recorder.run(*orders[1:])
    running: set[int] = set()
    largest = 0
    for event in of_attempts(recorder.events):
        if isinstance(event, TrialStarted):
            running.add(event.attempt_id)
        elif isinstance(event, TrialOutcome):
            running.remove(event.attempt_id)
        largest = max(largest, len(running))
    assert largest == most
    assert all(outcome.status == "completed" for outcome in recorder.outcomes().values())


def test_costs_that_cannot_be_made_out_leave_the_pack_as_it_is_and_cost_no_trial(
    orders: list[TrialOrder], monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def broken(*args: object, **kwargs: object) -> None:
        raise ZeroDivisionError("somebody erred")

    monkeypatch.setattr(LearnedCosts, "present", broken)
    recorder = Recorder(slots=None)
    recorder.run(*orders[:2])
    assert [outcome.status for outcome in recorder.outcomes().values()] == ["completed", "completed"]
    assert recorder.pack.slots == 1
    assert "in broken" in caplog.text  # the traceback
