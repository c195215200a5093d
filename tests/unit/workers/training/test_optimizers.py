"""Optimizers over an adapter's flat tensor: torch's own numbers, and no memory taken in a step."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch

from search_spaces.definition import ModelSpec
from search_spaces.recipe import Recipe
from tests.support.workers.trials import (
    new_run,
    random_examples,
    relative_difference,
    solo_run,
    train_together,
)
from workers.base.base_model import load_base
from workers.lora.adapters import AdapterHost, Segment
from workers.lora.bank import Bank
from workers.training import optimizers
from workers.training.optimizers import AdapterOptimizer, Step, adapter_bytes, moment_names, take_steps
from workers.training.shared_pass import SharedPasses

# PEFT 0.21 reads a property that transformers 5.23 renamed; it does so whenever it wraps a model.
pytestmark = pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing` is deprecated:FutureWarning")

CPU = torch.device("cpu")
RECIPES = {
    "adamw": Recipe(adam_beta1=0.8, adam_beta2=0.95, adam_epsilon=1e-6, weight_decay=0.1),
    "sgd": Recipe(optimizer="sgd", weight_decay=0.1),
    "sgd without momentum": Recipe(optimizer="sgd", sgd_momentum=0.0, sgd_nesterov=True, weight_decay=0.1),
    "nesterov": Recipe(optimizer="sgd", sgd_momentum=0.8, sgd_nesterov=True),
    "rmsprop": Recipe(optimizer="rmsprop", rmsprop_alpha=0.9, weight_decay=0.1),
    "rmsprop without decay": Recipe(optimizer="rmsprop"),
}
ALL = pytest.mark.parametrize("recipe", RECIPES.values(), ids=list(RECIPES))


def torchs_own(parameter: torch.nn.Parameter, recipe: Recipe) -> torch.optim.Optimizer:
    """As a script would make it, with torch's own step."""
    decay = recipe.weight_decay
    match recipe.optimizer:
        case "adamw":
            betas = (recipe.adam_beta1, recipe.adam_beta2)
            return torch.optim.AdamW([parameter], betas=betas, eps=recipe.adam_epsilon, weight_decay=decay)
        case "sgd":
            momentum = recipe.sgd_momentum
            nesterov = recipe.sgd_nesterov and momentum > 0
            return torch.optim.SGD([parameter], momentum=momentum, nesterov=nesterov, weight_decay=decay)
        case "rmsprop":
            return torch.optim.RMSprop([parameter], alpha=recipe.rmsprop_alpha, weight_decay=decay)


def numbers(seed: int, count: int = 1_000) -> torch.Tensor:
    return torch.randn(count, generator=torch.Generator().manual_seed(seed))


def made(weights: torch.Tensor, recipe: Recipe, segments: Sequence[Segment] = ()) -> AdapterOptimizer:
    return AdapterOptimizer(weights, torch.empty_like(weights), recipe, segments)


def go(optimizer: AdapterOptimizer, seed: int, *, rate: float = 1e-2) -> None:
    """A step by random numbers."""
    optimizer.gradient.copy_(numbers(seed))
    assert take_steps([Step(optimizer, rate)]) == [None]


def go_with(
    optimizer: torch.optim.Optimizer, parameter: torch.nn.Parameter, gradient: torch.Tensor, *, rate: float
) -> None:
    """A step of one of torch's own."""
    optimizer.param_groups[0]["lr"] = rate
    parameter.grad = gradient
    optimizer.step()


