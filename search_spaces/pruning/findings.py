"""Why a trial is to be pruned, in the numbers that decided it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, TypeAlias


@dataclass(frozen=True, kw_only=True)
class BehindPeers:
    """Not among the share of its peers that goes on."""

    rung: int
    value: float
    """The trial's: its best so far for median and percentile, at this rung for successive halving."""
    cut_off: float
    peers: int
    """Other trials that it was compared with."""


@dataclass(frozen=True, kw_only=True)
class TooEarly:
    """One of the first to reach a level of successive halving, all of which are pruned."""

    rung: int
    value: float
    bootstrap_count: int


@dataclass(frozen=True, kw_only=True)
class BeyondThreshold:
    """Outside of what was allowed."""

    rung: int
    value: float
    threshold: float
    side: Literal["above", "below"]


@dataclass(frozen=True, kw_only=True)
class WorseThanBest:
    """Worse than the best trial at the rungs of both."""

    rung: int
    value: float
    best: int
    """The best trial's number."""
    pairs: int
    """Rungs that were compared."""
    difference: float
    """Mean over them by which the trial is worse."""
    p: float
    p_threshold: float


Immediate: TypeAlias = BehindPeers | TooEarly | BeyondThreshold | WorseThanBest
"""What every pruner but `patient` may find."""


@dataclass(frozen=True, kw_only=True)
class NoImprovement:
    """Worse than it had been before, for long enough."""

    rung: int
    value: float
    best: float
    best_rung: int
    min_delta: float
    wrapped: Immediate | None = None
    """What the wrapped pruner found; None: there is none."""
    wrapped_algorithm: str | None = None


PruningFinding: TypeAlias = Immediate | NoImprovement
"""Why a trial is to be pruned."""
