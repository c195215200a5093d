"""Planning passes: every trial gets on, the budget holds, and little is padded."""

from __future__ import annotations

from hypothesis import given, settings
from hypothesis import strategies as st

from workers.training import pass_planning
from workers.training.pass_planning import Waiting

bounded = settings(deadline=None, derandomize=True, database=None, max_examples=300)
lengths = st.lists(st.integers(1, 60), min_size=1, max_size=12).map(sorted)


def waits(lengths: list[int], most: int | None = None) -> Waiting:
    """A trial that has its whole batch before it."""
    return Waiting(lengths, len(lengths), most)


trials = st.builds(waits, lengths, st.integers(1, 12) | st.none())
packs = st.lists(trials, min_size=1, max_size=7)
budgets = st.integers(1, 900)


def plan_pass(waiting: list[Waiting], budget: int, overhead: float = 40.0) -> list[range]:
    """A plan where a pass costs as much as 40 tokens before its first."""
    return pass_planning.plan_pass(waiting, budget, overhead_tokens=overhead)


def rows_of(waiting: list[Waiting], chosen: list[range]) -> list[int]:
    """The tokens of all the rows of a pass."""
    return [t.lengths[position] for t, own in zip(waiting, chosen, strict=True) for position in own]


def padded_to(waiting: list[Waiting], chosen: list[range]) -> int:
    """What every row of the pass is padded to."""
    return max(rows_of(waiting, chosen))


@bounded
@given(waiting=packs, budget=budgets)
def test_chosen_rows_are_there_and_chosen_once(waiting: list[Waiting], budget: int) -> None:
    chosen = plan_pass(waiting, budget)
    assert len(chosen) == len(waiting)
    for trial, own in zip(waiting, chosen, strict=True):
        assert sorted(set(own)) == list(own)
        assert set(own) <= set(range(len(trial.lengths)))


@bounded
@given(waiting=packs, budget=budgets)
def test_the_padded_pass_keeps_the_budget_unless_a_single_row_exceeds_it(
    waiting: list[Waiting], budget: int
) -> None:
    rows = rows_of(waiting, plan_pass(waiting, budget))
    assert len(rows) * max(rows) <= budget or len(rows) == 1


@bounded
@given(waiting=packs, budget=budgets)
def test_who_has_waited_longest_always_takes_part(waiting: list[Waiting], budget: int) -> None:
    assert len(plan_pass(waiting, budget)[0]) >= 1


@bounded
@given(waiting=packs, budget=budgets)
def test_nobody_has_more_rows_than_it_may(waiting: list[Waiting], budget: int) -> None:
    for trial, own in zip(waiting, plan_pass(waiting, budget), strict=True):
        assert len(own) <= (trial.most or len(trial.lengths))


@bounded
@given(waiting=packs, budget=budgets)
def test_a_trial_is_left_out_only_where_its_shortest_row_does_not_fit_with_the_others(
    waiting: list[Waiting], budget: int
) -> None:
    """Otherwise, every trial has a row before anybody has a second."""
    chosen = plan_pass(waiting, budget)
    firsts = sum(bool(own) for own in chosen)
    for trial, own in zip(waiting, chosen, strict=True):
        if not own:
            wider = max(padded_to(waiting, chosen), trial.lengths[0])
            assert (firsts + 1) * wider > budget


@bounded
@given(waiting=packs, budget=budgets)
def test_no_trial_gets_two_rows_more_than_another_that_could_take_one(
    waiting: list[Waiting], budget: int
) -> None:
    """Those that take part share the budget evenly, as far as they have rows no longer than the pass."""
    chosen = plan_pass(waiting, budget)
    longest = padded_to(waiting, chosen)
    most = max(len(own) for own in chosen)
    for trial, own in zip(waiting, chosen, strict=True):
        could = min(sum(length <= longest for length in trial.lengths), trial.most or len(trial.lengths))
        if own and len(own) < could:
            assert len(own) >= most - 1


