"""The attempts of a leased study: opened, looked up, and ended where no worker tells of it."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import replace

from sqlalchemy import ColumnElement, select
from sqlalchemy.orm import Session

from search_spaces.data_report import LoadingLimits
from search_spaces.values.artifact_urls import join
from service.coordinator.cluster.orders import make_order
from service.coordinator.cluster.sent_verdicts import SentVerdicts
from service.coordinator.policy.placement import WorkerShape
from service.coordinator.study import pass_costs
from service.coordinator.study.leased_study import LeasedStudy
from service.db import trials
from service.db.models import Attempt, Study
from service.db.transitions import advance_attempt
from service.states import LIVE_ATTEMPT_STATES, AttemptState, LossCause
from workers.contract import Decision, TrialOrder


def live_attempts(leased: LeasedStudy) -> dict[int, str]:
    """Live attempts and the workers they were sent to."""
    with leased.database.read() as session:
        rows = session.execute(select(Attempt.id, Attempt.worker_id).where(*are_live(leased.study_id))).all()
    return {row.id: row.worker_id for row in rows}


def attempts_of(session: Session, study_id: str, number: int) -> list[Attempt]:
    """The attempts of one trial so far, oldest first."""
    of_trial = select(Attempt).where(Attempt.study_id == study_id, Attempt.trial_number == number)
    return list(session.scalars(of_trial.order_by(Attempt.ordinal)))


def are_live(study_id: str) -> tuple[ColumnElement[bool], ...]:
    """Conditions that a study's live attempts meet."""
    return Attempt.study_id == study_id, Attempt.state.in_(LIVE_ATTEMPT_STATES)


def has_sent(leased: LeasedStudy, attempt_id: int, worker_id: str) -> bool:
    """Whether the service's tables know that a worker was sent an attempt."""
    sent = Attempt.id == attempt_id, Attempt.study_id == leased.study_id, Attempt.worker_id == worker_id
    with leased.database.read() as session:
        return session.scalars(select(Attempt.id).where(*sent)).one_or_none() is not None


def base_of_attempts(leased: LeasedStudy, attempt_ids: Collection[int]) -> str | None:
    """The base of a worker's orders, which all train on the same one; None: it has none of this study."""
    newest = (
        select(Attempt.trial_number)
        .where(Attempt.study_id == leased.study_id, Attempt.id.in_(attempt_ids))
        .order_by(Attempt.id.desc())
        .limit(1)
    )
    with leased.database.read() as session:
        number = session.scalars(newest).one_or_none()
    return None if number is None else leased.base(number)


def open_attempt(
    leased: LeasedStudy,
    number: int,
    *,
    worker_id: str,
    shape: WorkerShape,
    device_id: str | None,
    artifacts: str,
    limits: LoadingLimits,
) -> TrialOrder:
    """Write the attempt's row, then make its order.

    Args:
        leased: the study.
        number: the trial's.
        worker_id: where it is sent.
        shape: what that worker reserves.
        device_id: that worker's GPU, if it has one.
        artifacts: the path or URL where attempts get their folders.
        limits: what workers may read, and how much memory that may take.
    """
    recipe = leased.recipe(number)

    def work(session: Session, _: Study) -> tuple[Attempt, list[Attempt], bool]:
        earlier = attempts_of(session, leased.study_id, number)
        suspect = _loading_is_suspect(session, leased.study_id)
        ordinal = len(earlier) + 1
        attempt = Attempt(
            study_id=leased.study_id,
            trial_number=number,
            ordinal=ordinal,
            worker_id=worker_id,
            gpus=shape.num_gpus,
            device_id=device_id,
            artifact_dir=join(artifacts, leased.study_id, str(number), str(ordinal)),
        )
        session.add(attempt)
        session.flush()
        trials.follow(session, attempt)
        session.add(leased.event(attempt, "attempt_dispatched", f"attempt {ordinal} sent to {worker_id}"))
        return attempt, earlier, suspect

    attempt, earlier, check_loading = leased.transact(work)
    evaluates = leased.asked[number].evaluates
    order = make_order(
        leased.definition,
        recipe,
        attempt,
        earlier,
        leased.kind,
        leased.created_at,
        None if evaluates is None else evaluates["adapter"],
    )
    key = pass_costs.cost_key(order)
    with leased.database.read() as session:
        known = pass_costs.known(session, key)
    return replace(order, limits=limits, check_loading=check_loading, cost_key=key, known_costs=known)


def _loading_is_suspect(session: Session, study_id: str) -> bool:
    """Whether loading the study's model and data may end its workers: one died before any trial began."""
    of_study = select(Attempt.id).where(Attempt.study_id == study_id).limit(1)
    if session.scalars(of_study.where(Attempt.started_at.is_not(None))).first() is not None:
        return False
    died = of_study.where(Attempt.loss_cause == LossCause.WORKER_DIED)
    return session.scalars(died).first() is not None


def end_disobedient(leased: LeasedStudy, sent: SentVerdicts, worker_id: str, reason: str) -> None:
    """End the live attempts of a worker that did not obey and was killed, as what they were told to be.

    One that was to pause goes on from its last checkpoint. So does one that was told nothing: it shared the
    worker with others that were told.
    """

    def work(session: Session, _: Study) -> Sequence[Attempt]:
        of_worker = select(Attempt).where(*are_live(leased.study_id), Attempt.worker_id == worker_id)
        attempts = session.scalars(of_worker).all()
        for attempt in attempts:
            decision = sent.last_decision(attempt.id)
            late = f"{reason}; its worker did not obey {sent.grace_in_words(decision)} and was killed"
            if attempt.verdict_reason is not None:
                advance_attempt(session, attempt, AttemptState.PRUNED, attempt.verdict_reason)
            elif decision is Decision.STOP:
                advance_attempt(session, attempt, AttemptState.CANCELLED, late)
            else:
                late += "; the trial resumes from its last checkpoint"
                advance_attempt(session, attempt, AttemptState.PAUSED, late)
        return attempts

    leased.tell_ends(leased.transact(work))


def put_down_attempts(leased: LeasedStudy, reason: str) -> None:
    """End every live attempt as paused; the trials go on from their last checkpoints."""

    def work(session: Session, _: Study) -> None:
        live = select(Attempt).where(*are_live(leased.study_id)).order_by(Attempt.id)
        for attempt in session.scalars(live):
            advance_attempt(session, attempt, AttemptState.PAUSED, reason)

    leased.transact(work)
