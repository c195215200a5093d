"""Which rows of which trials go into the next shared pass. Pure."""

from __future__ import annotations

import math
from bisect import bisect_right
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import accumulate

_FAIR = 4
"""How many times the rows of the trial with the smallest batch any other may have in a pass. Without such
a limit a trial with a batch of 1 gets one row of every long pass: it is as good as stopped by mates with
batches of 32, for which the same work is done by fewer, longer passes."""

_EFFICIENT = 4
"""A pass of so many times its overhead is not made shorter for fairness: four fifths of its time trains."""

_WIDTHS = 8
"""Widths that are tried for a pass: enough to tell a good one from a bad one, and quickly done."""


@dataclass(frozen=True)
class Waiting:
    """What one trial could contribute: the rest of its current effective batch."""

    lengths: Sequence[int]
    """Tokens of the rows that are left, shortest first; at least one."""
    batch: int
    """Rows of its whole effective batch: what it can have in one pass at most before it must step."""
    most: int | None = None
    """Rows it may have in one pass; None: any number."""


def plan_pass(waiting: Sequence[Waiting], token_budget: int, *, overhead_tokens: float) -> list[range]:
    """Chooses rows for one pass, so that every trial gets on and little is wasted.

    Every trial contributes at least one row, as far as the budget goes, in the order given (the first
    always does: a row that is longer than the budget makes a pass of its own). What is left of the budget
    is shared out evenly, and bounded by what the trial with the smallest batch can take, so that a trial with
    a batch of 1, which steps after every pass, need not wait for long passes for those with a batch of 32.

    A wide pass takes more rows and pads the short ones; a narrow one leaves the long rows for a further
    pass. Of some widths the one is taken that trains most tokens for its cost, counted in tokens: those of
    the padded pass and those that its fixed cost is worth. Each trial fills the pass with its longest rows
    that are not longer than that.

    Args:
        waiting: The trials, those that have waited longest first.
        token_budget: Padded tokens that the pass may hold.
        overhead_tokens: Tokens that could be trained in the time a pass takes before its first.

    Returns:
        For each trial the positions of its rows in `lengths`; empty where it must wait.
    """
    taking_part, narrowest = _taking_part(waiting, token_budget)
    trials = [waiting[number] for number in taking_part]
    sums = [list(accumulate(trial.lengths, initial=0)) for trial in trials]
    best: list[range] = []
    best_rate = -1.0
    for width in _widths(trials, narrowest, token_budget):
        chosen = _fill(trials, width, token_budget, overhead_tokens)
        rows = sum(len(own) for own in chosen)
        tokens = sum(total[own.stop] - total[own.start] for total, own in zip(sums, chosen, strict=True))
        rate = tokens / (overhead_tokens + rows * width)
        if rate > best_rate:
            best, best_rate = chosen, rate
    own_rows = dict(zip(taking_part, best, strict=True))
    return [own_rows.get(number, range(0)) for number in range(len(waiting))]


def plan_pass_without_padding(
    waiting: Sequence[Waiting], token_budget: int, *, overhead_tokens: float
) -> list[range]:
    """The same for a pass that costs what its rows' own tokens do.

    The budget is shared out evenly in tokens, within the same limits. A trial has its longest rows that its
    share has room for, or else its shortest one.
    """
    left, count = token_budget, 0
    for trial in waiting:
        if count > 0 and trial.lengths[0] > left:
            break
        left, count = left - trial.lengths[0], count + 1
    trials = waiting[:count]
    mean = sum(map(sum, (trial.lengths for trial in trials))) / sum(len(trial.lengths) for trial in trials)
    fair = _fair(trials, mean, overhead_tokens)
    limits = [min(len(trial.lengths), trial.most or len(trial.lengths), fair) for trial in trials]
    wanted = [sum(trial.lengths[-limit:]) for trial, limit in zip(trials, limits, strict=True)]
    chosen = [range(0)] * len(waiting)
    left, reserved = token_budget, sum(trial.lengths[0] for trial in trials)
    # Those that want least first, each at most its share of what is left.
    for place, number in enumerate(sorted(range(count), key=lambda number: wanted[number])):
        lengths = trials[number].lengths
        reserved -= lengths[0]
        share = max(lengths[0], min(left - reserved, left // (count - place)))
        last = max(1, bisect_right(lengths, share))
        first, tokens = last - 1, lengths[last - 1]
        while first > 0 and last - first < limits[number] and tokens + lengths[first - 1] <= share:
            first -= 1
            tokens += lengths[first]
        chosen[number] = range(first, last)
        left -= tokens
    return chosen


def _taking_part(waiting: Sequence[Waiting], token_budget: int) -> tuple[list[int], int]:
    """Trials of which at least one row fits, and the width that this takes."""
    width = waiting[0].lengths[0]
    numbers = [0]
    for number, trial in enumerate(waiting[1:], start=1):
        wider = max(width, trial.lengths[0])
        if (len(numbers) + 1) * wider <= token_budget:
            numbers.append(number)
            width = wider
    return numbers, width


def _widths(trials: Sequence[Waiting], narrowest: int, token_budget: int) -> Iterator[int]:
    """Lengths of rows that a pass could be as wide as without leaving any of these trials out."""
    widest = max(narrowest, token_budget // len(trials))
    lengths = {length for trial in trials for length in trial.lengths if narrowest < length <= widest}
    others = sorted(lengths)
    yield narrowest
    step = max(1, -(-len(others) // (_WIDTHS - 1)))
    yield from others[::-step]


def _fill(trials: Sequence[Waiting], width: int, token_budget: int, overhead_tokens: float) -> list[range]:
    """Rows of at most `width` for each trial, the budget shared out evenly."""
    fitting = [bisect_right(trial.lengths, width) for trial in trials]
    fair = _fair(trials, width, overhead_tokens)
    limits = [min(fits, trial.most or fits, fair) for fits, trial in zip(fitting, trials, strict=True)]
    left = max(len(trials), token_budget // width)
    counts = [0] * len(trials)
    # Evenly: those with low limits first, each at most its share of what is left.
    order = sorted(range(len(trials)), key=lambda number: limits[number])
    for place, number in enumerate(order):
        counts[number] = min(limits[number], left // (len(trials) - place))
        left -= counts[number]
    return [range(fits - count, fits) for fits, count in zip(fitting, counts, strict=True)]


def _fair(trials: Sequence[Waiting], width: float, overhead_tokens: float) -> int:
    """Rows of so many tokens that any of these trials may have in a pass."""
    efficient = _EFFICIENT * overhead_tokens / width / len(trials)
    return max(_FAIR * min(trial.batch for trial in trials), math.ceil(efficient))
