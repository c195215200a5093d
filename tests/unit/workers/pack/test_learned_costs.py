"""Costs are learnt from the passes that train: from none, from few, and in spite of what was known before."""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from search_spaces.definition import ModelSpec
from search_spaces.recipe import Recipe
from tests.support.workers.packs import CPU, Recorder
from tests.support.workers.trials import new_run, of_type, random_examples, trial_order
from workers.base.base_model import LoadedBase, load_base
from workers.contract import PackCapacity, PassCosts
from workers.device.memory import allocated_bytes
from workers.device.meter import PassMeter, PassSample
from workers.lora.adapters import AdapterHost
from workers.pack.cost_model import PassCost
from workers.pack.learned_costs import FEW_PASSES, LearnedCosts
from workers.training.shared_pass import SharedPasses

# PEFT 0.21 reads a property that transformers 5.23 renamed; it does so whenever it wraps a model.
pytestmark = pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing` is deprecated:FutureWarning")

TRUE = PassCost(fixed_s=0.2, per_token_s=1e-3, per_trial_s=0.01)
SIZES = [(64 * rows, trials) for rows in (1, 2, 3, 5, 8) for trials in (1, 2, 4)]


@pytest.fixture(scope="module")
def base(tiny_base_dir: Path) -> LoadedBase:
    return load_base(ModelSpec(id=str(tiny_base_dir)), CPU)


def teach(costs: LearnedCosts, cost: PassCost, passes: int) -> None:
    for number in range(passes):
        tokens, trials = SIZES[number % len(SIZES)]
        costs.learn(PassSample(tokens, trials, cost.seconds(tokens, trials)), adapter_bytes=0)


def off(costs: LearnedCosts, cost: PassCost) -> float:
    """The largest relative error of a pass of any of the sizes."""
    time = costs.present().time
    return max(abs(time.seconds(*size) / cost.seconds(*size) - 1) for size in SIZES)


def known(**fields: object) -> PassCosts:
    costs = {"fixed_s": 0.2, "per_token_s": 1e-3, "per_trial_s": 0.01, "bytes_per_token": 5e4, "passes": 99}
    where = {"key": "key", "form": "looped", "device": "cpu", "threads": torch.get_num_threads()}
    return PassCosts(**{**where, **costs, **fields})  # type: ignore[arg-type]


def test_what_is_assumed_is_in_no_seconds_and_safe(base: LoadedBase) -> None:
    costs = LearnedCosts(base).present()
    assert (costs.timed, costs.weighed) == (False, False)
    teacher = LearnedCosts(base)
    passes = SharedPasses(AdapterHost(base), token_budget=2_048)
    run = new_run(passes.host, Recipe(batch_size=8, lora_r=4, lora_dropout=0.1), random_examples(32))
    saved = 0

    def keep(tensor: torch.Tensor) -> torch.Tensor:
        nonlocal saved
        saved += tensor.numel() * tensor.itemsize
        return tensor.detach()

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        passes.train([run])
    (sample,) = passes.meter.take()
    passes.host.remove("trial")
    assert 0 < saved / sample.tokens < teacher.present().memory.bytes_per_token


def test_passes_teach_what_they_cost(base: LoadedBase) -> None:
    costs = LearnedCosts(base)
    teach(costs, TRUE, FEW_PASSES)
    assert costs.present().timed
    teach(costs, TRUE, 200)
    assert off(costs, TRUE) < 0.02


def test_a_pass_that_was_held_up_moves_little(base: LoadedBase) -> None:
    costs = LearnedCosts(base)
    teach(costs, TRUE, 60)
    for tokens, trials in SIZES[:3]:
        costs.learn(PassSample(tokens, trials, 30.0), adapter_bytes=0)
    assert off(costs, TRUE) < 0.05


def test_another_worker_begins_with_what_was_learnt(base: LoadedBase) -> None:
    first = LearnedCosts(base, "key")
    teach(first, TRUE, 200)
    second = LearnedCosts(base, "key", [known(device="a GPU"), first.to_keep("key")])
    assert second.present().timed
    assert off(second, TRUE) < 0.03


def test_of_what_was_learnt_elsewhere_only_the_same_setting_counts(base: LoadedBase) -> None:
    others = [known(device="a GPU"), known(threads=97), known(form="chosen")]
    assert not LearnedCosts(base, "key", others).present().timed


def test_knowledge_that_has_become_wrong_heals(base: LoadedBase) -> None:
    costs = LearnedCosts(base, "key", [known(fixed_s=20.0, per_token_s=1e-1)])
    teach(costs, TRUE, 300)
    assert off(costs, TRUE) < 0.1
    faster = PassCost(TRUE.fixed_s / 4, TRUE.per_token_s / 2, TRUE.per_trial_s)
    teach(costs, faster, 300)
    assert off(costs, faster) < 0.1


def test_bytes_are_learnt_from_peaks_and_kept(base: LoadedBase) -> None:
    costs = LearnedCosts(base, "key")
    before = costs.present().memory
    for tokens in (200, 100, 400, 50):
        assert not costs.present().weighed
        peak = before.base_bytes + 7_000 + tokens * 60_000 + 8 * tokens * base.vocabulary_size
        costs.learn(PassSample(tokens, 1, 0.1, peak_bytes=peak), adapter_bytes=7_000)
    assert costs.present().weighed
    assert costs.present().memory.bytes_per_token == pytest.approx(60_000, rel=1e-3)
    kept = costs.to_keep("key")
    again = LearnedCosts(base, "key", [kept]).present()
    assert again.weighed
    assert again.memory.bytes_per_token == kept.bytes_per_token == pytest.approx(60_000, rel=1e-3)


def test_memory_stays_bounded(base: LoadedBase) -> None:
    costs = LearnedCosts(base)
    for number in range(1, 3_000):
        costs.learn(PassSample(number, number % 50 + 1, 1e-3 * number, peak_bytes=2**40), adapter_bytes=0)
    assert len(costs._sizes) == 64
    assert len(costs._peaks) == 8


def test_the_meter_weighs_a_pass_only_when_it_is_larger_than_any_before() -> None:
    meter = PassMeter(CPU)
    filled = []
    for tokens in (10, 20, 15):
        begun = meter.begin(tokens)
        filled.append(torch.ones(2**20 * 32))  # 128 MiB more than ever
        math.factorial(20_000)
        meter.end(begun, tokens=tokens, trials=1)
    first, second, third = meter.take()
    assert first.peak_bytes is not None
    assert second.peak_bytes is not None
    assert allocated_bytes(CPU) > second.peak_bytes > first.peak_bytes
    assert third.peak_bytes is None
    assert all(sample.seconds > 0 for sample in (first, second, third))
    assert meter.take() == []


def test_a_pack_trains_from_its_first_pass_on_and_says_what_it_learnt(
    tmp_path: Path, tiny_base_dir: Path
) -> None:
    recorder = Recorder(slots=None)
    recorder.run(replace(trial_order(tmp_path, tiny_base_dir, recipe=Recipe(batch_size=2)), cost_key="key"))
    costs = of_type(recorder.events, PassCosts)
    assert [one.passes for one in costs] == [1, 2, 4, 8]
    assert {one.key for one in costs} == {"key"}
    assert of_type(recorder.events, PackCapacity)
