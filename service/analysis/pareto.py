"""The trials that no other one beats in everything. Pure."""

from __future__ import annotations

from collections.abc import Sequence


def front(points: Sequence[Sequence[float]]) -> list[int]:
    """Indices of the non-dominated points, best in the first coordinate first.

    A point is dominated by one that is no worse in every coordinate and better in at least one; of equal
    points all are kept.

    Args:
        points: coordinates that are better when smaller; all of one length.
    """
    order = sorted(range(len(points)), key=lambda index: (tuple(points[index]), index))
    kept: list[int] = []
    for index in order:
        # Whatever dominates it is lexicographically smaller, so it has been seen; and what dominated that
        # one would dominate it too, so it is enough to look at those that were kept.
        if not any(_dominates(points[other], points[index]) for other in kept):
            kept.append(index)
    return kept


def _dominates(first: Sequence[float], second: Sequence[float]) -> bool:
    pairs = list(zip(first, second, strict=True))
    return all(a <= b for a, b in pairs) and any(a < b for a, b in pairs)
