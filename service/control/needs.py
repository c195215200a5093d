"""What needs a study, so that it cannot be removed, and what goes with it. Imports nothing of REST."""

from __future__ import annotations

from collections.abc import Iterator

from sqlalchemy import select
from sqlalchemy.orm import Session

from search_spaces.wording import listed
from service.db import reigns
from service.db.kinds import StudyKind
from service.db.models import Schedule, Study
from service.states import ACTIVE_STUDY_STATES, TERMINAL_STUDY_STATES


def needed_by(session: Session, study: Study) -> Iterator[str]:
    """Why a study cannot be removed now, in words."""
    if study.state not in TERMINAL_STUDY_STATES:
        yield f"it is {study.state}; cancel it first"
    if study.kind == StudyKind.RANGE_TEST:
        staged = select(Study.name).where(Study.range_test_id == study.id, Study.deleted_at.is_(None))
        for name in session.scalars(staged.order_by(Study.name).limit(1)):
            yield f"it is the first stage of the study {name!r}; delete that one"
    if kept := sorted(reigns.kept_trials(session, study.id)):
        of = f"trial {kept[0]}" if len(kept) == 1 else f"trials {listed([str(number) for number in kept])}"
        yield f"a schedule's champion, or one that a rollback may bring back, is the adapter of its {of}"
    names = study.id, study.name
    source = Study.definition[("warm_start", "from")].as_string()
    waiting = select(Study.name).where(
        source.in_(names), Study.preparation.is_(None), Study.state.in_(ACTIVE_STUDY_STATES)
    )
    for name in session.scalars(waiting.order_by(Study.name).limit(1)):
        yield f"the study {name!r} has not begun and is to start from it"
    if session.scalars(select(Schedule.id).where(Schedule.name.in_(names))).first() is not None:
        return  # that name means the schedule to its own sweeps
    of_schedule = Schedule.definition[("warm_start", "from")].as_string()
    for name in session.scalars(select(Schedule.name).where(of_schedule.in_(names)).limit(1)):
        yield f"the sweeps of the schedule {name!r} start from it; change its warm_start first"


def own_range_test(session: Session, study: Study) -> Iterator[Study]:
    """The range test that is its first stage and no other study's, if it has ended."""
    if study.range_test_id is None:
        return
    others = select(Study.id).where(
        Study.range_test_id == study.range_test_id,
        Study.id != study.id,
        Study.deleted_at.is_(None),
    )
    if session.scalars(others).first() is None:
        test = session.get(Study, study.range_test_id, with_for_update=True)
        if test is not None and test.state in TERMINAL_STUDY_STATES:
            yield test
