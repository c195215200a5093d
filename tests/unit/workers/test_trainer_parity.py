"""A trial's numbers are those of `transformers.Trainer` + PEFT on the same batches."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import LoraConfig, get_peft_model
from transformers import Trainer, TrainerCallback, TrainingArguments, set_seed

from search_spaces.definition import ModelSpec, Quantization
from search_spaces.recipe import Recipe, Scheduler
from tests.tiny_trials import random_examples
from workers.adapters import AdapterHost
from workers.base_model import load_base
from workers.batches import epoch_order
from workers.datasets import Example
from workers.trial_run import TrialRun

# PEFT 0.21 and accelerate 1.15 use properties that transformers 5.23 and torch 2.13 renamed.
pytestmark = pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing` is deprecated:FutureWarning")

CPU = torch.device("cpu")
TRAIN = random_examples(29, seed=4, longest=24)  # 3 whole batches of 8 and one of 5


def make_recipe(lr_scheduler: Scheduler = "cosine") -> Recipe:
    return Recipe(
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
    folder: Path, output: Path, quantization: Quantization, recipe: Recipe, micro_batch_size: int
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
            seed=recipe.seed,
            use_cpu=True,
            report_to=[],
            save_strategy="no",
            logging_strategy="no",
            disable_tqdm=True,
            dataloader_pin_memory=False,
            remove_unused_columns=False,
        ),
        data_collator=pad,
        train_dataset=[feature(example) for example in TRAIN],
        seed=recipe.seed,
    )
    trainer.train()
    return trainer, [p.detach() for p in peft.parameters() if p.requires_grad]


@pytest.mark.parametrize("micro_batch_size", [8, 4, 1])
@pytest.mark.parametrize("quantization", ["nf4", "none"])
def test_every_step_equals_trainer(
    tiny_base_dir: Path, tmp_path: Path, quantization: Quantization, micro_batch_size: int
) -> None:
    recipe = make_recipe()
    reference, expected = train_reference(tiny_base_dir, tmp_path, quantization, recipe, micro_batch_size)

    base = load_base(ModelSpec(id=str(tiny_base_dir), quantization=quantization), CPU)
    adapter = AdapterHost(base).add("trial", recipe)
    run = TrialRun(recipe, base, adapter, TRAIN, divergence_factor=100, micro_batch_size=micro_batch_size)
    results = [run.step() for _ in range(run.plan.total_steps)]

    assert run.finished
    assert [r.train_loss for r in results] == pytest.approx(reference.losses, abs=1e-4)
    assert [r.grad_norm for r in results] == pytest.approx(reference.norms, rel=1e-4)
    assert [r.learning_rate for r in results] == reference.rates
    assert len({r.supervised_tokens for r in results}) > 1  # token weighting matters here
    assert max(reference.norms) > recipe.max_grad_norm  # and so does clipping
    for actual, weight in zip(adapter.parameters, expected, strict=True):
        torch.testing.assert_close(actual.detach(), weight, rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("lr_scheduler", ["linear", "constant"])
def test_the_other_schedules_equal_trainer_too(
    tiny_base_dir: Path, tmp_path: Path, lr_scheduler: Scheduler
) -> None:
    recipe = make_recipe(lr_scheduler)
    reference, _ = train_reference(tiny_base_dir, tmp_path, "none", recipe, 8)
    base = load_base(ModelSpec(id=str(tiny_base_dir), quantization="none"), CPU)
    run = TrialRun(recipe, base, AdapterHost(base).add("trial", recipe), TRAIN, divergence_factor=100)
    losses = [run.step().train_loss for _ in range(run.plan.total_steps)]
    assert losses == pytest.approx(reference.losses, abs=1e-4)
