"""Studies as the REST API shows them."""

from __future__ import annotations

from datetime import datetime
from typing import Any, Literal

from pydantic import Field

from search_spaces.tasks import Direction, Task
from service.answers import Answer, Open
from service.db.kinds import StudyKind
from service.states import TERMINAL_STUDY_STATES, StudyState

Stage = Literal["range test", "search", "repeats"]


class Counts(Answer):
    """The study's trials by state. A trial that was paused, or that lost its worker, is waiting for its next
    attempt."""

    running: int = 0
    completed: int = 0
    pruned: int = 0
    diverged: int = 0
    out_of_memory: int = 0
    failed: int = 0
    cancelled: int = 0
    waiting: int = 0
    total: int = Field(default=0, description="Trials that exist so far")
    repeats: int = Field(default=0, description="How many of them are repeats of one of the best recipes")
    evaluations: int = Field(
        default=0, description="How many of them train nothing and evaluate the champion or its challenger"
    )


class ListedBest(Answer):
    trial_number: int
    value: float = Field(description="The objective at the trial's best rung, in the search itself")


class BestTrial(ListedBest):
    params: dict[str, Any]
    mean: float | None = Field(default=None, description="The mean over its repeats, which have fresh seeds")
    standard_deviation: float | None = None
    n: int = Field(default=0, description="How many of its repeats completed")
    sentence: str | None = Field(
        default=None, description="Whether the winner is more than luck; only with `repeats`"
    )


class PreparationView(Answer):
    """What was decided before the first trial."""

    learning_rate_bounds: tuple[float, float] | None = Field(description="Bounds that the range test found")
    enqueued: int = Field(description="Recipes of an earlier study that were evaluated first")
    prior: int = Field(description="Results of an earlier study that the sampler was given")
    evaluated: int = Field(
        description="Configurations that earlier sweeps of its schedule evaluated on the same data; they are "
        "not suggested"
    )
    fingerprints: dict[str, str] = Field(description="What identified the content of its data and model")
    notes: list[str]


class ParetoPoint(Answer):
    trial_number: int
    value: float = Field(description="The objective")
    costs: dict[str, float]
    params: dict[str, Any]


class ExtensionView(Answer):
    """What a study was given beyond its submitted definition: the values that have held since."""

    at: datetime
    asked_by: str = Field(description="Whose API key asked for it")
    trials: int | None = Field(default=None, description="`search.trials` from then on")
    timeout: str | None = Field(default=None, description="`budget.timeout`")
    max_gpu_hours: float | None = Field(default=None, description="`budget.max_gpu_hours`")
    max_failed_trials: int | None = Field(default=None, description="`budget.max_failed_trials`")
    since: int | None = Field(
        default=None, description="The number of the first trial after it, if the study had ended"
    )


class ListedStudy(Answer):
    """A study in a list. The rest, with its definition, is at the study's own address."""

    id: str
    name: str
    kind: Open[StudyKind] = Field(
        description="search, or range_test: its trials are sweeps of the learning rate"
    )
    state: Open[StudyState]
    reason: str = Field(description="Why it is in this state, in words")
    owner: str = Field(
        description="The owner of the API key that submitted it, or of the schedule that made it"
    )
    tags: list[str] = Field(default=[], description="In the order of the alphabet")
    note: str | None = Field(default=None, description="What people have written down about it")
    created_at: datetime
    started_at: datetime | None
    ended_at: datetime | None
    pause_requested: bool = Field(
        description="Whether its trials are writing checkpoints, after which it is paused"
    )
    paused_at: datetime | None = Field(description="When the present pause began; null: it is not paused")
    archived_at: datetime | None = Field(default=None, description="Since when lists leave it out")
    deleted_at: datetime | None = Field(default=None, description="When somebody asked for its removal")
    deleted_by: str | None = Field(default=None, description="Whose API key that was")
    removal_at: datetime | None = Field(
        default=None, description="Until when it can be restored; then it is removed for good"
    )
    schedule: str | None = Field(description="The name of the schedule that made it, as it was then")
    schedule_id: str | None = Field(description="The schedule's id. Name and id stay when it is removed")
    fired_for: datetime | None = Field(
        description="The time for which this sweep was made: of the cron expression, or of the request to run"
    )
    base_seed: int | None = Field(
        description="The schedule's `search.seed`, from which this sweep's seed was derived, with `fired_for`"
    )
    range_test: str | None = Field(description="The name of the range test that is its first stage, if any")
    task: Open[Task] | None = Field(
        default=None, description="What it trains for; null if this version does not know it"
    )
    metric: str | None = Field(
        description="The objective's metric; null if this version cannot read the stored definition"
    )
    direction: Open[Direction] | None = Field(description="Likewise whether it is minimized or maximized")
    counts: Counts
    best: ListedBest | None
    dashboard_path: str | None = Field(description="null until its first trial exists")

    @property
    def ended(self) -> bool:
        return self.state in TERMINAL_STUDY_STATES

    @property
    def maximizes(self) -> bool:
        return self.direction == "maximize"


class StudyView(ListedStudy):
    """A study with all that is known of it."""

    stage: Open[Stage] | None = Field(
        description="What it is doing; null before it starts and after it has ended"
    )
    definition: dict[str, Any] = Field(
        description="The accepted definition, with defaults, preset and paths resolved, and with what it was"
        " extended by"
    )
    extensions: list[ExtensionView] = Field(
        default=[], description="What it was given beyond the definition that was submitted, oldest first"
    )
    deadline: datetime | None = Field(
        description="The next time of `budget.until`; null before the study has started, unless it is a sweep"
        " whose schedule has an `until`"
    )
    trials_requested: int | None = Field(
        description="Trials of the search; null if this version cannot read the stored definition"
    )
    repeats_requested: int = Field(
        description="How many times the best recipes are run again after the search"
    )
    preparation: PreparationView | None = Field(
        description="Results of its range test and warm start, and what a sweep leaves out, if any"
    )
    best: BestTrial | None
    pareto_front: list[ParetoPoint] | None = Field(description="Only with several objectives")


class StudyPage(Answer):
    items: list[ListedStudy]
    next_cursor: str | None = Field(
        description="Pass it as `cursor` to get the next page; null on the last page"
    )
