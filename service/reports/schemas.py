"""A study's report as the REST API gives it."""

from __future__ import annotations

from datetime import datetime

from pydantic import BaseModel, Field

from service.diagnosis import Verdict
from service.studies.schemas import StudyView
from service.trials.schemas import BestView


class ParameterImportanceView(BaseModel):
    name: str
    importance: float | None = Field(description="Share of the sum of all; null where it cannot be said")
    above_chance: bool | None = Field(description="Whether shuffled values show less, 19 times in 20")
    reason: str | None = Field(description="Why there is no importance")


class ImportanceView(BaseModel):
    """PED-ANOVA: which hyperparameters set the best trials apart."""

    parameters: list[ParameterImportanceView] = Field(description="The most important first")
    trials: int = Field(description="Completed trials it rests on: without pruned ones and repeats")
    best_trials: int = Field(description="How many of them count as the best")
    sentence: str


class AdviceView(BaseModel):
    about: str = Field(description="A recipe field, or a section of the definition")
    sentence: str


class CostView(BaseModel):
    gpu_hours: float = Field(description="Workers' time with trials; those that share a GPU share its time")
    worker_hours: float = Field(description="The same of all workers, those on CPUs included")
    examples_trained: int
    examples_saved_by_pruning: int = Field(description="What pruned trials had left to train")
    examples_saved_by_divergence: int = Field(description="What diverged trials had left to train")
    saved_share: float | None = Field(description="Of what training every trial to its end would have taken")


class ConstraintView(BaseModel):
    name: str
    broken: int = Field(description="Completed trials that broke it")
    completed: int


class ReportView(BaseModel):
    made_at: datetime
    study: StudyView
    seconds: float | None = Field(description="From its start to its end, or until now")
    best: BestView | None
    importance: ImportanceView
    verdicts: dict[Verdict, int] = Field(description="How many trials of the search got each")
    constraints: list[ConstraintView]
    advice: list[AdviceView]
    cost: CostView
