"""The life of a study and of an attempt, as data: one table of allowed moves each."""

from __future__ import annotations

from enum import StrEnum
from typing import Literal


class StudyState(StrEnum):
    QUEUED = "queued"
    RUNNING = "running"
    PAUSED = "paused"
    COMPLETED = "completed"
    FAILED = "failed"
    CANCELLED = "cancelled"


class AttemptState(StrEnum):
    DISPATCHED = "dispatched"
    RUNNING = "running"
    COMPLETED = "completed"
    PRUNED = "pruned"
    DIVERGED = "diverged"
    OUT_OF_MEMORY = "out_of_memory"
    FAILED = "failed"
    LOST = "lost"
    PAUSED = "paused"
    CANCELLED = "cancelled"


WAITING: Literal["waiting"] = "waiting"
"""The state of a trial that has had no attempt yet."""
TrialState = AttemptState | Literal["waiting"]
TRIAL_STATES: tuple[str, ...] = (WAITING, *AttemptState)


class LossCause(StrEnum):
    """Why an attempt was lost. Only some of these can be the trial's own doing."""

    WORKER_DIED = "worker_died"
    """Its process ended by itself: killed, crashed, out of the host's memory."""
    NODE_DIED = "node_died"
    """The machine, or Ray on it, went away, or no coordinator ran to see what happened."""
    UNREACHABLE = "unreachable"
    """The worker has not answered for too long, or was killed because it ignored an order."""
    STALLED = "stalled"
    """The worker answered, but a pass of its training, or what comes before and after one, did not end."""
    NEVER_ARRIVED = "never_arrived"
    """The worker never got the order, or had no free slot for it."""
    STORAGE = "storage"
    """Its artifacts could not be written."""


STUDY_TRANSITIONS: dict[StudyState, frozenset[StudyState]] = {
    StudyState.QUEUED: frozenset(
        {StudyState.RUNNING, StudyState.PAUSED, StudyState.FAILED, StudyState.CANCELLED}
    ),
    StudyState.RUNNING: frozenset(
        {StudyState.PAUSED, StudyState.COMPLETED, StudyState.FAILED, StudyState.CANCELLED}
    ),
    # A study that is resumed waits for its turn like any other.
    StudyState.PAUSED: frozenset({StudyState.QUEUED, StudyState.CANCELLED, StudyState.FAILED}),
    # A study that is extended after its end waits for its turn again.
    StudyState.COMPLETED: frozenset({StudyState.QUEUED}),
    StudyState.FAILED: frozenset({StudyState.QUEUED}),
    StudyState.CANCELLED: frozenset({StudyState.QUEUED}),
}

_ATTEMPT_ENDS = frozenset(
    {
        AttemptState.COMPLETED,
        AttemptState.PRUNED,
        AttemptState.DIVERGED,
        AttemptState.OUT_OF_MEMORY,
        AttemptState.FAILED,
        AttemptState.LOST,
        AttemptState.PAUSED,
        AttemptState.CANCELLED,
    }
)

UNFINISHED_ATTEMPT_STATES = frozenset({AttemptState.LOST, AttemptState.PAUSED})
"""Ends of an attempt that are not its trial's: another attempt goes on where this one left off."""

ATTEMPT_TRANSITIONS: dict[AttemptState, frozenset[AttemptState]] = {
    # An attempt may end before it runs: bad data, a model that does not load, a worker that dies.
    AttemptState.DISPATCHED: frozenset({AttemptState.RUNNING}) | _ATTEMPT_ENDS,
    AttemptState.RUNNING: _ATTEMPT_ENDS,
    **{state: frozenset() for state in _ATTEMPT_ENDS},
}

ACTIVE_STUDY_STATES = frozenset({StudyState.QUEUED, StudyState.RUNNING, StudyState.PAUSED})
TERMINAL_STUDY_STATES = frozenset(StudyState) - ACTIVE_STUDY_STATES
LIVE_ATTEMPT_STATES = frozenset({AttemptState.DISPATCHED, AttemptState.RUNNING})
TERMINAL_ATTEMPT_STATES = _ATTEMPT_ENDS

TRAINING = "training"
"""The reason of a running study of which there is nothing more to say."""
READING = "waiting: its data and model are read, to tell whether they have changed since earlier sweeps"
"""The reason of a schedule's sweep before it begins, where that takes longer than a moment."""

TRIAL_FAILED = f"trial_{AttemptState.FAILED}"
"""The kind of event that ends a trial as failed without an attempt that is."""
