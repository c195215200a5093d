"""What a learning-rate range test says: from loss curves to bounds for the learning rate. Pure.

A sweep raises the rate exponentially, step by step, and records the train loss. At small rates the loss
stays where it is; then it falls, and at some rate it turns and climbs. Smith (2017, arXiv 1506.01186,
section 3.3) takes the bounds of the search from there: from where the loss falls to where it becomes ragged
or rises. The reading here, of each (batch size, rank) corner:

* The loss is smoothed: a median of three steps against single spikes, then a bias-corrected exponential
  moving average, as fastai's `lr_find` does it. Its memory is a share of a decade of the rate
  (`SMOOTHING_DECADES`), not a number of steps, so that a sweep of 1,000 steps is read as one of 100 is.
  With 100 steps over seven decades it is 4.2 steps, a decay of 0.79.
* Divergence: the first rate at which the smoothed loss has given back a quarter of its fall. What comes
  after is not read: a loss that has blown up may fall again, at rates that train nothing.
* The minimum: the rate of the lowest smoothed loss before that.
* Steepest descent: where the smoothed loss falls fastest against the logarithm of the rate (fastai's
  suggestion `steep`).

The corner's bounds are [steepest / 3, minimum]. At the minimum the loss has stopped falling, which is the
stability limit: Smith (2018, arXiv 1803.09820, section 4.1) puts the largest useful rate there, and fastai's
suggestion `minimum`, a tenth of it, lies inside. Below the steepest descent a third is left (the ratio of
the cyclical bounds in Smith 2017), because a fine-tune of many steps does well at lower rates than a sweep
that spends a few steps at each. The bounds of several corners are the smallest interval that holds them
all, but its lower end is never less than a fiftieth of its upper end, unless the steepest descent of a corner
is at an even lower rate; then that rate is the lower end. Measured on two base models
(`benchmarks/range_test.py`), the minima of the corners differ by three to four times and the best rate of
real fine-tunes is two to five times below the minimum of its own corner; fifty is twice the product.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from statistics import median
from typing import Any

SMOOTHING_DECADES = 0.3
"""Memory of the moving average, in decades of the learning rate."""
SHORTEST_MEMORY = 2.0
"""Steps that it is at least."""
GIVEN_BACK = 0.25
"""Share of its fall by which the smoothed loss has risen again where it counts as diverged."""
NOISE_FACTOR = 5.0
"""Standard errors of the smoothed loss that a fall, or a rise, must be more than: then one in 150 sweeps of
mere normal noise shows a fall. It takes so many because a hundred steps have thirty chances. With skewed
losses, as of batches of one row, it is more: one in 60 where their logarithm scatters by 0.2, one in 10
where by 0.5."""
SMALLEST_FALL = 0.02
"""Share of the loss at the start that a fall must be more than."""
BELOW_STEEPEST = 3.0
"""How far the lower bound lies below the steepest descent."""
REACH = 50.0
"""How far below its upper end a proposal goes, unless a corner's steepest descent lies lower still."""

_START_SHARE = 8
_LEAST_START = 5
"""The loss at the start is the mean of the first eighth of the steps, and of 5 at least, each as its median
of three."""
_FEWEST_POINTS = 8


@dataclass(frozen=True, kw_only=True)
class CurvePoint:
    """One optimizer step of a sweep."""

    learning_rate: float
    loss: float
    """Train loss before the step, in nats per supervised token."""
    smoothed: float


@dataclass(frozen=True, kw_only=True)
class Corner:
    """One sweep and what it says."""

    values: Mapping[str, Any]
    """The corner's own recipe fields, such as batch_size and lora_r."""
    points: tuple[CurvePoint, ...]
    steepest: float | None = None
    """Learning rate of the steepest descent; None: the loss never fell."""
    minimum: float | None = None
    """Learning rate of the lowest smoothed loss; None: the loss never fell."""
    divergence: float | None = None
    """Learning rate at which it diverged; None: it did not."""
    bounds: tuple[float, float] | None = None
    """None: nothing can be concluded."""
    note: str
    """What it says, in words."""

    @property
    def label(self) -> str:
        return corner_label(self.values)


@dataclass(frozen=True, kw_only=True)
class Proposal:
    """What all the corners together say."""

    bounds: tuple[float, float] | None
    """Lowest and highest learning rate worth searching, to three digits; None: nothing can be concluded."""
    note: str


@dataclass(frozen=True, kw_only=True)
class Narrowed:
    """Bounds of a study's learning rate."""

    bounds: tuple[float, float] | None
    """None: there is nothing to narrow, and nothing was found."""
    concluded: bool
    """Whether the sweep decided them; else they are those that the user gave."""
    note: str


def corner_label(values: Mapping[str, Any]) -> str:
    """`batch 4, rank 32`, with what else makes the corner behind it."""
    short = {"batch_size": "batch", "lora_r": "rank"}
    return ", ".join(f"{short.get(name, name)} {value}" for name, value in values.items())


