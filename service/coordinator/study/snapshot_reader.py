"""Reads what `decide` looks at: a leased study at one moment, as frozen values."""

from __future__ import annotations

from sqlalchemy import func, select
from sqlalchemy.orm import Session

from search_spaces.definition import build_recipe
from search_spaces.sampling.plan import planned_trials
from service.analysis.gpu_hours import gpu_hours
from service.coordinator.cluster.sent_verdicts import SentVerdicts
from service.coordinator.policy.limits import Limits, Repeats
from service.coordinator.policy.placement import Placement
from service.coordinator.policy.retries import storage_trouble
from service.coordinator.policy.snapshot import Snapshot
from service.coordinator.policy.trial_history import trial_snapshots
from service.coordinator.study.leased_study import LeasedStudy
from service.db.database import database_now
from service.db.kinds import StudyKind
from service.db.models import Attempt, RungReport, Study
from service.states import AttemptState, StudyState
from service.studies.deadlines import deadline_reached

PAUSED_BY_A_PERSON = "paused on request"


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
        of_study = select(Attempt).where(Attempt.study_id == leased.study_id)
        attempts = session.scalars(of_study.order_by(Attempt.id)).all()
        now = database_now(session)
        storage = storage_trouble(
            attempts, rungs=lambda: rungs_of(session, leased.study_id), resumed_at=study.resumed_at
        )
    # From the first dispatch: a study that waits for another's workers has spent nothing.
    started = min((a.dispatched_at for a in attempts), default=now)
    trials = trial_snapshots(attempts, asked=leased.asked, ends=leased.ends, base_of=leased.base, now=now)
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
        gpu_hours=gpu_hours(attempts, now),
        exhausted=leased.exhausted,
        unplaceable_reason=unplaceable_reason,
        resumes=leased.kind is not StudyKind.RANGE_TEST,
        training=any(a.state == AttemptState.RUNNING for a in attempts),
        preparing=next((a.reason for a in attempts if a.state == AttemptState.DISPATCHED and a.reason), None),
    )


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
    )
