"""Where the trials of a study are evaluated, and where they may be pruned. Pure."""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterable, Iterator, Sequence

from search_spaces.pruning.specs import (
    AshaPruning,
    HyperbandPruning,
    NoPruning,
    PatientPruning,
    Pruning,
    WilcoxonPruning,
)
from search_spaces.trial_length import MOST_RUNGS, TrainingPlan, count_rungs, rungs

_MOST_LOOKED_AT = 200_000
"""Rungs of all trials together, beyond which they are not gone through one by one."""


def shared_rungs(
    plans: Sequence[TrainingPlan], every: int | None, *, all_batch_sizes: bool
) -> list[int] | None:
    """The rungs that every one of these trials reports at; None: it cannot be told.

    Where no batch is larger than the distance of two rungs these are all multiples that lie before the last
    step of the shortest trial. A larger batch skips some, others for each batch size.

    Args:
        plans: All the trials there may be.
        every: `evaluation.every_examples`.
        all_batch_sizes: Whether `plans` has every batch size, not the ends of a range alone.
    """
    totals = {plan.total_examples for plan in plans}
    end = list(totals) if len(totals) == 1 else []
    if every is None:
        return end
    if max(plan.batch_size for plan in plans) <= every:
        fewest = min(plan.examples_seen(plan.total_steps - 1) for plan in plans) // every
        return [*(every * (index + 1) for index in range(min(fewest, MOST_RUNGS))), *end]
    if not all_batch_sizes:
        return None
    different = list(dict.fromkeys(plans))
    numbers = [count_rungs(plan, every) for plan in different]
    if max(numbers) > MOST_RUNGS or sum(numbers) > _MOST_LOOKED_AT:
        return None
    found: set[int] | None = None
    for plan in different:
        ours = rungs(plan, every)
        found = set(ours) if found is None else found & set(ours)
    return sorted(found or ())


def pruning_rungs(pruning: Pruning, plan: TrainingPlan, every: int | None) -> list[int]:
    """The rungs at which a trial may be pruned, given that its peers are there to compare it with.

    Its end is none of them: nothing is saved there. Hyperband: those of the bracket that begins first.
    """
    every_rung = list(itertools.islice(rungs(plan, every), MOST_RUNGS))
    before_end = [rung for rung in every_rung if rung < plan.total_examples]
    if isinstance(pruning, NoPruning):
        return []
    allowed = [rung for rung in before_end if rung <= (pruning.max_examples or math.inf)]
    if isinstance(pruning, AshaPruning | HyperbandPruning):
        first = pruning.min_examples or every or plan.total_examples
        return list(_at_levels(allowed, first, pruning.reduction_factor))
    late_enough = [rung for rung in allowed if rung >= pruning.min_examples]
    if isinstance(pruning, WilcoxonPruning):
        needed = max(2, pruning.n_startup_rungs)
        return [rung for rung in allowed[needed - 1 :] if rung >= pruning.min_examples]
    if isinstance(pruning, PatientPruning):
        patience = pruning.patience_examples
        if patience is None:
            patience = (pruning.patience or 0) * (every or 0)
        return [rung for rung in late_enough if before_end[0] < rung - patience]
    return list(_first_of_intervals(before_end, late_enough, pruning.min_examples, pruning.interval_examples))


def _at_levels(allowed: Iterable[int], first: int, factor: int) -> Iterator[int]:
    """Successive halving judges a trial at its first rung at or after each level."""
    level = first
    for rung in allowed:
        if rung >= level:
            yield rung
            while level <= rung:
                level *= factor


def _first_of_intervals(
    every_rung: Sequence[int], allowed: Sequence[int], start: int, interval: int
) -> Iterator[int]:
    """Optuna's rule: a trial is judged at its first rung in each interval, counted from `start`."""
    before = {rung: earlier for earlier, rung in itertools.pairwise(every_rung)}
    for rung in allowed:
        begins = start + (rung - start) // interval * interval
        if rung not in before or before[rung] < begins:
            yield rung
