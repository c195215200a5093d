"""Trials small enough for tests: examples, data files, orders."""

from __future__ import annotations

import json
import random
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from search_spaces.definition import DataSpec, EvaluationSpec, ModelSpec, ObjectiveSpec
from search_spaces.recipe import Recipe
from workers.contract import TrialOrder
from workers.datasets import Example

_DEVICES = ("kitchen light", "bedroom lamp", "heating", "fan in the hall", "radio")
_STATES = ("on", "off")


def random_examples(count: int, *, seed: int = 0, longest: int = 20, vocabulary: int = 300) -> list[Example]:
    """Examples of random tokens and lengths, the first part of each masked as a prompt."""
    generator = torch.Generator().manual_seed(seed)
    examples = []
    for _ in range(count):
        length = int(torch.randint(4, longest + 1, (), generator=generator))
        prompt = int(torch.randint(1, length - 1, (), generator=generator))
        input_ids = torch.randint(4, vocabulary, (length,), generator=generator)
        labels = input_ids.clone()
        labels[:prompt] = -100
        examples.append(Example(input_ids, labels))
    return examples


def write_data(file: Path, rows: int, *, seed: int = 0) -> Path:
    """A prompt_completion file of commands and their JSON, learnable in a few steps."""
    choose = random.Random(seed)
    with file.open("w") as handle:
        for _ in range(rows):
            device, state = choose.choice(_DEVICES), choose.choice(_STATES)
            row = {
                "prompt": f"please turn {state} the {device}",
                "completion": json.dumps({"device": device, "state": state}),
            }
            handle.write(json.dumps(row) + "\n")
    return file


def data_spec(folder: Path, *, train_rows: int = 24, eval_rows: int = 8, **fields: Any) -> DataSpec:
    """Train and eval files in `folder`, written if they are not there."""
    train, evaluation = folder / f"train-{train_rows}.jsonl", folder / f"eval-{eval_rows}.jsonl"
    for file, rows, seed in ((train, train_rows, 0), (evaluation, eval_rows, 1)):
        if not file.exists():
            write_data(file, rows, seed=seed)
    return DataSpec(train=str(train), eval=str(evaluation), max_length=64, **fields)


def trial_order(
    folder: Path,
    base_dir: Path,
    *,
    attempt_id: int = 1,
    study_id: str = "study",
    quantization: str = "nf4",
    recipe: Recipe | None = None,
    data: DataSpec | None = None,
    metric: str = "eval_loss",
    direction: str = "minimize",
    every_examples: int | None = None,
    divergence_factor: float = 4.0,
    micro_batch_size: int | None = None,
) -> TrialOrder:
    """An order for one trial, its artifacts under `folder`."""
    return TrialOrder(
        attempt_id=attempt_id,
        study_id=study_id,
        trial_number=attempt_id - 1,
        model=ModelSpec.model_validate({"id": str(base_dir), "quantization": quantization}),
        data=data or data_spec(folder),
        recipe=recipe or Recipe(learning_rate=1e-2, batch_size=8, lora_r=4, lora_dropout=0.0),
        objective=ObjectiveSpec.model_validate({"metric": metric, "direction": direction}),
        evaluation=EvaluationSpec(every_examples=every_examples, divergence_factor=divergence_factor),
        micro_batch_size=micro_batch_size,
        artifact_dir=str(folder / "artifacts" / str(attempt_id)),
    )


def of_type(events: Sequence[object], kind: type) -> list[Any]:
    """The events of one type, in order."""
    return [event for event in events if isinstance(event, kind)]
