"""A checkpoint taken on a device in the middle of a batch is gone on from, on it or on a CPU."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from search_spaces.recipe import Recipe
from tests.support.workers.gpu_trials import DEVICE, RECIPES, TRAIN, Bases
from tests.support.workers.trials import matrices, new_run, relative_difference, solo_run
from workers.artifacts.checkpoints import newest_usable, write_checkpoint
from workers.base.base_model import load_base
from workers.lora.adapters import AdapterHost
from workers.training.shared_pass import SharedPasses
from workers.training.trial_run import TrialRun

RECIPE = Recipe(
    batch_size=6, epochs=2, lora_r=8, learning_rate=3e-3, lora_dropout=0.1, lr_scheduler="cosine", seed=8
)


def until(run: TrialRun, passes: SharedPasses, reached: Callable[[], bool]) -> list[float]:
    """Trains alone; the losses of the steps."""
    losses = []
    while not reached():
        (advance,) = passes.train([run])
        if advance.step is not None:
            losses.append(advance.step.train_loss)
    return losses


@pytest.mark.parametrize("device", [DEVICE, torch.device("cpu")])
def test_a_trial_goes_on_in_another_pack(bases: Bases, tmp_path: Path, device: torch.device) -> None:
    expected = solo_run(bases("nf4", "float32"), RECIPE, TRAIN)

    host = AdapterHost(bases("nf4", "float32"))
    run = new_run(host, RECIPE, TRAIN)
    first = until(
        run, SharedPasses(host, token_budget=60), lambda: run.steps == 3 and 0 < len(run.waiting) < 6
    )
    tensors, state = run.state()
    write_checkpoint(tmp_path / "checkpoint", tensors, {"recipe_key": "the trial's", "run": state})
    host.remove("trial")
    assert "accumulated" in tensors

    found = newest_usable([str(tmp_path / "checkpoint")], recipe_key="the trial's")
    assert found is not None
    host = AdapterHost(load_base(bases("nf4", "float32").spec, device))
    mate = new_run(host, RECIPES["tiny batch"], TRAIN, name="mate")
    resumed = new_run(host, RECIPE, TRAIN)
    resumed.restore(found[0].tensors, found[0].state["run"])
    passes = SharedPasses(host, token_budget=200)
    losses = list(first)
    while not resumed.finished:
        for advance in passes.train([resumed] if mate.finished else [resumed, mate]):
            if advance.run is resumed and advance.step is not None:
                losses.append(advance.step.train_loss)
    tolerance = 1e-4 if device == DEVICE else 1e-3
    assert losses == pytest.approx(expected.losses, rel=tolerance)
    assert (
        relative_difference([m.to(DEVICE) for m in matrices(resumed.adapter)], expected.weights) <= tolerance
    )
