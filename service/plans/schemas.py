"""A plan as the REST API shows it: what a study would do, before any of it is done.

Nothing is guessed: what cannot be known yet is null, and an `unknown` beside it says why.
"""

from __future__ import annotations

from datetime import datetime
from typing import Any, Literal

from pydantic import Field

from search_spaces.data_report import AdapterBytes, BaseBytes, DataReport, ModelReport, ReportProblem
from service.answers import Answer, Open

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
    "imbalanced",
    "equal_pairs",
    "long_targets",
    "answers_missing",
    "not_packed",
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
    "no_worker_fits",
    "fewer_workers_fit",
]
"""Every warning that a plan can give."""


Evidence = int | float | str | list[int]


class Span(Answer):
    """Whole numbers that a value lies between; both ends alike where it is certain."""

    at_least: int
    at_most: int


class Seconds(Answer):
    at_least: float
    at_most: float


class TrialsPlan(Answer):
    """How many trials the study has if nothing ends it early."""

    algorithm: str
    search: int = Field(description="Trials of the search itself")
    space_size: int | None = Field(
        description="Distinct configurations (for a grid, its points); null if a range is continuous"
    )
    range_test: int = Field(description="Sweeps of the learning-rate range test before the search")
    repeats: int = Field(
        description="At most this many runs of the best recipes with other seeds after the search"
    )
    total: int


class TrialLength(Answer):
    """A trial that does not end early."""

    batch_size: int
    epochs: float
    max_length: int
    steps: int = Field(description="Optimizer steps")
    examples: int = Field(description="Training examples seen, counting each repetition")
    tokens: int = Field(description="Tokens of these examples, at the mean length of the rows")
    evaluations: int = Field(description="Rungs, including the end")


class StepsPlan(Answer):
    """Optimizer steps at one batch size."""

    batch_size: int
    steps: Span
    warmup_steps: Span


class RungsPlan(Answer):
    """Where trials are evaluated and may be pruned, in training examples seen."""

    every_examples: int | None = Field(description="null: only at the end")
    shared: list[int] = Field(
        description="Rungs at which every trial reports, whatever its recipe; the first 20"
    )
    shared_count: int | None = Field(
        description="How many such rungs there are; null: not known for all recipes"
    )
    pruning_algorithm: str
    pruning: list[int] = Field(
        description="Rungs of the longest trial at which it may be pruned; the first 20"
    )
    pruning_count: int


class Amount(Answer):
    """What several trials train on and evaluate in total, if none of them ends early."""

    examples: Span = Field(description="Training examples seen")
    tokens: Span = Field(description="Tokens of these examples, at the mean length of the rows")
    evaluation_examples: Span = Field(description="Eval rows times rungs")


class TrainingPlan(Answer):
    """What is trained and evaluated if nothing is pruned, diverges or ends early in another way."""

    examples_per_epoch: Span = Field(
        description="Minimum and maximum differ if a searched max_length loses rows"
    )
    estimated: bool = Field(description="Whether rows beyond those in the data report had to be estimated")
    shortest: TrialLength = Field(description="The shortest trial of the search")
    longest: TrialLength = Field(description="The longest trial of the search")
    sweeps: list[TrialLength] = Field(
        description="The range test's sweeps, one for each corner; a sweep that diverges ends earlier"
    )
    search: Amount = Field(description="All the search's trials, without the range test and the repeats")
    range_test: Amount | None = Field(
        description="All sweeps of the range test, which are not evaluated; null: there is no range test"
    )
    repeats: Amount | None = Field(
        description="All runs with other seeds, from the shortest to the longest possible trial;"
        " null: there are no repeats"
    )
    total: Amount = Field(description="The whole study: search, range test and repeats")
    steps: list[StepsPlan] = Field(
        description="Steps of the search's trials by batch size; for a range only its ends"
    )
    rungs: RungsPlan


class EarlierPeak(Answer):
    """The largest amount of memory that completed trials of the same model used on this server."""

    bytes: int
    trials: int
    devices: list[str]


class MemoryPlan(Answer):
    """The memory that is certainly needed. Activations, which depend on device and pack, come on top."""

    bases: list[BaseBytes]
    smallest_adapter: AdapterBytes | None
    largest_adapter: AdapterBytes | None
    one_trial_bytes: Span | None = Field(
        description="Lower bound for the base and one adapter, without activations"
    )
    parallel_trials: int = Field(description="budget.max_parallel_trials, or all trials if there are fewer")
    parallel_bytes: Span | None = Field(description="Lower bound if all of them share one base")
    unknown: str | None
    earlier_peak: EarlierPeak | None
    earlier_peak_unknown: str | None


class TimePlan(Answer):
    """How long workers are busy, estimated from earlier trials of the same model on this server."""

    earlier_trials: int
    same_data: bool = Field(description="Whether the earlier trials used the same data at the same length")
    includes_evaluation: bool = Field(
        description="Whether evaluation is included: only with the same eval data and rungs"
    )
    devices: list[str]
    examples_per_second: float | None = Field(description="Of one worker, in the median trial")
    shortest_trial: float | None = Field(description="Seconds of the shortest trial of the search")
    longest_trial: float | None = Field(description="Seconds of the longest trial of the search")
    worker_seconds: Seconds | None = Field(
        description="Seconds of all workers for the whole study (search, range test and repeats) if nothing"
        " ends early; divide by the number of workers"
    )
    wall_seconds: Seconds | None = Field(
        description="Wall clock seconds of the whole study, with range test, search and repeats one after the"
        " other; null unless resources.workers is a number"
    )
    unknown: str | None


class ClusterPlan(Answer):
    """What the Ray cluster has for the study's workers, as a coordinator saw it last."""

    nodes: int | None
    cpus: float | None = Field(description="Of all nodes together, in use or free")
    gpus: float | None = Field(description="Likewise")
    gpus_per_worker: float | None = Field(description="resources.gpus_per_worker, with auto decided")
    workers: int | None = Field(description="The study's workers that would fit if nothing else ran there")
    seen_at: datetime | None = Field(description="Since when the cluster has looked like this")
    unknown: str | None


class PlanWarning(Answer):
    """Something that is allowed but probably not intended."""

    code: Open[WarningCode]
    message: str
    evidence: dict[str, Evidence]


def warning(code: WarningCode, message: str, **evidence: Evidence) -> PlanWarning:
    """A warning with the numbers that led to it."""
    return PlanWarning(code=code, message=message, evidence=evidence)


class PlanView(Answer):
    name: str
    acceptable: bool = Field(
        description="Whether a submission would be accepted, the data and the model could be looked at, and"
        " no reason was found why every trial would fail"
    )
    reasons: list[str] = Field(description="Why it is not acceptable, a sentence each")
    problems: list[ReportProblem] = Field(
        description="Faults that would make trials fail, in the words with which they would fail"
    )
    warnings: list[PlanWarning]
    trials: TrialsPlan
    training: TrainingPlan | None
    training_unknown: str | None
    memory: MemoryPlan
    time: TimePlan
    cluster: ClusterPlan
    model: ModelReport | None
    data: DataReport | None
    report_unknown: str | None = Field(description="Why there is no report on the data and the model")
    definition: dict[str, Any] = Field(
        description="The definition as it would be stored, with defaults, preset and paths resolved"
    )
