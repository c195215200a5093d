"""Extending studies: more trials, more time, more GPU-hours, while they run or after their end.

The definition stays as it was accepted. An extension is an entry in the study's row, with the values that
hold from then on (`service.definitions.stored.effective_document`). A study that has ended is queued again.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from datetime import datetime
from typing import Any

from pydantic import ValidationError
from sqlalchemy import func, select
from sqlalchemy.orm import Session

from search_spaces.definition import StudyDefinition
from search_spaces.errors import Fault
from search_spaces.faults import translate
from search_spaces.sampling.plan import planned_trials
from search_spaces.wording import counted
from service.analysis.gpu_hours import gpu_hours
from service.control.documents import Extension
from service.db.database import database_now
from service.db.kinds import StudyKind
from service.db.models import Attempt, Study, Trial
from service.db.transitions import append_event, revive
from service.definitions.stored import effective_document, read_definition, read_preparation
from service.errors import BeingCancelled, Conflict, Invalid, NotASearch, NothingToExtend, StillNeeded
from service.rest.preconditions import Precondition
from service.states import TERMINAL_STUDY_STATES
from service.studies.limits import Limits, require_room
from service.studies.queries import get_study
from service.studies.standing import repeats_requested

EXTENDED = "study_extended"
"""The kind of event that says what a study was given beyond its definition."""
MOST_EXTENSIONS = 1000


def extend(
    session: Session, ref: str, more: Extension, expected: Precondition, *, asked_by: str, limits: Limits
) -> Study:
    """Give a study more of what bounds it. One that has ended waits for a coordinator again.

    Raises:
        NotFound: there is no such study.
        PreconditionFailed: it is not what was expected.
        Invalid: what is asked for is not bounded, or becomes more than can be.
        NothingToExtend: nothing of it would be done.
        NotASearch, BeingCancelled, StillNeeded, Conflict: it cannot be extended.
        LimitReached: its owner may not have so much.
    """
    study = get_study(session, ref, lock=True)
    expected.check(f"The study {study.name!r}", study.revision)
    definition = _extensible(study)
    present = definition.budget
    changed = more.applied(
        trials=definition.search.trials,
        timeout_seconds=present.timeout_seconds,
        max_gpu_hours=present.max_gpu_hours,
        max_failed_trials=present.max_failed_trials,
    )
    extensions = study.extensions or []
    if len(extensions) >= MOST_EXTENSIONS:
        raise Conflict(
            f"The study {study.name!r} was extended {MOST_EXTENSIONS:,} times; submit another one."
        )
    ended = study.state in TERMINAL_STUDY_STATES
    now = database_now(session)
    entry: dict[str, Any] = {"at": now.isoformat(), "asked_by": asked_by, **changed}
    if ended:
        highest = select(func.max(Trial.number)).where(Trial.study_id == study.id)
        last = session.scalars(highest).one_or_none()
        entry["since"] = 0 if last is None else last + 1
    wanted = _read(effective_document(study.definition, [*extensions, entry]), more)
    before, after = _planned(study, definition), _planned(study, wanted)
    if more.trials is not None and after <= before:
        what = "grid" if definition.search.algorithm == "grid" else "search space"
        raise NothingToExtend(
            f"The search of the study {study.name!r} has {counted(before, 'trial')} already, and its {what}"
            " has no further configuration."
        )
    if ended:
        _require_work(session, study, wanted, after)
        used_up = list(_used_up(session, study, wanted, now))
        if used_up:
            raise NothingToExtend(f"The study {study.name!r} would end again at once: {'; '.join(used_up)}.")
    to_come = after - before + repeats_requested(wanted, after) - repeats_requested(definition, before)
    if ended:
        done = select(func.count()).select_from(Trial).where(Trial.study_id == study.id)
        to_come = max(0, after + repeats_requested(wanted, after) - session.scalars(done).one())
    require_room(session, study.owner, to_come, limits, what="this extension", studies=int(ended))
    words = f"{asked_by!r} extended it: {', '.join(_in_words(changed))}"
    study.extensions = [*extensions, entry]
    append_event(session, study.id, EXTENDED, words)
    if ended:
        revive(session, study, f"{words}; waiting for a coordinator")
    else:
        study.revision += 1
    return study


def _extensible(study: Study) -> StudyDefinition:
    """The definition of a study that can be extended."""
    name = repr(study.name)
    if study.kind == StudyKind.RANGE_TEST:
        raise NotASearch(f"{name} is a range test, whose trials follow from its definition.")
    if study.deleted_at is not None:
        raise StillNeeded(f"The study {name} is deleted; restore it before it is extended.")
    ended = study.state in TERMINAL_STUDY_STATES
    if study.cancel_requested and not ended:
        raise BeingCancelled(f"The study {name} is being cancelled; extend it when it has ended.")
    if ended and study.started_at is None:
        raise Conflict(f"The study {name} ended before it had begun; submit it again under another name.")
    definition = read_definition(study)
    if definition is None:
        raise Conflict(f"This version cannot read the definition of the study {name}.")
    return definition


def _read(document: Mapping[str, Any], more: Extension) -> StudyDefinition:
    try:
        return StudyDefinition.model_validate(document)
    except ValidationError as error:
        sent = more.sent
        faults = [
            Fault(
                path=name,
                value=sent.get(name),
                message=f"makes {fault.path} {fault.value}, which {fault.message}",
            )
            for fault in translate(error)
            for name in [fault.path.rpartition(".")[2]]
        ]
        raise Invalid("The extension", faults) from None


def _planned(study: Study, definition: StudyDefinition) -> int:
    return planned_trials(definition, read_preparation(study))


def _require_work(session: Session, study: Study, wanted: StudyDefinition, planned: int) -> None:
    """Raise `NothingToExtend` unless a trial or a repeat is left to be asked for."""
    counts = select(func.count(), func.count(Trial.repeat_of))
    rows = counts.where(Trial.study_id == study.id, Trial.evaluates.is_(None))
    total, again = session.execute(rows).one()
    if total - again >= planned and again >= repeats_requested(wanted, planned):
        raise NothingToExtend(
            f"The study {study.name!r} has asked for all of its search's trials ({planned:,}), so nothing is"
            " left to do; extend trials, too."
        )


def _used_up(session: Session, study: Study, wanted: StudyDefinition, now: datetime) -> Iterator[str]:
    """Which budgets of an ended study are used up, in words."""
    budget = wanted.budget
    if budget.timeout_seconds is None and budget.max_gpu_hours is None:
        return
    attempts = session.scalars(select(Attempt).where(Attempt.study_id == study.id)).all()
    if not attempts or study.ended_at is None:
        return
    started = min(attempt.dispatched_at for attempt in attempts)
    ran = max(0.0, (study.ended_at - started).total_seconds() - study.paused_seconds)
    if budget.timeout_seconds is not None and ran >= budget.timeout_seconds:
        yield f"it ran for {ran:,.0f} s, and timeout would be {budget.timeout_seconds:,.0f} s"
    spent = gpu_hours(attempts, now)
    if budget.max_gpu_hours is not None and spent >= budget.max_gpu_hours:
        yield f"it took {spent:.2f} GPU-hours, and max_gpu_hours would be {budget.max_gpu_hours:g}"


def _in_words(changed: Mapping[str, Any]) -> Iterator[str]:
    for name, value in changed.items():
        yield f"{'search' if name == 'trials' else 'budget'}.{name} is {value} now"
