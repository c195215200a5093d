"""Repairing what was left half done, on every taking of a study's lease (docs/reference/recovery.md).

A coordinator may die between any two writes, and the two databases are written one after the other. So what
Optuna holds of a trial and what the service's tables say of it may differ by one step. `TABLE` says for
every pair of the two what is done about it; `reconcile` looks each trial up and does it. Running it again,
or dying in the middle of it and running it again, changes nothing more.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping
from dataclasses import dataclass
from enum import StrEnum

from sqlalchemy import select
from sqlalchemy.orm import Session

from service.coordinator.policy.trial_history import END_EVENTS
from service.coordinator.study.leased_study import LeasedStudy
from service.db.models import Attempt, EventRow
from service.db.transitions import advance_attempt, end_trial
from service.errors import Inconsistent
from service.optuna_store import asking
from service.optuna_store.asking import drop_orphan, unfinished_asks
from service.optuna_store.values import TrialCondition
from service.states import LIVE_ATTEMPT_STATES, AttemptState, LossCause

log = logging.getLogger(__name__)


class Repair(StrEnum):
    """What is done about a trial."""

    NOTHING = "nothing"
    WAIT = "wait"
    FOLLOW = "follow"
    TELL = "tell"
    COMPLETE = "complete"
    DROP = "drop"
    RECORD = "record"
    CLOSE = "close"
    KEEP = "keep"
    HALT = "halt"


SENTENCES: Mapping[Repair, str] = {
    Repair.NOTHING: "Both sides agree; nothing is done.",
    Repair.WAIT: "The trial waits for a worker, and resumes from its last checkpoint if it has one.",
    Repair.FOLLOW: "The coordinator looks for the trial's worker. If it finds none, the attempt is lost.",
    Repair.TELL: "Optuna is told the outcome that was recorded.",
    Repair.COMPLETE: "The trial gets the parameters that it would have got; if none are left, Optuna is told "
    "that it was cancelled.",
    Repair.DROP: "Optuna is told that the trial failed: it does not belong to the study.",
    Repair.RECORD: "The outcome that Optuna was told is recorded as an event.",
    Repair.CLOSE: "The outcome that Optuna was told is recorded, and the attempt is lost: its worker is told "
    "to drop it.",
    Repair.KEEP: "Optuna's outcome stays as it is; the difference is logged.",
    Repair.HALT: "The study is paused, because the two databases are not from the same moment.",
}
"""What each repair does, in one sentence."""

_LIVE = (AttemptState.DISPATCHED, AttemptState.RUNNING)
_UNFINISHED = (AttemptState.LOST, AttemptState.PAUSED)
_FINAL = (
    AttemptState.COMPLETED,
    AttemptState.PRUNED,
    AttemptState.DIVERGED,
    AttemptState.OUT_OF_MEMORY,
    AttemptState.FAILED,
    AttemptState.CANCELLED,
)
_TOLD: Mapping[TrialCondition, tuple[AttemptState, ...]] = {
    TrialCondition.COMPLETE: (AttemptState.COMPLETED,),
    TrialCondition.PRUNED: (AttemptState.PRUNED, AttemptState.DIVERGED, AttemptState.OUT_OF_MEMORY),
    TrialCondition.FAILED: (AttemptState.FAILED, AttemptState.CANCELLED),
}
"""What each end in Optuna may have been in the service's tables."""


def _row(
    *,
    none: Repair,
    live: Repair,
    unfinished: Repair,
    final: Repair,
    otherwise: Mapping[AttemptState, Repair] | None = None,
) -> dict[AttemptState | None, Repair]:
    row: dict[AttemptState | None, Repair] = {None: none}
    row |= dict.fromkeys(_LIVE, live)
    row |= dict.fromkeys(_FINAL, final)
    row |= dict.fromkeys(_UNFINISHED, unfinished)
    return row | dict(otherwise or {})


TABLE: Mapping[TrialCondition, Mapping[AttemptState | None, Repair]] = {
    TrialCondition.MISSING: _row(
        none=Repair.NOTHING, live=Repair.HALT, unfinished=Repair.HALT, final=Repair.HALT
    ),
    TrialCondition.INCOMPLETE: _row(
        none=Repair.COMPLETE,
        live=Repair.HALT,
        unfinished=Repair.HALT,
        final=Repair.HALT,
        # Ended without an attempt: nobody needs its parameters any more.
        otherwise=dict.fromkeys(_TOLD[TrialCondition.FAILED], Repair.TELL),
    ),
    TrialCondition.RUNNING: _row(
        none=Repair.WAIT, live=Repair.FOLLOW, unfinished=Repair.WAIT, final=Repair.TELL
    ),
    **{
        condition: _row(
            none=Repair.RECORD,
            live=Repair.CLOSE,
            unfinished=Repair.RECORD,
            final=Repair.KEEP,
            otherwise=dict.fromkeys(agreed, Repair.NOTHING),
        )
        for condition, agreed in _TOLD.items()
    },
    TrialCondition.ORPHANED: _row(
        none=Repair.DROP, live=Repair.HALT, unfinished=Repair.HALT, final=Repair.HALT
    ),
}
"""Optuna's trial, and what the service's tables say of it -> what is done.

What they say is the state of its last attempt, or none. A trial that was ended while no attempt of it lived
has an event in place of one, and counts as in that state.
"""


