"""One trial: repeatable, transactional, resumable to the bit, honest about divergence.

One file, since every test drives the same small trial through whole steps.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch

from search_spaces.definition import ModelSpec
from search_spaces.recipe import Recipe
from tests.support.workers.trials import (
    UNLIMITED,
    Trained,
    matrices,
    new_run,
    random_examples,
    relative_difference,
    solo_run,
)
from workers.base.base_model import LoadedBase, load_base
from workers.contract import OutcomeStatus
from workers.data.batches import DataOrder
from workers.data.examples import Example
from workers.data.tokenization import IGNORED
from workers.lora.adapters import AdapterHost
from workers.training import trial_run
from workers.training.divergence import first_examples
from workers.training.evaluation import evaluate
from workers.training.shared_pass import SharedPasses
from workers.training.trial_run import PassResult, StepResult, TrialEndedError, TrialRun

# PEFT 0.21 reads a property that transformers 5.23 renamed; it does so whenever it wraps a model.
pytestmark = pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing` is deprecated:FutureWarning")

CPU = torch.device("cpu")
TRAIN = random_examples(20, seed=2)
RECIPE = Recipe(
    learning_rate=1e-2, batch_size=8, epochs=2, weight_decay=0.1, lora_r=4, warmup_ratio=0.2, seed=7
)
DROPOUT = RECIPE.model_copy(update={"lora_dropout": 0.3})


@pytest.fixture(scope="module")
def base(tiny_base_dir: Path) -> LoadedBase:
    return load_base(ModelSpec(id=str(tiny_base_dir)), CPU)


@contextmanager
def trial(
    base: LoadedBase, recipe: Recipe = RECIPE, *, examples: Sequence[Example] = TRAIN, **options: Any
) -> Iterator[tuple[TrialRun, SharedPasses]]:
    """A trial on the shared base, taken off again at the end; `options` are those of `new_run`."""
    host = AdapterHost(base)
    try:
        yield new_run(host, recipe, examples, **options), SharedPasses(host, token_budget=UNLIMITED)
    finally:
        host.remove("trial")


def train(run: TrialRun, passes: SharedPasses, steps: int | None = None) -> list[StepResult]:
    """That many optimizer steps, or all that are left."""
    left = run.plan.total_steps - run.steps
    return [passes.finish_batch(run) for _ in range(left if steps is None else steps)]


def losses(base: LoadedBase, recipe: Recipe, **options: Any) -> list[float]:
    return solo_run(base, recipe, TRAIN, **options).losses


def eval_loss(run: TrialRun, passes: SharedPasses) -> float:
    return passes.evaluate([run], TRAIN)[0].metrics()["eval_loss"]


def same(one: Sequence[torch.Tensor], other: Sequence[torch.Tensor]) -> bool:
    return all(torch.equal(a, b) for a, b in zip(one, other, strict=True))


# --- repeatable


def test_the_same_seed_gives_identical_losses_with_dropout_on(base: LoadedBase) -> None:
    expected = losses(base, DROPOUT)
    torch.rand(17)  # whatever else the process draws
    assert losses(base, DROPOUT) == expected


def test_another_seed_gives_other_losses(base: LoadedBase) -> None:
    assert losses(base, DROPOUT.model_copy(update={"seed": 8})) != losses(base, DROPOUT)


def test_dropout_is_on_in_training_and_off_in_evaluation(base: LoadedBase) -> None:
    assert losses(base, DROPOUT) != losses(base, RECIPE)
    with trial(base, DROPOUT) as (run, passes):
        train(run, passes, 2)
        assert passes.evaluate([run], TRAIN) == passes.evaluate([run], TRAIN)
        passes.host.activate("trial")
        with torch.no_grad():
            logits = base.model(input_ids=TRAIN[0].input_ids[None]).logits[0, :-1]  # in evaluation mode
        supervised = TRAIN[0].labels[1:] != -100
        expected = torch.nn.functional.cross_entropy(
            logits[supervised], TRAIN[0].labels[1:][supervised], reduction="sum"
        )
        (totals,) = passes.evaluate([run], TRAIN[:1])
        assert totals.loss_sum == pytest.approx(expected.item(), rel=1e-5)


def test_every_step_draws_its_own_dropout(base: LoadedBase) -> None:
    """With equal examples and a rate that moves nothing, only dropout tells the steps apart."""
    still = Recipe(learning_rate=1e-30, batch_size=4, epochs=3, lora_r=4)
    norms = {}
    for dropout in (0.0, 0.3):
        recipe = still.model_copy(update={"lora_dropout": dropout})
        trained = solo_run(base, recipe, TRAIN[:1] * 4)
        norms[dropout] = [round(step.grad_norm, 4) for step in trained.steps]
    assert [len(set(norms[dropout])) for dropout in (0.0, 0.3)] == [1, 3]


def test_training_leaves_the_global_generator_alone_and_evaluation_the_trials(base: LoadedBase) -> None:
    expected = losses(base, DROPOUT)
    before = torch.get_rng_state()
    with trial(base, DROPOUT) as (run, passes):
        actual = []
        while not run.finished:
            passes.evaluate([run], TRAIN[:3])
            actual.append(passes.finish_batch(run).train_loss)
    assert actual == expected
    assert torch.equal(torch.get_rng_state(), before)


def test_trials_that_take_turns_on_one_base_do_as_they_would_alone(base: LoadedBase) -> None:
    recipes = {
        "first": DROPOUT,
        "second": DROPOUT.model_copy(update={"seed": 1, "lora_r": 8, "batch_size": 4}),
    }
    expected = {name: losses(base, recipe) for name, recipe in recipes.items()}
    host = AdapterHost(base)
    passes = SharedPasses(host, token_budget=UNLIMITED)
    runs = {name: new_run(host, recipe, TRAIN, name=name) for name, recipe in recipes.items()}
    actual: dict[str, list[float]] = {name: [] for name in runs}
    while unfinished := [name for name, run in runs.items() if not run.finished]:
        for name in unfinished:
            actual[name].append(passes.finish_batch(runs[name]).train_loss)
    for name in recipes:
        host.remove(name)
    assert actual == expected


# --- what a step is


def test_training_lowers_the_loss_and_moves_nothing_but_the_adapter(base: LoadedBase) -> None:
    frozen = {n: p.detach().clone() for n, p in base.model.named_parameters()}
    with trial(base, RECIPE.model_copy(update={"epochs": 8})) as (run, passes):
        start = eval_loss(run, passes)
        train(run, passes)
        assert eval_loss(run, passes) < 0.8 * start
    assert all(torch.equal(p, frozen[n]) for n, p in base.model.named_parameters())


def test_the_train_loss_of_the_first_step_is_the_bases_own(base: LoadedBase) -> None:
    with trial(base) as (run, passes):
        batch = [TRAIN[i] for i in DataOrder(run.plan, RECIPE.seed).batch(0)]
        (totals,) = evaluate(passes.host, [run.adapter], batch, token_budget=1000)
        step = passes.finish_batch(run)
    assert step.train_loss == pytest.approx(totals.metrics()["eval_loss"], rel=1e-5)
    assert step.supervised_tokens == totals.tokens


def test_counters_follow_the_plan(base: LoadedBase) -> None:
    with trial(base) as (run, passes):
        seen = []
        while not run.finished:
            passes.finish_batch(run)
            seen.append((run.steps, run.examples_seen))
        assert seen == [(1, 8), (2, 16), (3, 20), (4, 28), (5, 36), (6, 40)]
        assert run.train_seconds > 0
        assert run.real_tokens == 2 * sum(len(example.input_ids) for example in TRAIN)
        assert list(run.waiting) == []


@pytest.mark.parametrize("recipe", [RECIPE, DROPOUT], ids=["plain", "dropout"])
def test_eight_rows_at_once_are_four_times_two_and_eight_times_one(base: LoadedBase, recipe: Recipe) -> None:
    sound = recipe.model_copy(update={"adam_epsilon": 1e-4})  # above rounding error, which Adam would amplify
    generator = torch.Generator().manual_seed(0)
    examples = []
    for prompt in (1, 9, 4, 2, 7, 3, 8, 5, 6, 1, 9, 2):  # of one length, so that all fit together
        input_ids = torch.randint(4, 300, (12,), generator=generator)
        labels = torch.where(torch.arange(12) < prompt, -100, input_ids)
        examples.append(Example(input_ids, labels))
    trained: dict[int, Trained] = {}
    passes_made: dict[int, int] = {}
    for size in (8, 2, 1):
        with trial(base, sound, examples=examples, micro_batch_size=size) as (run, passes):
            result = trained[size] = Trained()
            made = 0
            while not run.finished:
                (advance,) = passes.train([run])
                made += 1
                result.steps += [advance.step] if advance.step else []
            result.weights = matrices(run.adapter)
            passes_made[size] = made
    assert passes_made == {8: 4, 2: 12, 1: 24}  # steps of 8 and 4 rows, twice
    for size in (2, 1):
        assert trained[size].losses == pytest.approx(trained[8].losses, rel=1e-5)
        norms = [step.grad_norm for step in trained[size].steps]
        assert norms == pytest.approx([step.grad_norm for step in trained[8].steps], rel=1e-4)
        assert relative_difference(trained[size].weights, trained[8].weights) <= 1e-4


@pytest.mark.parametrize("max_grad_norm", [0.05, 1e6])
def test_gradients_are_clipped_by_their_norm_which_is_told_as_it_was(
    base: LoadedBase, max_grad_norm: float
) -> None:
    with trial(base, RECIPE.model_copy(update={"max_grad_norm": max_grad_norm})) as (run, passes):
        (step,) = train(run, passes, 1)
        clipped = run.adapter.gradient.norm().item()
    assert step.grad_norm > 0.05
    assert clipped == pytest.approx(min(step.grad_norm, max_grad_norm), rel=1e-4)


def test_weights_decay_by_the_rate_times_the_decay_where_there_is_no_gradient(base: LoadedBase) -> None:
    recipe = RECIPE.model_copy(update={"weight_decay": 0.5, "warmup_ratio": 0.0})
    with trial(base, recipe) as (run, passes):
        before = matrices(run.adapter)[::2]  # lora_A, which has no gradient while lora_B is 0
        (step,) = train(run, passes, 1)
        after = matrices(run.adapter)[::2]
    assert step.learning_rate == 1e-2
    for one, other in zip(after, before, strict=True):
        torch.testing.assert_close(one, other * (1 - 1e-2 * 0.5), rtol=1e-6, atol=0)


def test_the_rate_warms_up_and_falls_as_the_recipe_says(base: LoadedBase) -> None:
    with trial(base, RECIPE.model_copy(update={"warmup_ratio": 0.5})) as (run, passes):
        ahead, rates = [], []
        while not run.finished:
            ahead.append(run.learning_rate)
            rates.append(passes.finish_batch(run).learning_rate)
    assert rates == pytest.approx([0, 1e-2 / 3, 2e-2 / 3, 1e-2, 2e-2 / 3, 1e-2 / 3])
    assert ahead == rates


# --- transactional


@pytest.mark.parametrize(
    ("loss", "norm"), [(math.nan, 1.0), (math.inf, 1.0), (5.0, math.nan), (5.0, math.inf)]
)
def test_what_is_not_finite_ends_the_trial_before_anything_moves(
    base: LoadedBase, loss: float, norm: float
) -> None:
    with trial(base) as (run, passes):
        train(run, passes, 2)
        before, waiting = matrices(run.adapter), list(run.waiting)
        run.adapter.gradient.fill_(1.0)
        with pytest.raises(
            TrialEndedError, match=r"^Diverged in step 3 of 6, after 16 .*learning rate .*\d.*must be finite"
        ) as end:
            run.commit(waiting, PassResult(loss_sum=loss, norm=norm))
        assert end.value.status is OutcomeStatus.DIVERGED
        assert (run.steps, run.examples_seen, list(run.waiting)) == (2, 16, waiting)
        assert same(matrices(run.adapter), before)


def test_a_pass_that_is_given_up_and_done_again_changes_no_bit(base: LoadedBase) -> None:
    def go(*, twice: bool) -> tuple[list[StepResult], list[torch.Tensor]]:
        with trial(base, DROPOUT, micro_batch_size=3) as (run, passes):
            steps = []
            while not run.finished:
                if twice:  # forward and backward, but nobody takes the result in
                    run.adapter.gradient.normal_()
                    run.gather()
                (advance,) = passes.train([run])
                steps += [advance.step] if advance.step else []
            return steps, matrices(run.adapter)

    steps, weights = go(twice=False)
    again, other = go(twice=True)
    assert again == steps
    assert same(other, weights)


# --- divergence


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
        trial(base, recipe, examples=known, divergence_factor=4.0) as (run, passes),
        pytest.raises(TrialEndedError, match=r"smoothed over about 16 examples, is \d.*, above \d") as end,
    ):
        train(run, passes)
    assert end.value.status is OutcomeStatus.DIVERGED
    assert run.steps < 20


def test_a_healthy_trial_at_batch_size_one_does_not_diverge(base: LoadedBase) -> None:
    recipe = Recipe(learning_rate=1e-3, batch_size=1, epochs=3, lora_r=4)
    trained = solo_run(base, recipe, TRAIN, divergence_factor=1.5)
    assert trained.ended is None
    assert len(trained.steps) == 60


def test_the_start_is_measured_on_the_first_examples_of_the_trials_own_order(base: LoadedBase) -> None:
    examples = random_examples(40, seed=9)
    order = DataOrder(trial_run.TrainingPlan(40, 16, 1), seed=7).batch(0)
    assert first_examples(RECIPE, examples) == [examples[index] for index in order]
    assert sorted(map(id, first_examples(RECIPE, examples[:5]))) == sorted(map(id, examples[:5]))


@pytest.mark.parametrize(("tokens", "measured"), [(10, 16), (64, 16), (100, 11), (512, 4), (4_000, 4)])
def test_the_start_is_measured_on_no_more_long_examples_than_it_takes(tokens: int, measured: int) -> None:
    labels = torch.full((tokens + 1,), 3)
    labels[0] = IGNORED
    examples = [Example(torch.full((tokens + 1,), 3), labels) for _ in range(20)]
    assert len(first_examples(RECIPE, examples)) == measured


@pytest.mark.parametrize(("long", "began"), [(False, False), (True, True)])
def test_a_start_is_compared_with_one_of_the_same_tokens_only(
    base: LoadedBase, monkeypatch: pytest.MonkeyPatch, long: bool, began: bool
) -> None:
    """Version 0.1 does not say how many they were; of long rows it took more."""
    if long:
        monkeypatch.setattr(trial_run, "START_TOKENS", 20)
    with trial(base, RECIPE) as (run, _passes):
        _, state = run.state()
        other = {**state, "watch": [2 * state["watch"][0], *state["watch"][1:]]}
        assert run.began_like(state)
        assert not run.began_like(other)
        del other["start_tokens"]
        assert run.began_like(other) is began


# --- precision


def test_an_overflow_lowers_the_loss_scale_and_redoes_the_pass(
    base: LoadedBase, monkeypatch: pytest.MonkeyPatch
) -> None:
    expected = solo_run(base, DROPOUT, TRAIN, micro_batch_size=3)
    monkeypatch.setattr(trial_run, "_FLOAT16_LOSS_SCALE", 2.0**130)  # infinite in float32
    with trial(base, DROPOUT, micro_batch_size=3, loss_scaled=True) as (run, passes):
        unscaled = run.loss_weight / 2.0**130
        (advance,) = passes.train([run])
        assert (advance.step, advance.ended) == (None, None)
        assert run.loss_weight == unscaled * 2.0**129
        assert len(run.waiting) == 8
        steps = train(run, passes)
        weights = matrices(run.adapter)
    assert [step.train_loss for step in steps] == pytest.approx(expected.losses, rel=1e-4)
    norms = [step.grad_norm for step in expected.steps]
    assert [step.grad_norm for step in steps] == pytest.approx(norms, rel=1e-4)
    for one, other in zip(weights, expected.weights, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-3, atol=1e-4)


def test_an_overflow_in_the_middle_of_a_batch_rescales_what_was_gathered(base: LoadedBase) -> None:
    expected = solo_run(base, DROPOUT, TRAIN, micro_batch_size=3)
    with trial(base, DROPOUT, micro_batch_size=3, loss_scaled=True) as (run, passes):
        passes.train([run])
        waiting, weight = list(run.waiting), run.loss_weight
        assert 0 < len(waiting) < 8
        assert run.commit(waiting, PassResult(loss_sum=1.0, norm=math.inf)) is None
        assert (list(run.waiting), run.loss_weight) == (waiting, weight / 2)
        steps = train(run, passes)
    assert [step.train_loss for step in steps] == pytest.approx(expected.losses, rel=1e-4)
    norms = [step.grad_norm for step in expected.steps]
    assert [step.grad_norm for step in steps] == pytest.approx(norms, rel=1e-4)


def test_a_loss_that_no_scale_makes_finite_ends_the_trial(base: LoadedBase) -> None:
    with trial(base, loss_scaled=True) as (run, _passes):
        for _ in range(16):
            assert run.commit(run.waiting, PassResult(loss_sum=math.nan, norm=math.nan)) is None
        with pytest.raises(TrialEndedError, match="must be finite"):
            run.commit(run.waiting, PassResult(loss_sum=math.nan, norm=math.nan))


@pytest.mark.parametrize("compute_dtype", ["bfloat16", "float16"])
def test_half_precision_stays_close_to_float32_and_trains_float32_adapters(
    base: LoadedBase, tiny_base_dir: Path, compute_dtype: str
) -> None:
    spec = ModelSpec.model_validate({"id": str(tiny_base_dir), "compute_dtype": compute_dtype})
    half = load_base(spec, CPU)
    with trial(half, loss_scaled=compute_dtype == "float16") as (run, passes):
        actual = [step.train_loss for step in train(run, passes)]
        assert {weight.dtype for weight in matrices(run.adapter)} == {torch.float32}
    assert actual == pytest.approx(losses(base, RECIPE), rel=0.02)


# --- resumable


def in_mid_batch(run: TrialRun) -> bool:
    return run._batch.partial


@pytest.mark.parametrize(
    "reached",
    [
        lambda run: True,
        lambda run: in_mid_batch(run),
        lambda run: run.steps == 2 and not in_mid_batch(run),
        lambda run: run.steps == 3 and in_mid_batch(run),
        lambda run: run.finished,
    ],
    ids=["at the beginning", "in the first batch", "after a step", "in a later batch", "at the end"],
)
def test_a_state_goes_on_elsewhere_to_the_bit(
    base: LoadedBase, tiny_base_dir: Path, reached: Callable[[TrialRun], bool]
) -> None:
    other_base = load_base(ModelSpec(id=str(tiny_base_dir)), CPU)
    with trial(base, DROPOUT, micro_batch_size=3) as (run, passes):
        while not reached(run):
            passes.train([run])
        tensors, values = run.state()
        kept = {name: tensor.clone() for name, tensor in tensors.items()}
        expected = train(run, passes)
        weights = matrices(run.adapter)
        final_tensors, final_values = run.state()
    assert all(torch.equal(tensors[name], kept[name]) for name in kept)  # a copy, which nothing moved
    values = json.loads(json.dumps(values))

    with trial(other_base, DROPOUT, micro_batch_size=3) as (run, passes):
        run.restore(tensors, values)
        tensors_again, values_again = run.state()
        assert values_again == values
        assert sorted(tensors_again) == sorted(tensors)
        assert all(torch.equal(tensors_again[name], tensors[name]) for name in tensors)
        assert train(run, passes) == expected
        assert same(matrices(run.adapter), weights)
        resumed_tensors, resumed_values = run.state()
    assert sorted(resumed_tensors) == sorted(final_tensors)
    assert all(torch.equal(resumed_tensors[name], final_tensors[name]) for name in final_tensors)
    timings = {"train_seconds": 0, "eval_seconds": 0}
    assert resumed_values | timings == final_values | timings


def test_a_run_goes_back_to_a_state_of_its_own(base: LoadedBase) -> None:
    with trial(base, DROPOUT, micro_batch_size=3) as (run, passes):
        passes.train([run])
        tensors, values = run.state()
        expected = train(run, passes)
        weights = matrices(run.adapter)
        run.restore(tensors, values)
        assert train(run, passes) == expected
        assert same(matrices(run.adapter), weights)


def test_a_state_holds_a_gradient_in_the_middle_of_a_batch_only(base: LoadedBase) -> None:
    with trial(base, micro_batch_size=3) as (run, passes):
        held = [False]
        while not run.finished:
            assert ("accumulated" in run.state()[0]) == held[-1]
            (advance,) = passes.train([run])
            held.append(advance.step is None)
        assert sorted(run.state()[0]) == ["adapter", "exp_avg", "exp_avg_sq"]
    assert set(held) == {True, False}
