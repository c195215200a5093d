"""Diagnosis of a trial from its curves: plain verdicts, each with the numbers behind it. Pure.

A verdict is a reading of curves, not a proof. Every threshold is a constant below, with its reason;
docs/how-to/read-a-report.md repeats them.
"""

from __future__ import annotations

import bisect
import itertools
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum

from search_spaces.recipe import Recipe
from search_spaces.wording import counted
from service.analysis.curves import Curve, interpolate, rate_weighted, total_examples
from service.states import AttemptState

MIN_RUNGS = 4
"""Evaluations below which a curve has no shape: three points make one bend, and so does noise."""
MIN_SHARE = 0.5
"""Share of its training that a trial must have seen before its slope is judged: until then there is warm-up
and the first descent, and every curve is steep."""
EARLY_SHARE = 0.2
"""The curve must be known from its first fifth on: what fell before its first point is not in its average
slope, and in the quickstart's trials half of all the fall is within the first quarter."""
LATE_SHARE = 0.3
"""The end of a curve is the last 30 % of its rate-weighted examples: about the last half of a cosine, so
that several evaluations lie in it."""
TOO_LOW_RATIO = 0.5
"""At least half as steep at the end as on average: nearer to a straight line than to a bend. A loss that
falls exponentially, to 1/e of itself over the training, has 0.68; to 1/e^2 of it, 0.43."""
UNDER_TRAINED_RATIO = 0.1
"""Still a tenth of its average slope at the end. An exponential fall to 1/e^4.5 of itself has that much: 99 %
of what was to be had is taken."""
RISE = 0.02
"""A rise of less than 2 % of the loss is taken for noise between neighbouring evaluations. Of the 384 recipes
of the quickstart's grid those with a rate up to 2.2e-3 never rise at all; above, rises reach 370 %."""
NEAR_ZERO = 0.05
"""Below a twentieth of its first value a loss is as good as zero, where a share of it is a share of nothing:
a classifier that gets every row right goes on from 0.01 to 0.0001 and back. There rises are measured by that
twentieth. The loss of a language model never comes near it."""
OSCILLATION_SHARE = 0.05
"""Rises that later falls undo, taken together, as a share of the ground that the curve covers."""
TRAIN_OSCILLATION_SHARE = 0.15
"""The same for the train loss: which examples lie between two rungs moves it, so it must move more."""
OVERFIT_RUNGS = 2
"""Evaluations after the best one, at least: a single higher one is noise."""
PLATEAU_SHARE = 0.02
"""A second half that takes less than 2 % off the loss, and is less than 2 % of the whole fall, is idle."""
LAG = 0.25
"""How far behind a gentler recipe a trial must be, as a share of that one's gain since its first rung; and by
more than `RISE`, as any two recipes end a little apart."""
MAX_PEERS = 1000
"""A gentler recipe is looked for among this many best trials of a rung, so that large studies stay quick."""


class Verdict(StrEnum):
    """What can be said of a trial."""

    DIVERGED = "diverged"
    LEARNING_RATE_TOO_HIGH = "learning_rate_too_high"
    LEARNING_RATE_TOO_LOW = "learning_rate_too_low"
    OVERFITTING = "overfitting"
    PLATEAUED_EARLY = "plateaued_early"
    UNDER_TRAINED = "under_trained"
    NOT_ENOUGH_RUNGS = "not_enough_rungs"


@dataclass(frozen=True, kw_only=True)
class Finding:
    """One verdict and the numbers it rests on."""

    verdict: Verdict
    evidence: str
    rung: int | None = None
    """Where it begins, in examples: of overfitting and of a plateau."""


class Peers:
    """The trials of a study by rung, to find those that did better with a gentler recipe."""

    def __init__(self, curves: Iterable[Curve] = ()) -> None:
        self._at: dict[int, list[tuple[float, int, Force, Curve]]] = {}
        for curve in curves:
            self.add(curve)

    def add(self, curve: Curve) -> dict[int, int | None]:
        """One more trial.

        Returns:
            Rung -> the trial that is no longer among the best ones there, if any; of each rung where this
            one is.
        """
        changed: dict[int, int | None] = {}
        if curve.recipe is None:
            return changed
        force = Force.of(curve.recipe)
        for rung in curve.rungs:
            entries = self._at.setdefault(rung.examples, [])
            bisect.insort(entries, (rung.eval_loss, curve.number, force, curve), key=lambda entry: entry[:2])
            dropped = entries.pop()[1] if len(entries) > MAX_PEERS else None
            if dropped != curve.number:
                changed[rung.examples] = dropped
        return changed

    def gentler(self, curve: Curve) -> tuple[float, Curve] | None:
        """The best trial at this one's last rung whose updates are smaller in every way, and its loss there.

        A lower rate, a batch that is no smaller and a rank that is no larger: so that what it reached at
        the same number of examples is not owed to speed.
        """
        if curve.recipe is None or not curve.rungs:
            return None
        own = Force.of(curve.recipe)
        for loss, _, force, peer in self._at.get(curve.rungs[-1].examples, ()):
            if force.gentler_than(own):
                return loss, peer
        return None


