"""Checks of the `warm_start` section of a submitted definition."""

from __future__ import annotations

from sqlalchemy import func, select
from sqlalchemy.orm import Session

from search_spaces.definition import StudyDefinition, WarmStartSpec
from search_spaces.errors import Fault
from search_spaces.faults import shown
from service.db.kinds import StudyKind
from service.db.models import Attempt
from service.definitions.stored import read_definition
from service.states import AttemptState
from service.warm_start.sources import differences, find, other_task

PATH = "warm_start.from"


def check_warm_start(session: Session, definition: StudyDefinition) -> list[Fault]:
    """What is wrong with a submitted definition's `warm_start`; paths from the definition's root.

    Of a schedule only whether there is one: its sweeps come and go, and are looked at when the study starts.
    """
    spec = definition.warm_start
    if spec is None:
        return []
    source = find(session, spec.from_)
    if source is None:
        return [_fault(spec, "does not exist", "the name or id of a study, or of a schedule")]
    if source.schedule:
        return []
    found = source.study
    assert found is not None
    if found.kind != StudyKind.SEARCH:
        return [_fault(spec, "is a range test, which has no recipes to start from", "a study or a schedule")]
    if found.deleted_at is not None:
        return [_fault(spec, "has been deleted and is about to be removed; restore it first")]
    faults = []
    earlier = read_definition(found)
    if earlier is None:
        return [_fault(spec, "was stored by another version and cannot be read by this one")]
    if spec.as_ == "prior":
        faults += [_fault(spec, difference) for difference in differences(earlier, definition)]
    elif earlier.task != definition.task:
        faults.append(_fault(spec, other_task(earlier, definition)))
    completed = select(func.count()).where(
        Attempt.study_id == found.id, Attempt.state == AttemptState.COMPLETED
    )
    if not session.scalar(completed):
        faults.append(_fault(spec, f"has no completed trial: it is {found.state}"))
    return faults


def _fault(spec: WarmStartSpec, message: str, allowed: str | None = None) -> Fault:
    return Fault(path=PATH, value=shown(spec.from_), message=message, allowed=allowed)