@ALL
def test_steps_are_torchs_own(recipe: Recipe, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(optimizers, "_SCRATCH", 300)  # in four parts
    ours, theirs = numbers(0), torch.nn.Parameter(numbers(0))
    optimizer, other = made(ours, recipe), torchs_own(theirs, recipe)
    for number in range(1, 6):
        go(optimizer, number, rate=10.0**-number)
        go_with(other, theirs, numbers(number), rate=10.0**-number)
    torch.testing.assert_close(ours, theirs.detach(), rtol=1e-6, atol=1e-6)


def test_trials_that_step_together_step_as_alone_to_the_bit(monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever the others' rates, decays, clipping and optimizers are; those that are alike in one call."""
    calls = []
    adamw = optimizers.adamw

    def counted(weights: list[torch.Tensor], *args: Any, **options: Any) -> None:
        calls.append(len(weights))
        adamw(weights, *args, **options)

    monkeypatch.setattr(optimizers, "adamw", counted)
    recipes = [*RECIPES.values(), RECIPES["adamw"], RECIPES["adamw"], Recipe(), Recipe(weight_decay=0.3)]
    rates = [1e-2] * len(RECIPES) + [1e-2, 3e-3, 1e-2, 1e-2]
    factors = [1.0, 0.5, 0.3, 1.0, 0.7, 1.0, 0.1, 1.0, 1.0, 0.9]

    def train(*groups: list[int]) -> list[torch.Tensor]:
        # Rows of banks, so at every alignment that a slot has.
        bank = Bank.of(1_003, len(recipes), CPU)
        for row in bank.weights:
            row[:1_003] = numbers(0, 1_003)
        made_ = [
            AdapterOptimizer(bank.weights[k, :1_003], bank.gradients[k, :1_003], recipe)
            for k, recipe in enumerate(recipes)
        ]
        for number in range(1, 5):
            for group in groups:
                for k in group:
                    made_[k].gradient.copy_(numbers(number + 10 * k, 1_003))
                steps = [Step(made_[k], rates[k] / number, factors[k]) for k in group]
                assert take_steps(steps) == [None] * len(group)
        tensors = [[row[:1_003], *one.moments.values()] for row, one in zip(bank.weights, made_, strict=True)]
        return [torch.cat(own) for own in tensors]

    alone = train(*([k] for k in range(len(recipes))))
    assert calls == [1] * 20
    calls.clear()
    together = train(list(range(len(recipes))))
    assert calls == [2, 1, 1, 1] * 4
    for one, other in zip(together, alone, strict=True):
        assert torch.equal(one, other)


def test_a_step_that_breaks_is_those_trials_own_affair(monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(*_args: Any, **_options: Any) -> None:
        raise ArithmeticError("no such step")

    monkeypatch.setattr(optimizers, "sgd", broken)
    weights = [numbers(0) for _ in range(3)]
    recipes = [RECIPES[name] for name in ("adamw", "sgd", "rmsprop")]
    steps = [Step(made(own, recipe), 1e-2) for own, recipe in zip(weights, recipes, strict=True)]
    for step in steps:
        step.optimizer.gradient.copy_(numbers(1))
    assert [repr(error) for error in take_steps(steps)] == ["None", "ArithmeticError('no such step')", "None"]
    assert [torch.equal(own, numbers(0)) for own in weights] == [False, True, False]


def test_a_device_that_is_unusable_is_no_trials_own_affair(monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(*_args: Any, **_options: Any) -> None:
        raise torch.AcceleratorError("CUDA error: an illegal memory access was encountered")

    monkeypatch.setattr(optimizers, "sgd", broken)
    with pytest.raises(torch.AcceleratorError, match="illegal memory access"):
        take_steps([Step(made(numbers(0), RECIPES["sgd"]), 1e-2)])


@ALL
def test_moments_are_made_at_once_and_stay_where_they_are(recipe: Recipe) -> None:
    weights = numbers(0)
    optimizer = made(weights, recipe)
    before = {name: tensor.data_ptr() for name, tensor in optimizer.moments.items()}
    assert tuple(before) == moment_names(recipe)
    go(optimizer, 1)
    kept = {name: tensor.clone() for name, tensor in optimizer.moments.items()}
    moved = weights.clone()
    go(optimizer, 2)
    expected = weights.clone()
    weights.copy_(moved)
    optimizer.restore(kept, steps=1)
    go(optimizer, 2)
    assert torch.equal(weights, expected)
    assert {name: tensor.data_ptr() for name, tensor in optimizer.moments.items()} == before


@ALL
def test_a_trial_goes_on_elsewhere_to_the_bit(tiny_base_dir: Path, recipe: Recipe) -> None:
    recipe = recipe.model_copy(update={"learning_rate": 1e-2, "batch_size": 4, "lora_r": 2})
    host = AdapterHost(load_base(ModelSpec(id=str(tiny_base_dir)), CPU))
    passes = SharedPasses(host, token_budget=1_000)
    examples = random_examples(16, seed=1)

    def finish(state: Any, steps: int) -> tuple[Any, torch.Tensor]:
        run = new_run(host, recipe, examples)
        if state is not None:
            run.restore(*state)
        for _ in range(steps):
            passes.finish_batch(run)
        weights = run.adapter.master.detach().clone()
        state = run.state()
        host.remove("trial")
        return state, weights

    halfway, _ = finish(None, 2)
    assert sorted(halfway[0]) == sorted(["adapter", *moment_names(recipe)])
    assert torch.equal(finish(halfway, 2)[1], finish(None, 4)[1])


def test_trials_with_different_optimizers_share_a_pack_and_do_as_alone(tiny_base_dir: Path) -> None:
    base = load_base(ModelSpec(id=str(tiny_base_dir)), CPU)
    examples = random_examples(22, seed=3, longest=30)
    rates = {"adamw": 1e-2, "sgd": 0.1, "nesterov": 0.1, "rmsprop": 3e-3}
    recipes = {
        name: RECIPES[name].model_copy(
            update={"learning_rate": rate, "batch_size": 4, "epochs": 2, "lora_r": 4, "adam_epsilon": 1e-4}
        )
        for name, rate in rates.items()
    }
    together = train_together(base, recipes, examples, token_budget=200)
    for name, recipe in recipes.items():
        alone = solo_run(base, recipe, examples)
        assert together.trained[name].losses == pytest.approx(alone.losses, rel=1e-4)
        assert relative_difference(together.trained[name].weights, alone.weights) <= 1e-3
    assert together.accumulated


def test_a_trial_takes_the_bytes_of_its_own_optimizer(tiny_base_dir: Path) -> None:
    expected = {"adamw": 20, "sgd": 16, "sgd without momentum": 12, "rmsprop": 16}
    host = AdapterHost(load_base(ModelSpec(id=str(tiny_base_dir)), CPU))
    for name, bytes_each in expected.items():
        run = new_run(host, RECIPES[name], random_examples(2))
        tensors = [run.adapter.master, run.adapter.gradient, run._accumulated]
        tensors += run._optimizer.moments.values()
        held = sum(tensor.numel() * 4 for tensor in tensors if tensor is not None)
        parameters = run.adapter.trainable_parameters
        assert held == bytes_each * parameters
        assert held == adapter_bytes(parameters, RECIPES[name], accumulates=True)
        host.remove("trial")


@ALL
def test_a_head_steps_at_its_own_rate_and_decay_spares_its_biases(
    recipe: Recipe, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The matrices, the head's weights and its biases are as three of torch's own optimizers make them."""
    monkeypatch.setattr(optimizers, "_SCRATCH", 300)
    recipe = recipe.model_copy(update={"head_learning_rate_ratio": 3.0})
    segments = [Segment(600), Segment(350, is_head=True), Segment(50, is_head=True, is_decayed=False)]
    sizes = [segment.numbers for segment in segments]
    ours = numbers(0)
    optimizer = made(ours, recipe, segments)
    parts = [torch.nn.Parameter(part.clone()) for part in numbers(0).split(sizes)]
    undecayed = recipe.model_copy(update={"weight_decay": 0.0})
    others = [torchs_own(part, own) for part, own in zip(parts, (recipe, recipe, undecayed), strict=True)]
    for number in range(4):
        rate = 10.0 ** -(number + 1)
        go(optimizer, number + 1, rate=rate)
        gradients = numbers(number + 1).split(sizes)
        for other, part, gradient, ratio in zip(others, parts, gradients, (1, 3, 3), strict=True):
            go_with(other, part, gradient, rate=rate * ratio)
    expected = torch.cat([part.detach() for part in parts])
    torch.testing.assert_close(ours, expected, rtol=1e-6, atol=1e-6)
