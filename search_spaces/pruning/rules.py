"""Whether a trial is pruned at a rung, and by which numbers. Pure: the same reports give the same answer.

The rules are those of Optuna's pruners, judged from reports alone. Optuna's own keep some of what they have
judged in the storage and some in the process, so a trial that is asked about twice may be judged twice.
A report is only ever compared with reports at the same nominal examples.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from zlib import crc32

import numpy as np

from search_spaces.pruning.findings import (
    BehindPeers,
    BeyondThreshold,
    Immediate,
    NoImprovement,
    PruningFinding,
    TooEarly,
    WorseThanBest,
)
from search_spaces.pruning.specs import (
    AshaPruning,
    HyperbandPruning,
    MedianPruning,
    NoPruning,
    PatientPruning,
    PercentilePruning,
    Pruning,
    ThresholdPruning,
    WilcoxonPruning,
)


@dataclass(frozen=True, kw_only=True)
class RungCurve:
    """What a trial has reported at its rungs."""

    number: int
    rungs: tuple[tuple[int, float], ...]
    """(nominal training examples, objective), ascending; at least one in a trial that is judged."""
    value: float | None = None
    """The objective at the best rung; None unless the trial completed."""
    feasible: bool = True
    """Whether it keeps to the study's constraints, so that it may be the best."""

    def at(self, rung: int) -> float | None:
        """The objective at exactly this rung; None where there was no report."""
        return next((value for examples, value in self.rungs if examples == rung), None)


