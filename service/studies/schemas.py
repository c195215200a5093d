"""Studies as the REST API shows them."""

from __future__ import annotations

from datetime import datetime
from typing import Any, Literal

from pydantic import BaseModel, Field

from service.models import StudyKind
from service.states import StudyState
from service.trials.schemas import ParetoPoint

Stage = Literal["range test", "search", "repeats"]


class Counts(BaseModel):
    """The study's trials by state. A trial that was paused, or whose worker was lost, waits for its next
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
    repeats: int = Field(default=0, description="How many of them run one of the best recipes again")


class BestTrial(BaseModel):
    trial_number: int
    value: float = Field(description="The objective at the trial's best rung, in the search itself")
    params: dict[str, Any]
    mean: float | None = Field(default=None, description="Over its repeats, which have fresh seeds")
    standard_deviation: float | None = None
    n: int = Field(default=0, description="How many of its repeats completed")
    sentence: str | None = Field(default=None, description="With `repeats`: whether the winner is real")


class PreparationView(BaseModel):
    """What was settled before the first trial."""

    learning_rate_bounds: tuple[float, float] | None = Field(description="From the range test")
    enqueued: int = Field(description="Recipes of an earlier study that were evaluated first")
    prior: int = Field(description="Results of an earlier study that the sampler was given")
    evaluated: int = Field(
        description="Configurations that earlier sweeps of its schedule evaluated on the same data; they are "
        "not suggested"
    )
    fingerprints: dict[str, str] = Field(description="What identified the content of its data and model")
    notes: list[str]


class StudyView(BaseModel):
    id: str
    name: str
    kind: StudyKind = Field(description="range_test: its trials are sweeps of the learning rate")
    state: StudyState
    reason: str = Field(description="Why it is in this state, in words")
    owner: str = Field(description="Whose API key submitted it, or the schedule that made it")
    stage: Stage | None = Field(description="What it is doing; null before it begins and after its end")
    definition: dict[str, Any] = Field(description="As accepted: defaults, preset and paths resolved")
    created_at: datetime
    started_at: datetime | None
    ended_at: datetime | None
    pause_requested: bool = Field(description="Its trials are writing checkpoints; then it is paused")
    paused_at: datetime | None = Field(description="When its present pause began")
    deadline: datetime | None = Field(description="When `budget.until` comes next; null before it is begun")
    schedule: str | None = Field(description="The name of the schedule that made it, as it was then")
    schedule_id: str | None = Field(description="Its id. Both stay when the schedule is removed")
    fired_for: datetime | None = Field(
        description="The instant that this sweep belongs to: of the cron expression, or of the request to run"
    )
    base_seed: int | None = Field(
        description="The schedule's `search.seed`, from which and `fired_for` the definition's here follows"
    )
    trials_requested: int | None = Field(
        description="Of the search; none when this version cannot read the stored definition"
    )
    repeats_requested: int = Field(description="Runs of the best recipes after the search")
    range_test: str | None = Field(description="The name of the range test that is its first stage")
    preparation: PreparationView | None = Field(
        description="Of a sweep, and of a study with a range test or a warm start"
    )
    counts: Counts
    best: BestTrial | None
    pareto_front: list[ParetoPoint] | None = Field(description="With several objectives")
    dashboard_path: str | None = Field(description="None until its first trial is asked for")


class StudyPage(BaseModel):
    items: list[StudyView]
    next_cursor: str | None = Field(description="Pass it as `cursor` to go on; null at the end")


class EventView(BaseModel):
    id: int
    at: datetime
    trial_number: int | None
    kind: str
    message: str


class EventPage(BaseModel):
    items: list[EventView]