@bounded
@given(waiting=packs, budget=budgets)
def test_the_budget_is_used_up_or_nobody_could_take_more(waiting: list[Waiting], budget: int) -> None:
    chosen = plan_pass(waiting, budget)
    longest = padded_to(waiting, chosen)
    if (sum(len(own) for own in chosen) + 1) * longest <= budget:
        for trial, own in zip(waiting, chosen, strict=True):
            could = min(sum(length <= longest for length in trial.lengths), trial.most or len(trial.lengths))
            assert len(own) == could or len(own) >= 4 * min(t.batch for t in waiting)


@bounded
@given(waiting=packs, budget=budgets)
def test_the_pass_is_at_least_as_wide_as_the_shortest_row_of_each_that_takes_part(
    waiting: list[Waiting], budget: int
) -> None:
    chosen = plan_pass(waiting, budget)
    shortest = [trial.lengths[0] for trial, own in zip(waiting, chosen, strict=True) if own]
    assert padded_to(waiting, chosen) >= max(shortest)


@bounded
@given(waiting=packs, budget=budgets)
def test_each_trial_fills_the_pass_with_its_longest_rows_that_are_no_longer(
    waiting: list[Waiting], budget: int
) -> None:
    """Its short ones are left for shorter passes."""
    chosen = plan_pass(waiting, budget)
    longest = padded_to(waiting, chosen)
    for trial, own in zip(waiting, chosen, strict=True):
        if own:
            assert list(own) == list(range(own[0], own[-1] + 1))
            assert trial.lengths[own[-1]] <= longest
            assert all(length > longest for length in trial.lengths[own[-1] + 1 :])


@bounded
@given(waiting=packs, budget=budgets)
def test_every_row_is_consumed_by_passes_one_after_another(waiting: list[Waiting], budget: int) -> None:
    """With those that took part going behind those that did not, nobody starves."""
    left = [list(trial.lengths) for trial in waiting]
    queue = list(range(len(waiting)))
    waited = [0] * len(waiting)
    passes = 0
    while queue:
        chosen = plan_pass([Waiting(left[k], waiting[k].batch, waiting[k].most) for k in queue], budget)
        took = [k for k, own in zip(queue, chosen, strict=True) if own]
        for k, own in zip(queue, chosen, strict=True):
            waited[k] = 0 if own else waited[k] + 1
            assert waited[k] < len(waiting)
            left[k] = [length for position, length in enumerate(left[k]) if position not in own]
        queue = [k for k in queue if k not in took] + [k for k in took if left[k]]
        passes += 1
    assert not any(left)
    assert passes <= sum(len(trial.lengths) for trial in waiting)


def test_a_row_longer_than_the_budget_makes_a_pass_of_its_own() -> None:
    chosen = plan_pass([waits([50, 50]), waits([2])], 40)
    assert [len(own) for own in chosen] == [1, 0]


def test_a_small_batch_is_whole_after_one_pass_whatever_the_others_have_left() -> None:
    """8 rows of 10 tokens for batches of 1, 2 and 32."""
    waiting = [waits([10] * rows) for rows in (32, 1, 2)]
    assert [len(own) for own in plan_pass(waiting, 70)] == [4, 1, 2]


def test_mates_of_a_small_batch_have_at_most_four_times_its_rows() -> None:
    """So that its next pass comes soon, though the budget would hold all their rows."""
    waiting = [waits([10] * rows) for rows in (32, 1, 32)]
    assert [len(own) for own in plan_pass(waiting, 10_000, overhead=0.0)] == [4, 1, 4]


def test_a_pass_is_not_made_so_short_that_its_overhead_weighs_more_than_its_rows() -> None:
    """With an overhead of 60 tokens, a pass of 240 is short enough: a third of it for each, 8 rows."""
    waiting = [waits([10] * rows) for rows in (32, 1, 32)]
    assert [len(own) for own in plan_pass(waiting, 10_000, overhead=60.0)] == [8, 1, 8]