def in_rate(rate: float) -> str:
    """A learning rate as people write it: `2.1e-4`."""
    mantissa, exponent = f"{rate:.2e}".split("e")
    return f"{mantissa.rstrip('0').rstrip('.')}e{int(exponent)}"


def in_bounds(bounds: tuple[float, float]) -> str:
    return f"{in_rate(bounds[0])}…{in_rate(bounds[1])}"


def smooth(curve: Sequence[tuple[float, float]]) -> list[float]:
    """The smoothed loss at each step.

    Args:
        curve: (learning rate, loss) of each step, the rate rising exponentially, every number finite.
    """
    losses = [loss for _, loss in curve]
    if len(curve) < 3:
        return losses
    decay = _decay(curve)
    smoothed, average = [], 0.0
    for step, loss in enumerate(_calm(losses), start=1):
        average = decay * average + (1 - decay) * loss
        smoothed.append(average / (1 - decay**step))
    return smoothed


def analyse(curve: Sequence[tuple[float, float | None]], values: Mapping[str, Any], *, steps: int) -> Corner:
    """Reads one sweep.

    Args:
        curve: (learning rate, train loss) of each step, the rate rising. A loss that is not finite, or None,
            ends it: the step diverged.
        values: The corner's recipe fields.
        steps: Optimizer steps that the sweep should have had; a shorter curve ended because it diverged.
    """
    finite: list[tuple[float, float]] = []
    for rate, loss in curve:
        if loss is None or not math.isfinite(loss):
            break
        finite.append((rate, loss))
    ended = curve[min(len(finite), len(curve) - 1)][0] if curve and len(finite) < steps else None
    smoothed = smooth(finite)
    points = tuple(
        CurvePoint(learning_rate=rate, loss=loss, smoothed=level)
        for (rate, loss), level in zip(finite, smoothed, strict=True)
    )
    if len(points) < _FEWEST_POINTS:
        note = f"the sweep has too few usable steps ({len(points)})"
        return Corner(values=values, points=points, divergence=ended, note=note)
    first = max(_LEAST_START, len(points) // _START_SHARE)
    # Of medians too, as what it is compared with is: those of skewed losses lie below their mean.
    start = sum(_calm([loss for _, loss in finite])[:first]) / first
    least = max(SMALLEST_FALL * start, NOISE_FACTOR * _noise(finite, start))
    lowest, diverged = _descent(smoothed, first - 1, start, least)
    divergence = points[diverged].learning_rate if diverged is not None else ended
    if lowest is None:
        if divergence is None:
            note = f"the loss never fell clearly: {start:.3g} at the start, and no rate diverged"
        else:
            note = f"the loss did not fall before it diverged at {in_rate(divergence)}"
        return Corner(values=values, points=points, divergence=divergence, note=note)
    steepest = points[_steepest(points, lowest, start, least)].learning_rate
    minimum = points[lowest].learning_rate
    over = f"smoothed over {_memory(finite)[1]:.2g} decades"
    fell = f"steepest at {in_rate(steepest)}, lowest ({smoothed[lowest]:.3g}, {over}) at {in_rate(minimum)}"
    end = f"diverged at {in_rate(divergence)}" if divergence else "did not diverge"
    return Corner(
        values=values,
        points=points,
        steepest=steepest,
        minimum=minimum,
        divergence=divergence,
        bounds=(steepest / BELOW_STEEPEST, minimum),
        note=f"{fell}, {end}",
    )


def propose(corners: Sequence[Corner]) -> Proposal:
    """Bounds that hold for every corner of which something can be concluded."""
    found = [
        (corner, corner.bounds, corner.steepest)
        for corner in corners
        if corner.bounds is not None and corner.steepest is not None
    ]
    if not found:
        said = "; ".join(f"{corner.label}: {corner.note}" for corner in corners) or "it has no curve"
        return Proposal(bounds=None, note=f"the range test is inconclusive ({said})")
    high = max(bounds[1] for _, bounds, _ in found)
    third = min(bounds[0] for _, bounds, _ in found)
    steepest = min(steepest for _, _, steepest in found)
    low = max(third, min(high / REACH, steepest))
    if low == third:
        rule = "a third of the steepest rate, because longer training does well below it"
    elif low == steepest:
        rule = f"the steepest rate, because a third of it is less than 1/{REACH:g} of the upper bound"
    else:
        rule = f"1/{REACH:g} of the upper bound, because a third of the steepest rate is even lower"
    if len(found) > 1:
        rule = rule.replace("the steepest rate", "the lowest steepest rate")
    bounds = (_digits(low), _digits(high))
    said = "; ".join(f"{corner.label}: {corner.note}" for corner in corners)
    return Proposal(
        bounds=bounds,
        note=f"the lower bound is {rule}; the upper bound is the rate at which the loss is lowest ({said})",
    )


def narrow(
    found: tuple[float, float] | None, allowed: tuple[float, float] | None, *, widen: bool = False
) -> Narrowed:
    """A study's bounds of the learning rate: what was found, within what the user allowed.

    Args:
        found: What the range test proposes; None: nothing.
        allowed: The space's own bounds; None: it has none.
        widen: Whether what was found may go beyond what is allowed.
    """
    if found is None:
        kept = f"stays {in_bounds(allowed)}" if allowed else "stays as it is"
        return Narrowed(bounds=allowed, concluded=False, note=f"learning_rate {kept}")
    if allowed is None:
        return Narrowed(bounds=found, concluded=True, note=f"learning_rate {in_bounds(found)}")
    if widen:
        beyond = found[0] < allowed[0] or found[1] > allowed[1]
        verb = "moved" if beyond else "narrowed"
        note = f"learning_rate {verb} from {in_bounds(allowed)} to {in_bounds(found)}"
        return Narrowed(bounds=found, concluded=True, note=note)
    low, high = max(found[0], allowed[0]), min(found[1], allowed[1])
    if low >= high:
        note = (
            f"learning_rate stays {in_bounds(allowed)}: the range test proposes {in_bounds(found)}, which is"
            " outside that range; widen the space, or set search.learning_rate_range_test.widen"
        )
        return Narrowed(bounds=allowed, concluded=False, note=note)
    if (low, high) == allowed:
        note = f"learning_rate stays {in_bounds(allowed)}, all of which is within {in_bounds(found)}"
        return Narrowed(bounds=allowed, concluded=True, note=note)
    note = f"learning_rate narrowed from {in_bounds(allowed)} to {in_bounds((low, high))}"
    if (low, high) != found:
        note += f" (the allowed part of {in_bounds(found)})"
    return Narrowed(bounds=(low, high), concluded=True, note=note)


def _calm(losses: Sequence[float]) -> list[float]:
    """The median of each loss and its neighbours."""
    return [median(losses[max(0, i - 1) : i + 2]) for i in range(len(losses))]


def _memory(curve: Sequence[tuple[float, float]]) -> tuple[float, float]:
    """Memory of the moving average, in steps and in decades of the rate."""
    decades = math.log10(curve[-1][0] / curve[0][0])
    steps_per_decade = (len(curve) - 1) / decades if decades > 0 else 0.0
    steps = max(SHORTEST_MEMORY, SMOOTHING_DECADES * steps_per_decade)
    return steps, steps / steps_per_decade if steps_per_decade else 0.0


def _decay(curve: Sequence[tuple[float, float]]) -> float:
    return math.exp(-1 / _memory(curve)[0])


def _noise(curve: Sequence[tuple[float, float]], start: float) -> float:
    """Standard error of the smoothed loss, from the differences of neighbouring steps.

    Their median is one of the quiet part: the fall does not raise it much, and what has blown up is left out.
    """
    calm = [
        abs(later - earlier)
        for (_, earlier), (_, later) in pairwise(curve)
        if max(earlier, later) <= start * (1 + GIVEN_BACK)
    ]
    one_step = median(calm) / (0.6745 * math.sqrt(2)) if calm else 0.0
    decay = _decay(curve)
    return one_step * math.sqrt((1 - decay) / (1 + decay))


def _descent(
    smoothed: Sequence[float], first: int, start: float, least: float
) -> tuple[int | None, int | None]:
    """The step of the lowest loss before divergence, and that of divergence; None where there is none.

    It is looked for from step `first` on: before, the average is of few steps.
    """
    lowest = first
    for step in range(first, len(smoothed)):
        level = smoothed[step]
        if level < smoothed[lowest]:
            lowest = step
        fall = start - smoothed[lowest]
        if fall > least:
            if level - smoothed[lowest] > max(GIVEN_BACK * fall, least):
                return lowest, step
        elif level > start * (1 + GIVEN_BACK) and level - start > least:
            return None, step
    return (lowest if start - smoothed[lowest] > least else None), None


def _steepest(points: Sequence[CurvePoint], lowest: int, start: float, least: float) -> int:
    """The step up to the lowest loss at which it falls fastest against the logarithm of the rate.

    Slopes are taken over two steps to either side, and only where the fall has come out of its noise:
    before, the steepest slope is a chance of the batches.
    """
    fall = start - points[lowest].smoothed
    began = next(i for i in range(lowest + 1) if start - points[i].smoothed > min(least, fall / 2))
    slopes = {}
    for step in range(began, lowest + 1):
        left, right = points[max(0, step - 2)], points[min(lowest, step + 2)]
        if right.learning_rate > left.learning_rate:
            decades = math.log10(right.learning_rate / left.learning_rate)
            slopes[step] = (right.smoothed - left.smoothed) / decades
    return min(slopes, key=lambda step: (slopes[step], step)) if slopes else lowest


def _digits(rate: float) -> float:
    return float(f"{rate:.3g}")
