"""A learning-rate range test: the rates it goes through, the curve it leaves, and how it ends."""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from search_spaces.definition import ModelSpec
from search_spaces.recipe import Recipe
from tests.support.workers.packs import Recorder, assert_equal_trials
from tests.support.workers.trials import new_run, random_examples, trial_order
from workers.base.base_model import LoadedBase, load_base
from workers.contract import (
    Decision,
    OutcomeStatus,
    Progress,
    RateSweep,
    Report,
    TrialOrder,
    TrialOutcome,
    TrialStarted,
    Verdict,
)
from workers.lora.adapters import AdapterHost
from workers.pack import rate_sweep
from workers.pack.rate_sweep import SMOOTHING, RateSweepRun, sweep_rate
from workers.training.objectives.language import Totals
from workers.training.shared_pass import SharedPasses
from workers.training.trial_run import PassResult, TrialEndedError

# PEFT 0.21 reads a property that transformers 5.23 renamed; it does so whenever it wraps a model.
pytestmark = pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing` is deprecated:FutureWarning")

SWEEP = RateSweep(first=1e-5, last=1e-1, steps=25)
RECIPE = Recipe(
    learning_rate=7.0,  # which nobody uses
    batch_size=4,
    epochs=1,
    lora_r=4,
    lora_dropout=0.1,
    warmup_ratio=0.5,
    seed=3,
)
"""Six steps an epoch, so that a sweep goes over the data four times."""


@pytest.fixture
def order(tmp_path: Path, tiny_base_dir: Path) -> TrialOrder:
    order = trial_order(tmp_path, tiny_base_dir, recipe=RECIPE, every_examples=4)
    return replace(order, rate_sweep=SWEEP)


def finish(order: TrialOrder) -> tuple[Recorder, TrialOutcome]:
    recorder = Recorder()
    return recorder, recorder.outcome(order)


def untimed(outcome: TrialOutcome) -> TrialOutcome:
    """What does not depend on the attempt and the clock."""
    return replace(outcome, attempt_id=0, train_seconds=0.0, peak_memory_bytes=0)


def test_the_rates_rise_by_equal_factors_from_the_first_to_the_last() -> None:
    rates = [sweep_rate(RateSweep(first=1e-4, last=1.0, steps=5), step) for step in range(5)]
    assert rates == pytest.approx([1e-4, 1e-3, 1e-2, 1e-1, 1.0])
    assert sweep_rate(RateSweep(first=1e-4, last=1.0, steps=1), 0) == 1e-4


def test_a_sweep_leaves_a_curve_and_neither_reports_nor_adapters(order: TrialOrder) -> None:
    recorder, outcome = finish(order)
    (started,) = recorder.of(1, TrialStarted)
    assert (started.total_steps, started.total_examples) == (25, 100)
    assert outcome.status is OutcomeStatus.COMPLETED
    assert [rate for rate, _ in outcome.rate_curve] == [sweep_rate(SWEEP, step) for step in range(25)]
    progress = recorder.of(1, Progress)
    assert [(p.learning_rate, p.train_loss) for p in progress] == list(outcome.rate_curve[:-1])
    assert (outcome.steps, outcome.examples_seen) == (25, 100)
    assert outcome.reason.startswith("Swept the learning rate from 1e-05 to 0.1 in 25 steps; lowest")
    assert recorder.of(1, Report) == []
    assert outcome.eval_seconds == 0
    assert (outcome.best_rung, outcome.best_adapter_dir, outcome.last_adapter_dir) == (None, None, None)
    assert not any(file.is_file() for file in Path(order.artifact_dir).rglob("*"))


def test_its_value_is_the_lowest_smoothed_loss(order: TrialOrder, monkeypatch: pytest.MonkeyPatch) -> None:
    taken: list[tuple[float, int]] = []
    start: list[Totals] = []
    judge, init = RateSweepRun._judge, RateSweepRun.__init__

    def spy(self: RateSweepRun, loss_sum: float, tokens: int, rows: int) -> None:
        taken.append((loss_sum, tokens))
        judge(self, loss_sum, tokens, rows)

    def spy_init(self: RateSweepRun, *args: Any, **kwargs: Any) -> None:
        start.append(kwargs["start"])
        init(self, *args, **kwargs)

    monkeypatch.setattr(RateSweepRun, "_judge", spy)
    monkeypatch.setattr(RateSweepRun, "__init__", spy_init)
    _, outcome = finish(order)
    smoothed = []
    for step in range(1, len(taken) + 1):
        weights = [SMOOTHING ** (step - number) for number in range(step + 1)]
        terms = [(start[0].loss_sum, start[0].tokens), *taken[:step]]
        loss = sum(w * term[0] for w, term in zip(weights, terms, strict=True))
        tokens = sum(w * term[1] for w, term in zip(weights, terms, strict=True))
        smoothed.append(loss / tokens)
    assert outcome.value == pytest.approx(min(smoothed), rel=1e-9)
    assert outcome.value < smoothed[0]  # the loss fell on the way


def test_a_smoothed_loss_far_above_its_lowest_ends_the_sweep_completed(
    order: TrialOrder, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A tiny base is unsure of everything, so no rate makes its loss four times what it was."""
    monkeypatch.setattr(rate_sweep, "DIVERGED_ABOVE", 1.02)
    _, outcome = finish(replace(order, rate_sweep=RateSweep(first=1e-4, last=1e4, steps=40)))
    assert (outcome.status, outcome.steps) == (OutcomeStatus.COMPLETED, len(outcome.rate_curve) - 1)
    last = f"step {outcome.steps + 1} of 40, at learning rate {outcome.rate_curve[-1][0]:.3g}: "
    assert outcome.reason.startswith(f"The range test ended in {last}the smoothed train loss is ")
    assert outcome.reason.endswith(f", above 1.02 times its lowest, {outcome.value:.4g}.")
    assert 1 < outcome.steps < 39


@pytest.fixture(scope="module")
def base(tiny_base_dir: Path) -> LoadedBase:
    return load_base(ModelSpec(id=str(tiny_base_dir)), torch.device("cpu"))


@pytest.mark.parametrize(("loss", "norm"), [(math.nan, 1.0), (8.0, math.inf)])
@pytest.mark.parametrize("steps", [0, 3])
def test_what_is_not_finite_ends_a_sweep_and_is_not_in_its_curve(
    base: LoadedBase, loss: float, norm: float, steps: int
) -> None:
    examples = random_examples(12)
    host = AdapterHost(base)
    plain = new_run(host, RECIPE, examples)
    passes = SharedPasses(host, token_budget=1000)
    start = passes.measure_start(plain.adapter, examples)
    run = RateSweepRun(SWEEP, RECIPE, plain.adapter, examples, start=start)
    try:
        for _ in range(steps):
            passes.finish_batch(run)
        with pytest.raises(TrialEndedError, match=r"learning rate .*must be finite") as end:
            run.commit(run.waiting, PassResult(loss_sum=loss, norm=norm))
    finally:
        host.remove("trial")
    assert (len(run.curve), run.steps) == (steps, steps)
    assert end.value.status is (OutcomeStatus.COMPLETED if steps else OutcomeStatus.FAILED)
    assert ("failed before its first step" in end.value.reason) is not bool(steps)


def test_a_sweep_shares_a_pack_with_a_training_and_both_are_as_alone(
    order: TrialOrder, tmp_path: Path, tiny_base_dir: Path
) -> None:
    recipe = Recipe(learning_rate=1e-2, batch_size=8, epochs=2, lora_r=2, adam_epsilon=1e-4, seed=5)
    mate = trial_order(tmp_path, tiny_base_dir, attempt_id=2, recipe=recipe, every_examples=8)
    sound = RECIPE.model_copy(update={"adam_epsilon": 1e-4})
    order = replace(order, recipe=sound, rate_sweep=RateSweep(first=1e-5, last=1e-2, steps=25))
    together = Recorder(slots=2)
    together.run(order, mate)
    _, alone = finish(order)
    curve = together.outcomes()[1].rate_curve
    assert [rate for rate, _ in curve] == [rate for rate, _ in alone.rate_curve]
    assert [loss for _, loss in curve] == pytest.approx([loss for _, loss in alone.rate_curve], rel=1e-4)
    assert_equal_trials(together, mate)


def next_attempt(order: TrialOrder) -> TrialOrder:
    """The order that goes on from the tenth step of a worker that is heard of no more."""
    recorder = Recorder()
    recorder.pack.admit(order)
    recorder.run_until(lambda: len(recorder.of(1, Progress)) == 13)
    checkpoint = str(Path(order.artifact_dir) / "checkpoint")
    return replace(
        order, attempt_id=2, artifact_dir=f"{order.artifact_dir}-resumed", resume_from=(checkpoint,)
    )


def test_a_sweep_goes_on_from_its_checkpoint_to_the_bit(order: TrialOrder) -> None:
    _, expected = finish(replace(order, attempt_id=9, artifact_dir=f"{order.artifact_dir}-whole"))
    resumed = next_attempt(order)
    recorder, outcome = finish(resumed)
    assert recorder.of(2, TrialStarted)[0].resumed_at_examples == 40
    assert untimed(outcome) == untimed(expected)
    assert not Path(resumed.resume_from[0]).exists()


def test_a_checkpoint_of_another_sweep_is_not_gone_on_from(order: TrialOrder) -> None:
    recorder = Recorder()
    recorder.pack.admit(replace(next_attempt(order), rate_sweep=replace(SWEEP, last=1e-2)))
    assert recorder.of(2, TrialStarted)[0].resumed_at_examples == 0


def test_a_sweep_that_is_stopped_tells_the_curve_so_far(order: TrialOrder) -> None:
    recorder = Recorder()
    recorder.pack.admit(order)
    recorder.run_until(lambda: len(recorder.of(1, Progress)) == 3)
    recorder.pack.apply(Verdict(attempt_id=1, decision=Decision.STOP, reason="enough"))
    recorder.run()
    outcome = recorder.outcomes()[1]
    assert (outcome.status, outcome.value) == (OutcomeStatus.CANCELLED, None)
    assert len(outcome.rate_curve) == 3
