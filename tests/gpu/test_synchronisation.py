"""The host waits for the device once a pass: for the numbers that say whether it may count."""

from __future__ import annotations

import warnings
from collections.abc import Callable

import pytest
import torch

from search_spaces.recipe import Recipe
from tests.support.workers.gpu_trials import TRAIN, Bases
from tests.support.workers.trials import UNLIMITED, new_run
from workers.lora.adapters import AdapterHost
from workers.lora.multi_lora import Form
from workers.training.shared_pass import SharedPasses


def waits(action: Callable[[], object]) -> list[str]:
    """Where the host waits for the device, as far as torch sees it; one line for each time."""
    action()  # kernels are loaded and tables made at the first time
    torch.cuda.synchronize()
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        torch.cuda.set_sync_debug_mode("warn")
        try:
            action()
        finally:
            torch.cuda.set_sync_debug_mode("default")
    return [
        f"{one.filename}:{one.lineno}" for one in caught if "synchronizing CUDA operation" in str(one.message)
    ]


def test_waiting_is_noticed() -> None:
    number = torch.ones((), device="cuda:0")
    assert len(waits(lambda: (number.item(), number.tolist()))) == 2


@pytest.mark.parametrize(
    ("form", "compute_dtype"),
    [(form, dtype) for form in ("looped", "batched") for dtype in ("float32", "bfloat16")]
    + [("grouped", "bfloat16")],
)
def test_a_pass_waits_once(bases: Bases, form: Form, compute_dtype: str) -> None:
    """With dropout, rows of many lengths, and optimizer steps in every pass."""
    host = AdapterHost(bases("nf4", compute_dtype))
    passes = SharedPasses(host, token_budget=UNLIMITED, form=form)
    recipes = [
        Recipe(batch_size=batch_size, epochs=50, lora_r=rank, lora_dropout=0.1, learning_rate=1e-4)
        for batch_size, rank in ((1, 4), (2, 8), (4, 8))
    ]
    runs = [new_run(host, recipe, TRAIN, name=f"trial-{n}") for n, recipe in enumerate(recipes)]
    assert len(waits(lambda: passes.train(runs))) == 1
    assert all(run.steps for run in runs)
    for run in runs:
        host.remove(run.adapter.name)


def test_an_evaluation_waits_for_its_totals_alone(bases: Bases) -> None:
    """Two lists of them, whatever the number of passes."""
    host = AdapterHost(bases("nf4", "bfloat16"))
    passes = SharedPasses(host, token_budget=200)
    recipe = Recipe(lora_r=4)
    runs = [new_run(host, recipe, TRAIN, name=f"trial-{n}") for n in range(2)]
    assert len(waits(lambda: passes.evaluate(runs, TRAIN))) == 2
    for run in runs:
        host.remove(run.adapter.name)
