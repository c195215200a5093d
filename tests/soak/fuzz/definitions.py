"""Right definitions by number: each says something of every section, and each must be accepted.

What a JSON Schema generates is nearly always refused (`min` above `max`, files that are not there), so the
answers to what is accepted would never be looked at without these.
"""

from __future__ import annotations

import random
from typing import Any

from search_spaces.definition import COSTS
from search_spaces.pruning.specs import PRUNING_SPECS
from search_spaces.recipe import TASK_FIELDS
from search_spaces.tasks import TASKS

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
        document["constraints"] = {"eval_loss": {"max": 20}}
    _task(draw, document)
    if algorithm in ("grid", "random") and pruning == "none" and draw.random() < 0.5:
        document.pop("repeats", None)
        document.setdefault("objective", {})["costs"] = [draw.choice(COSTS)]
        document["resources"] = {"trials_per_worker": 1}
    for section in ("recipe", "resources", "objective"):
        if draw.random() < 0.2:
            document.setdefault(section, None)
    return document


def _task(draw: random.Random, document: dict[str, Any]) -> None:
    """A task with a metric, and what else of the document goes with it."""
    task = draw.choice([*TASKS, *["causal_lm"] * len(TASKS)])
    metric = draw.choice(TASKS[task].objectives)
    document["objective"] = draw.choice([{}, {"metric": metric}])
    if task != "causal_lm":
        document["task"] = task
        columns = {name: draw.choice([name, f"its_{name}"]) for name in TASKS[task].required}
        document["data"]["columns"] = columns
        if draw.random() < 0.5:
            positions = {name: draw.choice([at, str(at)]) for at, name in enumerate(columns)}
            document["data"] |= {"train": "train.csv", "eval": "eval.csv"}
            document["data"] |= {"header": "none", "columns": positions}
    if metric in TASKS[task].generated:
        generate = {"max_new_tokens": 8, "examples": 4, "when": "rungs", "answer_pattern": r"#### (\d+)"}
        document["evaluation"]["generate"] = generate
    fields: dict[str, Any] = {
        "loss": draw.choice([None, *TASKS[task].losses]),
        "focal_gamma": 1,
        "huber_delta": 0.5,
        "label_smoothing": 0.1,
        "class_weights": draw.choice(["none", "balanced", {"yes": 2, "no": 0.5}]),
        "neftune_alpha": 5,
        "head_learning_rate_ratio": 10,
        "preference_beta": 0.2,
        "simpo_gamma": 1,
    }
    fitting = [name for name in fields if task in TASK_FIELDS.get(name, (task,))]
    document["recipe"] = {name: fields[name] for name in draw.sample(fitting, 2)}
    if draw.random() < 0.2:
        document["model"]["dropout"] = draw.choice(["keep", "off"])
    if draw.random() < 0.2:
        document["metrics"] = {"profit": "my_metrics:profit"}
        document["objective"] = {"metric": "profit", "direction": "maximize"}
        document.setdefault("constraints", {})["profit"] = {"min": 0}
    if TASKS[task].no_own_losses is None and draw.random() < 0.2:
        document["losses"] = {"mine": "my_metrics:mine"}
        document["recipe"]["loss"] = draw.choice(["mine", TASKS[task].losses[0]])


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
        "overlap": draw.choice(["skip", "allow", "queue", "cancel_running"]),
        "catch_up": draw.choice(["latest", "none"]),
        "start": draw.choice([None, "2026-01-01", "2026-01-01T18:00"]),
        "end": draw.choice([None, "2999-12-31"]),
        **draw.choice([{}, {"until": "06:00", "until_action": draw.choice(["end", "pause", "continue"])}]),
        "sweep_name": draw.choice([None, f"{PREFIX}{number}-{{date}}-{{run}}"]),
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
            {"overlap": "queue", "catch_up": "none", "end": "2999-12-31T23:59", "start": None},
            {"until": None, "sweep_name": None},
            {"name": f"{PREFIX}dawn-{number}", "definition": sound_definition(number)},
        ]
    )


def sound_key(number: int) -> dict[str, Any]:
    """A key that must be made."""
    body: dict[str, Any] = {"owner": f"owner-{number % 7}"}
    if number % 2:
        body["role"] = ("viewer", "submitter", "admin")[number % 3]
    if number % 3:
        body["expires_in"] = ("90d", "1h30m", "12h")[number % 3]
    return body | ({"label": "laptop"} if number % 5 else {})


def sound_key_change(number: int) -> dict[str, Any]:
    """A change of a key that must be made while it works."""
    return {"role": "viewer"} if number % 2 else {"label": f"label {number % 9}"}


def sound_rotation(number: int) -> dict[str, Any]:
    """A rotation that must be made while the key works and has not been rotated."""
    return {"overlap": ("1h", "24h", "30d")[number % 3]} if number % 2 else {}
