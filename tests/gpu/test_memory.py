"""Running out of a device's memory makes passes smaller, and changes no trial's numbers."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from search_spaces.recipe import Recipe
from tests.support.workers.gpu_trials import DEVICE, Bases, assert_same, train_orders
from tests.support.workers.models import build_tiny_base
from tests.support.workers.trials import (
    UNLIMITED,
    Together,
    new_run,
    random_examples,
    solo_run,
    train_together,
    trial_order,
)
from workers.base.base_model import checkpoint_activations
from workers.contract import OutcomeStatus
from workers.lora.adapters import AdapterHost
from workers.training.shared_pass import DoesNotFitError, SharedPasses

LONG = random_examples(48, seed=9, longest=250)
MIB = 2**20


def limit_to(more_bytes: int) -> None:
    """What is allocated now, and so much on top of it, is all there is from now on."""
    torch.cuda.empty_cache()
    _free, total = torch.cuda.mem_get_info(DEVICE)
    torch.cuda.set_per_process_memory_fraction((torch.cuda.memory_reserved(DEVICE) + more_bytes) / total)


def recipes(count: int) -> dict[str, Recipe]:
    return {
        f"trial-{n}": Recipe(batch_size=24, epochs=1, lora_r=8, learning_rate=2e-3, lora_dropout=0.1, seed=n)
        for n in range(count)
    }


@pytest.fixture(scope="module")
def wide(tmp_path_factory: pytest.TempPathFactory) -> Bases:
    """Wide enough for its activations to weigh something: about 150 kB a token."""
    folder = tmp_path_factory.mktemp("base") / "wide"
    return Bases(build_tiny_base(folder, hidden_size=256, intermediate_size=768, layers=4, max_positions=512))


@pytest.mark.usefixtures("full_memory")
def test_passes_shrink_and_the_numbers_stay(wide: Bases) -> None:
    base = wide("nf4", "float32")
    trials = recipes(4)
    expected = train_together(base, trials, LONG)
    host = AdapterHost(base)
    together = Together(SharedPasses(host, token_budget=UNLIMITED))
    for name, recipe in trials.items():
        together.join(new_run(host, recipe, LONG, name=name))
    limit_to(512 * MIB)
    together.finish()
    assert together.passes.token_budget < 4 * 24 * 250
    assert together.accumulated
    for name in trials:
        assert_same(together.trained[name], expected.trained[name], 1e-4)


@pytest.mark.usefixtures("full_memory")
def test_a_row_that_does_not_fit_is_told(wide: Bases) -> None:
    host = AdapterHost(wide("nf4", "float32"))
    run = new_run(host, recipes(1)["trial-0"], LONG)
    passes = SharedPasses(host, token_budget=UNLIMITED)
    before = run.adapter.master.detach().clone()
    limit_to(4 * MIB)
    with pytest.raises(DoesNotFitError):
        passes.finish_batch(run)
    assert torch.equal(run.adapter.master, before)
    assert run.steps == 0
    host.remove("trial")


@pytest.mark.usefixtures("full_memory")
def test_only_the_trial_that_does_not_fit_alone_runs_out_of_memory(bases: Bases, tmp_path: Path) -> None:
    """An adapter of rank 16,384 on the tiny base takes 537 MB with its gradient and its moments."""
    small = Recipe(lora_r=4, batch_size=8, learning_rate=1e-2)
    huge = Recipe(lora_r=16_384, batch_size=8, learning_rate=1e-5)
    orders = [
        trial_order(tmp_path, bases.folder, attempt_id=number, recipe=recipe)
        for number, recipe in ((1, small), (2, huge), (3, small))
    ]
    limit_to(400 * MIB)
    ended, _ = train_orders(orders, slots=3)
    assert {number: outcome.status for number, outcome in ended.items()} == {
        1: OutcomeStatus.COMPLETED,
        2: OutcomeStatus.OUT_OF_MEMORY,
        3: OutcomeStatus.COMPLETED,
    }
    assert ended[1].value == pytest.approx(ended[3].value, rel=1e-4)


def test_a_pack_takes_what_was_predicted(wide: Bases, tmp_path: Path) -> None:
    """At most half as much again, and 32 MiB for a library's workspace."""
    order = trial_order(tmp_path, wide.folder, recipe=Recipe(lora_r=64, batch_size=16, learning_rate=1e-4))
    ended, _ = train_orders([order], slots=None)
    predicted, taken = ended[1].predicted_memory_bytes, ended[1].peak_memory_bytes
    assert predicted is not None
    assert taken is not None
    assert taken <= 1.5 * predicted + 32 * MIB


def test_gradient_checkpointing_costs_no_accuracy_and_saves_memory(wide: Bases) -> None:
    base = wide("nf4", "float32")
    trials = recipes(2)

    def trained() -> tuple[Together, int]:
        torch.cuda.reset_peak_memory_stats(DEVICE)
        before = torch.cuda.memory_allocated(DEVICE)
        together = train_together(base, trials, LONG)
        return together, torch.cuda.max_memory_allocated(DEVICE) - before

    expected, peak = trained()
    checkpoint_activations(base.model, True)
    try:
        actual, smaller = trained()
    finally:
        checkpoint_activations(base.model, False)
    for name in trials:
        assert_same(actual.trained[name], expected.trained[name], 1e-4)
    assert smaller < 0.7 * peak


def test_nothing_stays_on_the_device(bases: Bases) -> None:
    base = bases("nf4", "bfloat16")
    recipe = Recipe(batch_size=4, lora_r=8, learning_rate=1e-3, lora_dropout=0.1)
    solo_run(base, recipe, LONG[:8])
    before = torch.cuda.memory_allocated(DEVICE)
    for _ in range(3):
        train_together(base, {"one": recipe, "two": recipe}, LONG[:8])
    assert torch.cuda.memory_allocated(DEVICE) <= before + MIB
