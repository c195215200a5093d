"""One trial: repeatable, transactional, honest about divergence and memory."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch

from search_spaces.definition import ModelSpec
from search_spaces.recipe import Recipe
from tests.tiny_trials import random_examples
from workers import forward, trial_run
from workers.adapters import AdapterHost
from workers.base_model import LoadedBase, load_base
from workers.batches import DataOrder
from workers.contract import OutcomeStatus
from workers.datasets import Example
from workers.evaluation import evaluate
from workers.trial_run import StepResult, TrialEndedError, TrialRun

# PEFT 0.21 reads a property that transformers 5.23 renamed; it does so whenever it wraps a model.
pytestmark = pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing` is deprecated:FutureWarning")

CPU = torch.device("cpu")
TRAIN = random_examples(20, seed=2)
LONGEST = max(len(example.input_ids) for example in TRAIN)
RECIPE = Recipe(
    learning_rate=1e-2, batch_size=8, epochs=2, weight_decay=0.1, lora_r=4, warmup_ratio=0.2, seed=7
)
DROPOUT = RECIPE.model_copy(update={"lora_dropout": 0.3})


@pytest.fixture(scope="module")
def base(tiny_base_dir: Path) -> LoadedBase:
    return load_base(ModelSpec(id=str(tiny_base_dir)), CPU)


@contextmanager
def trial(
    base: LoadedBase,
    recipe: Recipe = RECIPE,
    *,
    examples: list[Example] = TRAIN,
    factor: float = 100.0,
    micro_batch_size: int | None = None,
) -> Iterator[TrialRun]:
    """A trial on the shared base, taken off again at the end."""
    host = AdapterHost(base)
    adapter = host.add("trial", recipe)
    try:
        yield TrialRun(
            recipe, base, adapter, examples, divergence_factor=factor, micro_batch_size=micro_batch_size
        )
    finally:
        host.remove("trial")


def train(run: TrialRun, steps: int | None = None) -> list[StepResult]:
    return [run.step() for _ in range(run.plan.total_steps if steps is None else steps)]


def losses(base: LoadedBase, recipe: Recipe, **options: Any) -> list[float]:
    with trial(base, recipe, **options) as run:
        return [result.train_loss for result in train(run)]


def weights(run: TrialRun) -> list[torch.Tensor]:
    return [parameter.detach().clone() for parameter in run._adapter.parameters]


def test_the_same_seed_gives_identical_losses_with_dropout_on(base: LoadedBase) -> None:
    expected = losses(base, DROPOUT)
    torch.rand(17)  # whatever else the process draws
    assert losses(base, DROPOUT) == expected


def test_another_seed_gives_other_losses(base: LoadedBase) -> None:
    assert losses(base, DROPOUT.model_copy(update={"seed": 8})) != losses(base, DROPOUT)


def test_dropout_is_on_in_training_and_off_in_evaluation(base: LoadedBase) -> None:
    assert losses(base, DROPOUT) != losses(base, RECIPE)
    with trial(base, DROPOUT) as run:
        train(run, 2)
        assert run.evaluate(TRAIN) == run.evaluate(TRAIN)


def test_training_leaves_the_global_generator_alone_and_evaluation_the_trials(base: LoadedBase) -> None:
    expected = losses(base, DROPOUT)
    before = torch.get_rng_state()
    with trial(base, DROPOUT) as run:
        actual = []
        for _ in range(run.plan.total_steps):
            run.evaluate(TRAIN[:3])
            actual.append(run.step().train_loss)
    assert actual == expected
    assert torch.equal(torch.get_rng_state(), before)


def test_trials_that_take_turns_on_one_base_do_as_they_would_alone(base: LoadedBase) -> None:
    recipes = {
        "first": DROPOUT,
        "second": DROPOUT.model_copy(update={"seed": 1, "lora_r": 8, "batch_size": 4}),
    }
    expected = {name: losses(base, recipe) for name, recipe in recipes.items()}
    host = AdapterHost(base)
    runs = {
        name: TrialRun(recipe, base, host.add(name, recipe), TRAIN, divergence_factor=100)
        for name, recipe in recipes.items()
    }
    actual: dict[str, list[float]] = {name: [] for name in runs}
    while unfinished := [name for name, run in runs.items() if not run.finished]:
        for name in unfinished:
            host.activate(name)
            actual[name].append(runs[name].step().train_loss)
    for name in recipes:
        host.remove(name)
    assert actual == expected


def test_training_lowers_the_loss_and_moves_nothing_but_the_adapter(base: LoadedBase) -> None:
    frozen = {n: p.detach().clone() for n, p in base.model.named_parameters()}
    recipe = RECIPE.model_copy(update={"epochs": 8})
    with trial(base, recipe) as run:
        start = run.evaluate(TRAIN).metrics()["eval_loss"]
        train(run)
        assert run.evaluate(TRAIN).metrics()["eval_loss"] < 0.8 * start
    assert all(torch.equal(p, frozen[n]) for n, p in base.model.named_parameters())


def test_the_train_loss_of_the_first_step_is_the_bases_own(base: LoadedBase) -> None:
    with trial(base) as run:
        batch = [TRAIN[i] for i in DataOrder(run.plan, RECIPE.seed).batch(0)]
        expected = evaluate(base, batch, token_budget=1000).metrics()["eval_loss"]
        assert run.step().train_loss == pytest.approx(expected, rel=1e-5)


def test_counters_follow_the_plan(base: LoadedBase) -> None:
    with trial(base) as run:
        seen = []
        while not run.finished:
            run.step()
            seen.append(run.examples_seen)
    assert seen == [8, 16, 20, 28, 36, 40]
    assert run.train_seconds > 0


def out_of_memory_above(tokens: int, monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Makes passes over more than `tokens` padded tokens run out of memory, late: after a few draws."""
    real: Callable[..., torch.Tensor] = forward.target_logits
    tried: list[int] = []

    def limited(base: LoadedBase, batch: Any) -> torch.Tensor:
        tried.append(batch.input_ids.numel())
        logits = real(base, batch)
        if batch.input_ids.numel() > tokens:
            torch.rand(3)
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB")
        return logits

    monkeypatch.setattr(trial_run, "target_logits", limited)
    monkeypatch.setattr("workers.evaluation.target_logits", limited)
    return tried


