"""When to stop a trial early: what a definition may ask for. `search_spaces.pruning.rules` judges by it.

All resources are **training examples seen**, the unit of rungs, and each has a first and a last one: nothing
is pruned before `min_examples` or after `max_examples`. Nothing is learned per process, as Optuna's `"auto"`
resources are (optuna 5.0, `_successive_halving.py`, `_hyperband.py`), so a restart changes no rule.
"""

from __future__ import annotations

from typing import Annotated, Literal, TypeAlias

from pydantic import BaseModel, ConfigDict, Field, model_validator

from search_spaces.errors import Fault
from search_spaces.faults import problems
from search_spaces.values.numbers import Real, Whole


class _Pruning(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)


class NoPruning(_Pruning):
    """Every trial trains to its end."""

    algorithm: Literal["none"] = "none"


class _Bounded(_Pruning):
    max_examples: Annotated[Whole, Field(ge=1)] | None = None
    """No trial is pruned once it has seen more examples than this. None: no limit."""


class _FromTheFirst(_Bounded):
    min_examples: Annotated[Whole, Field(ge=0)] = 0
    """No trial is pruned before it has seen this many examples."""

    @model_validator(mode="after")
    def _check_order(self) -> _FromTheFirst:
        if self.max_examples is not None and self.max_examples < self.min_examples:
            raise problems(_too_low("max_examples", self.max_examples, "min_examples", self.min_examples))
        return self


class _AtIntervals(_FromTheFirst):
    interval_examples: Annotated[Whole, Field(ge=1)] = 1
    """Examples between two checks, counted from `min_examples`; 1 checks every rung."""


class _AgainstCompleted(_AtIntervals):
    n_startup_trials: Annotated[Whole, Field(ge=0)] = 5
    """Trials that must have *completed* before any is pruned; pruned ones do not count (Optuna's default)."""
    n_min_trials: Annotated[Whole, Field(ge=1)] = 1
    """Completed trials that must have reported at the same rung (Optuna's default)."""


class MedianPruning(_AgainstCompleted):
    """Prunes a trial whose best value so far is worse than the median of completed trials at that rung.

    Source: Golovin et al. 2017, "Google Vizier", section 3.2; optuna.pruners.MedianPruner.
    """

    algorithm: Literal["median"]


class PercentilePruning(_AgainstCompleted):
    """Prunes a trial whose best value so far is not among the best `percentile` percent at that rung.

    Source: optuna.pruners.PercentilePruner.
    """

    algorithm: Literal["percentile"]
    percentile: Annotated[Real, Field(gt=0, lt=100)] = 25.0
    """A trial must be among this percentage of the completed trials: 25 keeps the best quarter."""


class _Halving(_Bounded):
    min_examples: Annotated[Whole, Field(ge=1)] | None = None
    """Examples at the first level; the next ones are at `reduction_factor` times the one before.
    None: `evaluation.every_examples`."""
    reduction_factor: Annotated[Whole, Field(ge=2, le=1000)] = 3
    """One in this many goes on from each level. 3 is Hyperband's default (eta)."""
    n_min_trials: Annotated[Whole, Field(ge=1)] = 1
    """Other trials that must have reported at a rung before any is pruned at it."""
    bootstrap_count: Annotated[Whole, Field(ge=0)] = 0
    """The first N trials to reach a level are always pruned there, even if they are good (Optuna's rule)."""

    @model_validator(mode="after")
    def _check(self) -> _Halving:
        low, high = self.min_examples, self.max_examples
        if low is not None and high is not None and high <= low:
            message = f"must be more than min_examples ({low})"
            raise problems(
                Fault(path="max_examples", value=high, message=message, allowed=f"more than {low}")
            )
        return self


class AshaPruning(_Halving):
    """Asynchronous successive halving: at each level only the best 1 / `reduction_factor` go on.

    Trials do not wait for each other: each is judged when it gets there, against those that came before.
    Source: Li et al. 2020, "A System for Massively Parallel Hyperparameter Tuning", arXiv 1810.05934.

    The defaults are gentler than the paper's, whose peers are random: those that TPE suggests are strong, and
    two thirds of them is too many (`benchmarks/LOG.md`, search quality).
    """

    algorithm: Literal["asha"]
    reduction_factor: Annotated[Whole, Field(ge=2, le=1000)] = 2
    n_min_trials: Annotated[Whole, Field(ge=1)] = 8


