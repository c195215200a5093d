"""Trials under the operating system's limit: `python -m tests.scripts.trials_under_limit`.

Arguments: a folder for artifacts, a base model's folder, a data file, how many trials there are (1 or 2), and
the bytes that the process may take beyond those that it has when they are ready to train. Prints a line of
JSON: their ends and how often a pass did not fit, under the limit and, once more from the start, without one.
"""

from __future__ import annotations

import ctypes
import gc
import json
import logging
import resource
import sys
import warnings
from pathlib import Path

import torch

from search_spaces.definition import DataSpec
from search_spaces.recipe import Recipe
from tests.support.workers.packs import Recorder
from tests.support.workers.trials import trial_order

RECIPES = (
    Recipe(learning_rate=1e-3, batch_size=16, lora_r=4, seed=1),
    Recipe(learning_rate=2e-3, batch_size=32, lora_r=8, lora_dropout=0.1, seed=2),
)


class Misfits(logging.Handler):
    """Counts passes that did not fit."""

    def __init__(self) -> None:
        super().__init__()
        self.count = 0

    def emit(self, record: logging.LogRecord) -> None:
        self.count += record.getMessage().startswith("out of memory in a pass of")


def limit_memory(more_bytes: int) -> None:
    """Lets the process map so many bytes more; what it has freed, the system takes back first."""
    gc.collect()
    ctypes.CDLL(None).malloc_trim(0)
    status = Path("/proc/self/status").read_text()
    taken = 1024 * int(status.split("VmData:")[1].split()[0])
    resource.setrlimit(resource.RLIMIT_DATA, (taken + more_bytes, resource.RLIM_INFINITY))


def run(
    folder: Path, base_dir: Path, data: DataSpec, trials: int, more_bytes: int | None
) -> dict[str, object]:
    """Trains trials to their ends."""
    recorder = Recorder(slots=trials)
    for number, recipe in enumerate(RECIPES[:trials], start=1):
        recorder.pack.admit(trial_order(folder, base_dir, attempt_id=number, recipe=recipe, data=data))
    misfits = Misfits()
    logging.getLogger("workers").addHandler(misfits)
    if more_bytes is not None:
        limit_memory(more_bytes)
    recorder.run()
    resource.setrlimit(resource.RLIMIT_DATA, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
    outcomes = [outcome for _number, outcome in sorted(recorder.outcomes().items())]
    return {
        "misfits": misfits.count,
        "statuses": [outcome.status for outcome in outcomes],
        "reasons": [outcome.reason for outcome in outcomes],
        "values": [outcome.value for outcome in outcomes],
    }


if __name__ == "__main__":
    warnings.simplefilter("ignore")
    torch.set_num_threads(1)
    folder, base_dir, file = map(Path, sys.argv[1:4])
    trials, more_bytes = map(int, sys.argv[4:])
    data = DataSpec(train=str(file), eval=str(file), max_length=64, max_eval_examples=4)
    limited = run(folder / "limited", base_dir, data, trials, more_bytes)
    print(json.dumps([limited, run(folder / "unlimited", base_dir, data, trials, None)]))  # noqa: T201
