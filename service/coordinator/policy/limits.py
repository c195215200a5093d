"""The part of a definition that bounds a study, as frozen values."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, kw_only=True)
class Repeats:
    """Which recipes are run again after the search, and with which seeds."""

    top_k: int
    seeds: tuple[int, ...]


@dataclass(frozen=True, kw_only=True)
class Limits:
    """The part of the definition that bounds a study. Times in seconds."""

    trials: int
    """Of the search, repeats not counted."""
    max_parallel_trials: int
    max_failed_trials: int | None
    max_retries: int
    timeout_seconds: float | None
    max_gpu_hours: float | None
    metric: str = "eval_loss"
    minimize: bool = True
    target_value: float | None = None
    no_improvement_trials: int | None = None
    exhausts: str | None = None
    """What has no further configuration after that many trials: the grid, or the search space."""
    repeats: Repeats | None = None
    since: int = 0
    """Number of the first trial after the study was last extended when it had ended."""
