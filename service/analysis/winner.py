"""Is the winner real? The best recipes, run again with fresh seeds, and a test between the first two. Pure.

A search picks the best of many noisy values, so the value it picked by is too good by an amount nobody
knows: it was chosen for its luck as well. Runs with seeds that had no part in the choice have no such bias,
so they alone are averaged and compared.

Between the two best means stands Welch's t-test (Welch 1947, Biometrika 34), two-sided: it asks how often
two recipes that are equally good would be at least as far apart.

Which of them came first is no choice that a two-sided test minds. With more than two candidates the first
two are neighbours in the order of all, and the runs of all share their seeds, and so data orders: both make
equal recipes look alike. Simulated with three runs each of normal noise, p < 0.05 comes in 3 % of pairs of
equals, in 2 % with three candidates, and in less where seeds matter; where their spreads differ by five
times, in 6 %. A recipe that broke is put behind by rule: equals break unevenly often (61 % of pairs where
one run in five breaks), so that is not called distinguishable.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from search_spaces.wording import counted
from service.states import UNFINISHED_ATTEMPT_STATES, AttemptState

SIGNIFICANT = 0.05
"""A smaller p value is called distinguishable, as is the custom."""

ONE_RUN = "One run says nothing about luck: `repeats` in the definition runs the best recipes again."


@dataclass(frozen=True, kw_only=True)
class Run:
    """One run of a recipe with a fresh seed."""

    trial_number: int
    seed: int | None
    state: AttemptState | Literal["waiting"]
    value: float | None
    """The objective; None unless it completed."""

    @property
    def ended(self) -> bool:
        return self.state not in _UNENDED

    @property
    def broke(self) -> bool:
        """Whether the recipe itself is what ended it."""
        return self.state in (AttemptState.DIVERGED, AttemptState.OUT_OF_MEMORY)


_UNENDED = frozenset({"waiting", AttemptState.DISPATCHED, AttemptState.RUNNING, *UNFINISHED_ATTEMPT_STATES})


@dataclass(frozen=True, kw_only=True)
class Candidate:
    """One of the best recipes of the search."""

    trial_number: int
    value: float
    """What the search chose it by; not in the mean."""
    runs: Sequence[Run] = ()

    @property
    def values(self) -> list[float]:
        """The objectives of the runs with fresh seeds that completed."""
        return [run.value for run in self.runs if run.value is not None]

    @property
    def n(self) -> int:
        """How many of the runs completed."""
        return len(self.values)

    @property
    def mean(self) -> float | None:
        return statistics.fmean(self.values) if self.values else None

    @property
    def standard_deviation(self) -> float | None:
        """Of the sample (n - 1); None with fewer than two runs."""
        return statistics.stdev(self.values) if len(self.values) > 1 else None

    @property
    def broke(self) -> int:
        """Fresh seeds with which it diverged or ran out of memory."""
        return sum(run.broke for run in self.runs)


@dataclass(frozen=True, kw_only=True)
class Judgement:
    """Which recipe is the best, and how sure that is."""

    candidates: Sequence[Candidate]
    """Best first."""
    winner: int
    """Trial number."""
    decided_by: Literal["search", "repeats"]
    p_value: float | None
    """Of Welch's test between the first two; None where there is nothing to test."""
    distinguishable: bool | None
    """By that test; None where it was not made. Without any spread, whether the means differ."""
    sentence: str

    @property
    def first(self) -> Candidate:
        """The winner's."""
        return next(candidate for candidate in self.candidates if candidate.trial_number == self.winner)


def welch(first: Sequence[float], second: Sequence[float]) -> float | None:
    """The two-sided p value of Welch's t-test; None with fewer than two values in either, or no spread."""
    if min(len(first), len(second)) < 2:
        return None
    if statistics.variance(first) == 0 == statistics.variance(second):
        return None
    # Imported where it is needed: it takes a second, and few answers need it.
    from scipy import stats

    moments = [
        (statistics.fmean(values), statistics.stdev(values), len(values)) for values in (first, second)
    ]
    return float(stats.ttest_ind_from_stats(*moments[0], *moments[1], equal_var=False).pvalue)


