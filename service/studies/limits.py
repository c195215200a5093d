"""How much one owner may have at a time, so that no owner's studies crowd out another's.

Three limits, each off unless set. A submission over one of the first two is refused with 429; a sweep over
one is made as a failed study that says so. The third makes studies wait as `queued`.

| setting | counts |
| --- | --- |
| `max_active_studies_per_owner` | studies and range tests that are queued, running or paused |
| `max_queued_trials_per_owner` | trials and repeats of those that have not ended |
| `max_running_studies_per_owner` | studies and range tests that a coordinator runs |

A range test that is the first stage of a study belongs to that study: it counts as running, not as another
active one.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Sequence
from dataclasses import dataclass

from sqlalchemy import ColumnElement, and_, func, or_, select
from sqlalchemy.orm import Session

from search_spaces.definition import StudyDefinition
from search_spaces.errors import Fault
from search_spaces.preparation import NOTHING, Preparation
from search_spaces.sampling.plan import planned_trials
from search_spaces.wording import counted
from service.db.database import database_now
from service.db.lease_times import is_leased
from service.db.models import Study
from service.definitions.stored import read_definition, read_preparation
from service.errors import LimitReached
from service.settings import Settings
from service.states import ACTIVE_STUDY_STATES, StudyState
from service.studies.results import count_ended
from service.studies.standing import repeats_requested

_SUBMISSIONS = 0x6E73_0001
_TAKINGS = 0x6E73_0002
"""PostgreSQL's advisory locks, each held from counting rows to adding one."""


@dataclass(frozen=True, kw_only=True)
class Limits:
    """What one owner may have; None: no limit."""

    active_studies: int | None = None
    queued_trials: int | None = None

    @classmethod
    def of(cls, settings: Settings) -> Limits:
        return cls(
            active_studies=settings.max_active_studies_per_owner,
            queued_trials=settings.max_queued_trials_per_owner,
        )


UNLIMITED = Limits()


def require_within_limits(
    session: Session,
    owner: str,
    definition: StudyDefinition,
    limits: Limits,
    *,
    leaving: Collection[str] = (),
) -> None:
    """Raise `LimitReached` unless the owner may have one more study.

    Args:
        session: a writing transaction, which then adds the study.
        owner: whose study it is to be.
        definition: the study's.
        limits: the server's.
        leaving: studies that do not count, because this transaction asks for their cancellation.

    Raises:
        LimitReached: with the limit, what the owner has, and what to do.
    """
    if limits != UNLIMITED:
        trials = _trials(definition, NOTHING)
        require_room(session, owner, trials, limits, what="this study", studies=1, leaving=leaving)


def require_room(
    session: Session,
    owner: str,
    trials: int,
    limits: Limits,
    *,
    what: str,
    studies: int,
    leaving: Collection[str] = (),
) -> None:
    """Raise `LimitReached` unless the owner may have so much more.

    Others who ask at the same time wait until this transaction ends, so the limit is exact.

    Args:
        session: a writing transaction, which then adds it.
        owner: whose it is to be.
        trials: how many trials and repeats more are to come.
        limits: the server's.
        what: needs them, in words.
        studies: how many active studies more there are to be: 0 or 1.
        leaving: studies that do not count, because this transaction asks for their cancellation.

    Raises:
        LimitReached: with the limit, what the owner has, and what to do.
    """
    if limits == UNLIMITED:
        return
    _lock_out_others(session, _SUBMISSIONS)
    active = [study for study in _active_studies(session, owner) if study.id not in leaving]
    if studies and limits.active_studies is not None and len(active) >= limits.active_studies:
        raise _reached(
            "max_active_studies_per_owner",
            limits.active_studies,
            len(active) + 1,
            f"{owner!r} has {counted(len(active), 'study', 'studies')} queued, running or paused, and this "
            f"server allows {limits.active_studies} (NIGHTSWEEP_MAX_ACTIVE_STUDIES_PER_OWNER). Wait for one "
            "to end or cancel one, then submit again.",
        )
    if limits.queued_trials is None:
        return
    waiting = _trials_to_come(session, active)
    if waiting + trials > limits.queued_trials:
        todo = (
            "Ask for fewer"
            if trials > limits.queued_trials
            else "Wait for some to end, cancel a study or ask for fewer"
        )
        raise _reached(
            "max_queued_trials_per_owner",
            limits.queued_trials,
            waiting + trials,
            f"{owner!r} has {counted(waiting, 'trial')} that have not ended, {what} needs "
            f"{trials} more, and this server allows {limits.queued_trials} "
            f"(NIGHTSWEEP_MAX_QUEUED_TRIALS_PER_OWNER). {todo}, then submit again.",
        )


def startable(session: Session, candidates: ColumnElement[bool], *, per_owner: int, most: int) -> list[str]:
    """Ids of the oldest queued studies that may start now, so that no owner runs more than `per_owner`.

    Coordinators that ask at the same time wait until this transaction ends, so the limit is exact. Studies
    count from the moment a coordinator takes them.

    Args:
        session: a writing transaction, which then takes the leases.
        candidates: which studies may be taken at all.
        per_owner: how many of one owner may run.
        most: how many to choose.
    """
    _lock_out_others(session, _TAKINGS)
    taken = and_(
        Study.state == StudyState.QUEUED,
        is_leased(database_now(session)),
        ~candidates,  # a coordinator takes its own leases again after an outage
    )
    counted = (
        select(Study.owner, func.count().label("studies"))
        .where(or_(Study.state == StudyState.RUNNING, taken))
        .group_by(Study.owner)
    )
    running = Counter({row.owner: row.studies for row in session.execute(counted)})
    place = func.row_number().over(partition_by=Study.owner, order_by=(Study.created_at, Study.id))
    ranked = (
        select(Study.id, Study.owner, Study.created_at, place.label("place")).where(candidates).subquery()
    )
    oldest = (
        select(ranked.c.id, ranked.c.owner)
        .where(ranked.c.place <= per_owner)
        .order_by(ranked.c.created_at, ranked.c.id)
    )
    chosen: list[str] = []
    for row in session.execute(oldest):
        if len(chosen) < most and running[row.owner] < per_owner:
            running[row.owner] += 1
            chosen.append(row.id)
    return chosen


def _lock_out_others(session: Session, lock: int) -> None:
    """Wait until no other transaction is between counting and adding. SQLite has one writer anyway."""
    if session.get_bind().dialect.name == "postgresql":
        session.execute(select(func.pg_advisory_xact_lock(lock)))


def _active_studies(session: Session, owner: str) -> Sequence[Study]:
    stages = select(Study.range_test_id).where(Study.range_test_id.is_not(None))
    query = select(Study).where(
        Study.owner == owner, Study.state.in_(ACTIVE_STUDY_STATES), Study.id.not_in(stages)
    )
    return session.scalars(query).all()


def _trials_to_come(session: Session, studies: Sequence[Study]) -> int:
    ended = count_ended(session, studies)
    return sum(
        max(0, _trials(definition, read_preparation(study)) - ended[study.id])
        for study in studies
        # A study that this version cannot read runs no trials.
        if (definition := read_definition(study)) is not None
    )


def _trials(definition: StudyDefinition, prepared: Preparation) -> int:
    """Trials and repeats, if nothing stops the study earlier."""
    trials = planned_trials(definition, prepared)
    return trials + repeats_requested(definition, trials)


def _reached(setting: str, limit: int, wanted: int, detail: str) -> LimitReached:
    fault = Fault(
        path=f"limits.{setting}", value=wanted, message="is over the limit", allowed=f"at most {limit}"
    )
    return LimitReached(detail, faults=[fault])
