"""Optuna's trials and studies as frozen values, for code that must not import Optuna."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from enum import StrEnum
from typing import Any


class TrialCondition(StrEnum):
    """How a trial stands in Optuna's storage, as recovery sees it."""

    MISSING = "missing"
    """There is no trial of that number."""
    INCOMPLETE = "incomplete"
    """It runs and lacks some of its parameters: its asker died while it drew them."""
    RUNNING = "running"
    COMPLETE = "complete"
    PRUNED = "pruned"
    FAILED = "failed"
    ORPHANED = "orphaned"
    """It runs and got another number than it was drawn for, since two asked at once."""


@dataclass(frozen=True, kw_only=True)
class TrialValues:
    """What Optuna knows of one trial."""

    number: int
    params: Mapping[str, Any]
    value: float | None
    """The objective at the best rung; None unless the trial completed."""
    values: tuple[float, ...] = ()
    """The objective and then the costs, in the definition's order; empty unless the trial completed."""
    feasible: bool = True
    """It breaks no constraint that it was measured against."""
    rungs: tuple[tuple[int, float], ...]
    """(rung, objective), ascending."""
    state: str
    """`running`, `complete`, `pruned`, `fail` or `waiting`."""
    repeat_of: int | None = None
    """The trial whose recipe it runs again; None: it is no repeat."""
    seed: int | None = None
    """Of a repeat: the recipe's."""
    evaluates: Mapping[str, Any] | None = None
    """Of a trial that trains nothing: whose adapter it evaluates, and where that is."""
    user_attrs: Mapping[str, Any]

    @property
    def searched(self) -> bool:
        """Whether it is of the search: neither a repeat nor an evaluation."""
        return self.repeat_of is None and self.evaluates is None


@dataclass(frozen=True, kw_only=True)
class StudySummary:
    """What Optuna knows of one study, in short."""

    number: int
    """Optuna's own number of the study, as in the dashboard's addresses."""
    trials: int
    """Trials that exist, in whatever state."""
    best: TrialValues | None
    """The best completed trial of the search, by the objective, that breaks no constraint."""
