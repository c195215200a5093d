"""What `decide` looks at: one study at one moment, as frozen values."""

from __future__ import annotations

from dataclasses import dataclass, field
from datetime import datetime
from enum import StrEnum

from service.coordinator.policy.limits import Limits
from service.coordinator.policy.placement import Placement
from service.db.kinds import Contestant
from service.states import AttemptState, StudyState


class TrialPhase(StrEnum):
    WAITING = "waiting"
    """Asked, but no attempt is alive: never dispatched, or its worker was lost."""
    LIVE = "live"
    ENDED = "ended"


@dataclass(frozen=True, kw_only=True)
class TrialSnapshot:
    number: int
    phase: TrialPhase
    base: str = ""
    """Model and quantization it trains on, of a trial that has not ended."""
    repeat_of: int | None = None
    """The trial whose recipe it runs again; None: it is of the search."""
    seed: int | None = None
    """Of a repeat."""
    evaluates: Contestant | None = None
    """Whose adapter it evaluates, of a trial that trains nothing."""
    lost_attempts: int = 0
    """Those that count against `max_retries`."""
    poison: str | None = None
    """Why it must not be tried again, whatever `max_retries` says: it killed its workers at one point."""
    rested: bool = True
    """While it waits: whether the back-off after its last loss is over."""
    stop_reason: str | None = None
    """Why a person wants it to end, in words; None: nobody does."""
    suspect: bool = False
    """It may have killed its last worker, so it trains by itself until it is past that point."""
    avoid: str | None = None
    """Of a suspect: the GPU that it does not go back to while there is another."""
    live_attempt_id: int | None = None
    worker_id: str | None = None
    """Of the live attempt."""
    seconds_left: float | None = None
    """Until the live attempt ends if it goes on as since its beginning; None: it has only begun."""
    stop_requested: bool = False
    """A stop was already sent to the live attempt."""
    pause_requested: bool = False
    """A pause was already sent to the live attempt."""
    send_again: bool = False
    """It has not obeyed yet, and may not have heard."""
    overdue: bool = False
    """It has not obeyed a stop or a pause within the grace period."""
    outcome: AttemptState | None = None
    """Set when the phase is ended."""
    end_order: int = 0
    """Place among the study's ended trials, in the order in which their ends were recorded."""
    value: float | None = None
    """The objective at the best rung, of a completed trial."""
    feasible: bool = True
    """It breaks no constraint."""
    settled: bool = False
    """It was cancelled, and yet its end is one of the search's: a person has stopped this trial, or it was
    cancelled by an end of the study that an extension has taken back."""
    fatal_reason: str | None = None
    """The trial failed, or cannot begin, for a reason in the study's model or data."""

    @property
    def is_repeat(self) -> bool:
        return self.repeat_of is not None

    @property
    def is_evaluation(self) -> bool:
        return self.evaluates is not None


@dataclass(frozen=True, kw_only=True)
class Snapshot:
    state: StudyState
    cancel_requested: bool
    limits: Limits
    pause_reason: str | None = None
    """Why the study should be paused now: a person's wish, a time of day, artifacts nobody can write."""
    resumed_at: datetime | None = None
    """When its last pause ended."""
    deadline_reason: str | None = None
    """Why it should end now: a time of day has come."""
    trials: tuple[TrialSnapshot, ...]
    placement: Placement
    running_seconds: float
    """Wall clock since the first trial was dispatched; 0 in a study without a budget of time."""
    gpu_hours: float
    """Likewise."""
    exhausted: bool = False
    """The sampler has no further configuration, whatever `limits.trials` says."""
    resumes: bool = True
    """Its trials go on from checkpoints exactly; those of a range test begin again."""
    training: bool = False
    """One of its trials trains."""
    preparing: str | None = None
    """What a worker does for a trial that is about to, in words."""
    unplaceable_reason: str | None = None
    """Set when the cluster could not give this study any worker for too long."""
    evaluations_due: frozenset[Contestant] = frozenset()
    """Of a sweep whose schedule has or wants a champion: whose adapters are to be evaluated in it."""
    search: tuple[TrialSnapshot, ...] = field(init=False, repr=False, compare=False)
    """The trials that are no repeats and no evaluations."""
    again: tuple[TrialSnapshot, ...] = field(init=False, repr=False, compare=False)
    """The repeats."""
    evaluations: tuple[TrialSnapshot, ...] = field(init=False, repr=False, compare=False)
    """Trials that train nothing."""

    @property
    def suspects(self) -> frozenset[int]:
        """Live attempts that train by themselves."""
        return frozenset(
            t.live_attempt_id for t in self.trials if t.suspect and t.live_attempt_id is not None
        )

    def __post_init__(self) -> None:
        searched = tuple(t for t in self.trials if not t.is_repeat and not t.is_evaluation)
        object.__setattr__(self, "search", searched)
        object.__setattr__(self, "again", tuple(t for t in self.trials if t.is_repeat))
        object.__setattr__(self, "evaluations", tuple(t for t in self.trials if t.is_evaluation))
