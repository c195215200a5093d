"""A trial's numbers are those of `transformers.Trainer` + PEFT on the same batches."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, get_args

import pytest
import torch
from peft import LoraConfig, get_peft_model
from transformers import Trainer, TrainerCallback, TrainingArguments, set_seed

from search_spaces.definition import ModelSpec
from search_spaces.recipe import Quantization, Recipe, Scheduler
from tests.support.workers.trials import (
    Trained,
    random_examples,
    relative_difference,
    solo_run,
    train_together,
)
from workers.base.base_model import load_base
from workers.data.batches import epoch_order
from workers.data.examples import Example
from workers.lora.multi_lora import Form

# PEFT 0.21 and accelerate 1.15 use properties that transformers 5.23 and torch 2.13 renamed.
pytestmark = pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing` is deprecated:FutureWarning")

CPU = torch.device("cpu")
TRAIN = random_examples(29, seed=4, longest=24)  # 3 whole batches of 8 and one of 5


def make_recipe(lr_scheduler: Scheduler = "cosine", **fields: Any) -> Recipe:
    recipe = Recipe(
        learning_rate=2e-2,
        batch_size=8,
        epochs=2,
        weight_decay=0.1,
        lora_r=4,
        lora_dropout=0.0,
        lr_scheduler=lr_scheduler,
        warmup_ratio=0.3,
        max_grad_norm=0.5,
        seed=11,
    )
    return recipe.model_copy(update=fields)


class EpochOrders(torch.utils.data.Sampler[int]):
    """The data orders of a trial, epoch after epoch."""

    def __init__(self, seed: int) -> None:
        self._seed = seed
        self._epoch = 0

    def __len__(self) -> int:
        return len(TRAIN)

    def __iter__(self) -> Iterator[int]:
        self._epoch += 1
        return iter(epoch_order(len(TRAIN), self._seed, self._epoch - 1))


class Reference(Trainer):
    """Trainer over given orders, keeping each step's loss and gradient norm unrounded."""

    def __init__(self, *args: Any, seed: int, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.losses: list[float] = []
        self.norms: list[float] = []
        self.rates: list[float] = []
        self._sum = 0.0
        self._orders = EpochOrders(seed)
        trainer = self

        class EndOfStep(TrainerCallback):
            def on_step_end(self, *args: Any, **kwargs: Any) -> None:
                trainer.losses.append(trainer._sum)
                trainer._sum = 0.0

        self.add_callback(EndOfStep)

    def _get_train_sampler(self, *args: Any) -> EpochOrders:
        return self._orders

    def training_step(self, *args: Any, **kwargs: Any) -> torch.Tensor:
        loss = super().training_step(*args, **kwargs)
        self._sum += loss.item()
        return loss

    def _clip_grad_norm(self, model: torch.nn.Module) -> torch.Tensor:
        norm = super()._clip_grad_norm(model)
        self.norms.append(float(norm))
        self.rates.append(self._get_learning_rate())
        return norm


def pad(features: list[dict[str, torch.Tensor]]) -> dict[str, torch.Tensor]:
    def padded(key: str, value: int) -> torch.Tensor:
        return torch.nn.utils.rnn.pad_sequence(
            [f[key] for f in features], batch_first=True, padding_value=value
        )

    return {
        "input_ids": padded("input_ids", 0),
        "labels": padded("labels", -100),
        "attention_mask": padded("attention_mask", 0),
    }


def feature(example: Example) -> dict[str, torch.Tensor]:
    return {
        "input_ids": example.input_ids,
        "labels": example.labels,
        "attention_mask": torch.ones_like(example.input_ids),
    }


def train_reference(
    folder: Path,
    output: Path,
    quantization: Quantization,
    recipe: Recipe,
    micro_batch_size: int,
    **arguments: Any,
) -> tuple[Reference, list[torch.Tensor]]:
    model = load_base(ModelSpec(id=str(folder), quantization=quantization), CPU).model
    set_seed(recipe.seed)
    peft = get_peft_model(
        model,
        LoraConfig(
            r=recipe.lora_r, lora_alpha=recipe.alpha, target_modules="all-linear", task_type="CAUSAL_LM"
        ),
    )
    name = "constant_with_warmup" if recipe.lr_scheduler == "constant" else recipe.lr_scheduler
    trainer = Reference(
        peft,
        TrainingArguments(
            output_dir=str(output),
            per_device_train_batch_size=micro_batch_size,
            gradient_accumulation_steps=recipe.batch_size // micro_batch_size,
            num_train_epochs=recipe.epochs,
            learning_rate=recipe.learning_rate,
            weight_decay=recipe.weight_decay,
            warmup_steps=recipe.warmup_ratio,
            lr_scheduler_type=name,
            max_grad_norm=recipe.max_grad_norm,
            adam_epsilon=recipe.adam_epsilon,
            seed=recipe.seed,
            use_cpu=True,
            report_to=[],
            save_strategy="no",
            logging_strategy="no",
            disable_tqdm=True,
            dataloader_pin_memory=False,
            remove_unused_columns=False,
            **arguments,
        ),
        data_collator=pad,
        train_dataset=[feature(example) for example in TRAIN],
        seed=recipe.seed,
    )
    trainer.train()
    return trainer, [p.detach() for p in peft.parameters() if p.requires_grad]


@pytest.fixture(scope="module")
def trainers(
    tiny_base_dir: Path, tmp_path_factory: pytest.TempPathFactory
) -> dict[str, tuple[Recipe, Reference, list[torch.Tensor]]]:
    """Three recipes, with epsilons above rounding error, and what Trainer comes to with each."""
    recipes = {
        "batches of 8": make_recipe(adam_epsilon=1e-5),
        "batches of 4": make_recipe(
            "linear",
            batch_size=4,
            learning_rate=1e-2,
            lora_r=8,
            weight_decay=0.0,
            adam_epsilon=1e-4,
            seed=3,
        ),
        "batches of 1": make_recipe(
            "constant",
            batch_size=1,
            epochs=1,
            learning_rate=2e-3,
            lora_r=2,
            warmup_ratio=0.0,
            adam_epsilon=1e-5,
            seed=5,
        ),
    }
    folder = tmp_path_factory.mktemp("trainers")
    return {
        name: (recipe, *train_reference(tiny_base_dir, folder / name, "nf4", recipe, recipe.batch_size))
        for name, recipe in recipes.items()
    }


def assert_equal(actual: Trained, reference: Reference, expected: list[torch.Tensor]) -> None:
    assert actual.losses == pytest.approx(reference.losses, abs=1e-4)
    assert [step.grad_norm for step in actual.steps] == pytest.approx(reference.norms, rel=1e-4)
    assert [step.learning_rate for step in actual.steps] == reference.rates
    for weight, other in zip(actual.weights, expected, strict=True):
        torch.testing.assert_close(weight, other, rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("micro_batch_size", [8, 4, 1])
@pytest.mark.parametrize("quantization", ["nf4", "none"])
def test_every_step_equals_trainer(
    tiny_base_dir: Path, tmp_path: Path, quantization: Quantization, micro_batch_size: int
) -> None:
    recipe = make_recipe()
    reference, expected = train_reference(tiny_base_dir, tmp_path, quantization, recipe, micro_batch_size)
    base = load_base(ModelSpec(id=str(tiny_base_dir), quantization=quantization), CPU)
    actual = solo_run(base, recipe, TRAIN, micro_batch_size=micro_batch_size)
    assert_equal(actual, reference, expected)
    assert len({step.supervised_tokens for step in actual.steps}) > 1  # token weighting matters here
    assert max(reference.norms) > recipe.max_grad_norm  # and so does clipping


@pytest.mark.parametrize("lr_scheduler", ["linear", "constant"])
def test_the_other_schedules_equal_trainer_too(
    tiny_base_dir: Path, tmp_path: Path, lr_scheduler: Scheduler
) -> None:
    recipe = make_recipe(lr_scheduler)
    reference, expected = train_reference(tiny_base_dir, tmp_path, "none", recipe, 8)
    base = load_base(ModelSpec(id=str(tiny_base_dir), quantization="none"), CPU)
    assert_equal(solo_run(base, recipe, TRAIN), reference, expected)


@pytest.mark.parametrize(
    ("fields", "arguments"),
    [
        (
            {"optimizer": "sgd", "sgd_nesterov": True},
            {"optim": "sgd", "optim_args": "momentum=0.9,nesterov=true"},
        ),
        (
            {"optimizer": "rmsprop", "rmsprop_alpha": 0.9, "learning_rate": 2e-3},
            {"optim": "rmsprop", "optim_args": "alpha=0.9,eps=1e-8"},
        ),
    ],
    ids=["sgd", "rmsprop"],
)
def test_the_other_optimizers_equal_trainer_too(
    tiny_base_dir: Path, tmp_path: Path, fields: dict[str, Any], arguments: dict[str, Any]
) -> None:
    recipe = make_recipe(**fields)
    reference, expected = train_reference(tiny_base_dir, tmp_path, "none", recipe, 8, **arguments)
    base = load_base(ModelSpec(id=str(tiny_base_dir), quantization="none"), CPU)
    assert_equal(solo_run(base, recipe, TRAIN), reference, expected)


@pytest.mark.parametrize(("scaling", "learning_rate"), [("sqrt", 1e-2), ("linear", 5e-3)])
def test_a_rate_that_is_scaled_to_the_batch_equals_trainer_at_the_rate_it_comes_to(
    tiny_base_dir: Path, tmp_path: Path, scaling: str, learning_rate: float
) -> None:
    """2e-2 with a batch of 8, where the rate is meant for one of 2."""
    reference, expected = train_reference(tiny_base_dir, tmp_path, "none", make_recipe(), 8)
    recipe = make_recipe(
        learning_rate=learning_rate, learning_rate_scaling=scaling, learning_rate_batch_size=2
    )
    base = load_base(ModelSpec(id=str(tiny_base_dir), quantization="none"), CPU)
    assert_equal(solo_run(base, recipe, TRAIN), reference, expected)


@pytest.mark.parametrize("form", get_args(Form))
def test_three_trials_in_one_pack_each_equal_a_trainer_of_their_own(
    tiny_base_dir: Path, trainers: Mapping[str, tuple[Recipe, Reference, list[torch.Tensor]]], form: Form
) -> None:
    base = load_base(ModelSpec(id=str(tiny_base_dir)), CPU)
    recipes = {name: recipe for name, (recipe, _reference, _weights) in trainers.items()}
    together = train_together(base, recipes, TRAIN, token_budget=150, form=form)
    for name, (_recipe, reference, weights) in trainers.items():
        assert_equal(together.trained[name], reference, weights)
        assert relative_difference(together.trained[name].weights, weights) <= 1e-4
    assert together.accumulated
