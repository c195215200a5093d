"""On CUDA, too, a trial's numbers are those of `transformers.Trainer` + PEFT on the same batches."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import LoraConfig, get_peft_model
from transformers import Trainer, TrainerCallback, TrainingArguments, set_seed

from search_spaces.recipe import Recipe
from tests.support.workers.gpu_trials import DEVICE, TRAIN, Bases
from tests.support.workers.trials import solo_run
from workers.base.base_model import load_base
from workers.data.batches import epoch_order
from workers.data.examples import Example

RECIPE = Recipe(
    learning_rate=1e-2,
    batch_size=8,
    epochs=2,
    weight_decay=0.1,
    lora_r=4,
    lr_scheduler="cosine",
    warmup_ratio=0.3,
    max_grad_norm=0.5,
    seed=11,
)


class EpochOrders(torch.utils.data.Sampler[int]):
    """The data orders of a trial, epoch after epoch."""

    def __init__(self) -> None:
        self._epoch = 0

    def __len__(self) -> int:
        return len(TRAIN)

    def __iter__(self) -> Iterator[int]:
        self._epoch += 1
        return iter(epoch_order(len(TRAIN), RECIPE.seed, self._epoch - 1))


class Reference(Trainer):
    """Trainer over those orders, keeping each step's loss unrounded."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.losses: list[float] = []
        self._sum = 0.0
        trainer = self

        class EndOfStep(TrainerCallback):
            def on_step_end(self, *args: Any, **kwargs: Any) -> None:
                trainer.losses.append(trainer._sum)
                trainer._sum = 0.0

        self.add_callback(EndOfStep)

    def _get_train_sampler(self, *args: Any) -> EpochOrders:
        return EpochOrders()

    def training_step(self, *args: Any, **kwargs: Any) -> torch.Tensor:
        loss = super().training_step(*args, **kwargs)
        self._sum += loss.item()
        return loss


def feature(example: Example) -> dict[str, torch.Tensor]:
    mask = torch.ones_like(example.input_ids)
    return {"input_ids": example.input_ids, "labels": example.labels, "attention_mask": mask}


def padded(features: list[dict[str, torch.Tensor]]) -> dict[str, torch.Tensor]:
    values = {"input_ids": 0, "labels": -100, "attention_mask": 0}
    return {
        key: torch.nn.utils.rnn.pad_sequence(
            [one[key] for one in features], batch_first=True, padding_value=value
        )
        for key, value in values.items()
    }


@pytest.mark.parametrize(("compute_dtype", "tolerance"), [("float32", 1e-4), ("bfloat16", 0.02)])
@pytest.mark.parametrize("micro_batch_size", [8, 2])
def test_every_step_equals_trainer(
    bases: Bases, tmp_path: Path, compute_dtype: str, tolerance: float, micro_batch_size: int
) -> None:
    """In bfloat16 as nearly as it rounds: see `test_parity`."""
    base = load_base(bases("nf4", compute_dtype).spec, DEVICE)  # Trainer leaves its wrappers on it
    set_seed(RECIPE.seed)
    config = LoraConfig(r=4, lora_alpha=8, target_modules="all-linear", task_type="CAUSAL_LM")
    arguments = TrainingArguments(
        output_dir=str(tmp_path),
        per_device_train_batch_size=micro_batch_size,
        gradient_accumulation_steps=RECIPE.batch_size // micro_batch_size,
        num_train_epochs=RECIPE.epochs,
        learning_rate=RECIPE.learning_rate,
        weight_decay=RECIPE.weight_decay,
        warmup_steps=RECIPE.warmup_ratio,
        lr_scheduler_type=RECIPE.lr_scheduler,
        max_grad_norm=RECIPE.max_grad_norm,
        seed=RECIPE.seed,
        bf16=compute_dtype == "bfloat16",
        report_to=[],
        save_strategy="no",
        logging_strategy="no",
        disable_tqdm=True,
        dataloader_pin_memory=False,
        remove_unused_columns=False,
    )
    trainer = Reference(
        get_peft_model(base.model, config),
        arguments,
        data_collator=padded,
        train_dataset=[feature(example) for example in TRAIN],
    )
    trainer.train()

    actual = solo_run(bases("nf4", compute_dtype), RECIPE, TRAIN)
    assert actual.losses == pytest.approx(trainer.losses, rel=tolerance)
    assert len(actual.losses) == 6