@dataclass(frozen=True, kw_only=True)
class _Recorded:
    """What the service's tables say of a trial."""

    state: AttemptState | None
    reason: str = ""
    attempt: Attempt | None = None
    """Its last one; None also when it was ended by an event."""


_NOT_RECORDED = _Recorded(state=None)


def reconcile(study: LeasedStudy) -> None:
    """Bring both sides of a study in line, and read its trials and their ends into `study`.

    Raises:
        LeaseLost: another coordinator has the study now.
        Inconsistent: one of the databases does not know what the other one rests on.
    """
    recorded = study.transact(lambda session, _: _recorded(session, study.study_id))
    conditions = asking.conditions(study.optuna)
    repairs = {
        number: TABLE[conditions.get(number, TrialCondition.MISSING)][
            recorded.get(number, _NOT_RECORDED).state
        ]
        for number in sorted({*recorded, *conditions})
    }
    halting = [number for number, repair in repairs.items() if repair is Repair.HALT]
    if halting:
        first = halting[0]
        raise Inconsistent(
            _inconsistent(first, conditions.get(first, TrialCondition.MISSING), recorded[first])
        )
    for number, repair in repairs.items():
        if repair is Repair.DROP:
            drop_orphan(study.optuna, number)
        elif repair is Repair.COMPLETE:
            study.complete(number)
    study.load()
    for number, repair in repairs.items():
        known = recorded.get(number, _NOT_RECORDED)
        if repair is Repair.TELL:
            _tell(study, number, known)
        elif repair in (Repair.RECORD, Repair.CLOSE):
            _record(study, number, known.attempt if repair is Repair.CLOSE else None)
        elif repair is Repair.KEEP:
            message = "trial %d of %s is %s in Optuna and %s in the service's tables"
            log.warning(message, number, study.name, conditions[number], known.state)


def close(study: LeasedStudy, reason: str) -> None:
    """End every trial that is open in Optuna: as was recorded, else as cancelled."""
    recorded = study.transact(lambda session, _: _recorded(session, study.study_id))
    for trial in unfinished_asks(study.optuna):
        known = recorded.get(trial.number, _NOT_RECORDED)
        if known.state in _FINAL:
            _tell(study, trial.number, known)
        else:
            study.end_trial(trial.number, AttemptState.CANCELLED, reason)


def _recorded(session: Session, study_id: str) -> dict[int, _Recorded]:
    attempts = select(Attempt).where(Attempt.study_id == study_id).order_by(Attempt.ordinal)
    found = {
        attempt.trial_number: _Recorded(
            state=AttemptState(attempt.state), reason=attempt.reason, attempt=attempt
        )
        for attempt in session.scalars(attempts)
    }
    ends = select(EventRow).where(
        EventRow.study_id == study_id,
        EventRow.kind.in_(kind for kind in END_EVENTS if kind.startswith("trial_")),
    )
    for event in session.scalars(ends.order_by(EventRow.id.desc())):  # the first of a trial stands
        number = event.trial_number
        if number is None or (number in found and found[number].state in _FINAL and found[number].attempt):
            continue
        state = AttemptState(event.kind.removeprefix("trial_"))
        found[number] = _Recorded(state=state, reason=event.message)
    return found


def _tell(study: LeasedStudy, number: int, known: _Recorded) -> None:
    if known.attempt is not None:
        study.tell_of(known.attempt)
    elif known.state is not None:
        study.tell(number, known.state, known.reason)


def _record(study: LeasedStudy, number: int, attempt: Attempt | None) -> None:
    """Write down the end that Optuna was told of a trial, and close the attempt that still lives."""
    outcome = study.ends[number].outcome
    assert outcome is not None, "it has ended"
    reason = f"Optuna's storage has it as {outcome}, but the service had not recorded that"

    def write(session: Session) -> None:
        if attempt is not None:
            present = session.get_one(Attempt, attempt.id)
            if present.state in LIVE_ATTEMPT_STATES:
                advance_attempt(session, present, AttemptState.LOST, f"its trial has ended: {reason}")
                present.loss_cause = LossCause.NEVER_ARRIVED  # no loss that says anything of the trial
        end_trial(session, study.study_id, number, outcome, reason)

    study.transact(lambda session, _: write(session))
    study.diagnose(number, outcome)


def _inconsistent(number: int, condition: TrialCondition, known: _Recorded) -> str:
    return (
        f"trial {number} is {condition} in Optuna's storage and {known.state} in the service's tables: "
        "the two databases are from different moments. Restore both from one backup, then resume the study"
    )
