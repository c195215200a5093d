"""When to stop a trial early: `none`, `median`, `percentile`, `asha`, `hyperband`.

All resources are **training examples seen**, the unit of rungs: Optuna's steps are the rungs' nominal
examples. Optuna's `"auto"` resources are never used: they are learned per pruner object from trials it
has seen, so they change with every restart (optuna 5.0, `_successive_halving.py`, `_hyperband.py`).
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, model_validator

from search_spaces.errors import Fault
from search_spaces.faults import problems
from search_spaces.quantities import Real, Whole

if TYPE_CHECKING:
    from optuna.pruners import BasePruner


class _Pruning(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)


class NoPruning(_Pruning):
    """Every trial trains to its end."""

    algorithm: Literal["none"] = "none"


class _AgainstCompleted(_Pruning):
    n_startup_trials: Annotated[Whole, Field(ge=0)] = 5
    """Trials that must have *completed* before any is pruned; pruned ones do not count (Optuna's default)."""
    min_examples: Annotated[Whole, Field(ge=0)] = 0
    """No trial is pruned before it has seen this many examples."""
    interval_examples: Annotated[Whole, Field(ge=1)] = 1
    """Examples between two looks, counted from `min_examples`; 1 looks at every rung."""
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
    """Percent of completed trials a trial must keep up with: 25 keeps the best quarter."""


class _Halving(_Pruning):
    min_examples: Annotated[Whole, Field(ge=1)]
    """Examples at the first rung; the next ones are at `reduction_factor` times the one before."""
    max_examples: Annotated[Whole, Field(ge=1)] | None = None
    """Examples of a full trial. None: those of the study's longest trial."""
    reduction_factor: Annotated[Whole, Field(ge=2, le=1000)] = 3
    """One in this many goes on from each rung. 3 is Hyperband's default (eta)."""
    bootstrap_count: Annotated[Whole, Field(ge=0)] = 0
    """Trials that must reach a rung before any is promoted from it. Those that come first are pruned."""

    @model_validator(mode="after")
    def _check(self) -> _Halving:
        if self.max_examples is not None and self.max_examples <= self.min_examples:
            raise problems(
                [
                    Fault(
                        path="max_examples",
                        value=self.max_examples,
                        message=f"must be more than min_examples ({self.min_examples})",
                        allowed=f"more than {self.min_examples}",
                    )
                ]
            )
        return self


class AshaPruning(_Halving):
    """Asynchronous successive halving: at each rung only the best 1 / `reduction_factor` go on.

    Source: Li et al. 2020, "A System for Massively Parallel Hyperparameter Tuning", arXiv 1810.05934.
    """

    algorithm: Literal["asha"]


class HyperbandPruning(_Halving):
    """Successive halving in several brackets, which differ in how early they begin to prune.

    Source: Li et al. 2018, "Hyperband", arXiv 1603.06560 (reduction factor 3 or 4).
    """

    algorithm: Literal["hyperband"]


Pruning = Annotated[
    NoPruning | MedianPruning | PercentilePruning | AshaPruning | HyperbandPruning,
    Field(discriminator="algorithm"),
]

PRUNING_SPECS: dict[str, type[_Pruning]] = {
    "none": NoPruning,
    "median": MedianPruning,
    "percentile": PercentilePruning,
    "asha": AshaPruning,
    "hyperband": HyperbandPruning,
}
"""Every pruning algorithm by its name in a definition."""


def build_pruner(spec: Any, max_examples: int) -> BasePruner:
    """The Optuna pruner for a spec.

    Args:
        spec: One of the `Pruning` models.
        max_examples: Training examples of the study's longest possible trial; used where the spec does
            not state its own.
    """
    from optuna.pruners import (
        HyperbandPruner,
        MedianPruner,
        NopPruner,
        PercentilePruner,
        SuccessiveHalvingPruner,
    )

    match spec:
        case NoPruning():
            return NopPruner()
        case MedianPruning():
            return MedianPruner(
                n_startup_trials=spec.n_startup_trials,
                n_warmup_steps=spec.min_examples,
                interval_steps=spec.interval_examples,
                n_min_trials=spec.n_min_trials,
            )
        case PercentilePruning():
            return PercentilePruner(
                percentile=spec.percentile,
                n_startup_trials=spec.n_startup_trials,
                n_warmup_steps=spec.min_examples,
                interval_steps=spec.interval_examples,
                n_min_trials=spec.n_min_trials,
            )
        case AshaPruning():
            return SuccessiveHalvingPruner(
                min_resource=spec.min_examples,
                reduction_factor=spec.reduction_factor,
                bootstrap_count=spec.bootstrap_count,
            )
        case HyperbandPruning():
            return HyperbandPruner(
                min_resource=spec.min_examples,
                # Fewer examples than the first rung would leave Hyperband without a single bracket.
                max_resource=max(spec.max_examples or max_examples, spec.min_examples),
                reduction_factor=spec.reduction_factor,
                bootstrap_count=spec.bootstrap_count,
            )
    raise TypeError(f"{spec!r} is no pruning spec")
