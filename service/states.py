"""The life of a study and of an attempt, as data.

One table of allowed moves each; `advance_study` and `advance_attempt` are the only ways to change a
state, and each appends an event row that says why in words.
"""

from __future__ import annotations

from collections.abc import Iterable
from datetime import UTC, datetime
from enum import StrEnum
from typing import TYPE_CHECKING, Any

from search_spaces.wording import SENTENCE_CHARACTERS, shortened
from service.errors import IllegalTransition

if TYPE_CHECKING:
    from sqlalchemy.orm import Session

    from service.db.models import Attempt, Study


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


class LossCause(StrEnum):
    """Why an attempt was lost. Only some of these can be the trial's own doing."""

    WORKER_DIED = "worker_died"
    """Its process ended by itself: killed, crashed, out of the host's memory."""
    NODE_DIED = "node_died"
    """The machine, or Ray on it, went away with everything on it, or nobody was there to see what it was."""
    UNREACHABLE = "unreachable"
    """The worker has not answered for too long, or was killed because it did not obey."""
    STALLED = "stalled"
    """The worker answered, but a pass of its training, or what comes before and after one, did not end."""
    NEVER_ARRIVED = "never_arrived"
    """The worker never got the order, or had no room for it."""
    STORAGE = "storage"
    """Its artifacts could not be written."""


STUDY_TRANSITIONS: dict[StudyState, frozenset[StudyState]] = {
    StudyState.QUEUED: frozenset(
        {StudyState.RUNNING, StudyState.PAUSED, StudyState.FAILED, StudyState.CANCELLED}
    ),
    StudyState.RUNNING: frozenset(
        {StudyState.PAUSED, StudyState.COMPLETED, StudyState.FAILED, StudyState.CANCELLED}
    ),
    # A study that is resumed waits for a place like any other.
    StudyState.PAUSED: frozenset({StudyState.QUEUED, StudyState.CANCELLED, StudyState.FAILED}),
    StudyState.COMPLETED: frozenset(),
    StudyState.FAILED: frozenset(),
    StudyState.CANCELLED: frozenset(),
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


def advance_study(session: Session, study: Study, to: StudyState, reason: str) -> None:
    """Move a study, say why, and note when it started or ended.

    Raises `IllegalTransition` when the table has no such move.
    """
    came_from = StudyState(study.state)
    if to not in STUDY_TRANSITIONS[came_from]:
        raise IllegalTransition(
            _refusal(f"Study {study.name!r}", came_from, to, STUDY_TRANSITIONS[came_from])
        )
    now = datetime.now(UTC)
    study.state = to
    study.reason = shortened(reason, SENTENCE_CHARACTERS)
    study.revision += 1
    if to is StudyState.RUNNING and study.started_at is None:
        study.started_at = now
    if to in TERMINAL_STUDY_STATES:
        study.ended_at = now
    append_event(session, study.id, f"study_{to}", reason)


def advance_attempt(session: Session, attempt: Attempt, to: AttemptState, reason: str) -> None:
    """Move an attempt, say why, and note when it started or ended.

    Raises `IllegalTransition` when the table has no such move.
    """
    came_from = AttemptState(attempt.state)
    if to not in ATTEMPT_TRANSITIONS[came_from]:
        what = f"Attempt {attempt.ordinal} of trial {attempt.trial_number}"
        raise IllegalTransition(_refusal(what, came_from, to, ATTEMPT_TRANSITIONS[came_from]))
    now = datetime.now(UTC)
    attempt.state = to
    attempt.reason = shortened(reason, SENTENCE_CHARACTERS)
    if to is AttemptState.RUNNING:
        attempt.started_at = now
    if to in TERMINAL_ATTEMPT_STATES:
        attempt.ended_at = now
    append_event(session, attempt.study_id, f"attempt_{to}", reason, trial_number=attempt.trial_number)


def append_event(
    session: Session,
    study_id: str,
    kind: str,
    message: str,
    *,
    trial_number: int | None = None,
    data: dict[str, Any] | None = None,
) -> None:
    """Add one line to a study's history.

    Args:
        session: writes.
        study_id: whose history.
        kind: of event.
        message: what happened, for people.
        trial_number: of the trial that it happened to, if it was one.
        data: what the message was made from, where the service reads it again.
    """
    # models.py needs the states for its constraints, so the import has to wait until both are loaded.
    from service.db.models import EventRow

    message = shortened(message, SENTENCE_CHARACTERS)
    session.add(EventRow(study_id=study_id, trial_number=trial_number, kind=kind, message=message, data=data))


def _refusal(what: str, came_from: StrEnum, to: StrEnum, allowed: Iterable[StrEnum]) -> str:
    ways = ", ".join(sorted(allowed)) or "nothing else, because it has ended"
    return f"{what} is {came_from} and cannot become {to}; it can become {ways}."
