"""The trials that no other one dominates. Pure.

Optuna's `Study.best_trials` would count repeats among the search's trials.
"""

from __future__ import annotations

from collections.abc import Sequence


def front(points: Sequence[Sequence[float]]) -> list[int]:
    """Indices of the non-dominated points, best in the first coordinate first.

    A point is dominated by one that is no worse in every coordinate and better in at least one; of equal
    points all are kept.

    Args:
        points: coordinates that are better when smaller; all of one length.
    """
    order = sorted((tuple(point), index) for index, point in enumerate(points))
    kept: list[tuple[tuple[float, ...], int]] = []
    for point, index in order:
        # Whatever dominates it comes before it, and what dominated that one would dominate it too, so it is
        # enough to look at those that were kept.
        if not any(other != point and _no_worse(other, point) for other, _ in kept):
            kept.append((point, index))
    return [index for _, index in kept]


def _no_worse(first: Sequence[float], second: Sequence[float]) -> bool:
    return all(a <= b for a, b in zip(first, second, strict=True))
