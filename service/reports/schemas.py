"""A study's report as the REST API gives it."""

from __future__ import annotations

from datetime import datetime

from pydantic import Field

from service.analysis.diagnosis import Verdict
from service.answers import Answer, Open
from service.studies.schemas import ParetoPoint, StudyView
from service.trials.schemas import BestView


class ParetoFront(Answer):
    objectives: list[str] = Field(description="The metric, then the costs, which are minimized")
    items: list[ParetoPoint] = Field(
        description="Trials that no other trial dominates, the best objective first"
    )


class ParameterImportanceView(Answer):
    name: str
    importance: float | None = Field(
        description="Share of the sum over all hyperparameters; null if it cannot be computed"
    )
    above_chance: bool | None = Field(
        description="Whether it exceeds the importance of shuffled values, 19 times in 20"
    )
    reason: str | None = Field(description="Why the importance is null")


class ImportanceView(Answer):
    """PED-ANOVA: which hyperparameters set the best trials apart."""

    parameters: list[ParameterImportanceView] = Field(description="The most important first")
    trials: int = Field(description="Completed trials that were used; pruned trials and repeats are not")
    best_trials: int = Field(description="How many of them count as the best")
    sentence: str


class AdviceView(Answer):
    about: str = Field(description="A recipe field, or a section of the definition")
    sentence: str


class CostView(Answer):
    gpu_hours: float = Field(
        description="Hours in which GPUs had trials; trials that share a GPU share its time"
    )
    worker_hours: float = Field(description="The same for all workers, including those on CPUs")
    examples_trained: int
    examples_saved_by_pruning: int = Field(
        description="Examples that pruned trials would still have trained on"
    )
    examples_saved_by_divergence: int = Field(
        description="Examples that diverged trials would still have trained on"
    )
    saved_share: float | None = Field(
        description="Saved examples as a share of training every trial to its end"
    )


class ConstraintView(Answer):
    name: str
    broken: int = Field(description="Completed trials that broke the constraint")
    completed: int


class ReportView(Answer):
    made_at: datetime
    study: StudyView
    seconds: float | None = Field(description="Seconds from the study's start to its end, or until now")
    best: BestView | None
    importance: ImportanceView
    verdicts: dict[Open[Verdict], int] = Field(description="How many trials of the search got each verdict")
    constraints: list[ConstraintView]
    advice: list[AdviceView]
    cost: CostView
