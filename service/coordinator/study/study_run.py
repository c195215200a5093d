"""One leased study in the coordinator's hands: what `decide` sees of it, and what it may do to it.

Each method that writes is one transaction that begins by holding the lease.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import replace
from datetime import datetime

from sqlalchemy import select
from sqlalchemy.orm import Session

from search_spaces.data_report import LoadingLimits
from search_spaces.definition import build_recipe
from search_spaces.sampling import suggest
from search_spaces.values.artifact_urls import join
from service import optuna_store
from service.coordinator.cluster.device_health import devices_aside
from service.coordinator.cluster.orders import make_order
from service.coordinator.cluster.ray_workers import Decision, TrialOrder, WorkerShape
from service.coordinator.cluster.sent_verdicts import Told
from service.coordinator.leases import Lease
from service.coordinator.policy.placement import Room
from service.coordinator.policy.retries import loading_is_suspect, storage_trouble
from service.coordinator.policy.snapshot import Limits, Repeats, Snapshot
from service.coordinator.policy.trial_history import gpu_hours, has_ended, trial_snapshots
from service.coordinator.policy.waiting import WAITING, Standing
from service.coordinator.study import recovery
from service.coordinator.study.leased_study import HeldStudy
from service.coordinator.study.worker_events import StudyEvents, rungs_of
from service.db.database import Database, database_now
from service.db.models import Attempt, Study
from service.db.pauses import put_down, start
from service.states import (
    LIVE_ATTEMPT_STATES,
    AttemptState,
    StudyState,
    advance_attempt,
    advance_study,
    append_event,
)
from service.studies.deadlines import deadline_reached

PAUSED_BY_A_PERSON = "paused on request"


class StudyRun:
    """A study while this coordinator holds its lease.

    Args:
        lease: what makes it ours.
        database: the service's tables.
        storage: Optuna's.
        artifacts: the path or URL where its attempts get their folders.
        limits: what its workers may read, and how much memory that may take.
        told: remembers what its live attempts are told.

    Raises:
        ValidationError: this version cannot read the stored definition.
    """

    def __init__(
        self,
        *,
        lease: Lease,
        database: Database,
        storage: optuna_store.Storage,
        artifacts: str,
        limits: LoadingLimits,
        told: Told,
    ) -> None:
        self._held = HeldStudy(lease=lease, database=database, storage=storage)
        self._artifacts = artifacts
        self._loading_limits = limits
        self.told = told
        self.lease = self._held.lease
        self.name = self._held.name
        self.definition = self._held.definition
        self.limits = _limits(self._held)
        self.events = StudyEvents(self._held)
        """Takes in what its workers say."""
        self._resumed_at: datetime | None = None
        self._said = ""

    @property
    def study_id(self) -> str:
        return self.lease.study_id

    def reconcile(self) -> None:
        """Bring Optuna's side in line with the attempts. Idempotent; run on every taking of the lease."""
        recovery.reconcile(self._held)

    def renew(self, seconds: float) -> None:
        """Extend the lease. Raises `LeaseLost`."""
        self._held.renew(seconds)

    def devices_aside(self) -> frozenset[str]:
        """GPUs that get no trials, of whatever study."""
        with self._held.database.read() as session:
            return devices_aside(session)

    def snapshot(
        self, *, room: Room, unplaceable_reason: str | None, stranded_reason: str | None = None
    ) -> Snapshot:
        """What `decide` looks at.

        Args:
            room: what its workers would take.
            unplaceable_reason: why it gets no worker however long it waits.
            stranded_reason: why a person has to look at its GPUs first.
        """
        held = self._held
        with held.database.read() as session:
            study = session.get_one(Study, self.study_id)
            of_study = select(Attempt).where(Attempt.study_id == self.study_id)
            attempts = session.scalars(of_study.order_by(Attempt.id)).all()
            now = database_now(session)
            self._resumed_at = study.resumed_at
            storage = storage_trouble(
                attempts, rungs=lambda: rungs_of(session, self.study_id), resumed_at=study.resumed_at
            )
        # From the first dispatch: a study that waits for another's workers has spent nothing.
        started = min((a.dispatched_at for a in attempts), default=now)
        trials = trial_snapshots(attempts, asked=held.asked, ends=held.ends, base_of=held.base, now=now)
        ends_then = self.definition.budget.until_action == "end"
        deadline = deadline_reached(study, self.definition.budget, now)
        pause = PAUSED_BY_A_PERSON if study.pause_requested else None if ends_then else deadline
        pause = pause or storage or stranded_reason
        return Snapshot(
            state=StudyState(study.state),
            cancel_requested=study.cancel_requested,
            limits=self.limits,
            pause_reason=pause,
            deadline_reason=deadline if ends_then else None,
            trials=tuple(self.told.mark(trial) for trial in trials),
            room=room,
            running_seconds=max(0.0, (now - started).total_seconds() - study.paused_seconds),
            gpu_hours=gpu_hours(attempts, now),
            exhausted=held.exhausted,
            unplaceable_reason=unplaceable_reason,
            training=any(a.state == AttemptState.RUNNING for a in attempts),
            preparing=next(
                (a.reason for a in attempts if a.state == AttemptState.DISPATCHED and a.reason), None
            ),
        )

    def live_attempts(self) -> dict[int, str]:
        """Live attempts and the workers they were sent to."""
        with self._held.database.read() as session:
            rows = session.execute(
                select(Attempt.id, Attempt.worker_id).where(
                    Attempt.study_id == self.study_id, Attempt.state.in_(LIVE_ATTEMPT_STATES)
                )
            ).all()
        return {row.id: row.worker_id for row in rows}

    def base_of(self, number: int) -> str:
        """The base that a trial trains on, in words."""
        return self._held.base(number)

    def base_of_attempts(self, attempt_ids: Collection[int]) -> str | None:
        """The base of a worker's orders, which all train on the same one; None: it has none of this study."""
        if not attempt_ids:
            return None
        newest = (
            select(Attempt.trial_number)
            .where(Attempt.study_id == self.study_id, Attempt.id.in_(attempt_ids))
            .order_by(Attempt.id.desc())
            .limit(1)
        )
        with self._held.database.read() as session:
            number = session.scalars(newest).one_or_none()
        return None if number is None else self._held.base(number)

    def begin(self) -> None:
        """queued -> running."""

        def work(session: Session, study: Study) -> None:
            if study.state == StudyState.QUEUED:
                start(session, study, "a coordinator has started it")

        self._held.transact(work)

    def say(self, standing: Standing) -> None:
        """Write down how the study stands while it runs, when that has changed."""
        words = standing.words
        if words == self._said:
            return

        def work(session: Session, study: Study) -> None:
            if study.state == StudyState.RUNNING and study.reason != words:
                study.reason = words
                if standing.waits:
                    append_event(session, study.id, WAITING, words)

        self._held.transact(work)
        self._said = words

    def ask(self) -> int | None:
        """One more trial from the sampler: its number; None: the space has no further configuration."""
        return self._held.ask()

    def ask_repeat(self, of: int, seed: int) -> int:
        """A trial of another one's recipe with a further seed: its number."""
        return self._held.ask_repeat(of, seed)

    def open_attempt(
        self, number: int, *, worker_id: str, shape: WorkerShape, device_id: str | None
    ) -> TrialOrder:
        """Write the attempt's row, then make its order."""
        held, recipe = self._held, self._held.recipe(number)

        def work(session: Session, _: Study) -> tuple[Attempt, list[Attempt], bool]:
            earlier = held.attempts_of(session, number)
            of_study = session.scalars(select(Attempt).where(Attempt.study_id == self.study_id)).all()
            ordinal = len(earlier) + 1
            folder = join(self._artifacts, self.study_id, str(number), str(ordinal))
            attempt = Attempt(
                study_id=self.study_id,
                trial_number=number,
                ordinal=ordinal,
                worker_id=worker_id,
                gpus=shape.num_gpus,
                device_id=device_id,
                artifact_dir=folder,
            )
            session.add(attempt)
            session.flush()
            session.add(held.event(attempt, "attempt_dispatched", f"attempt {ordinal} sent to {worker_id}"))
            return attempt, earlier, loading_is_suspect(of_study)

        attempt, earlier, check_loading = held.transact(work)
        order = make_order(self.definition, recipe, attempt, earlier, held.kind, held.created_at)
        return replace(order, limits=self._loading_limits, check_loading=check_loading)

    def end_disobedient(self, worker_id: str, reason: str) -> None:
        """End the live attempts of a worker that did not obey and was killed, as what they were told to be.

        One that was to pause goes on from its last checkpoint. One that was told nothing shared the worker
        with others that were, and likewise goes on.
        """

        def work(session: Session, _: Study) -> Sequence[Attempt]:
            attempts = session.scalars(
                select(Attempt).where(
                    Attempt.study_id == self.study_id,
                    Attempt.worker_id == worker_id,
                    Attempt.state.in_(LIVE_ATTEMPT_STATES),
                )
            ).all()
            for attempt in attempts:
                told = self.told.last_word(attempt.id)
                late = f"{reason}; its worker did not obey {self.told.grace_in_words(told)} and was killed"
                if attempt.verdict_reason is not None:
                    advance_attempt(session, attempt, AttemptState.PRUNED, attempt.verdict_reason)
                elif told is Decision.STOP:
                    advance_attempt(session, attempt, AttemptState.CANCELLED, late)
                else:
                    late += ", so it goes on from its last checkpoint"
                    advance_attempt(session, attempt, AttemptState.PAUSED, late)
            return attempts

        attempts = self._held.transact(work)
        for attempt in attempts:
            if has_ended(attempt):
                self._held.tell_of(attempt)

    @property
    def trials_at_once(self) -> int:
        """Trials that are ever alive together, at most."""
        repeats = self.limits.repeats
        again = 0 if repeats is None else repeats.top_k * len(repeats.seeds)
        return min(self.limits.max_parallel_trials, max(self.limits.trials, again))

    def wanted_workers(self, unsent: int, *, busy: int) -> int:
        """How many workers have something to do.

        Breadth first: beside those that train, one for each trial that is still to be sent out, since a
        trial trains faster alone than in a pack. Packs fill where the cluster has no room for more workers.

        Args:
            unsent: trials still to be sent out, after what `decide` wanted was done.
            busy: workers with a trial, likewise.
        """
        wanted = min(busy + unsent, self.limits.max_parallel_trials)
        most = self.definition.resources.workers
        return wanted if most == "auto" else min(wanted, most)

    def end_trial(self, number: int, outcome: AttemptState, reason: str) -> None:
        """End a trial that has no live attempt."""
        self._held.end_trial(number, outcome, reason)

    def close_trials(self, reason: str) -> None:
        """End every trial that is open still: its study ends without waiting for it."""
        recovery.close(self._held, reason)

    def put_down_attempts(self, reason: str) -> None:
        """End every live attempt as paused; the trials go on from their last checkpoints."""

        def work(session: Session, _: Study) -> None:
            live = Attempt.study_id == self.study_id, Attempt.state.in_(LIVE_ATTEMPT_STATES)
            for attempt in session.scalars(select(Attempt).where(*live).order_by(Attempt.id)):
                advance_attempt(session, attempt, AttemptState.PAUSED, reason)

        self._held.transact(work)

    def pause(self, reason: str, *, even_if_resumed: bool = False) -> bool:
        """running -> paused, and the lease is given back.

        Args:
            reason: why.
            even_if_resumed: it cannot go on, whoever wants it to.

        Returns:
            False, with nothing changed, if somebody took the pause back after the last snapshot was taken.
        """

        def work(session: Session, study: Study) -> bool:
            if study.resumed_at != self._resumed_at and not even_if_resumed:
                return False
            put_down(session, study, reason)
            return True

        return self._held.transact(work)

    def is_to_be_cancelled(self) -> bool:
        """Whether somebody wants it to end."""
        with self._held.database.read() as session:
            return session.get_one(Study, self.study_id).cancel_requested

    def has_sent(self, attempt_id: int, worker_id: str) -> bool:
        """Whether the service's tables know that a worker was sent an attempt."""
        sent = Attempt.id == attempt_id, Attempt.study_id == self.study_id, Attempt.worker_id == worker_id
        with self._held.database.read() as session:
            return session.scalars(select(Attempt.id).where(*sent)).one_or_none() is not None

    def end(self, state: StudyState, reason: str) -> None:

        def work(session: Session, study: Study) -> None:
            if study.state == StudyState.QUEUED and state is StudyState.COMPLETED:
                advance_study(session, study, StudyState.RUNNING, "a coordinator has started it")
            advance_study(session, study, state, reason)
            study.lease_owner = None
            study.lease_expires_at = None

        self._held.transact(work)


def _limits(held: HeldStudy) -> Limits:
    definition, budget = held.definition, held.definition.budget
    search, repeats = definition.search, definition.repeats
    trials = suggest.planned_trials(definition, held.preparation)
    grid = search.algorithm == "grid"
    size = search.space.grid_size() if grid else search.space.size()
    left = None if size is None else size - len(held.preparation.evaluated)
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