class HyperbandPruning(_Halving):
    """Successive halving in several brackets, which differ in how early they begin to prune.

    `max_examples` (None: those of the study's longest trial) is the paper's R: it decides how many brackets
    there are. Source: Li et al. 2018, "Hyperband", arXiv 1603.06560 (reduction factor 3 or 4).
    """

    algorithm: Literal["hyperband"]


class ThresholdPruning(_AtIntervals):
    """Prunes a trial whose value at a rung is outside fixed limits. At least one limit is given.

    Source: optuna.pruners.ThresholdPruner.
    """

    algorithm: Literal["threshold"]
    lower: Real | None = None
    """Pruned below this."""
    upper: Real | None = None
    """Pruned above this."""

    @model_validator(mode="after")
    def _check(self) -> ThresholdPruning:
        if self.lower is None and self.upper is None:
            message = "is required unless lower is given, because without a limit nothing is pruned"
            raise problems(Fault(path="upper", value=None, message=message, allowed="a number"))
        if self.lower is not None and self.upper is not None and self.upper < self.lower:
            raise problems(_too_low("upper", self.upper, "lower", self.lower))
        return self


class WilcoxonPruning(_FromTheFirst):
    """Prunes a trial that is worse than the best one at so many rungs that chance does not explain it.

    Pairs are the rungs that both have reported, at the same examples; the test is Wilcoxon's signed-rank
    test, one-sided. With 3 pairs p is never below 0.125, with 4 never below 0.063, with 5 never below 0.031.
    Source: optuna.pruners.WilcoxonPruner.
    """

    algorithm: Literal["wilcoxon"]
    p_threshold: Annotated[Real, Field(gt=0, le=1)] = 0.1
    """Pruned if p is below this (Optuna's default)."""
    n_startup_rungs: Annotated[Whole, Field(ge=0)] = 2
    """Pairs of rungs that are required; never fewer than two (Optuna's default)."""


Wrapped: TypeAlias = (
    MedianPruning | PercentilePruning | AshaPruning | HyperbandPruning | ThresholdPruning | WilcoxonPruning
)
"""What `patient` may wrap."""


class PatientPruning(_FromTheFirst):
    """Lets another pruner prune a trial only once the trial has stopped improving.

    A trial has stopped improving when this report and all its reports of the last `patience_examples` are
    worse than its best report before them, by more than `min_delta`. Source: optuna.pruners.PatientPruner,
    whose patience counts reports.
    """

    algorithm: Literal["patient"]
    patience_examples: Annotated[Whole, Field(ge=0)] | None = None
    """Training examples."""
    patience: Annotated[Whole, Field(ge=0)] | None = None
    """Instead of `patience_examples`: rungs, each of `evaluation.every_examples` at any batch size."""
    min_delta: Annotated[Real, Field(ge=0)] = 0.0
    """By how much the reports must be worse, in the metric's unit."""
    wrapped: Annotated[Wrapped, Field(discriminator="algorithm")] | None = None
    """The pruner that must also decide to prune the trial. None: a trial that stops improving is pruned."""

    @model_validator(mode="after")
    def _check(self) -> PatientPruning:
        if (self.patience is None) == (self.patience_examples is None):
            given = self.patience is not None
            message = "cannot be combined with patience" if given else "is required unless patience is given"
            message += "; give one of the two"
            allowed = "patience_examples (examples) or patience (rungs)"
            given_examples = self.patience_examples
            raise problems(
                Fault(path="patience_examples", value=given_examples, message=message, allowed=allowed)
            )
        return self


Pruning = Annotated[NoPruning | Wrapped | PatientPruning, Field(discriminator="algorithm")]

PRUNING_SPECS: dict[str, type[_Pruning]] = {
    "none": NoPruning,
    "median": MedianPruning,
    "percentile": PercentilePruning,
    "asha": AshaPruning,
    "hyperband": HyperbandPruning,
    "patient": PatientPruning,
    "threshold": ThresholdPruning,
    "wilcoxon": WilcoxonPruning,
}
"""Every pruning algorithm by its name in a definition."""


def _too_low(key: str, value: float, other: str, least: float) -> Fault:
    message = f"must be at least {other} ({least:g})"
    return Fault(path=key, value=value, message=message, allowed=f"at least {least:g}")
