"""What the REST API answers about what a study has taught, as frozen values."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import datetime

from pydantic import Field

from service.client.answers import Answer, ParetoPoint, Study, Trial


class Run(Answer):
    """One run of a recipe with a fresh seed."""

    trial_number: int
    seed: int | None = None
    state: str
    value: float | None = None


class Candidate(Answer):
    """One of the best recipes."""

    trial_number: int
    value: float
    """What the search chose it by; not in the mean."""
    runs: tuple[Run, ...] = ()
    n: int = 0
    mean: float | None = None
    standard_deviation: float | None = None


class Judgement(Answer):
    """Is the winner real?"""

    winner: int
    decided_by: str
    candidates: tuple[Candidate, ...] = ()
    p_value: float | None = None
    distinguishable: bool | None = None
    sentence: str


class Best(Trial):
    """The best trial, and how sure that is."""

    judgement: Judgement | None = None
    pareto_front: tuple[ParetoPoint, ...] | None = None


class ParameterImportance(Answer):
    name: str
    importance: float | None = None
    above_chance: bool | None = None
    reason: str | None = None


class Importance(Answer):
    parameters: tuple[ParameterImportance, ...] = ()
    trials: int = 0
    best_trials: int = 0
    sentence: str


class Advice(Answer):
    about: str
    sentence: str


class Cost(Answer):
    gpu_hours: float = 0.0
    worker_hours: float = 0.0
    examples_trained: int = 0
    examples_saved_by_pruning: int = 0
    examples_saved_by_divergence: int = 0
    saved_share: float | None = None


class Constraint(Answer):
    name: str
    broken: int
    completed: int


class Report(Answer):
    """Everything that a study has taught so far."""

    made_at: datetime
    study: Study
    seconds: float | None = None
    best: Best | None = None
    importance: Importance
    verdicts: Mapping[str, int] = Field(default_factory=dict)
    constraints: tuple[Constraint, ...] = ()
    advice: tuple[Advice, ...] = ()
    cost: Cost = Cost()
