"""Whether a winner is real: judged by fresh seeds alone."""

from __future__ import annotations

from typing import Literal

import pytest
from scipy import stats

from service.analysis.winner import Candidate, Judgement, Run, judge, welch
from service.states import AttemptState

DONE = AttemptState.COMPLETED


def candidate(
    number: int,
    value: float,
    *values: float,
    others: tuple[AttemptState | Literal["waiting"], ...] = (),
) -> Candidate:
    runs = [Run(trial_number=0, seed=1, state=DONE, value=v) for v in values]
    runs += [Run(trial_number=0, seed=1, state=state, value=None) for state in others]
    return Candidate(trial_number=number, value=value, runs=runs)


def judged(
    *candidates: Candidate, planned: int | None = None, over: bool = True, **kwargs: bool
) -> Judgement:
    runs = sum(len(c.runs) for c in candidates) if planned is None else planned
    found = judge(candidates, minimize=kwargs.get("minimize", True), planned_runs=runs, over=over)
    assert found is not None
    return found


def test_no_candidates_no_winner() -> None:
    assert judge([], minimize=True, planned_runs=0, over=True) is None


def test_without_repeats_one_run_says_nothing() -> None:
    found = judged(candidate(3, 0.5))
    assert (found.winner, found.decided_by, found.p_value, found.distinguishable) == (3, "search", None, None)
    assert (found.candidates[0].mean, found.candidates[0].standard_deviation) == (None, None)
    assert found.sentence.startswith("One run says nothing about luck")


def test_the_best_mean_over_fresh_seeds_wins_whatever_the_search_saw() -> None:
    lucky, steady = candidate(1, 0.10, 0.50, 0.52, 0.51), candidate(2, 0.30, 0.31, 0.30, 0.32)
    found = judged(lucky, steady)
    assert (found.winner, found.decided_by) == (2, "repeats")
    assert [c.trial_number for c in found.candidates] == [2, 1]
    assert found.candidates[0].mean == pytest.approx(0.31)
    assert found.candidates[0].standard_deviation == pytest.approx(0.01)
    assert (found.distinguishable, found.sentence) == (
        True,
        f"Trial 2 and trial 1 are distinguishable (p = {found.p_value:.1g}, 3 runs each).",
    )


def test_where_more_is_better_the_largest_mean_wins() -> None:
    found = judged(candidate(1, 0.9, 0.8, 0.8), candidate(2, 0.8, 0.9, 0.8), minimize=False)
    assert found.winner == 2


def test_scores_below_zero_are_ranked_and_compared_as_others() -> None:
    found = judged(
        candidate(1, -0.2, -0.41, -0.40, -0.42), candidate(2, -0.3, -0.11, -0.10, -0.12), minimize=False
    )
    assert (found.winner, found.distinguishable) == (2, True)
    found = judged(candidate(1, 0.2, -0.1, 0.1), candidate(2, 0.1, 0.0, 0.05), minimize=False)
    assert (found.winner, found.distinguishable) == (2, False)


def test_close_means_are_not_distinguishable() -> None:
    found = judged(candidate(1, 0.1, 0.30, 0.50, 0.40), candidate(2, 0.2, 0.45, 0.35, 0.43))
    assert found.distinguishable is False
    assert (
        found.sentence
        == f"Trial 1 and trial 2 are not distinguishable (p = {found.p_value:.2f}, 3 runs each)."
    )


def test_the_p_value_is_welchs() -> None:
    first, second = [0.30, 0.50, 0.40], [0.45, 0.35, 0.43, 0.48]
    expected = stats.ttest_ind(first, second, equal_var=False).pvalue
    assert welch(first, second) == pytest.approx(expected)
    assert welch(first, second) != pytest.approx(stats.ttest_ind(first, second).pvalue)


@pytest.mark.parametrize(("first", "second"), [([1.0], [2.0, 3.0]), ([], []), ([1.0, 1.0], [2.0, 2.0])])
def test_no_test_without_two_values_each_or_without_spread(first: list[float], second: list[float]) -> None:
    assert welch(first, second) is None


def test_one_run_each_cannot_be_told_apart() -> None:
    found = judged(candidate(1, 0.1, 0.5), candidate(2, 0.2, 0.3))
    assert (found.winner, found.p_value, found.distinguishable) == (2, None, None)
    assert "too few runs" in found.sentence


def test_values_without_spread_need_no_test() -> None:
    apart = judged(candidate(1, 1.0, 1.0, 1.0), candidate(2, 1.0, 0.5, 0.5), minimize=False)
    alike = judged(candidate(1, 1.0, 1.0, 1.0), candidate(2, 1.0, 1.0, 1.0), minimize=False)
    assert (apart.p_value, apart.distinguishable) == (None, True)
    assert (alike.p_value, alike.distinguishable, alike.winner) == (None, False, 1)


def test_while_repeats_run_the_search_decides_and_the_sentence_says_so() -> None:
    running = candidate(1, 0.1, 0.9, others=(AttemptState.RUNNING,))
    found = judged(running, candidate(2, 0.2, 0.3), planned=6, over=False)
    assert (found.winner, found.decided_by) == (1, "search")
    assert found.sentence.endswith("2 of 6 repeats ended so far.")
    waiting = judged(candidate(1, 0.1), planned=6, over=False)
    assert "6 runs with fresh seeds" in waiting.sentence


@pytest.mark.parametrize("done", [(), (0.9,)])
def test_a_study_cut_short_leaves_the_searchs_winner(done: tuple[float, ...]) -> None:
    found = judged(candidate(1, 0.1, *done), candidate(2, 0.2), planned=6)
    assert (found.winner, found.decided_by) == (1, "search")
    assert found.sentence.startswith("The study ended")


def test_a_recipe_that_diverges_with_a_fresh_seed_stands_behind_those_that_do_not() -> None:
    fragile = candidate(1, 0.1, 0.10, 0.11, others=(AttemptState.DIVERGED,))
    found = judged(fragile, candidate(2, 0.2, 0.30, 0.31, 0.32))
    assert (found.winner, found.distinguishable, found.p_value) == (2, None, None)  # no test was made
    assert found.sentence == (
        "Trial 2 ranks first without a test: trial 1 diverged or ran out of memory in 1 of its 3 runs."
    )


def test_a_repeat_lost_to_something_else_is_left_out() -> None:
    found = judged(
        candidate(1, 0.1, 0.30, 0.31, others=(AttemptState.FAILED,)), candidate(2, 0.2, 0.40, 0.41, 0.42)
    )
    assert found.winner == 1
    assert found.sentence.endswith("2 and 3 runs).")