@dataclass(frozen=True)
class Force:
    """What makes the updates of a recipe large."""

    rate: float
    batch_size: int
    lora_r: int
    optimizer: str

    @classmethod
    def of(cls, recipe: Recipe) -> Force:
        return cls(recipe.peak_learning_rate, recipe.batch_size, recipe.lora_r, recipe.optimizer)

    def gentler_than(self, other: Force) -> bool:
        return (
            self.rate < other.rate
            and self.batch_size >= other.batch_size
            and self.lora_r <= other.lora_r
            and self.optimizer == other.optimizer
        )


def diagnose(curve: Curve, peers: Peers | None = None) -> list[Finding]:
    """Verdicts on a finished trial; none where nothing stands out, or where it did not train to an end.

    Args:
        curve: the trial.
        peers: the trials of its study, which can show that a lower learning rate does better.
    """
    if curve.state is AttemptState.DIVERGED:
        return [Finding(verdict=Verdict.DIVERGED, evidence=curve.reason)]
    if curve.state not in (AttemptState.COMPLETED, AttemptState.PRUNED):
        return []
    gentler = (peers or Peers()).gentler(curve)
    findings = [found for found in (_overfitting(curve), _too_high(curve, gentler)) if found]
    if findings:
        return findings
    if missing := _not_enough(curve):
        return [Finding(verdict=Verdict.NOT_ENOUGH_RUNGS, evidence=missing)]
    return [found for found in (_slope(curve, gentler), _plateau(curve)) if found]


def tally(diagnoses: Iterable[Sequence[Finding]]) -> Mapping[Verdict, int]:
    """How many trials got each verdict; those that none got are left out."""
    counts = dict.fromkeys(Verdict, 0)
    for findings in diagnoses:
        for verdict in {finding.verdict for finding in findings}:
            counts[verdict] += 1
    return {verdict: count for verdict, count in counts.items() if count}


def _not_enough(curve: Curve) -> str | None:
    """Why the shape of the curve cannot be judged, if so."""
    count = len(curve.rungs)
    if count < MIN_RUNGS:
        return f"{counted(count, 'evaluation')}; the shape of a curve needs at least {MIN_RUNGS}"
    last, total = curve.rungs[-1].examples, total_examples(curve)
    if last < MIN_SHARE * total:
        return f"it ended after {last:,} of {total:,} examples, during its first descent"
    progress, _ = rate_weighted(curve)
    if progress[0] > EARLY_SHARE * progress[-1]:
        first = curve.rungs[0].examples
        return f"its first evaluation is at {first:,} of {last:,} examples, so its beginning is unknown"
    return None


# -- overfitting, too high -----------------------------------------------------------------------------


def _overfitting(curve: Curve) -> Finding | None:
    """The eval loss rises from its best rung on while the train loss falls below what it was then.

    Below the best eval loss, too: a trial that is thrown off by its rate and comes back in part has a falling
    train loss as well, but fits its training data no better than it once did the others.

    Where the objective is another metric and still gets better meanwhile, nothing is lost: a classifier that
    grows surer of itself pays for its errors with a higher loss, while it makes fewer of them.
    """
    losses = [rung.eval_loss for rung in curve.rungs]
    if not losses:
        return None
    best = losses.index(min(losses))
    after = curve.rungs[best:]
    train = [rung.train_loss for rung in after if rung.train_loss is not None]
    if len(after) <= OVERFIT_RUNGS or len(train) < len(after) or train[-1] >= min(train[0], losses[best]):
        return None
    if losses[-1] - losses[best] <= RISE * _height(losses[best], curve):
        return None
    if _objective_gains(curve, best):
        return None
    evidence = (
        f"eval loss {_short(losses[best])} at {after[0].examples:,} examples and {_short(losses[-1])} at"
        f" {after[-1].examples:,}, while the train loss fell from {_short(train[0])} to {_short(train[-1])}"
    )
    return Finding(verdict=Verdict.OVERFITTING, evidence=evidence, rung=after[0].examples)


def _too_high(curve: Curve, gentler: tuple[float, Curve] | None) -> Finding | None:
    """The loss goes up and down, or a gentler recipe is far ahead."""
    evals = [rung.eval_loss for rung in curve.rungs]
    trains = [rung.train_loss for rung in curve.rungs if rung.train_loss is not None]
    text = (
        _oscillation(curve, "eval loss", evals, OSCILLATION_SHARE)
        or _oscillation(curve, "train loss", trains, TRAIN_OSCILLATION_SHARE)
        or _lag(curve, gentler)
    )
    return Finding(verdict=Verdict.LEARNING_RATE_TOO_HIGH, evidence=text) if text else None


