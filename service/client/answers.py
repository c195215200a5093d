"""What the REST API answers, as frozen values.

Every model keeps keys it does not know, so that a newer server's answer reads and prints unharmed.
"""

from __future__ import annotations

from collections.abc import Mapping
from datetime import datetime
from typing import Any

from pydantic import BaseModel, ConfigDict, Field

from service.states import LIVE_ATTEMPT_STATES, TERMINAL_STUDY_STATES, UNFINISHED_ATTEMPT_STATES

WAITING = "waiting"
"""A trial that has no attempt yet."""

_UNFINISHED_TRIAL_STATES = frozenset({WAITING, *UNFINISHED_ATTEMPT_STATES, *LIVE_ATTEMPT_STATES})


class Answer(BaseModel):
    """Base of all answers."""

    model_config = ConfigDict(frozen=True, extra="allow")

    def document(self) -> dict[str, Any]:
        """The answer as the server sent it, ready for `json.dumps`."""
        return self.model_dump(mode="json", exclude_unset=True)


class Fault(Answer):
    """One wrong key of a definition."""

    path: str
    message: str
    value: Any = None
    allowed: str | None = None
    nearest: str | None = None


class Problem(Answer):
    """RFC 9457 `application/problem+json`."""

    title: str
    detail: str = ""
    status: int | None = None
    faults: tuple[Fault, ...] = ()


class Counts(Answer):
    """How many trials of a study are in each state. `total` is how many exist so far."""

    running: int = 0
    completed: int = 0
    pruned: int = 0
    diverged: int = 0
    out_of_memory: int = 0
    failed: int = 0
    cancelled: int = 0
    waiting: int = 0
    total: int = 0
    repeats: int = 0


class ListedBest(Answer):
    trial_number: int
    value: float


class BestTrial(ListedBest):
    params: Mapping[str, Any]
    mean: float | None = None
    """Over its repeats; None without any."""
    standard_deviation: float | None = None
    n: int = 0
    sentence: str | None = None
    """Whether the winner is real; None without repeats."""


class ParetoPoint(Answer):
    trial_number: int
    value: float
    costs: Mapping[str, float] = Field(default_factory=dict)
    params: Mapping[str, Any] = Field(default_factory=dict)


class Preparation(Answer):
    """What was settled before a study's first trial."""

    learning_rate_bounds: tuple[float, float] | None = None
    enqueued: int = 0
    prior: int = 0
    notes: tuple[str, ...] = ()


class ListedStudy(Answer):
    """A study in a list."""

    id: str
    name: str
    state: str
    reason: str = ""
    owner: str | None = None
    """Whose API key submitted it."""
    created_at: datetime
    started_at: datetime | None = None
    ended_at: datetime | None = None
    pause_requested: bool = False
    """Its trials are writing checkpoints; then it is paused."""
    paused_at: datetime | None = None
    schedule: str | None = None
    """The name of the schedule that made it, as it was then."""
    schedule_id: str | None = None
    fired_for: datetime | None = None
    base_seed: int | None = None
    """The schedule's `search.seed`, from which and `fired_for` its own follows."""
    range_test: str | None = None
    metric: str | None = None
    """The objective's; trials' values are in its unit. None: the server cannot read the definition."""
    direction: str | None = None
    """`minimize` or `maximize`."""
    counts: Counts = Counts()
    best: ListedBest | None = None
    dashboard_path: str | None = None
    """None until the coordinator has made the Optuna study."""

    @property
    def ended(self) -> bool:
        return self.state in TERMINAL_STUDY_STATES

    @property
    def maximizes(self) -> bool:
        return self.direction == "maximize"


class Study(ListedStudy):
    """A study at its own address."""

    definition: Mapping[str, Any]
    deadline: datetime | None = None
    """When `budget.until` comes next."""
    stage: str | None = None
    """`range test`, `search` or `repeats`; None before it begins and after its end."""
    trials_requested: int | None = None
    """Of the search."""
    repeats_requested: int = 0
    preparation: Preparation | None = None
    best: BestTrial | None = None
    pareto_front: tuple[ParetoPoint, ...] | None = None


class RungValue(Answer):
    rung: int
    """Training examples seen."""
    value: float | None


class Progress(Answer):
    examples_seen: int = 0
    total_examples: int | None = None
    """None until the worker knows."""
    step: int = 0
    train_loss: float | None = None


class Adapter(Answer):
    path: str
    """The folder on the server's disk."""
    url: str | None = None