def test_out_of_memory_halves_the_micro_batch_and_changes_no_number(
    base: LoadedBase, monkeypatch: pytest.MonkeyPatch
) -> None:
    expected = losses(base, RECIPE, micro_batch_size=2)
    with_dropout = losses(base, DROPOUT, micro_batch_size=2)
    tried = out_of_memory_above(2 * LONGEST, monkeypatch)
    with trial(base, RECIPE, micro_batch_size=8) as run:
        assert [r.train_loss for r in train(run)] == expected
        assert run.micro_batch_size == 2
    assert max(tried) > 4 * LONGEST
    # The draws of the passes that failed are taken back, too.
    assert losses(base, DROPOUT, micro_batch_size=8) == with_dropout


def test_a_trial_that_does_not_fit_one_example_ends_out_of_memory_and_has_not_moved(
    base: LoadedBase, monkeypatch: pytest.MonkeyPatch
) -> None:
    with trial(base) as run:
        train(run, 1)
        before = weights(run)
        out_of_memory_above(0, monkeypatch)
        with pytest.raises(
            TrialEndedError, match=r"Out of memory training at micro-batch 1.*LoRA rank 4"
        ) as end:
            run.step()
        assert end.value.status is OutcomeStatus.OUT_OF_MEMORY
        assert run.steps == 1
        assert all(torch.equal(a, b) for a, b in zip(weights(run), before, strict=True))


def test_an_evaluation_out_of_memory_is_repeated_in_smaller_batches(
    base: LoadedBase, monkeypatch: pytest.MonkeyPatch
) -> None:
    with trial(base) as run:
        expected = run.evaluate(TRAIN).metrics()
        tried = out_of_memory_above(3 * LONGEST, monkeypatch)
        assert run.evaluate(TRAIN).metrics() == pytest.approx(expected, rel=1e-5)
        assert max(tried) > 3 * LONGEST
        out_of_memory_above(0, monkeypatch)
        with pytest.raises(
            TrialEndedError, match=f"Out of memory evaluating one example of {LONGEST} tokens"
        ):
            run.evaluate(TRAIN)


