"""Right definitions by number: each says something of every section, and each must be accepted.

What a JSON Schema generates is nearly always refused (`min` above `max`, files that are not there), so the
answers to what is accepted would never be looked at without these.
"""

from __future__ import annotations

import random
from typing import Any

from search_spaces.definition import COSTS
from search_spaces.pruning.specs import PRUNING_SPECS

PREFIX = "sound-"
"""Their names begin with it, and nothing that a schema generates does."""


def sound_definition(number: int) -> dict[str, Any]:
    """Definition `number`; the same one each time."""
    draw = random.Random(number)
    algorithm = draw.choice(["grid", "random", "tpe", "qmc", "gp", "cmaes"])
    pruning = draw.choice(sorted(PRUNING_SPECS))
    space: dict[str, Any] = {
        "learning_rate": draw.choice(
            [
                {"min": 1e-5, "max": 1e-3, "scale": "log", "points": 4},
                {"min": 0.0001, "max": 0.0005, "step": 0.0001},
            ]
        ),
        "lora_r": {"min": 4, "max": 32, "step": 4},
    }
    if algorithm not in ("gp", "cmaes") or draw.random() < 0.5:
        space["weight_decay"] = {"min": 0.0, "max": 0.1, "points": 3}
    if algorithm != "cmaes" and draw.random() < 0.5:
        space["batch_size"] = {"choices": draw.sample([1, 4, 8.0, 16, 32], 3)}
    document: dict[str, Any] = {
        "name": f"{PREFIX}{number}",
        "model": {
            "id": draw.choice(["org/base", "gpt2"]),
            "quantization": draw.choice(["nf4", "int8", "none"]),
        },
        "data": {
            "train": draw.choice(["train.jsonl", {"hub": "org/data", "split": "train[:3]"}]),
            "eval": "eval.jsonl",
            "max_length": draw.choice([8, 64.0, 512]),
        },
        "search": {
            "algorithm": algorithm,
            "trials": draw.randint(1, 8),
            "seed": number % 2**32,
            "space": space,
        },
        "evaluation": {"every_examples": draw.choice([1, 50])},
        "budget": {
            "max_parallel_trials": draw.randint(1, 4),
            "timeout": draw.choice([None, "90s", "1h30m", " 2d "]),
            "max_gpu_hours": draw.choice([None, 0.5, 8]),
        },
    }
    if pruning != "none":
        document["pruning"] = _pruning(pruning)
    if draw.random() < 0.3:
        document["repeats"] = {"top_k": 1, "seeds": 2}
    if draw.random() < 0.3:
        document["constraints"] = {"perplexity": {"max": 20}}
    if algorithm in ("grid", "random") and pruning == "none" and draw.random() < 0.5:
        document.pop("repeats", None)
        document["objective"] = {"metric": "accuracy", "costs": [draw.choice(COSTS)]}
        document["resources"] = {"trials_per_worker": 1}
    for section in ("recipe", "resources", "objective"):
        if draw.random() < 0.2:
            document.setdefault(section, None)
    return document


def _pruning(algorithm: str) -> dict[str, Any]:
    special: dict[str, dict[str, Any]] = {
        "threshold": {"upper": 10.0},
        "patient": {"patience_examples": 100, "wrapped": {"algorithm": "median"}},
    }
    return {"algorithm": algorithm, **special.get(algorithm, {})}


def sound_schedule(number: int) -> dict[str, Any]:
    """A schedule of definition `number`."""
    draw = random.Random(number)
    return {
        "name": f"{PREFIX}night-{number}",
        "cron": draw.choice(["30 2 * * MON-FRI", "0 0 1 * *", "*/5 * * * *"]),
        "timezone": draw.choice(["UTC", "Europe/Berlin", "America/St_Johns"]),
        "enabled": draw.random() < 0.5,
        "overlap": draw.choice(["skip", "allow"]),
        "definition": sound_definition(number),
    }


def sound_change(number: int) -> dict[str, Any]:
    """A change of any schedule."""
    return random.Random(number).choice(
        [
            {"enabled": False},
            {"cron": "0 3 * * *"},
            {"timezone": "Asia/Kathmandu", "enabled": True},
            {"seed": number, "overlap": "allow", "repeat_configurations": True},
            {"name": f"{PREFIX}dawn-{number}", "definition": sound_definition(number)},
        ]
    )