def judge(
    candidates: Sequence[Candidate], *, minimize: bool, planned_runs: int, over: bool
) -> Judgement | None:
    """The winner among the search's best recipes; None where the search has none.

    The mean over fresh seeds decides once every candidate has one. A recipe that diverged or ran out of
    memory with a fresh seed stands behind those that did not: its mean leaves out its worst run.

    Args:
        candidates: the search's best recipes, those with repeats; the best by its own value first.
        minimize: whether less is better.
        planned_runs: how many runs with fresh seeds the definition asks for in all; 0 without repeats.
        over: whether the study has ended, so that no run is still to come.
    """
    if not candidates:
        return None
    done = sum(run.ended for candidate in candidates for run in candidate.runs)
    waiting = not over and done < planned_runs
    sign = 1.0 if minimize else -1.0
    if waiting or not all(candidate.values or candidate.broke for candidate in candidates) or not done:
        return Judgement(
            candidates=candidates,
            winner=candidates[0].trial_number,
            decided_by="search",
            p_value=None,
            distinguishable=None,
            sentence=_undecided(done, planned_runs, waiting=waiting),
        )
    ranked = sorted(
        candidates,
        key=lambda c: (
            c.broke,
            math.inf if c.mean is None else sign * c.mean,
            sign * c.value,
            c.trial_number,
        ),
    )
    p_value, distinguishable, sentence = _compare(ranked)
    return Judgement(
        candidates=ranked,
        winner=ranked[0].trial_number,
        decided_by="repeats",
        p_value=p_value,
        distinguishable=distinguishable,
        sentence=sentence,
    )


def _undecided(done: int, planned: int, *, waiting: bool) -> str:
    if not planned:
        return ONE_RUN
    if waiting and not done:
        runs = counted(planned, "run")
        return f"The best by its single run in the search; {runs} with fresh seeds will follow."
    if waiting:
        ran = f"{done} of {counted(planned, 'repeat')}"
        return f"The best so far, by its single run in the search; {ran} ended so far."
    if not done:
        return f"The study ended before its repeats. {ONE_RUN.split(':')[0]}."
    return (
        f"The study ended with {done} of {counted(planned, 'repeat')}, which is too few to compare the best"
        " recipes."
    )


def _compare(ranked: Sequence[Candidate]) -> tuple[float | None, bool | None, str]:
    first = ranked[0]
    runs = counted(len(first.values), "run")
    if len(ranked) == 1:
        return None, None, f"Trial {first.trial_number} is the only recipe that was repeated ({runs})."
    second = ranked[1]
    names = f"Trial {first.trial_number} and trial {second.trial_number}"
    if second.broke > first.broke:
        text = f"Trial {first.trial_number} ranks first without a test: {_breaks(second)}"
        return None, None, text
    if not first.values or not second.values:
        return None, None, f"{names} cannot be compared: {_breaks(second)}"
    p_value = welch(first.values, second.values)
    if p_value is None:
        if min(len(first.values), len(second.values)) < 2:
            return None, None, f"{names} have too few runs to be compared; `repeats.seeds` sets their number."
        # No spread at all: whether they are equal needs no test.
        apart = first.mean != second.mean
        how = "distinguishable" if apart else "not distinguishable"
        return None, apart, f"{names} are {how} (all runs of each trial have the same value)."
    apart = p_value < SIGNIFICANT
    count = len(first.values)
    each = (
        f"{runs} each" if count == len(second.values) else f"{count} and {counted(len(second.values), 'run')}"
    )
    how = "distinguishable" if apart else "not distinguishable"
    return p_value, apart, f"{names} are {how} (p = {_p(p_value)}, {each})."


def _breaks(candidate: Candidate) -> str:
    times = counted(len(candidate.runs), "run")
    return (
        f"trial {candidate.trial_number} diverged or ran out of memory in {candidate.broke} of its {times}."
    )


def _p(value: float) -> str:
    return f"{value:.2f}" if value >= 0.01 else f"{value:.1g}"