def test_another_runtime_error_is_not_taken_for_a_lack_of_memory(
    base: LoadedBase, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(*args: object) -> torch.Tensor:
        raise RuntimeError("shapes do not match")

    with trial(base) as run:
        monkeypatch.setattr(trial_run, "target_logits", broken)
        with pytest.raises(RuntimeError, match="shapes do not match"):
            run.step()


@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_a_loss_that_is_not_finite_ends_the_trial_before_anything_moves(
    base: LoadedBase, monkeypatch: pytest.MonkeyPatch, value: float
) -> None:
    real = trial_run.loss_sum
    with trial(base) as run:
        train(run, 2)
        before = weights(run)
        monkeypatch.setattr(trial_run, "loss_sum", lambda *args: real(*args) * value)
        with pytest.raises(
            TrialEndedError, match=r"Diverged in step 3 of 6, after 16 .*must be finite"
        ) as end:
            run.step()
        assert end.value.status is OutcomeStatus.DIVERGED
        assert (run.steps, run.examples_seen) == (2, 16)
        assert all(torch.equal(a, b) for a, b in zip(weights(run), before, strict=True))


def test_a_trial_whose_loss_explodes_ends_with_the_numbers(tiny_base_dir: Path) -> None:
    base = load_base(ModelSpec(id=str(tiny_base_dir), quantization="none"), CPU)
    base.model.lm_head.weight.data *= 20  # a base that is sure of itself, and of these labels
    known = []
    for example in TRAIN:
        with torch.no_grad():
            predicted = base.model(input_ids=example.input_ids[None]).logits[0].argmax(-1)
        known.append(Example(example.input_ids, torch.cat((torch.tensor([-100]), predicted[:-1]))))
    recipe = Recipe(learning_rate=3.0, batch_size=4, epochs=20, lora_r=4)
    with (
        trial(base, recipe, examples=known, factor=4.0) as run,
        pytest.raises(TrialEndedError, match=r"smoothed over about 16 examples, is \d.*, above \d") as end,
    ):
        train(run)
    assert end.value.status is OutcomeStatus.DIVERGED
    assert run.steps < 20


def test_a_healthy_trial_at_batch_size_one_does_not_diverge(base: LoadedBase) -> None:
    recipe = Recipe(learning_rate=1e-3, batch_size=1, epochs=3, lora_r=4)
    with trial(base, recipe, factor=1.5) as run:
        train(run)
        assert run.finished


@pytest.mark.parametrize(("given", "expected"), [(None, 8), (3, 3), (64, 8)])
def test_a_micro_batch_is_never_larger_than_the_batch(
    base: LoadedBase, given: int | None, expected: int
) -> None:
    with trial(base, micro_batch_size=given) as run:
        assert run.micro_batch_size == expected


def test_float16_overflow_lowers_the_loss_scale_and_redoes_the_step(base: LoadedBase) -> None:
    expected = losses(base, DROPOUT)
    with trial(base, DROPOUT) as run:
        run._loss_scale = 2.0**130  # infinite in float32
        actual = [result.train_loss for result in train(run)]
        assert actual == pytest.approx(expected, rel=1e-4)
        assert run._loss_scale < 2.0**130


def test_every_step_draws_its_own_dropout(base: LoadedBase) -> None:
    """With equal examples and a rate that moves nothing, only dropout tells the steps apart."""
    still = Recipe(learning_rate=1e-30, batch_size=4, epochs=3, lora_r=4)
    norms = {}
    for dropout in (0.0, 0.3):
        recipe = still.model_copy(update={"lora_dropout": dropout})
        with trial(base, recipe, examples=TRAIN[:1] * 4) as run:
            norms[dropout] = [round(result.grad_norm, 4) for result in train(run)]
    assert [len(set(norms[dropout])) for dropout in (0.0, 0.3)] == [1, 3]


def test_bfloat16_compute_stays_close_to_float32_and_trains_float32_adapters(
    base: LoadedBase, tiny_base_dir: Path
) -> None:
    half = load_base(ModelSpec(id=str(tiny_base_dir), compute_dtype="bfloat16"), CPU)
    with trial(half) as run:
        actual = [result.train_loss for result in train(run)]
        assert {parameter.dtype for parameter in run._adapter.parameters} == {torch.float32}
    assert actual == pytest.approx(losses(base, RECIPE), rel=0.02)
