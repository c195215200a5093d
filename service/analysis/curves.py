"""The curves of a trial, as `diagnosis` reads them: losses over rate-weighted examples. Pure.

*Rate-weighted* examples are those seen, each counted by its learning rate as a share of the peak. With a
schedule that decays to zero every curve is flat at its end, whatever the rate was; over rate-weighted
examples, one that could have gone on falling still does.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from search_spaces.recipe import Recipe
from service.states import AttemptState


@dataclass(frozen=True, kw_only=True)
class Rung:
    """What a trial reported at a rung."""

    examples: int
    eval_loss: float
    """The plain loss of the study's task; at least 0."""
    train_loss: float | None = None
    """Mean since the rung before."""
    objective: float | None = None
    """Where it is another metric: its value, negated where more is better. None: it is not, or it was not
    measured here."""


@dataclass(frozen=True, kw_only=True)
class Curve:
    """One trial, as far as it got."""

    number: int
    state: AttemptState
    reason: str = ""
    recipe: Recipe | None = None
    rungs: Sequence[Rung] = ()
    """Ascending, finite."""
    total_examples: int | None = None
    """Of its whole training; None: not known, and the last rung is taken for the end."""


def total_examples(curve: Curve) -> int:
    """Of the whole training, as far as is known."""
    return max(curve.total_examples or 0, curve.rungs[-1].examples)


def rate_weighted(curve: Curve) -> tuple[list[float], list[float]]:
    """Rate-weighted examples and loss, ascending; the first point is the first train loss where there is one.

    It is a mean over the examples up to the first rung, and so stands in their middle.
    """
    total = total_examples(curve)
    scheduler = curve.recipe.lr_scheduler if curve.recipe else "constant"
    warmup = curve.recipe.warmup_ratio if curve.recipe else 0.0
    first = curve.rungs[0]
    points = [(float(rung.examples), rung.eval_loss) for rung in curve.rungs]
    if first.train_loss is not None:
        points.insert(0, (first.examples / 2, first.train_loss))
    weighted = [total * _schedule_integral(scheduler, warmup, at / total) for at, _ in points]
    return weighted, [loss for _, loss in points]


def _schedule_integral(scheduler: str, warmup: float, share: float) -> float:
    """Of the multiplier of `workers.training.schedules`, made continuous, from 0 to `share`."""
    if share <= warmup:
        return share * share / (2 * warmup) if warmup else 0.0
    after, rest = share - warmup, 1.0 - warmup
    if scheduler == "linear":
        return warmup / 2 + after - after * after / (2 * rest)
    if scheduler == "cosine":
        return warmup / 2 + 0.5 * (after + rest / math.pi * math.sin(math.pi * after / rest))
    return warmup / 2 + after


def interpolate(at: Sequence[float], values: Sequence[float], where: float) -> float:
    """The value at `where` on the line through the points, whose places ascend."""
    for place in range(1, len(at)):
        if where <= at[place]:
            width = at[place] - at[place - 1]
            share = (where - at[place - 1]) / width if width > 0 else 1.0
            return values[place - 1] + share * (values[place] - values[place - 1])
    return values[-1]
