"""How long a pass takes, how much it holds, and how many trials a pack should have.

One file: the strategies and the brute-force model are shared by all properties.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from search_spaces.recipe import Recipe
from workers.pack.cost_model import (
    Capacity,
    MemoryCost,
    PackMember,
    PassCost,
    fit_pass_cost,
    plan_capacity,
    predict_bytes,
)
from workers.training.optimizers import adapter_bytes

MIB, GIB = 2**20, 2**30
ROOMY = 10**18

seconds = st.floats(1e-6, 10)
costs = st.builds(
    PassCost,
    fixed_s=st.just(0.0) | st.floats(1e-4, 1),
    per_token_s=st.floats(1e-7, 1e-3),
    per_trial_s=st.just(0.0) | st.floats(1e-5, 0.1),
)
memories = st.builds(
    MemoryCost,
    base_bytes=st.integers(0, 8 * GIB),
    bytes_per_token=st.floats(1e3, 1e7),
    chunk_bytes=st.integers(0, GIB),
)
members = st.builds(
    PackMember,
    tokens_per_step=st.integers(1, 20_000),
    longest_tokens=st.integers(1, 4_096),
    adapter_bytes=st.integers(0, GIB),
)
packs = st.lists(members, min_size=1, max_size=6)
budgets = st.integers(0, 100 * GIB)
limits = st.none() | st.integers(1, 100)

MEMORY = MemoryCost(base_bytes=1 * GIB, bytes_per_token=1 * MIB, chunk_bytes=100 * MIB)
MEMBER = PackMember(tokens_per_step=100, longest_tokens=128, adapter_bytes=50 * MIB)


def plan(
    cost: PassCost,
    pack: Sequence[PackMember] = (MEMBER,),
    *,
    memory: MemoryCost = MEMORY,
    available: int = ROOMY,
    most: int | None = None,
) -> Capacity:
    return plan_capacity(cost, memory, members=pack, available_bytes=available, most=most)


# --- seconds


def test_a_pass_costs_its_fixed_part_its_tokens_and_its_trials() -> None:
    assert PassCost(fixed_s=1.0, per_token_s=0.25, per_trial_s=0.5).seconds(tokens=8, trials=3) == 4.5


@given(
    st.tuples(*[st.just(0.0) | st.floats(1e-4, 10)] * 3).filter(any),
    st.lists(st.tuples(st.integers(1, 10_000), st.integers(1, 32)), min_size=3, max_size=8, unique=True),
)
def test_costs_are_found_again_from_passes_without_noise(
    true: tuple[float, float, float], sizes: list[tuple[int, int]]
) -> None:
    cost = PassCost(*true)
    fitted = fit_pass_cost([(tokens, trials, cost.seconds(tokens, trials)) for tokens, trials in sizes])
    assert [fitted.seconds(*size) for size in sizes] == pytest.approx(
        [cost.seconds(*size) for size in sizes], rel=1e-9
    )
    if np.linalg.matrix_rank([(1, *size) for size in sizes]) == 3:
        scale = max(cost.seconds(*size) for size in sizes)
        found = (fitted.fixed_s, fitted.per_token_s, fitted.per_trial_s)
        assert found == pytest.approx(true, abs=1e-6 * scale)


samples_of_any_noise = st.lists(
    st.tuples(st.integers(1, 10_000), st.integers(1, 32), seconds),
    min_size=2,
    max_size=8,
    unique_by=lambda sample: sample[:2],
)


@given(samples_of_any_noise)
def test_no_change_of_a_cost_that_keeps_it_from_being_negative_makes_the_fit_better(
    samples: list[tuple[int, int, float]],
) -> None:
    """By the conditions of Karush, Kuhn and Tucker, which tell the best fit without negative costs."""
    relative = np.array([[1 / s, tokens / s, trials / s] for tokens, trials, s in samples])
    scale = relative.max(axis=0)
    fitted = fit_pass_cost(samples)
    found = np.array([fitted.fixed_s, fitted.per_token_s, fitted.per_trial_s]) * scale
    slope = (relative / scale).T @ (relative / scale @ found - 1)
    assert (slope >= -1e-9).all()
    assert found * slope == pytest.approx(np.zeros(3), abs=1e-9)


@given(
    st.tuples(st.integers(1, 10_000), st.integers(1, 32), seconds), st.integers(1, 10_000), st.floats(1, 100)
)
def test_two_passes_are_met_exactly_when_the_larger_takes_longer_but_not_more_so_than_larger(
    smaller: tuple[int, int, float], further: int, share: float
) -> None:
    tokens, trials, first = smaller
    second = first * (1 + further / tokens / share)
    fitted = fit_pass_cost([smaller, (tokens + further, trials, second)])
    predicted = [fitted.seconds(tokens, trials), fitted.seconds(tokens + further, trials)]
    assert predicted == pytest.approx([first, second], rel=1e-9)


@pytest.mark.parametrize(
    ("samples", "expected"),
    [
        ([(100, 1, 0.5), (300, 1, 1.0)], PassCost(0.25, 0.0025, 0.0)),
        ([(128, 1, 0.5), (512, 4, 1.25)], PassCost(0.25, 0.25 / 128, 0.0)),
        ([(100, 1, 0.5), (100, 1, 0.5)], PassCost(0.0, 0.005, 0.0)),
        ([(100, 1, 0.5), (100, 3, 1.0)], PassCost(0.0, 0.0025, 0.25)),
        ([(100, 1, 0.5), (400, 1, 2.0)], PassCost(0.0, 0.005, 0.0)),
        ([(100, 1, 0.5), (400, 1, 0.5)], PassCost(0.5, 0.0, 0.0)),
    ],
    ids=[
        "fixed and tokens",
        "tokens as trials",
        "one size",
        "trials alone differ",
        "no fixed cost",
        "free tokens",
    ],
)
def test_what_few_passes_leave_open_is_decided_as_documented(
    samples: list[tuple[int, int, float]], expected: PassCost
) -> None:
    fitted = fit_pass_cost(samples)
    assert (fitted.fixed_s, fitted.per_token_s, fitted.per_trial_s) == pytest.approx(
        (expected.fixed_s, expected.per_token_s, expected.per_trial_s), rel=1e-12, abs=1e-15
    )


@given(st.lists(st.floats(-0.05, 0.05), min_size=12, max_size=12), st.integers(0, 3))
def test_noise_of_5_percent_and_a_pass_that_was_held_up_move_predictions_little(
    noise: list[float], held_up: int
) -> None:
    cost = PassCost(fixed_s=0.02, per_token_s=1e-4, per_trial_s=0.002)
    sizes = [(64, 1), (512, 1), (512, 8), (2_048, 8)]
    samples = [
        (*size, cost.seconds(*size) * (1 + noise[3 * index + run]))
        for index, size in enumerate(sizes)
        for run in range(3)
    ]
    tokens, trials, took = samples[3 * held_up]
    samples[3 * held_up] = (tokens, trials, took * 20)
    fitted = fit_pass_cost(samples)
    for size in [*sizes, (1_024, 4)]:
        assert fitted.seconds(*size) == pytest.approx(cost.seconds(*size), rel=0.11)


@pytest.mark.parametrize(
    "samples",
    [
        [],
        [(100, 1, 0.5)],
        [(100, 1, 0.5), (0, 1, 0.5)],
        [(100, 1, 0.5), (100, 0, 0.5)],
        [(100, 1, 0.5), (200, 1, 0.0)],
        [(100, 1, 0.5), (200, 1, math.inf)],
        [(100, 1, 0.5), (200, 1, math.nan)],
        [(100, 1, 0.5), (200, 1, 5e-324)],
    ],
)
def test_passes_that_say_nothing_are_refused(samples: list[tuple[int, int, float]]) -> None:
    with pytest.raises(ValueError, match=r"must be measured|no pass has"):
        fit_pass_cost(samples)


@pytest.mark.parametrize("values", [(-1.0, 1.0, 1.0), (0.0, 0.0, 0.0), (math.nan, 1, 1), (1, math.inf, 1)])
def test_impossible_costs_are_refused(values: tuple[float, float, float]) -> None:
    with pytest.raises(ValueError, match="costs must be finite"):
        PassCost(*values)


# --- bytes


def test_a_trial_takes_16_bytes_a_parameter_and_20_when_it_accumulates() -> None:
    assert [adapter_bytes(1_000, Recipe(), accumulates=flag) for flag in (False, True)] == [16_000, 20_000]


def test_bytes_are_base_adapters_tokens_and_one_chunk() -> None:
    memory = MemoryCost(base_bytes=1_000, bytes_per_token=2.5, chunk_bytes=100)
    assert predict_bytes(memory, adapters=[10, 20], pass_tokens=5) == 1_000 + 30 + 13 + 100


@pytest.mark.parametrize("change", [{"base_bytes": -1}, {"bytes_per_token": 0.0}, {"chunk_bytes": -1}])
def test_impossible_bytes_are_refused(change: dict[str, int]) -> None:
    with pytest.raises(ValueError, match="bytes must be"):
        replace(MEMORY, **change)


@pytest.mark.parametrize("change", [{"tokens_per_step": 0}, {"longest_tokens": 0}, {"adapter_bytes": -1}])
def test_impossible_trials_are_refused(change: dict[str, int]) -> None:
    with pytest.raises(ValueError, match="a trial has"):
        replace(MEMBER, **change)


# --- how many trials, in passes of what size


def throughput(cost: PassCost, trials: int, tokens_per_step: float, pass_tokens: int) -> float:
    tokens = min(trials * tokens_per_step, pass_tokens)
    return tokens / (cost.fixed_s + cost.per_token_s * tokens + cost.per_trial_s * trials)


@given(costs, memories, packs, budgets, limits)
def test_there_is_room_for_one_at_least_and_never_for_more_than_allowed(
    cost: PassCost, memory: MemoryCost, pack: list[PackMember], available: int, most: int | None
) -> None:
    capacity = plan(cost, pack, memory=memory, available=available, most=most)
    assert 1 <= capacity.trials <= min(most or 64, 64)


@given(costs, memories, packs, budgets, limits)
def test_predicted_memory_is_available_unless_a_single_trial_needs_more(
    cost: PassCost, memory: MemoryCost, pack: list[PackMember], available: int, most: int | None
) -> None:
    capacity = plan(cost, pack, memory=memory, available=available, most=most)
    assert capacity.predicted_bytes <= available or capacity.trials == 1


@given(costs, memories, packs, budgets, limits)
def test_the_largest_pass_fits_beside_the_trials_and_holds_the_longest_row(
    cost: PassCost, memory: MemoryCost, pack: list[PackMember], available: int, most: int | None
) -> None:
    capacity = plan(cost, pack, memory=memory, available=available, most=most)
    longest = max(member.longest_tokens for member in pack)
    adapters = [member.adapter_bytes for member in pack]
    if capacity.trials > len(pack):
        adapters = [math.ceil(capacity.trials * sum(adapters) / len(pack))]
    whole = predict_bytes(memory, adapters=adapters, pass_tokens=capacity.pass_tokens)
    assert capacity.pass_tokens >= longest
    assert capacity.pass_tokens == longest or whole <= available + 1  # the mean is rounded here


@given(costs, memories, packs, st.tuples(budgets, budgets).map(sorted), limits)
def test_more_memory_never_means_fewer_trials(
    cost: PassCost, memory: MemoryCost, pack: list[PackMember], available: list[int], most: int | None
) -> None:
    less, more = (plan(cost, pack, memory=memory, available=size, most=most).trials for size in available)
    assert less <= more


@given(costs, memories, packs, budgets, limits, st.floats(0, 1))
def test_a_larger_fixed_cost_never_means_fewer_trials(
    cost: PassCost, memory: MemoryCost, pack: list[PackMember], available: int, most: int | None, added: float
) -> None:
    slower = replace(cost, fixed_s=cost.fixed_s + added)
    fewer, more = (
        plan(c, pack, memory=memory, available=available, most=most).trials for c in (cost, slower)
    )
    assert fewer <= more


@given(costs, memories, packs, budgets, st.integers(1, 30))
def test_a_limit_only_ever_cuts_what_would_be_chosen_without_it(
    cost: PassCost, memory: MemoryCost, pack: list[PackMember], available: int, most: int
) -> None:
    free = plan(cost, pack, memory=memory, available=available)
    bound = plan(cost, pack, memory=memory, available=available, most=most)
    assert bound.trials == min(free.trials, most)
    assert (bound.limited_by == "limit") == (free.trials > most)


@given(costs, st.integers(1, 20_000), st.integers(1, 4_096))
def test_each_trial_gains_5_percent_and_one_more_would_not(
    cost: PassCost, tokens_per_step: int, longest: int
) -> None:
    capacity = plan(cost, [PackMember(tokens_per_step, longest, 0)])
    gains = [
        throughput(cost, trials + 1, tokens_per_step, capacity.pass_tokens)
        / throughput(cost, trials, tokens_per_step, capacity.pass_tokens)
        for trials in range(1, capacity.trials + 1)
    ]
    assert capacity.limited_by == "throughput"
    assert all(gain >= 1.05 - 1e-9 for gain in gains[:-1])
    assert gains[-1] < 1.05 + 1e-9


@given(costs, st.integers(1, 4_096))
def test_a_pass_is_as_large_as_makes_what_is_not_for_tokens_5_percent_and_no_larger(
    cost: PassCost, longest: int
) -> None:
    tokens = plan(cost, [PackMember(1, longest, 0)]).pass_tokens

    def fixed_share(size: int) -> float:
        return 1 - cost.per_token_s * size / cost.seconds(size, trials=1)

    assert fixed_share(tokens) <= 0.05 + 1e-9
    assert tokens == longest or fixed_share(tokens - 1) > 0.05 - 1e-9


@given(costs, memories, st.integers(0, 10_000), budgets)
def test_batches_that_fill_a_pass_train_one_at_a_time(
    cost: PassCost, memory: MemoryCost, further: int, available: int
) -> None:
    assume(cost.fixed_s > 0)
    enough = math.ceil(19 * cost.fixed_s / cost.per_token_s) + 1
    filling = PackMember(tokens_per_step=enough + further, longest_tokens=1, adapter_bytes=0)
    assert plan(cost, [filling], memory=memory, available=available).trials == 1


def test_passes_that_cost_the_same_whatever_they_hold_stop_at_21_trials() -> None:
    capacity = plan(PassCost(fixed_s=1.0, per_token_s=0.0, per_trial_s=0.0))
    assert (capacity.trials, capacity.limited_by) == (21, "throughput")


def test_a_pack_is_planned_for_the_average_of_its_trials() -> None:
    cost = PassCost(fixed_s=0.1, per_token_s=1e-4, per_trial_s=0.0)
    mixed = [PackMember(50, 128, 0), PackMember(150, 64, 100 * MIB)]
    assert plan(cost, mixed, available=3 * GIB) == plan(cost, [MEMBER] * 2, available=3 * GIB)


def test_trials_that_are_there_keep_their_bytes_even_when_fewer_are_wanted() -> None:
    cost = PassCost(fixed_s=1.0, per_token_s=1e-3, per_trial_s=0.0)
    heavy = PackMember(tokens_per_step=10_000, longest_tokens=128, adapter_bytes=100 * MIB)
    available = MEMORY.base_bytes + MEMORY.chunk_bytes + 1_000 * MIB
    capacity = plan(cost, [heavy] * 5, available=available)
    assert (capacity.trials, capacity.pass_tokens) == (1, 500)
    assert plan(cost, [heavy], available=available).pass_tokens == 900


def test_the_prediction_is_of_the_batches_and_not_of_the_largest_pass_there_could_be() -> None:
    capacity = plan(PassCost(fixed_s=1.0, per_token_s=1e-4, per_trial_s=0.0), most=4)
    assert capacity.pass_tokens == 190_000
    assert capacity.predicted_bytes == predict_bytes(MEMORY, adapters=[50 * MIB] * 4, pass_tokens=400)


@pytest.mark.parametrize(
    ("cost", "available", "most", "trials", "limited_by", "reason"),
    [
        (
            PassCost(0.1, 1e-4, 0.0),
            ROOMY,
            None,
            10,
            "throughput",
            "11 trials would train 5,238 tokens/s, 4.7 % more than 10, but each further"
            " trial must bring 5 %.",
        ),
        (
            PassCost(0.1, 1e-3, 0.05),
            ROOMY,
            None,
            3,
            "throughput",
            "4 trials would train 571 tokens/s, 4.7 % more than 3, but each further trial must bring 5 %.",
        ),
        (
            PassCost(0.001, 1e-3, 0.02),
            ROOMY,
            None,
            1,
            "throughput",
            "2 trials would train 830 tokens/s, 0.4 % more than 1, but each further trial must bring 5 %.",
        ),
        (
            PassCost(0.01, 1e-2, 0.02),
            ROOMY,
            None,
            1,
            "throughput",
            "2 trials would train 96 tokens/s, 0.8 % less than 1, but each further trial must bring 5 %.",
        ),
        (
            PassCost(0.1, 1e-4, 0.0),
            ROOMY,
            3,
            3,
            "limit",
            "3 trials may train at once, which is the limit; one more would gain 23.8 %.",
        ),
        (
            PassCost(0.1, 1e-4, 0.0),
            MEMORY.base_bytes + MEMORY.chunk_bytes + 270 * MIB,
            None,
            2,
            "memory",
            "3 trials do not fit: 1.37 GiB with a pass of the longest row, 128 tokens, but 1.36 GiB are"
            " available.",
        ),
        (
            PassCost(0.1, 1e-4, 0.0),
            GIB,
            None,
            1,
            "memory",
            "1 trial is not expected to fit, but is tried anyway: 1.27 GiB with a pass of the"
            " longest row, 128 tokens, but 1.00 GiB are available.",
        ),
        (
            PassCost(0.1, 1e-4, 0.0),
            MEMORY.base_bytes + MEMORY.chunk_bytes + 400 * MIB,
            None,
            3,
            "memory",
            "4 trials would train 1,667 tokens/s, 16.6 % less than 3, but each further trial must bring 5"
            " %; it would bring 23.8 % if passes could be larger than the 200 tokens that fit into 1.49"
            " GiB.",
        ),
    ],
)
def test_the_reason_names_what_stops_it_with_numbers(
    cost: PassCost, available: int, most: int | None, trials: int, limited_by: str, reason: str
) -> None:
    capacity = plan(cost, available=available, most=most)
    assert (capacity.trials, capacity.limited_by, capacity.reason) == (trials, limited_by, reason)


@given(costs, memories, packs, budgets, limits)
def test_the_reason_is_always_one_short_sentence(
    cost: PassCost, memory: MemoryCost, pack: list[PackMember], available: int, most: int | None
) -> None:
    reason = plan(cost, pack, memory=memory, available=available, most=most).reason
    assert (reason[0].isdigit(), reason[-1], "\n" in reason) == (True, ".", False)
    assert len(reason) < 300


def test_no_capacity_is_planned_for_nobody_or_for_none() -> None:
    cost = PassCost(0.1, 1e-4, 0.0)
    with pytest.raises(ValueError, match="at least one trial"):
        plan(cost, [])
    with pytest.raises(ValueError, match="at least one trial must be allowed, not 0"):
        plan(cost, most=0)
