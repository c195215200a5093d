"""Why the pruner decided against a trial, in numbers: pure, so that a person can check it by hand.

The pruner alone decides. What is computed here repeats the rule that it follows, from the same reports:
percentiles over completed trials (Optuna's PercentilePruner) and the best share of a rung (its
SuccessiveHalvingPruner). Hyperband halves within a bracket that only it knows, so there the reason
states how the peers did and names no cut-off.
"""

from __future__ import annotations

import statistics
from collections.abc import Sequence

from search_spaces.definition import StudyDefinition
from search_spaces.pruners import AshaPruning, MedianPruning, PercentilePruning
from service.trial_values import TrialValues


def describe(definition: StudyDefinition, trial: TrialValues, others: Sequence[TrialValues]) -> str:
    """One sentence, for example `eval_loss 2.31 at 1,000 examples, cut-off 1.87 of 9 peers`.

    Args:
        definition: names the metric, its direction and the pruner.
        trial: the trial to be pruned; its last rung is the one it was judged at.
        others: all other trials of the study.
    """
    metric, minimize = definition.objective.metric, definition.objective.direction == "minimize"
    rung, value = trial.rungs[-1]
    pruning = definition.pruning
    at = f"at {rung:,} examples"
    if isinstance(pruning, MedianPruning | PercentilePruning):
        peers = [dict(o.rungs)[rung] for o in others if o.value is not None and rung in dict(o.rungs)]
        values = [v for _, v in trial.rungs]
        best = min(values) if minimize else max(values)
        share = pruning.percentile if isinstance(pruning, PercentilePruning) else 50.0
        cut_off = _percentile(peers, share if minimize else 100.0 - share)
        return f"{metric} {_short(best)} {at}, cut-off {_short(cut_off)} of {_peers(len(peers))}"
    if isinstance(pruning, AshaPruning):
        level = pruning.min_examples
        while level * pruning.reduction_factor <= rung:
            level *= pruning.reduction_factor
        peers = _values_at(others, level)
        competing = sorted([*peers, value], reverse=not minimize)
        cut_off = competing[max(len(competing) // pruning.reduction_factor - 1, 0)]
        return f"{metric} {_short(value)} {at}, cut-off {_short(cut_off)} of {_peers(len(peers))}"
    peers = _values_at(others, rung)
    if not peers:
        return f"{metric} {_short(value)} {at}"
    median = statistics.median(peers)
    return f"{metric} {_short(value)} {at}, where {_peers(len(peers))} had a median of {_short(median)}"


def _values_at(trials: Sequence[TrialValues], level: int) -> list[float]:
    """Each trial's value at its first rung from `level` on: the one it was judged by."""
    found = (next((v for rung, v in trial.rungs if rung >= level), None) for trial in trials)
    return [value for value in found if value is not None]


def _percentile(values: Sequence[float], share: float) -> float:
    """The percentile with linear interpolation, as numpy and so Optuna compute it."""
    ordered = sorted(values)
    place = (len(ordered) - 1) * share / 100.0
    low = int(place)
    high = min(low + 1, len(ordered) - 1)
    return ordered[low] + (ordered[high] - ordered[low]) * (place - low)


def _short(value: float) -> str:
    return f"{value:.4g}"


def _peers(number: int) -> str:
    return "1 peer" if number == 1 else f"{number} peers"
