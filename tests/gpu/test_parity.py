"""On CUDA, too, a trial's numbers in a pack are those it has alone, in every form."""

from __future__ import annotations

from typing import get_args

import pytest
import torch

from search_spaces.recipe import Quantization, Recipe
from tests.support.workers.gpu_trials import DEVICE, RECIPES, TRAIN, Bases, assert_same, loss_difference
from tests.support.workers.trials import Trained, new_run, relative_difference, solo_run, train_together
from workers.base.base_model import load_base
from workers.lora.adapters import AdapterHost
from workers.lora.lora_dropout import keep_scale, row_keys
from workers.lora.multi_lora import Form
from workers.training.shared_pass import SharedPasses

FORMS: tuple[Form, ...] = get_args(Form)
OF_FLOAT32: tuple[Form, ...] = ("looped", "batched")
"""Torch has no kernel on CUDA for grouped products but in bfloat16."""
FLOAT32 = 1e-4
"""Sums of float32 numbers in another order differ by 1e-7; a few dozen AdamW steps leave 1e-5 of it."""
BFLOAT16 = 0.02
"""bfloat16 has 8 bits, so every activation is rounded by up to 0.2 %, and which kernel cuBLAS and
bitsandbytes take, and so how they round, depends on the rows of a pass. A loss is a mean over many tokens,
where most of that cancels: it may differ by 2 %."""


@pytest.fixture(scope="module")
def alone(bases: Bases) -> dict[str, dict[str, Trained]]:
    """By compute dtype and recipe, in nf4."""
    return {
        dtype: {name: solo_run(bases("nf4", dtype), recipe, TRAIN) for name, recipe in RECIPES.items()}
        for dtype in ("float32", "bfloat16")
    }


@pytest.mark.parametrize("form", OF_FLOAT32)
@pytest.mark.parametrize("size", [2, 5, 8])
def test_every_trial_of_a_float32_pack_equals_itself_alone(
    bases: Bases, alone: dict[str, dict[str, Trained]], size: int, form: Form
) -> None:
    trials = dict(list(RECIPES.items())[-size:])
    together = train_together(bases("nf4", "float32"), trials, TRAIN, form=form)
    for name in trials:
        assert_same(together.trained[name], alone["float32"][name], FLOAT32)


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("size", [2, 5, 8])
def test_a_bfloat16_pack_is_as_right_as_training_alone(
    bases: Bases, alone: dict[str, dict[str, Trained]], size: int, form: Form
) -> None:
    """No further from float32 than twice what training alone in bfloat16 is: rounding, and no bias."""
    trials = dict(list(RECIPES.items())[-size:])
    together = train_together(bases("nf4", "bfloat16"), trials, TRAIN, form=form)
    for name in trials:
        actual, solo, exact = together.trained[name], alone["bfloat16"][name], alone["float32"][name]
        assert actual.ended is None
        assert loss_difference(actual.losses, solo.losses) <= BFLOAT16
        rounding = relative_difference(solo.weights, exact.weights)
        assert relative_difference(actual.weights, exact.weights) <= 2 * rounding + 1e-3


@pytest.mark.parametrize("form", OF_FLOAT32)
@pytest.mark.parametrize("quantization", ["fp4", "none"])
def test_the_other_quantizations_are_right_too(bases: Bases, quantization: Quantization, form: Form) -> None:
    base = bases(quantization, "float32")
    trials = dict(list(RECIPES.items())[:3])
    together = train_together(base, trials, TRAIN, form=form)
    for name, recipe in trials.items():
        assert_same(together.trained[name], solo_run(base, recipe, TRAIN), FLOAT32)


@pytest.mark.parametrize("form", FORMS)
def test_trials_in_slots_of_one_bank_are_as_right_as_alone(bases: Bases, form: Form) -> None:
    """Of one rank, so that they are neighbours, with as many rows and with different numbers of them."""
    trials = {
        str(k): Recipe(learning_rate=2e-3, batch_size=size, epochs=2, lora_r=8, lora_dropout=0.1, seed=k)
        for k, size in enumerate((4, 4, 2, 6))
    }
    base, wide = bases("nf4", "bfloat16"), bases("nf4", "float32")
    together = train_together(base, trials, TRAIN, form=form)
    for name, recipe in trials.items():
        actual, solo = together.trained[name], solo_run(base, recipe, TRAIN)
        exact = solo_run(wide, recipe, TRAIN)
        assert loss_difference(actual.losses, solo.losses) <= BFLOAT16
        rounding = relative_difference(solo.weights, exact.weights)
        assert relative_difference(actual.weights, exact.weights) <= 2 * rounding + 1e-3


def test_small_passes_change_nothing(bases: Bases, alone: dict[str, dict[str, Trained]]) -> None:
    """Most batches then span several passes."""
    together = train_together(bases("nf4", "float32"), RECIPES, TRAIN, token_budget=120)
    assert together.accumulated
    for name in RECIPES:
        assert_same(together.trained[name], alone["float32"][name], FLOAT32)


def test_a_device_computes_what_a_cpu_computes(bases: Bases, alone: dict[str, dict[str, Trained]]) -> None:
    """The same seeds give the same adapters, the same rows and the same dropout."""
    base = load_base(bases("nf4", "float32").spec, torch.device("cpu"))
    for name, recipe in RECIPES.items():
        on_cpu = solo_run(base, recipe, TRAIN)
        assert loss_difference(alone["float32"][name].losses, on_cpu.losses) <= 1e-3


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_dropout_masks_are_those_of_a_cpu(dtype: torch.dtype) -> None:
    keys = torch.tensor(row_keys(3, 7, range(6)))
    rates = torch.tensor([0.0, 0.05, 0.1, 0.3, 0.5, 0.99])
    expected = keep_scale(keys, 11, 50, 70, rates, dtype)
    actual = keep_scale(keys.to(DEVICE), 11, 50, 70, rates.to(DEVICE), dtype)
    assert torch.equal(actual.cpu(), expected)
    assert 0 < (expected == 0).sum() < expected.numel()


@pytest.mark.parametrize("form", OF_FLOAT32)
def test_what_is_not_finite_stays_with_its_trial(bases: Bases, form: Form) -> None:
    base = bases("nf4", "float32")
    wild = Recipe(learning_rate=1e25, batch_size=2, lora_r=4, epochs=4)
    trials = {"wild": wild, **dict(list(RECIPES.items())[:2])}
    together = train_together(base, trials, TRAIN, form=form)
    assert together.trained["wild"].ended is not None
    for name in list(trials)[1:]:
        assert_same(together.trained[name], solo_run(base, trials[name], TRAIN), FLOAT32)


def test_trials_evaluate_together_as_they_do_alone(bases: Bases) -> None:
    host = AdapterHost(bases("nf4", "float32"))
    runs = [new_run(host, recipe, TRAIN, name=name) for name, recipe in list(RECIPES.items())[:4]]
    passes = SharedPasses(host, token_budget=400)
    for run in runs:
        while run.steps < 3:  # the first ones of a warm-up change nothing
            passes.finish_batch(run)
    together = passes.evaluate(runs, TRAIN)
    apart = [passes.evaluate([run], TRAIN)[0] for run in runs]
    for run in runs:
        host.remove(run.adapter.name)
    assert [one.loss_sum for one in together] == pytest.approx([one.loss_sum for one in apart], rel=FLOAT32)
    assert [one.tokens for one in together] == [one.tokens for one in apart]
    # A tie between two tokens may fall either way.
    assert [one.correct for one in together] == pytest.approx([one.correct for one in apart], abs=1)
    assert len({one.loss_sum for one in together}) == len(runs)
