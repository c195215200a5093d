"""A plan as the REST API shows it: what a study would do, before any of it is done.

Nothing is guessed: what cannot be known yet is null, and an `unknown` beside it says why.
"""

from __future__ import annotations

from typing import Any, Literal

from pydantic import BaseModel, Field

from search_spaces.data_report import AdapterBytes, BaseBytes, DataReport, ModelReport, ReportProblem

WarningCode = Literal[
    "name_taken",
    "batch_larger_than_data",
    "one_step",
    "warm_up_never_ends",
    "few_steps",
    "few_eval_rows",
    "overlap",
    "duplicates",
    "truncated",
    "little_supervised",
    "rows_left_out",
    "unrendered",
    "unread_fields",
    "assistant_mask",
    "sampled",
    "never_pruned",
    "pruning_waits",
    "evaluation_heavy",
    "few_trials_for_tpe",
    "grid_cut_short",
    "more_trials_than_points",
    "wide_learning_rate",
    "linear_learning_rate",
    "fractional_epochs",
]
"""Every warning that a plan can give."""


Evidence = int | float | str | list[int]


class Span(BaseModel):
    """Whole numbers that a value lies between; both ends alike where it is certain."""

    at_least: int
    at_most: int


class Seconds(BaseModel):
    at_least: float
    at_most: float


class TrialsPlan(BaseModel):
    """How many trials, if nothing ends the study before."""

    algorithm: str
    search: int = Field(description="Trials of the search itself")
    space_size: int | None = Field(
        description="Distinct configurations (a grid's points, for a grid); null where a range is continuous"
    )
    range_test: int = Field(description="Sweeps of the learning-rate range test before the search")
    repeats: int = Field(description="Runs of the best recipes with other seeds after it, at most")
    total: int


class TrialLength(BaseModel):
    """A trial that nothing ends early."""

    batch_size: int
    epochs: float
    max_length: int
    steps: int = Field(description="Optimizer steps")
    examples: int = Field(description="Training examples seen, repeats counted")
    tokens: int = Field(description="Of these, at the mean length of the rows")
    evaluations: int = Field(description="Rungs, the end included")


class StepsPlan(BaseModel):
    """Optimizer steps at one batch size."""

    batch_size: int
    steps: Span
    warmup_steps: Span


class RungsPlan(BaseModel):
    """Where trials are evaluated and may be pruned, in training examples seen."""

    every_examples: int | None = Field(description="Null: at the end alone")
    shared: list[int] = Field(
        description="Rungs that every trial reports at, whatever its recipe; the first 20"
    )
    shared_count: int | None = Field(description="How many there are; null: not known for all recipes")
    pruning_algorithm: str
    pruning: list[int] = Field(
        description="Rungs of the longest trial at which it may be pruned; the first 20"
    )
    pruning_count: int


class Amount(BaseModel):
    """What several trials train and evaluate together, if none of them ends early."""

    examples: Span = Field(description="Training examples seen")
    tokens: Span = Field(description="Of these, at the mean length of the rows")
    evaluation_examples: Span = Field(description="Eval rows times rungs")


class TrainingPlan(BaseModel):
    """What is trained and evaluated if nothing is pruned, diverges or ends early in another way."""

    examples_per_epoch: Span = Field(description="It differs where rows are lost to a searched max_length")
    estimated: bool = Field(description="Whether rows beyond those in the data report had to be estimated")
    shortest: TrialLength = Field(description="Of the search's trials")
    longest: TrialLength = Field(description="Of the search's trials")
    sweeps: list[TrialLength] = Field(
        description="The range test's sweeps, one a corner, at most: one that diverges ends before"
    )
    search: Amount = Field(description="All the search's trials, without the range test and the repeats")
    range_test: Amount | None = Field(
        description="All its sweeps, none of which is evaluated; null: there is no range test"
    )
    repeats: Amount | None = Field(
        description="All runs with other seeds, as if each were the shortest or the longest trial;"
        " null: there are none"
    )
    total: Amount = Field(description="Of the whole study: search, range test and repeats")
    steps: list[StepsPlan] = Field(
        description="Of the search's trials, by batch size; the ends alone of a range"
    )
    rungs: RungsPlan


class EarlierPeak(BaseModel):
    """The most memory that completed trials of the same model took on this server."""

    bytes: int
    trials: int
    devices: list[str]


class MemoryPlan(BaseModel):
    """What is certain to be taken. Activations come on top: they depend on the device and on the pack."""

    bases: list[BaseBytes]
    smallest_adapter: AdapterBytes | None
    largest_adapter: AdapterBytes | None
    one_trial_bytes: Span | None = Field(description="Base and one adapter: at least so much, no activations")
    parallel_trials: int = Field(description="budget.max_parallel_trials, or all trials if they are fewer")
    parallel_bytes: Span | None = Field(description="If all of them shared one base: at least so much")
    unknown: str | None
    earlier_peak: EarlierPeak | None
    earlier_peak_unknown: str | None


class TimePlan(BaseModel):
    """How long workers are busy, by what earlier trials of the same model took on this server."""

    earlier_trials: int
    same_data: bool = Field(description="Whether these trained on the same data at the same length")
    includes_evaluation: bool = Field(description="Only with the same eval data and the same rungs")
    devices: list[str]
    examples_per_second: float | None = Field(description="Of one worker, the median trial")
    shortest_trial: float | None = Field(description="Seconds, of the search's trials")
    longest_trial: float | None = Field(description="Seconds, of the search's trials")
    worker_seconds: Seconds | None = Field(
        description="Of the whole study if nothing ends early: search, range test and repeats; divide by the"
        " workers"
    )
    wall_seconds: Seconds | None = Field(
        description="Of the whole study, likewise: range test, search and repeats one after the other; where"
        " resources.workers is a number"
    )
    unknown: str | None


class PlanWarning(BaseModel):
    """Something that is allowed and probably not meant."""

    code: WarningCode
    message: str
    evidence: dict[str, Evidence]


def warning(code: WarningCode, message: str, **evidence: Evidence) -> PlanWarning:
    """A warning with the numbers that led to it."""
    return PlanWarning(code=code, message=message, evidence=evidence)


class PlanView(BaseModel):
    name: str
    acceptable: bool = Field(
        description="Whether a submission would be accepted and no trial is known to fail"
    )
    problems: list[ReportProblem] = Field(
        description="What trials would fail at, in the words they would use"
    )
    warnings: list[PlanWarning]
    trials: TrialsPlan
    training: TrainingPlan | None
    training_unknown: str | None
    memory: MemoryPlan
    time: TimePlan
    model: ModelReport | None
    data: DataReport | None
    report_unknown: str | None = Field(description="Why there is no report on the data and the model")
    definition: dict[str, Any] = Field(
        description="As it would be stored: defaults, preset and paths resolved"
    )
