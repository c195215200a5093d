"""One leased study in the coordinator's hands: what `decide` sees of it, and what it may do to it.

Each method that writes is one transaction that begins by holding the lease.
"""

from __future__ import annotations

from collections.abc import Collection
from pathlib import Path

from sqlalchemy import select

from search_spaces import samplers
from search_spaces.definition import build_recipe
from service import optuna_store
from service.coordinator.dispatch import TrialOrder, WorkerShape
from service.coordinator.held_study import HeldStudy
from service.coordinator.leases import Lease
from service.coordinator.orders import make_order
from service.coordinator.room import Room
from service.coordinator.snapshot import Limits, Repeats, Snapshot
from service.coordinator.study_events import StudyEvents
from service.coordinator.trial_history import gpu_hours, trial_snapshots
from service.database import Database, database_now
from service.models import Attempt, EventRow, Study
from service.states import LIVE_ATTEMPT_STATES, AttemptState, StudyState, advance_study


class StudyRun:
    """A study while this coordinator holds its lease.

    Args:
        lease: what makes it ours.
        database: the service's tables.
        storage: Optuna's.
        artifacts_dir: where its attempts get their folders.

    Raises:
        ValidationError: this version cannot read the stored definition.
    """

    def __init__(
        self,
        *,
        lease: Lease,
        database: Database,
        storage: optuna_store.Storage,
        artifacts_dir: Path,
    ) -> None:
        self._held = HeldStudy(lease=lease, database=database, storage=storage)
        self._artifacts_dir = artifacts_dir
        self.lease = lease
        self.name = self._held.name
        self.definition = self._held.definition
        self.limits = _limits(self._held)
        self.events = StudyEvents(self._held)
        """Takes in what its workers say."""

    @property
    def study_id(self) -> str:
        return self.lease.study_id

    def reconcile(self) -> None:
        """Bring Optuna's side in line with the attempts. Idempotent; run on every taking of the lease."""
        self._held.load()

    def snapshot(self, *, room: Room, unplaceable_reason: str | None) -> Snapshot:
        """What `decide` looks at."""
        held = self._held
        with held.database.read() as session:
            study = session.get_one(Study, self.study_id)
            attempts = session.scalars(select(Attempt).where(Attempt.study_id == self.study_id)).all()
            now = database_now(session)
        # From the first dispatch: a study that waits for another's workers has spent nothing.
        started = min((a.dispatched_at for a in attempts), default=now)
        return Snapshot(
            state=StudyState(study.state),
            cancel_requested=study.cancel_requested,
            limits=self.limits,
            trials=tuple(
                trial_snapshots(
                    attempts,
                    asked=held.asked,
                    ends=held.ends,
                    stops_sent=held.stops_sent,
                    base_of=held.base,
                )
            ),
            room=room,
            running_seconds=(now - started).total_seconds(),
            gpu_hours=gpu_hours(attempts, now),
            exhausted=held.exhausted,
            unplaceable_reason=unplaceable_reason,
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
        with self._held.transaction() as (session, study):
            if study.state == StudyState.QUEUED:
                advance_study(session, study, StudyState.RUNNING, "a coordinator took it up")

    def ask(self) -> int | None:
        """One more trial from the sampler: its number; None: the space has no further configuration."""
        return self._held.ask()

    def ask_repeat(self, of: int, seed: int) -> int:
        """A trial of another one's recipe with a further seed: its number."""
        return self._held.ask_repeat(of, seed)

    def open_attempt(self, number: int, *, worker_id: str, shape: WorkerShape) -> TrialOrder:
        """Write the attempt's row, then make its order."""
        held, recipe = self._held, self._held.recipe(number)
        with held.transaction() as (session, _):
            earlier = held.attempts_of(session, number)
            ordinal = len(earlier) + 1
            folder = self._artifacts_dir / self.study_id / str(number) / str(ordinal)
            attempt = Attempt(
                study_id=self.study_id,
                trial_number=number,
                ordinal=ordinal,
                worker_id=worker_id,
                gpus=shape.num_gpus,
                artifact_dir=str(folder),
            )
            session.add(attempt)
            session.flush()
            session.add(held.event(attempt, "attempt_dispatched", f"attempt {ordinal} sent to {worker_id}"))
        return make_order(self.definition, recipe, attempt, earlier, held.kind)

    def stop_sent(self, attempt_id: int) -> None:
        """Remember that a live attempt was told to stop."""
        self._held.stops_sent.add(attempt_id)

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
        with self._held.transaction() as (session, _):
            session.add(
                EventRow(
                    study_id=self.study_id,
                    trial_number=number,
                    kind=f"trial_{outcome}",
                    message=reason,
                )
            )
        self._held.tell(number, outcome, reason)

    def close_trials(self, reason: str) -> None:
        """End every trial that is open still, as cancelled: its study ends without waiting for it."""
        for trial in optuna_store.unfinished_asks(self._held.optuna):
            self.end_trial(trial.number, AttemptState.CANCELLED, reason)

    def end(self, state: StudyState, reason: str) -> None:
        with self._held.transaction() as (session, study):
            if study.state == StudyState.QUEUED and state is StudyState.COMPLETED:
                advance_study(session, study, StudyState.RUNNING, "a coordinator took it up")
            advance_study(session, study, state, reason)
            study.lease_owner = None
            study.lease_expires_at = None


def _limits(held: HeldStudy) -> Limits:
    definition, budget = held.definition, held.definition.budget
    search, repeats = definition.search, definition.repeats
    trials = samplers.planned_trials(definition, held.preparation)
    grid = search.algorithm == "grid"
    size = search.space.grid_size() if grid else search.space.size()
    exhausts = search.trials is None or trials < search.trials or trials == size
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