class Finding(Answer):
    """A verdict on a trial's curves, and the numbers it rests on."""

    verdict: str
    evidence: str = ""
    rung: int | None = None


class Trial(Answer):
    number: int
    state: str
    """The latest attempt's state; `waiting` before the first."""
    reason: str = ""
    params: Mapping[str, Any] = Field(default_factory=dict)
    recipe: Mapping[str, Any] | None = None
    repeat_of: int | None = None
    """The trial whose recipe it runs again with another seed."""
    seed: int | None = None
    value: float | None = None
    costs: Mapping[str, float] = Field(default_factory=dict)
    feasible: bool = True
    diagnosis: tuple[Finding, ...] = ()
    best_rung: int | None = None
    rungs: tuple[RungValue, ...] = ()
    metrics: Mapping[str, float | None] | None = None
    final_metrics: Mapping[str, float | None] | None = None
    progress: Progress | None = None
    train_seconds: float | None = None
    peak_memory_bytes: int | None = None
    predicted_memory_bytes: int | None = None
    useful_token_share: float | None = None
    gradient_noise_scale: float | None = None
    critical_batch_size: int | None = None
    started_at: datetime | None = None
    ended_at: datetime | None = None
    adapter: Adapter | None = None

    @property
    def finished(self) -> bool:
        """Whether nothing more comes: a lost or paused attempt is followed by another and does not count."""
        return self.state not in _UNFINISHED_TRIAL_STATES

    @property
    def examples_seen(self) -> int:
        """Training examples seen, as far as is known."""
        seen = self.progress.examples_seen if self.progress else 0
        return max(seen, self.rungs[-1].rung if self.rungs else 0)


class CurvePoint(Answer):
    """One optimizer step of a sweep of the learning rate."""

    learning_rate: float
    loss: float
    smoothed: float


class Corner(Answer):
    """One sweep of a range test."""

    trial_number: int
    values: Mapping[str, Any]
    curve: tuple[CurvePoint, ...] = ()
    steepest: float | None = None
    minimum: float | None = None
    divergence: float | None = None
    note: str = ""


class Bounds(Answer):
    min: float
    max: float


class RangeTest(Answer):
    id: str
    name: str
    state: str
    reason: str = ""
    owner: str | None = None
    study: str | None = None
    """The name of the study whose first stage it is."""
    corners: tuple[Corner, ...] = ()
    allowed: Bounds | None = None
    proposed: Bounds | None = None
    bounds: Bounds | None = None
    """What was found within what is allowed; None: nothing (yet)."""
    notes: tuple[str, ...] = ()
    dashboard_path: str | None = None

    @property
    def ended(self) -> bool:
        return self.state in TERMINAL_STUDY_STATES


class StudyEvent(Answer):
    id: int
    at: datetime
    trial_number: int | None = None
    kind: str
    message: str


class Sweep(Answer):
    """The latest study of a schedule, in short."""

    name: str
    state: str
    reason: str = ""


class Skip(Answer):
    """A firing that made no sweep."""

    fired_for: datetime | None = None
    reason: str = ""


class ScheduleEvent(Answer):
    id: int
    at: datetime
    schedule: str
    """Its name at that time."""
    kind: str
    asked_by: str | None = None
    message: str
    changes: Mapping[str, Mapping[str, Any]] | None = None
    """Of `changed`: each key, with `from` and `to`."""
    fired_for: datetime | None = None


class ListedSchedule(Answer):
    """A schedule in a list."""

    id: str
    name: str
    cron: str
    timezone: str
    enabled: bool
    owner: str | None = None
    """Whose API key made it."""
    overlap: str = "skip"
    """What a firing does while an earlier sweep is under way: `skip` or `allow`."""
    repeat_configurations: bool = False
    created_at: datetime
    next_fire_at: datetime | None = None
    last_fired_for: datetime | None = None
    studies: int = 0
    last_sweep: Sweep | None = None
    last_skipped: Skip | None = None


class Schedule(ListedSchedule):
    definition: Mapping[str, Any]


class NamedSpace(Answer):
    """A preset of the server's catalog."""

    name: str
    description: str = ""
    parameters: Mapping[str, Mapping[str, Any]] = Field(default_factory=dict)
    recipe: Mapping[str, Any] = Field(default_factory=dict)
    """What it fixes, unless the definition's recipe does."""
    sources: Mapping[str, str] = Field(default_factory=dict)
    """Recipe field -> where its range or value comes from."""
