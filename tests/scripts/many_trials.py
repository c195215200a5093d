"""Two hundred trials through one pack: `python -m tests.scripts.many_trials FOLDER BASE`.

`FOLDER` takes data and artifacts; `BASE` is a base model's. Prints a line of JSON: resident bytes and living
tensors after 20 trials and after 200, and how many of them ended in which way.
"""

from __future__ import annotations

import gc
import json
import sys
import warnings
from collections import Counter
from itertools import count
from pathlib import Path

import pytest
import torch

from search_spaces.recipe import Recipe
from tests.support.workers.packs import CPU, Device, Recorder
from tests.support.workers.trials import data_spec, of_type, trial_order
from workers.contract import Decision, OutcomeStatus, Report, TrialOrder, Verdict
from workers.data.batches import MicroBatch
from workers.device.memory import allocated_bytes

TRIALS = 200
FIRST = 20
LARGEST_RANK = 64
"""Together, of the adapters that fit on the base."""


def order(folder: Path, base_dir: Path, number: int) -> TrialOrder:
    """Trials of many shapes: some diverge, some never fit, some fit only alone, some cannot be made."""
    rank = {7: 96, 12: 60}.get(number % 20, 2 + number % 5)
    recipe = Recipe(
        learning_rate=1e38 if number % 10 == 3 else 1e-2,
        batch_size=(1, 2, 4)[number % 3],
        lora_r=rank,
        lora_dropout=0.1 * (number % 2),
        target_modules=("nothing",) if number % 20 == 9 else "all-linear",
        seed=number,
    )
    data = data_spec(folder, train_rows=8, eval_rows=2)
    return trial_order(folder, base_dir, attempt_id=number, recipe=recipe, data=data, every_examples=4)


def measure() -> dict[str, int]:
    """What the process holds."""
    gc.collect()
    tensors = sum(isinstance(thing, torch.Tensor) for thing in gc.get_objects())
    return {"resident_bytes": allocated_bytes(CPU), "tensors": tensors}


def run(folder: Path, base_dir: Path) -> dict[str, object]:
    """Trains them all."""
    passes = count(1)

    def break_now_and_then(batch: MicroBatch, trained: bool) -> None:
        if trained and next(passes) % 37 == 0:
            raise ArithmeticError("a pass broke")

    device = Device.installed(pytest.MonkeyPatch(), limit_bytes=LARGEST_RANK * Device.RANK_BYTES + 200_000)
    device.fault = break_now_and_then
    recorder = Recorder(slots=4)
    waiting = [order(folder, base_dir, number) for number in range(1, TRIALS + 1)]
    statuses: Counter[OutcomeStatus] = Counter()
    measured: list[dict[str, int]] = []
    while waiting or recorder.pack.running_attempts:
        while waiting and recorder.pack.accepts(waiting[0]):
            recorder.pack.admit(waiting.pop(0))
        recorder.pack.step()
        for report in of_type(recorder.events, Report):
            if report.attempt_id % 5 == 0:
                verdict = Verdict(attempt_id=report.attempt_id, decision=Decision.PRUNE, reason="test")
                recorder.pack.apply(verdict)
        statuses.update(outcome.status for outcome in recorder.outcomes().values())
        recorder.events.clear()
        device.passes.clear()
        if not measured and statuses.total() >= FIRST:
            measured.append(measure())
    return {"first": measured[0], "last": measure(), "statuses": statuses}


if __name__ == "__main__":
    warnings.simplefilter("ignore")
    torch.set_num_threads(1)
    gc.collect()
    gc.freeze()  # the libraries' own objects, as a worker does
    print(json.dumps(run(Path(sys.argv[1]), Path(sys.argv[2]))))  # noqa: T201
