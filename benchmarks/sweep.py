"""The sweep that `versus_sequential` runs twice: one definition, from which both halves take their work."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from search_spaces.definition import build_recipe
from search_spaces.parsing.document import parse_definition

QUICKSTART = Path(__file__).resolve().parents[1] / "examples" / "quickstart"
NAME = "versus-sequential"
LEARNING_RATES = (1e-4, 3e-4, 1e-3)
RANKS = (8, 16)
EVAL_BATCH = 30
"""Rows that the plain script evaluates at a time: as fast as 16, faster than 60 and 120, as measured."""


@dataclass(frozen=True)
class Sweep:
    """A grid over batch size, learning rate and rank, on the quickstart's base and data."""

    batch_sizes: tuple[int, ...]
    learning_rates: tuple[float, ...]
    ranks: tuple[int, ...]
    train_rows: int
    eval_rows: int
    base: str = str(QUICKSTART / "base")
    """The folder of the model."""
    data: str = str(QUICKSTART)
    """The folder of `train.jsonl` and `eval.jsonl`, rows of `prompt` and `completion`."""
    max_length: int = 96

    @classmethod
    def of(cls, batch_sizes: Sequence[int], *, trials: int | None, train_rows: int, **source: Any) -> Sweep:
        """The whole grid, or `trials` of it: as many of each batch size.

        Args:
            batch_sizes: All of them.
            trials: How many; None: the whole grid.
            train_rows: To train on.
            source: `base`, `data` and `max_length`, where they are not the quickstart's.

        Raises:
            ValueError: The batch sizes cannot have equally many trials, or there are not so many rows.
        """
        shapes = {
            len(batch_sizes) * rates * ranks: (rates, ranks)
            for rates in range(1, len(LEARNING_RATES) + 1)
            for ranks in range(1, len(RANKS) + 1)
        }
        wanted = max(shapes) if trials is None else trials
        if wanted not in shapes:
            known = ", ".join(str(number) for number in sorted(shapes))
            raise ValueError(f"{wanted} trials are no part of the grid; with these batch sizes: {known}")
        rates, ranks = shapes[wanted]
        folder = Path(source.get("data", cls.data))
        rows, eval_rows = _row_count(folder / "train.jsonl"), _row_count(folder / "eval.jsonl")
        if not 2 <= train_rows <= rows:
            raise ValueError(f"{train_rows} rows; the data has from 2 to {rows} to train on")
        return cls(
            batch_sizes=tuple(batch_sizes),
            learning_rates=LEARNING_RATES[-rates:],
            ranks=RANKS[:ranks],
            train_rows=train_rows,
            eval_rows=max(1, eval_rows * train_rows // rows),
            **source,
        )

    @property
    def trials(self) -> int:
        return len(self.batch_sizes) * len(self.learning_rates) * len(self.ranks)

    @property
    def eval_every_examples(self) -> int:
        """Two evaluations a trial: half-way and at the end."""
        return math.ceil(self.train_rows / 2)

    def definition(self) -> dict[str, Any]:
        """What is submitted to the service."""
        return {
            "name": NAME,
            "model": {"id": self.base, "quantization": "nf4"},
            "data": {
                "train": str(Path(self.data) / "train.jsonl"),
                "eval": str(Path(self.data) / "eval.jsonl"),
                "format": "prompt_completion",
                "max_length": self.max_length,
                "max_train_examples": self.train_rows,
                "max_eval_examples": self.eval_rows,
            },
            "search": {
                "algorithm": "grid",
                "space": {
                    "batch_size": {"choices": list(self.batch_sizes)},
                    "learning_rate": {"choices": list(self.learning_rates)},
                    "lora_r": {"choices": list(self.ranks)},
                },
            },
            "recipe": {"epochs": 1, "weight_decay": 0.01, "lr_scheduler": "cosine", "warmup_ratio": 0.1},
            "pruning": {"algorithm": "none"},
            "evaluation": {"every_examples": self.eval_every_examples},
            "budget": {"max_parallel_trials": self.trials},
        }

    def recipes(self) -> list[dict[str, Any]]:
        """Every trial's whole recipe, by trial number."""
        definition = parse_definition(self.definition())
        return [
            build_recipe(definition, point).model_dump(mode="json")
            for point in definition.search.space.grid_points()
        ]

    def plain_work(self) -> dict[str, Any]:
        """The same for the plain script."""
        # Here, because torch comes with it and the definition needs none.
        from workers.data.batches import epoch_order

        data = self.definition()["data"]
        recipe, *_ = recipes = self.recipes()
        searched = ("batch_size", "learning_rate", "lora_r")
        return {
            "base": self.base,
            **{key: data[key] for key in ("train", "eval", "max_length")},
            "train_rows": self.train_rows,
            "eval_rows": self.eval_rows,
            "eval_batch_size": EVAL_BATCH,
            "eval_every_examples": self.eval_every_examples,
            "order": [epoch_order(self.train_rows, recipe["seed"], 0)],
            "recipe": {name: value for name, value in recipe.items() if name not in searched},
            "space": dict(zip(searched, (self.batch_sizes, self.learning_rates, self.ranks), strict=True)),
            "points": [{name: recipe[name] for name in searched} for recipe in recipes],
        }


def check_trials(recipes: Sequence[Mapping[str, Any]], trials: Sequence[Mapping[str, Any]]) -> None:
    """Raise unless the service's trials are exactly these recipes, all completed.

    Args:
        recipes: By trial number.
        trials: As `GET /v1/studies/{study}/trials` shows them.

    Raises:
        RuntimeError: It did something else.
    """
    ended = {trial["number"]: trial["state"] for trial in trials}
    if ended != dict.fromkeys(range(len(recipes)), "completed"):
        raise RuntimeError(f"expected {len(recipes)} completed trials, and the service ended with {ended}")
    for trial in trials:
        # What a recipe leaves to the study, the service answers with the study's value.
        stated = {name: value for name, value in recipes[trial["number"]].items() if value is not None}
        if not stated.items() <= trial["recipe"].items():
            raise RuntimeError(
                f"trial {trial['number']} trained {trial['recipe']}, not {recipes[trial['number']]}"
            )


def loss_differences(
    plain: Sequence[Mapping[str, Any]], trials: Sequence[Mapping[str, Any]]
) -> dict[int, float]:
    """By trial number, the largest relative difference between the halves' evaluation losses.

    Args:
        plain: The plain script's trials.
        trials: The service's.

    Raises:
        RuntimeError: The halves did not evaluate the same trials equally often.
    """
    ours = {trial["number"]: [rung["value"] for rung in trial["rungs"]] for trial in trials}
    theirs = {trial["number"]: trial["eval_losses"] for trial in plain}
    if {n: len(losses) for n, losses in ours.items()} != {n: len(losses) for n, losses in theirs.items()}:
        raise RuntimeError(f"evaluation losses of the service {ours}; of the plain script {theirs}")
    return {
        number: max(abs(our - their) / their for our, their in zip(ours[number], theirs[number], strict=True))
        for number in theirs
    }


def _row_count(file: Path) -> int:
    return len(file.read_text().splitlines())
