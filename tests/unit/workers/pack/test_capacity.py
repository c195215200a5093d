"""A plan makes of what is known of passes how many trials a pack holds."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import pytest

from search_spaces.definition import ModelSpec
from search_spaces.recipe import Recipe
from tests.support.workers.models import build_tiny_gpt2
from tests.support.workers.packs import CPU, LATENCY_BOUND, Device, Recorder, assert_equal_trials, with_costs
from tests.support.workers.trials import new_run, of_type, random_examples, trial_order
from workers.base.base_model import LoadedBase, load_base
from workers.contract import PackCapacity, TrialOutcome
from workers.data.examples import Example
from workers.device.meter import PassSample
from workers.lora.adapters import AdapterHost
from workers.pack import capacity
from workers.pack.attempt import Attempt
from workers.pack.capacity import plan
from workers.pack.cost_model import Capacity, PassCost
from workers.pack.learned_costs import LearnedCosts
from workers.pack.loaded import SharedBase
from workers.training.shared_pass import SharedPasses

# PEFT 0.21 reads a property that transformers 5.23 renamed; it does so whenever it wraps a model.
pytestmark = pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing` is deprecated:FutureWarning")

EXAMPLES = random_examples(32, longest=20)
LONGEST = max(len(example.input_ids) for example in EXAMPLES)
AS_ON_A_CORE = PassCost(fixed_s=2**-9, per_token_s=2**-13, per_trial_s=2**-20)
"""A pass costs as much as 16 tokens more, so 19 times as many are about enough."""


@pytest.fixture(scope="module")
def plain_base(tiny_base_dir: Path) -> LoadedBase:
    return load_base(ModelSpec(id=str(tiny_base_dir)), CPU)


@dataclass
class Bench:
    """A base with the trials that are put on it."""

    shared: SharedBase
    attempts: list[Attempt] = field(default_factory=list)

    def add(self, folder: Path, recipe: Recipe, examples: list[Example], **fields: Any) -> None:
        """A trial that has not begun."""
        number = len(self.attempts)
        run = new_run(self.shared.host, recipe, examples, name=f"trial-{number}")
        order = replace(trial_order(folder, folder, attempt_id=number, recipe=recipe), **fields)
        self.attempts.append(Attempt(order, run, self.shared.host, examples, recipe_key="key"))

    def learn(self, sample: PassSample) -> None:
        self.shared.costs.learn(sample, adapter_bytes=0)

    def plan(self, most: int | None = None) -> Capacity:
        return plan(self.shared, self.attempts, most=most, device=CPU)


@pytest.fixture
def bench(plain_base: LoadedBase) -> Iterator[Bench]:
    host = AdapterHost(plain_base)
    bench = Bench(SharedBase((), host, SharedPasses(host, token_budget=2_048), LearnedCosts(plain_base)))
    yield bench
    for attempt in bench.attempts:
        attempt.leave()


@pytest.mark.parametrize(("batch_size", "few", "many"), [(32, 1, 1), (1, 4, 21)])
def test_a_batch_that_fills_passes_gets_one_slot_and_a_small_one_many(
    bench: Bench, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, batch_size: int, few: int, many: int
) -> None:
    with_costs(monkeypatch, AS_ON_A_CORE)
    bench.add(tmp_path, Recipe(batch_size=batch_size, lora_r=2), EXAMPLES)
    found = bench.plan()
    assert few <= found.trials <= many
    assert found.limited_by == "throughput"


def test_passes_get_the_size_that_was_planned_but_none_that_was_too_large(
    bench: Bench, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with_costs(monkeypatch, AS_ON_A_CORE)
    bench.add(tmp_path, Recipe(batch_size=8, lora_r=2), EXAMPLES)
    found = bench.plan()
    assert bench.shared.passes.token_budget == found.pass_tokens
    assert 19 * 16 <= found.pass_tokens < 2_048
    device = Device.installed(monkeypatch)
    device.limit_bytes = device.needed(bench.shared.host.base, 3 * LONGEST, trained=False)
    bench.shared.passes.evaluate([attempt.run for attempt in bench.attempts], EXAMPLES)
    fitting = bench.shared.passes.token_budget
    assert LONGEST <= fitting <= 4 * LONGEST
    assert bench.plan().pass_tokens == found.pass_tokens
    assert bench.shared.passes.token_budget == fitting


@pytest.mark.parametrize(("most", "allowed", "expected"), [(None, 5, 5), (3, None, 3), (3, 5, 3), (5, 3, 3)])
def test_the_users_limit_and_what_was_found_to_fit_are_respected(
    bench: Bench,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    most: int | None,
    allowed: int | None,
    expected: int,
) -> None:
    with_costs(monkeypatch, LATENCY_BOUND)
    bench.add(tmp_path, Recipe(batch_size=1, lora_r=2), EXAMPLES)
    assert bench.plan().trials > 5
    bench.add(tmp_path, Recipe(batch_size=1, lora_r=2), EXAMPLES, trials_per_worker=allowed)
    found = bench.plan(most)
    assert (found.trials, found.limited_by) == (expected, "limit")


def test_no_more_trials_than_memory_holds(
    bench: Bench, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with_costs(monkeypatch, LATENCY_BOUND, bytes_per_token=1_000.0)
    bench.add(tmp_path, Recipe(batch_size=2, lora_r=8), EXAMPLES)
    trial = 20 * 8 * 2_048  # weights, two gradients and two moments, each in four bytes
    room = 3 * trial + 1_000 * 6 * LONGEST
    monkeypatch.setattr(capacity, "available_bytes", lambda device: room - trial)
    monkeypatch.setattr(capacity, "allocated_bytes", lambda device: trial)  # one is there already
    found = bench.plan()
    assert (found.trials, found.limited_by) == (3, "memory")
    assert found.predicted_bytes <= room


def test_a_few_trials_come_at_once_and_more_when_passes_have_been_timed(
    bench: Bench, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    bench.add(tmp_path, Recipe(batch_size=1, lora_r=2), EXAMPLES)
    monkeypatch.setattr(capacity, "available_bytes", lambda device: 2**45)
    found = bench.plan()
    assert (found.trials, found.predicted_bytes) == (4, 0)
    assert found.reason == "4 trials at once, until passes have been timed."
    for number in range(1, 5):
        bench.learn(PassSample(16 * number, 1, LATENCY_BOUND.seconds(16 * number, 1), peak_bytes=2**40))
    found = bench.plan()
    assert found.trials > 4
    assert found.predicted_bytes > 2**39
    assert "tokens/s" in found.reason


def test_one_trial_comes_first_where_two_might_not_fit(
    bench: Bench, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    bench.add(tmp_path, Recipe(batch_size=1, lora_r=2), EXAMPLES)
    monkeypatch.setattr(capacity, "available_bytes", lambda device: 0)
    found = bench.plan()
    assert (found.trials, found.limited_by) == (1, "memory")
    assert bench.shared.passes.token_budget == LONGEST


@pytest.mark.parametrize("slots", [2, None], ids=["fixed", "measured"])
def test_a_base_with_dropout_of_its_own_trains_each_trial_in_passes_of_its_own(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, slots: int | None
) -> None:
    with_costs(monkeypatch, LATENCY_BOUND)
    folder = build_tiny_gpt2(tmp_path / "gpt2", dropout=0.1)
    orders = [
        trial_order(
            tmp_path,
            folder,
            attempt_id=number,
            every_examples=8,
            recipe=Recipe(learning_rate=1e-2, batch_size=4, lora_r=2 * number, lora_dropout=0.1, seed=number),
        )
        for number in (1, 2)
    ]
    recorder = Recorder(slots)
    recorder.run(*orders)
    if slots is None:
        (told,) = of_type(recorder.events, PackCapacity)
        assert told.slots == 1
    assert [outcome.status for outcome in of_type(recorder.events, TrialOutcome)] == ["completed"] * 2
    assert all(math.isfinite(outcome.value) for outcome in of_type(recorder.events, TrialOutcome))
    for order in orders:
        assert_equal_trials(recorder, order)