def _oscillation(curve: Curve, name: str, losses: Sequence[float], share: float) -> str | None:
    if len(losses) < MIN_RUNGS:
        return None
    rises = [
        (low, high)
        for place, (low, high) in enumerate(itertools.pairwise(losses))
        if high - low > RISE * _height(low, curve)
        and high - min(losses[place + 2 :], default=math.inf) > RISE * _height(high, curve)
    ]
    if not rises or sum(high - low for low, high in rises) < share * (max(losses) - min(losses)):
        return None
    low, high = max(rises, key=lambda rise: rise[1] - rise[0])
    if len(rises) == 1:
        return f"the {name} rose from {_short(low)} to {_short(high)} and fell again"
    return f"the {name} rose and fell again {len(rises)} times, at most from {_short(low)} to {_short(high)}"


def _lag(curve: Curve, gentler: tuple[float, Curve] | None) -> str | None:
    if gentler is None or curve.recipe is None:
        return None
    loss, peer = gentler
    own = curve.rungs[-1]
    assert peer.recipe is not None  # only trials with a recipe are compared
    behind, gained = own.eval_loss - loss, peer.rungs[0].eval_loss - loss
    # At a first rung nothing has been gained since it, and a quarter of nothing would be any difference.
    if gained <= 0 or behind < LAG * gained or behind <= RISE * _height(loss, peer):
        return None
    return (
        f"eval loss {_short(own.eval_loss)} at {own.examples:,} examples, where trial {peer.number} had"
        f" {_short(loss)} with a rate of {peer.recipe.peak_learning_rate:.3g} instead of"
        f" {curve.recipe.peak_learning_rate:.3g}, no smaller batch and no larger rank"
    )


# -- too low, under-trained, plateau -------------------------------------------------------------------


def _slope(curve: Curve, gentler: tuple[float, Curve] | None) -> Finding | None:
    """How steep the curve is at its end, beside its average."""
    progress, losses = rate_weighted(curve)
    fall = losses[0] - losses[-1]
    late = LATE_SHARE * progress[-1]
    if fall <= 0 or late <= 0:
        return None
    before = interpolate(progress, losses, progress[-1] - late)
    ratio = (before - losses[-1]) / late / (fall / (progress[-1] - progress[0]))
    text = (
        f"eval loss {_short(before)} to {_short(losses[-1])} over the last {LATE_SHARE:.0%} of the"
        f" rate-weighted examples, which is {ratio:.0%} of its average slope"
    )
    lower_is_better = gentler is not None and gentler[0] < losses[-1]
    if ratio >= TOO_LOW_RATIO and not lower_is_better:
        return Finding(verdict=Verdict.LEARNING_RATE_TOO_LOW, evidence=text)
    # That a pruned trial was still falling says nothing of its length: it was not let finish.
    if ratio >= UNDER_TRAINED_RATIO and curve.state is AttemptState.COMPLETED:
        return Finding(verdict=Verdict.UNDER_TRAINED, evidence=text)
    return None


def _plateau(curve: Curve) -> Finding | None:
    """The second half brought next to nothing."""
    losses = [rung.eval_loss for rung in curve.rungs]
    half = next(i for i, rung in enumerate(curve.rungs) if 2 * rung.examples >= curve.rungs[-1].examples)
    best = min(losses[half:])
    gain = losses[half] - best
    if gain >= PLATEAU_SHARE * _height(losses[half], curve) or gain >= PLATEAU_SHARE * (
        losses[0] - min(losses)
    ):
        return None
    if _objective_gains(curve, half):
        return None
    after = curve.rungs[-1].examples - curve.rungs[half].examples
    text = (
        f"eval loss {_short(losses[half])} at {curve.rungs[half].examples:,} examples, and"
        f" {_short(best)} at best in the {after:,} examples after that"
    )
    return Finding(verdict=Verdict.PLATEAUED_EARLY, evidence=text, rung=curve.rungs[half].examples)


def _height(loss: float, curve: Curve) -> float:
    """What a rise from a loss is a share of."""
    first = curve.rungs[0]
    return max(loss, NEAR_ZERO * max(first.eval_loss, first.train_loss or 0.0))


def _objective_gains(curve: Curve, since: int) -> bool:
    """Whether an objective other than the eval loss gets better after a rung, by a share of all it gained."""
    values = [rung.objective for rung in curve.rungs if rung.objective is not None]
    if len(values) < len(curve.rungs):
        return False
    gain = min(values[: since + 1]) - min(values[since + 1 :], default=math.inf)
    return gain > PLATEAU_SHARE * (max(values) - min(values))


def _short(value: float) -> str:
    return f"{value:.4g}"