@dataclass(frozen=True, kw_only=True)
class Judge:
    """A study's pruner.

    Attributes:
        spec: One of the `Pruning` models.
        minimize: Whether smaller is better.
        every_examples: Training examples between two rungs.
        max_examples: Training examples of the study's longest possible trial.
        seed: The search's: it deals trials out to Hyperband's brackets.
    """

    spec: Pruning
    minimize: bool
    every_examples: int
    max_examples: int
    seed: int = 0

    def judge(self, trial: RungCurve, peers: Callable[[], Sequence[RungCurve]]) -> PruningFinding | None:
        """Whether the trial is to be pruned at its latest rung.

        Args:
            trial: The trial.
            peers: Gives all others that it may be compared with, whatever their state; called at most once,
                and not at all where the rung alone decides.
        """
        spec = self.spec
        if isinstance(spec, PatientPruning):
            return self._patient(spec, trial, peers)
        return self._rule(spec, trial, peers, standing=False)

    def _rule(
        self, spec: Pruning, trial: RungCurve, peers: Callable[[], Sequence[RungCurve]], *, standing: bool
    ) -> Immediate | None:
        """Every rule but `patient`. Standing: what successive halving says of the trial's latest level also
        holds at the rungs after it."""
        rung, _ = trial.rungs[-1]
        if isinstance(spec, NoPruning | PatientPruning) or rung > (spec.max_examples or math.inf):
            return None
        if isinstance(spec, AshaPruning | HyperbandPruning):
            return self._halving(spec, trial, peers, standing=standing)
        if rung < spec.min_examples:
            return None
        if isinstance(spec, WilcoxonPruning):
            return self._wilcoxon(spec, trial, peers())
        if not _is_look(spec, trial):
            return None
        if isinstance(spec, ThresholdPruning):
            return _threshold(spec, trial)
        return self._percentile(spec, trial, peers())

    def _percentile(
        self, spec: MedianPruning | PercentilePruning, trial: RungCurve, peers: Sequence[RungCurve]
    ) -> BehindPeers | None:
        rung, _ = trial.rungs[-1]
        completed = [peer for peer in peers if peer.value is not None]
        at_rung = _values_at(completed, rung)
        if len(completed) < spec.n_startup_trials or len(at_rung) < spec.n_min_trials:
            return None
        share = spec.percentile if isinstance(spec, PercentilePruning) else 50.0
        cut_off = float(np.percentile(at_rung, share if self.minimize else 100.0 - share))
        best = self._best(value for _, value in trial.rungs)
        if not self._worse(best, cut_off):
            return None
        return BehindPeers(rung=rung, value=best, cut_off=cut_off, peers=len(at_rung))

    def _halving(
        self,
        spec: AshaPruning | HyperbandPruning,
        trial: RungCurve,
        peers: Callable[[], Sequence[RungCurve]],
        *,
        standing: bool,
    ) -> BehindPeers | TooEarly | None:
        last, _ = trial.rungs[-1]
        bracket = self._bracket(spec, trial)
        level = (spec.min_examples or self.every_examples) * spec.reduction_factor**bracket
        if last < level:
            return None
        while level * spec.reduction_factor <= last:
            level *= spec.reduction_factor
        rung, value = next((rung, value) for rung, value in trial.rungs if rung >= level)
        if rung != last and not standing:
            return None  # it was judged when it got there
        others = _values_at([peer for peer in peers() if self._bracket(spec, peer) == bracket], rung)
        if len(others) < spec.bootstrap_count:
            return TooEarly(rung=rung, value=value, bootstrap_count=spec.bootstrap_count)
        if len(others) < spec.n_min_trials:
            return None
        competing = sorted([*others, value], reverse=not self.minimize)
        cut_off = competing[max(len(competing) // spec.reduction_factor - 1, 0)]
        if not self._worse(value, cut_off):
            return None
        return BehindPeers(rung=rung, value=value, cut_off=cut_off, peers=len(others))

    def _bracket(self, spec: AshaPruning | HyperbandPruning, trial: RungCurve) -> int:
        """Levels that a trial's bracket leaves out at the beginning: 0 but for Hyperband.

        A bracket is the likelier the more trials it takes to give each the same budget, as in Optuna.
        """
        if isinstance(spec, AshaPruning):
            return 0
        first, eta = spec.min_examples or self.every_examples, spec.reduction_factor
        last = spec.max_examples or self.max_examples
        brackets = 1
        while first * eta**brackets <= last:
            brackets += 1
        shares = [math.ceil(brackets * eta**s / (s + 1)) for s in range(brackets - 1, -1, -1)]
        place = crc32(f"{self.seed}_{trial.number}".encode()) % sum(shares)
        bracket = 0
        while place >= shares[bracket]:
            place -= shares[bracket]
            bracket += 1
        return bracket

    def _wilcoxon(
        self, spec: WilcoxonPruning, trial: RungCurve, peers: Sequence[RungCurve]
    ) -> WorseThanBest | None:
        done = [(peer.value, peer) for peer in peers if peer.value is not None and peer.feasible]
        if not done:
            return None
        best_value = self._best(value for value, _ in done)
        best = next(peer for value, peer in done if value == best_value)
        pairs = [(value, other) for rung, value in trial.rungs if (other := best.at(rung)) is not None]
        worse_by = [value - other if self.minimize else other - value for value, other in pairs]
        # A trial that is worse at most rungs, but better by more at the others, is not clearly the worse.
        if len(pairs) < max(2, spec.n_startup_rungs) or sum(worse_by) <= 0:
            return None
        from scipy.stats import wilcoxon  # a second of import, which only this pruner needs

        p = float(wilcoxon(worse_by, alternative="greater", zero_method="zsplit").pvalue)
        if not p < spec.p_threshold:
            return None
        rung, value = trial.rungs[-1]
        return WorseThanBest(
            rung=rung,
            value=value,
            best=best.number,
            pairs=len(pairs),
            difference=sum(worse_by) / len(pairs),
            p=p,
            p_threshold=spec.p_threshold,
        )

    def _patient(
        self, spec: PatientPruning, trial: RungCurve, peers: Callable[[], Sequence[RungCurve]]
    ) -> NoImprovement | None:
        rung, value = trial.rungs[-1]
        if not spec.min_examples <= rung <= (spec.max_examples or math.inf):
            return None
        patience = spec.patience_examples
        if patience is None:
            patience = (spec.patience or 0) * self.every_examples
        before = [(value, at) for at, value in trial.rungs if at < rung - patience]
        if not before:
            return None
        best = self._best(value for value, _ in before)
        since = self._best(value for at, value in trial.rungs if at >= rung - patience)
        if not self._worse(since, best + spec.min_delta if self.minimize else best - spec.min_delta):
            return None
        wrapped = None
        if spec.wrapped is not None:
            wrapped = self._rule(spec.wrapped, trial, peers, standing=True)
            if wrapped is None:
                return None
        return NoImprovement(
            rung=rung,
            value=value,
            best=best,
            best_rung=next(at for value, at in before if value == best),
            min_delta=spec.min_delta,
            wrapped=wrapped,
            wrapped_algorithm=None if spec.wrapped is None else spec.wrapped.algorithm,
        )

    def _best(self, values: Iterable[float]) -> float:
        return min(values) if self.minimize else max(values)

    def _worse(self, value: float, other: float) -> bool:
        return value > other if self.minimize else value < other


def _threshold(spec: ThresholdPruning, trial: RungCurve) -> BeyondThreshold | None:
    rung, value = trial.rungs[-1]
    if spec.lower is not None and value < spec.lower:
        return BeyondThreshold(rung=rung, value=value, threshold=spec.lower, side="below")
    if spec.upper is not None and value > spec.upper:
        return BeyondThreshold(rung=rung, value=value, threshold=spec.upper, side="above")
    return None


def _is_look(spec: MedianPruning | PercentilePruning | ThresholdPruning, trial: RungCurve) -> bool:
    """Whether the latest rung is the trial's first in its interval (Optuna's rule)."""
    rung, _ = trial.rungs[-1]
    start = spec.min_examples + (rung - spec.min_examples) // spec.interval_examples * spec.interval_examples
    return len(trial.rungs) == 1 or trial.rungs[-2][0] < start


def _values_at(curves: Sequence[RungCurve], rung: int) -> list[float]:
    return [value for curve in curves if (value := curve.at(rung)) is not None]
