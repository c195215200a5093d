"""The bases and trials of the tests on a device, and how their numbers are compared."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache
from pathlib import Path

import torch

from search_spaces.definition import ModelSpec
from search_spaces.recipe import Quantization, Recipe
from tests.support.workers.trials import Trained, of_type, random_examples, relative_difference
from workers.base.base_model import LoadedBase, load_base
from workers.contract import Event, TrialOrder, TrialOutcome
from workers.pack.pack import Pack

DEVICE = torch.device("cuda:0")

TRAIN = random_examples(24, seed=5, longest=40)

RECIPES = {
    "tiny batch": Recipe(learning_rate=5e-3, batch_size=1, epochs=0.5, lora_r=4),
    "rank-stabilised": Recipe(
        learning_rate=2e-3,
        batch_size=4,
        epochs=2,
        weight_decay=0.1,
        lora_r=8,
        use_rslora=True,
        lora_dropout=0.1,
        lr_scheduler="cosine",
        warmup_ratio=0.2,
    ),
    "attention": Recipe(
        learning_rate=1e-2,
        batch_size=8,
        epochs=2,
        lora_r=2,
        lora_dropout=0.05,
        target_modules="attention",
        lr_scheduler="constant",
        seed=1,
    ),
    "two modules": Recipe(
        learning_rate=3e-3,
        batch_size=2,
        lora_r=16,
        lora_alpha=11.0,
        target_modules=("q_proj", "down_proj"),
        warmup_ratio=0.5,
    ),
    "rank one": Recipe(learning_rate=5e-3, batch_size=12, epochs=3, lora_r=1, lora_dropout=0.3, seed=2),
    "clipped": Recipe(learning_rate=2e-3, batch_size=3, lora_r=8, max_grad_norm=0.05, seed=3),
    "whole epochs": Recipe(learning_rate=5e-3, batch_size=24, epochs=4, lora_r=4, adam_beta2=0.95, seed=4),
    "high rank": Recipe(
        learning_rate=1e-3, batch_size=6, epochs=2, weight_decay=0.3, lora_r=64, lora_dropout=0.5, seed=5
    ),
}


class Bases:
    """The tiny base on the device, loaded once for each quantization and compute dtype."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._load = cache(self._load_new)

    def __call__(self, quantization: Quantization = "nf4", compute_dtype: str = "float32") -> LoadedBase:
        return self._load(quantization, compute_dtype)

    def _load_new(self, quantization: Quantization, compute_dtype: str) -> LoadedBase:
        spec = ModelSpec.model_validate(
            {"id": str(self.folder), "quantization": quantization, "compute_dtype": compute_dtype}
        )
        return load_base(spec, DEVICE)


def loss_difference(actual: Sequence[float], expected: Sequence[float]) -> float:
    """The largest relative difference of any step's loss; the steps must be as many."""
    return max(abs(one - two) / two for one, two in zip(actual, expected, strict=True))


def assert_same(actual: Trained, expected: Trained, tolerance: float) -> None:
    """Every step's loss and every matrix of the final adapter, relative."""
    assert actual.ended is None
    assert loss_difference(actual.losses, expected.losses) <= tolerance
    assert relative_difference(actual.weights, expected.weights) <= tolerance


def train_orders(
    orders: Sequence[TrialOrder], *, slots: int | None
) -> tuple[dict[int, TrialOutcome], list[Event]]:
    """Trains orders in one pack, each admitted as soon as there is room.

    Returns:
        The outcomes by attempt, and all events.
    """
    events: list[Event] = []
    pack = Pack(events.append, device=DEVICE, slots=slots, progress_interval_s=0.0)
    waiting = list(orders)
    while waiting or pack.running_attempts:
        while waiting and pack.accepts(waiting[0]):
            pack.admit(waiting.pop(0))
        pack.step()
    return {outcome.attempt_id: outcome for outcome in of_type(events, TrialOutcome)}, events
