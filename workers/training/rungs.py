"""When a trial is evaluated. Pure.

Rungs are counted in training examples and named by their nominal value, so that trials with different
batch sizes meet at the same rungs and a pruner can compare them.
"""

from __future__ import annotations


def rung_reached(before: int, after: int, *, every: int | None, total: int) -> int | None:
    """The rung that an optimizer step reaches, if any.

    Args:
        before: Training examples seen before the step.
        after: Training examples seen after it.
        every: Evaluate each time this many examples have been seen; None: only at the end.
        total: Training examples of the whole trial.

    Returns:
        `total` at the end of the trial; else the highest multiple of `every` in (before, after], so a
        step that crosses several rungs makes one report; else None.
    """
    if after >= total:
        return total
    if every is None:
        return None
    highest = after // every * every
    return highest if highest > before else None