def test_a_batch_that_fits_is_one_pass_where_a_further_pass_costs_more_than_the_padding() -> None:
    assert plan_pass([waits([3, 3, 5, 9])], 100) == [range(4)]


def test_a_long_row_waits_for_its_own_pass_where_padding_to_it_costs_more() -> None:
    """Padded to 90 tokens, seven rows of 10 would waste 560; a further pass costs 40."""
    assert plan_pass([waits([10] * 7 + [90])], 1_000) == [range(7)]


def test_without_overhead_nothing_is_padded() -> None:
    assert plan_pass([waits([3, 3, 5, 9])], 100, overhead=0.0) == [range(2)]


def test_a_trial_with_a_choice_takes_rows_like_those_of_the_others() -> None:
    """The second trial has but one row, of 30 tokens; the first fills the pass with those nearest to it."""
    waiting = [waits([10, 10, 28, 29, 60]), waits([30])]
    assert plan_pass(waiting, 90) == [range(2, 4), range(1)]


def plan_without_padding(waiting: list[Waiting], budget: int, overhead: float = 40.0) -> list[range]:
    return pass_planning.plan_pass_without_padding(waiting, budget, overhead_tokens=overhead)


@bounded
@given(waiting=packs, budget=budgets)
def test_a_pass_without_padding_keeps_budget_and_limits(waiting: list[Waiting], budget: int) -> None:
    chosen = plan_without_padding(waiting, budget)
    rows = rows_of(waiting, chosen)
    assert sum(rows) <= budget or len(rows) == 1
    assert len(chosen[0]) >= 1
    for trial, own in zip(waiting, chosen, strict=True):
        assert set(own) <= set(range(len(trial.lengths)))
        assert len(own) <= (trial.most or len(trial.lengths))


@bounded
@given(waiting=packs, budget=budgets)
def test_without_padding_a_trial_is_left_out_only_where_its_shortest_row_does_not_fit(
    waiting: list[Waiting], budget: int
) -> None:
    chosen = plan_without_padding(waiting, budget)
    shortest = [trial.lengths[0] for trial in waiting]
    left_out = next((number for number, own in enumerate(chosen) if not own), None)
    if left_out is not None:
        assert sum(shortest[: left_out + 1]) > budget
        assert not any(chosen[left_out:])


@bounded
@given(waiting=packs, budget=budgets)
def test_every_row_is_consumed_by_passes_without_padding(waiting: list[Waiting], budget: int) -> None:
    left = [list(trial.lengths) for trial in waiting]
    queue = list(range(len(waiting)))
    while queue:
        chosen = plan_without_padding(
            [Waiting(left[k], waiting[k].batch, waiting[k].most) for k in queue], budget
        )
        took = [k for k, own in zip(queue, chosen, strict=True) if own]
        assert took
        for k, own in zip(queue, chosen, strict=True):
            left[k] = [length for position, length in enumerate(left[k]) if position not in own]
        queue = [k for k in queue if k not in took] + [k for k in took if left[k]]
    assert not any(left)


def test_without_padding_the_budget_is_shared_out_evenly_in_tokens() -> None:
    waiting = [waits([10] * 20), waits([40] * 20), waits([20])]
    assert [len(own) for own in plan_without_padding(waiting, 180, overhead=200.0)] == [8, 2, 1]


def test_without_padding_a_long_row_rides_along() -> None:
    assert plan_without_padding([waits([10] * 7 + [90])], 1_000) == [range(8)]


def test_without_padding_mates_of_a_small_batch_have_at_most_four_times_its_rows() -> None:
    waiting = [waits([10] * rows) for rows in (32, 1, 32)]
    assert [len(own) for own in plan_without_padding(waiting, 10_000, overhead=0.0)] == [4, 1, 4]
