"""Studies of seconds, whose results do not depend on timing, so that a disturbed run can be compared."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from tests.support.data import rows

MANY = 100
"""Retries: every kill of a worker takes one, and a test kills more than a night does."""
SHORT = 4
"""Trials of a `short` study."""


def make_data(folder: Path) -> Path:
    """A folder with `base`, `train.jsonl` and `eval.jsonl`."""
    from tests.support.workers.models import build_tiny_base

    folder.mkdir(parents=True, exist_ok=True)
    build_tiny_base(folder / "base")
    (folder / "train.jsonl").write_text(rows(48, 0))
    (folder / "eval.jsonl").write_text(rows(12, 100))
    return folder


def _definition(data: Path, name: str, **sections: Any) -> dict[str, Any]:
    return {
        "name": name,
        "model": {"id": str(data / "base"), "quantization": "nf4"},
        "data": {
            "train": str(data / "train.jsonl"),
            "eval": str(data / "eval.jsonl"),
            "max_length": 64,
        },
        **sections,
    }


_RATE = {"learning_rate": {"min": 1e-4, "max": 1e-2, "scale": "log"}}


def random(data: Path, name: str, *, trials: int = 8, epochs: int = 5) -> dict[str, Any]:
    """Two workers, a trial each, five rungs: every value is that of the recipe, whatever happens."""
    return _definition(
        data,
        name,
        search={"algorithm": "random", "trials": trials, "seed": 5, "space": _RATE},
        recipe={"batch_size": 4, "epochs": epochs, "lora_dropout": 0.1},
        evaluation={"every_examples": 48 * epochs // 5},
        budget={"max_parallel_trials": 2, "max_retries": MANY},
        resources={"trials_per_worker": 1},
    )


def short(data: Path, name: str) -> dict[str, Any]:
    """As `random`, half as long: 20 rungs."""
    return random(data, name, trials=SHORT)


def grid(data: Path, name: str, *, epochs: int = 2) -> dict[str, Any]:
    """2 x 3 points, one after the other on one worker: for faults of the API and of coordinators."""
    space = {"learning_rate": {"choices": [1e-3, 1e-2]}, "lora_r": {"choices": [2, 4, 8]}}
    return {
        **random(data, name, epochs=epochs),
        "search": {"algorithm": "grid", "space": space},
        "resources": {"workers": 1, "trials_per_worker": 1},
    }


def pruned(data: Path, name: str, *, trials: int = 8, epochs: int = 5) -> dict[str, Any]:
    """TPE and median pruning, one trial at a time: each suggestion and verdict is a function of the past."""
    return {
        **random(data, name, trials=trials, epochs=epochs),
        "search": {
            "algorithm": "tpe",
            "trials": trials,
            "seed": 11,
            "space": {**_RATE, "lora_r": {"choices": [2, 4]}},
        },
        "pruning": {"algorithm": "median", "n_startup_trials": 2},
        "budget": {"max_parallel_trials": 1, "max_retries": MANY},
    }


def packed(data: Path, name: str, *, trials: int = 4, epochs: int = 5) -> dict[str, Any]:
    """One worker, whose pack trains all of them at once. A resumed trial's mates are others than before."""
    return {
        **random(data, name, trials=trials, epochs=epochs),
        "budget": {"max_parallel_trials": 4, "max_retries": MANY},
        "resources": {"workers": 1},
    }
