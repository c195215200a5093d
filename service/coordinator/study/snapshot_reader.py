"""Reads what `decide` looks at: a leased study at one moment, as frozen values."""

from __future__ import annotations

from collections.abc import Sequence

from sqlalchemy import bindparam, func, select
from sqlalchemy.orm import Session, load_only

from search_spaces.definition import build_recipe
from search_spaces.sampling.plan import planned_trials
from service.analysis.gpu_hours import gpu_hours
from service.coordinator.cluster.sent_verdicts import SentVerdicts
from service.coordinator.policy.limits import Limits, Repeats
from service.coordinator.policy.placement import Placement
from service.coordinator.policy.retries import Deaths, storage_trouble
from service.coordinator.policy.snapshot import Snapshot
from service.coordinator.policy.trial_history import trial_snapshots
from service.coordinator.study import contests
from service.coordinator.study.leased_study import LeasedStudy
from service.db.database import database_now
from service.db.kinds import StudyKind
from service.db.models import Attempt, RungReport, Study, TrialStop
from service.states import LIVE_ATTEMPT_STATES, UNFINISHED_ATTEMPT_STATES, AttemptState, StudyState
from service.studies.deadlines import deadline_reached

PAUSED_BY_A_PERSON = "paused on request"

_OF_STUDY = Attempt.study_id == bindparam("study_id")
_UNFINISHED = (
    select(Attempt)
    .where(_OF_STUDY, Attempt.state.in_(LIVE_ATTEMPT_STATES | UNFINISHED_ATTEMPT_STATES))
    .order_by(Attempt.id)
)
"""All attempts of the trials that have not ended, and those by which others did not end."""
_STOPS = select(TrialStop.trial_number, TrialStop.reason).where(TrialStop.study_id == bindparam("study_id"))
_SPANS = (
    select(Attempt)
    .where(_OF_STUDY)
    .options(
        load_only(
            Attempt.worker_id, Attempt.gpus, Attempt.dispatched_at, Attempt.started_at, Attempt.ended_at
        )
    )
)
"""When all attempts of a study trained, and where."""


def read_snapshot(
    leased: LeasedStudy,
    limits: Limits,
    sent: SentVerdicts,
    *,
    placement: Placement,
    unplaceable_reason: str | None = None,
    stranded_reason: str | None = None,
) -> Snapshot:
    """The study as it is now.

    Of its attempts only those are read by which no trial ended, unless something depends on all: a budget of
    time, or what else was on a worker that was lost.

    Args:
        leased: the study.
        limits: `limits_of` it.
        sent: what its live attempts were told.
        placement: which trials its workers would take.
        unplaceable_reason: why it gets no worker however long it waits.
        stranded_reason: why a person has to look at its GPUs first.
    """
    budget = leased.definition.budget
    with leased.database.read() as session:
        study = session.get_one(Study, leased.study_id)
        now = database_now(session)
        unfinished = session.scalars(_UNFINISHED, {"study_id": leased.study_id}).all()
        stops = session.execute(_STOPS, {"study_id": leased.study_id}).all()
        storage = storage_trouble(
            unfinished, rungs=lambda: rungs_of(session, leased.study_id), resumed_at=study.resumed_at
        )
        attempts = [a for a in unfinished if a.trial_number not in leased.ends]
        due = contests.evaluations_due(session, leased, study)
        lost = any(a.state == AttemptState.LOST for a in attempts)
        of_all: Sequence[Attempt] = ()
        if lost or _is_bounded(limits):
            of_all = session.scalars(_SPANS, {"study_id": leased.study_id}).all()
    # From the first dispatch: a study that waits for another's workers has spent nothing.
    started = min((a.dispatched_at for a in of_all), default=now)
    trials = trial_snapshots(
        attempts,
        asked=leased.asked,
        ends=leased.ends,
        stops={row.trial_number: row.reason for row in stops},
        deaths=Deaths(of_all),
        base_of=leased.base,
        now=now,
        since=limits.since,
    )
    ends_then = budget.until_action == "end"
    deadline = deadline_reached(study, budget, now)
    pause = PAUSED_BY_A_PERSON if study.pause_requested else None if ends_then else deadline
    return Snapshot(
        state=StudyState(study.state),
        cancel_requested=study.cancel_requested,
        limits=limits,
        pause_reason=pause or storage or stranded_reason,
        resumed_at=study.resumed_at,
        deadline_reason=deadline if ends_then else None,
        trials=tuple(sent.mark(trial) for trial in trials),
        placement=placement,
        running_seconds=max(0.0, (now - started).total_seconds() - study.paused_seconds),
        gpu_hours=gpu_hours(of_all, now),
        exhausted=leased.exhausted,
        evaluations_due=due,
        unplaceable_reason=unplaceable_reason,
        resumes=leased.kind is not StudyKind.RANGE_TEST,
        training=any(a.state == AttemptState.RUNNING for a in attempts),
        preparing=next((a.reason for a in attempts if a.state == AttemptState.DISPATCHED and a.reason), None),
    )


def _is_bounded(limits: Limits) -> bool:
    """Whether it matters how long all attempts of the study have taken."""
    return limits.timeout_seconds is not None or limits.max_gpu_hours is not None


def rungs_of(session: Session, study_id: str) -> int:
    """How many rung reports a study has."""
    of_study = select(func.count()).select_from(RungReport).where(RungReport.study_id == study_id)
    return session.scalars(of_study).one()


def limits_of(study: LeasedStudy) -> Limits:
    """What bounds a study, by its definition and by what was prepared for it."""
    definition, budget = study.definition, study.definition.budget
    search, repeats = definition.search, definition.repeats
    trials = planned_trials(definition, study.preparation)
    grid = search.algorithm == "grid"
    size = search.space.grid_size() if grid else search.space.size()
    left = None if size is None else size - len(study.preparation.evaluated)
    exhausts = search.trials is None or trials < search.trials or trials == left
    again = None
    if repeats is not None:
        seed = build_recipe(definition, {}).seed
        again = Repeats(top_k=repeats.top_k, seeds=tuple(range(seed + 1, seed + repeats.seeds + 1)))
    return Limits(
        trials=trials,
        max_parallel_trials=budget.max_parallel_trials,
        max_failed_trials=budget.max_failed_trials,
        max_retries=budget.max_retries,
        timeout_seconds=budget.timeout_seconds,
        max_gpu_hours=budget.max_gpu_hours,
        metric=definition.objective.metric,
        minimize=definition.objective.direction == "minimize",
        target_value=budget.target_value,
        no_improvement_trials=budget.no_improvement_trials,
        exhausts=("grid" if grid else "search space") if exhausts else None,
        repeats=again,
        since=study.since,
    )
