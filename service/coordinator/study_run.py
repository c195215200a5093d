"""One leased study in the coordinator's hands: what it knows, and the writes it may make.

Each method that writes is one transaction that begins by holding the lease. SQL comes first and
Optuna second, and whatever Optuna is told may be told again, so a crash between the two repairs
itself when the study is next taken (`reconcile`).
"""

from __future__ import annotations

import logging
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import Any

from sqlalchemy import select
from sqlalchemy.orm import Session

from search_spaces.definition import StudyDefinition, build_recipe
from service import optuna_store
from service.coordinator import leases
from service.coordinator.decide import Limits, Snapshot, TrialPhase
from service.coordinator.dispatch import (
    PackCapacity,
    Progress,
    Report,
    TrialOrder,
    TrialOutcome,
    TrialStarted,
    WorkerShape,
)
from service.coordinator.leases import Lease
from service.coordinator.orders import make_order
from service.coordinator.trial_history import gpu_hours, has_ended, trial_snapshots
from service.database import Database, database_now
from service.models import Attempt, EventRow, Study
from service.states import (
    LIVE_ATTEMPT_STATES,
    AttemptState,
    StudyState,
    advance_attempt,
    advance_study,
    append_event,
)

log = logging.getLogger(__name__)

WORKER_CAPACITY = "worker_capacity"
"""The kind of event that says how many trials a worker wants at once."""


class StudyRun:
    """A study while this coordinator holds its lease."""

    def __init__(
        self,
        *,
        lease: Lease,
        database: Database,
        storage: optuna_store.Storage,
        artifacts_dir: Path,
    ) -> None:
        self.lease = lease
        self._database = database
        self._storage = storage
        self._artifacts_dir = artifacts_dir
        with self._transaction() as (_, study):
            self.name = study.name
            self.definition = StudyDefinition.model_validate(study.definition)
        self._optuna = optuna_store.ensure_study(storage, self.name, self.definition, study_id=lease.study_id)
        self._params: dict[int, dict[str, Any]] = {}
        self._closed: dict[int, AttemptState] = {}
        self.stops_sent: set[int] = set()

    @property
    def study_id(self) -> str:
        return self.lease.study_id

    @contextmanager
    def _transaction(self) -> Iterator[tuple[Session, Study]]:
        with self._database.write() as session:
            yield session, leases.hold(session, self.lease)

    def reconcile(self) -> None:
        """Bring Optuna's side in line with the attempts. Idempotent; run on every taking of the lease.

        Asks that were cut short get the parameters they would have got; ends that were recorded but
        not told are told.
        """
        for asked in optuna_store.unfinished_asks(self._optuna):
            optuna_store.complete_ask(self._optuna, self.definition, asked.number)
        for trial in optuna_store.read_trials(self._storage, self.name):
            self._params[trial.number] = dict(trial.params)
            if trial.state != "running":
                self._closed[trial.number] = AttemptState(trial.user_attrs[optuna_store.OUTCOME_ATTR])
        with self._database.read() as session:
            ended = [a for a in self._latest(session).values() if has_ended(a)]
        for attempt in ended:
            if attempt.trial_number not in self._closed:
                self._tell_of(attempt)

    def snapshot(self, *, free_slots: int, unplaceable_reason: str | None) -> Snapshot:
        """What `decide` looks at."""
        limits = self.definition.budget
        with self._database.read() as session:
            study = session.get_one(Study, self.study_id)
            attempts = session.scalars(select(Attempt).where(Attempt.study_id == self.study_id)).all()
            now = database_now(session)
            # From the first dispatch: a study that waits for another's workers has spent nothing.
            started = min((a.dispatched_at for a in attempts), default=now)
            return Snapshot(
                state=StudyState(study.state),
                cancel_requested=study.cancel_requested,
                limits=Limits(
                    trials=self.definition.search.total_trials,
                    max_parallel_trials=limits.max_parallel_trials,
                    max_failed_trials=limits.max_failed_trials,
                    max_retries=limits.max_retries,
                    timeout_seconds=limits.timeout_seconds,
                    max_gpu_hours=limits.max_gpu_hours,
                ),
                trials=tuple(
                    trial_snapshots(
                        attempts, asked=self._params, closed=self._closed, stops_sent=self.stops_sent
                    )
                ),
                free_slots=free_slots,
                running_seconds=(now - started).total_seconds(),
                gpu_hours=gpu_hours(attempts, now),
                unplaceable_reason=unplaceable_reason,
            )

    def live_attempts(self) -> dict[int, str]:
        """Live attempts and the workers they were sent to."""
        with self._database.read() as session:
            rows = session.execute(
                select(Attempt.id, Attempt.worker_id).where(
                    Attempt.study_id == self.study_id, Attempt.state.in_(LIVE_ATTEMPT_STATES)
                )
            ).all()
        return {row.id: row.worker_id for row in rows}

    def begin(self) -> None:
        """queued -> running."""
        with self._transaction() as (session, study):
            if study.state == StudyState.QUEUED:
                advance_study(session, study, StudyState.RUNNING, "a coordinator took it up")

    def ask(self) -> int:
        """One more trial from the sampler; its number."""
        with self._transaction():
            pass  # A coordinator that lost its lease must not ask.
        number, params = optuna_store.ask(self._optuna, self.definition)
        self._params[number] = params
        return number

    def open_attempt(self, number: int, *, worker_id: str, shape: WorkerShape) -> TrialOrder:
        """Write the attempt's row, then make its order."""
        recipe = build_recipe(self.definition, self._params[number])
        with self._transaction() as (session, _):
            earlier = self._attempts_of(session, number)
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
            session.add(self._event(attempt, "attempt_dispatched", f"attempt {ordinal} sent to {worker_id}"))
        return make_order(self.definition, recipe, attempt, earlier)

    def on_started(self, event: TrialStarted, seq: int) -> None:
        with self._transaction() as (session, _):
            attempt = self._live(session, event.attempt_id, seq)
            if attempt is None:
                return
            attempt.last_event_seq = seq
            attempt.total_examples = event.total_examples
            attempt.device = event.device
            doing = f"training on {event.device}: {event.data.in_words()}"
            if event.resumed_at_examples > 0:
                attempt.examples_seen = event.resumed_at_examples
                doing += f"; resumed from a checkpoint after {event.resumed_at_examples:,} examples"
            advance_attempt(session, attempt, AttemptState.RUNNING, doing)

    def on_progress(self, event: Progress, seq: int) -> None:
        with self._transaction() as (session, _):
            attempt = self._live(session, event.attempt_id, seq)
            if attempt is not None:
                attempt.last_event_seq = seq
                attempt.examples_seen = event.examples_seen
                attempt.step = event.step
                attempt.train_loss = event.train_loss

    def on_report(self, event: Report, seq: int) -> str | None:
        """Tell Optuna the rung's metric; why the trial should be pruned, if it should.

        Optuna first: reporting a step twice changes nothing, while an event that SQL already counts as
        applied would not be looked at again after a crash.
        """
        with self._transaction() as (session, _):
            attempt = self._live(session, event.attempt_id, seq)
            if attempt is None or attempt.verdict_reason is not None:
                return None if attempt is None else attempt.verdict_reason
            number, total = attempt.trial_number, attempt.total_examples or event.examples_seen
        newest = optuna_store.report(
            self._optuna, number, event.rung, event.metrics[self.definition.objective.metric]
        )
        reason = None
        if newest and event.examples_seen < total:  # At its end nothing is left to save.
            reason = optuna_store.should_prune(
                self._optuna, self.definition, number, self._max_examples(number, total)
            )
        with self._transaction() as (session, _):
            attempt = session.get_one(Attempt, event.attempt_id)
            attempt.last_event_seq = seq
            attempt.examples_seen = event.examples_seen
            attempt.step = event.step
            attempt.train_loss = event.train_loss
            if reason is not None:
                attempt.verdict_reason = reason
                session.add(self._event(attempt, "prune_decided", reason))
        return reason

    def on_outcome(self, event: TrialOutcome, seq: int) -> None:
        """Record the end of an attempt in SQL, then tell Optuna."""
        with self._transaction() as (session, _):
            attempt = self._live(session, event.attempt_id, seq)
            if attempt is None:
                return
            attempt.last_event_seq = seq
            state, reason = AttemptState(event.status), event.reason
            if attempt.verdict_reason is not None:
                # The pruner's word is final, also over a trial that outran it.
                state, reason = AttemptState.PRUNED, attempt.verdict_reason
            attempt.examples_seen = max(attempt.examples_seen, event.examples_seen)
            attempt.outcome = {**asdict(event), "metrics": dict(event.metrics)}
            advance_attempt(session, attempt, state, reason)
        self.stops_sent.discard(attempt.id)
        self._tell_of(attempt)

    def on_lost(self, worker_ids: Iterable[str], reason: str) -> list[int]:
        """End the live attempts of dead workers; the numbers of the trials that are lost by it."""
        with self._transaction() as (session, _):
            attempts = session.scalars(
                select(Attempt).where(
                    Attempt.study_id == self.study_id,
                    Attempt.worker_id.in_(set(worker_ids)),
                    Attempt.state.in_(LIVE_ATTEMPT_STATES),
                )
            ).all()
            for attempt in attempts:
                _lose(session, attempt, reason)
                self.stops_sent.discard(attempt.id)
        for attempt in attempts:
            if has_ended(attempt):
                self._tell_of(attempt)
        return [a.trial_number for a in attempts if not has_ended(a)]

    def lose(self, attempt_id: int, reason: str) -> None:
        """End one attempt as lost while its worker lives."""
        with self._transaction() as (session, _):
            attempt = session.get_one(Attempt, attempt_id)
            if attempt.state not in LIVE_ATTEMPT_STATES:
                return
            _lose(session, attempt, reason)
        if has_ended(attempt):
            self._tell_of(attempt)

    def on_capacity(self, worker_id: str, event: PackCapacity) -> None:
        """Write down how many trials a worker wants at once, in words.

        The worker keeps only its newest word, so one that comes again is the newest that was written.
        """
        reason = event.reason.removesuffix(".")  # what follows belongs to the sentence
        message = f"{worker_id} wants {_trials(event.slots)} at once: {reason}{_memory(event)}"
        with self._transaction() as (session, _):
            newest = session.scalars(
                select(EventRow.message)
                .where(
                    EventRow.study_id == self.study_id,
                    EventRow.kind == WORKER_CAPACITY,
                    EventRow.message.startswith(f"{worker_id} ", autoescape=True),
                )
                .order_by(EventRow.id.desc())
                .limit(1)
            ).one_or_none()
            if newest != message:
                append_event(session, self.study_id, WORKER_CAPACITY, message)

    @property
    def trials_at_once(self) -> int:
        """Trials that are ever alive together, at most."""
        return min(self.definition.budget.max_parallel_trials, self.definition.search.total_trials)

    def wanted_workers(self, snapshot: Snapshot, *, busy: int, live: int) -> int:
        """How many workers have something to do.

        Breadth first: beside those that train, one for each trial that is still to be sent out, since a
        trial trains faster alone than in a pack. Packs fill where the cluster has no room for more workers.

        Args:
            snapshot: the study as `decide` saw it.
            busy: workers with a trial, after what `decide` wanted was done.
            live: trials they have.
        """
        ended = sum(t.phase is TrialPhase.ENDED for t in snapshot.trials)
        unsent = max(0, snapshot.limits.trials - ended - live)
        wanted = min(busy + unsent, snapshot.limits.max_parallel_trials)
        most = self.definition.resources.workers
        return wanted if most == "auto" else min(wanted, most)

    def end_trial(self, number: int, outcome: AttemptState, reason: str) -> None:
        """End a trial that has no live attempt."""
        with self._transaction() as (session, _):
            session.add(
                EventRow(
                    study_id=self.study_id,
                    trial_number=number,
                    kind=f"trial_{outcome}",
                    message=reason,
                )
            )
        self._tell(number, outcome, reason)

    def close_trials(self, reason: str) -> None:
        """End every trial that is open still, as cancelled: its study ends without waiting for it."""
        for trial in optuna_store.unfinished_asks(self._optuna):
            self.end_trial(trial.number, AttemptState.CANCELLED, reason)

    def end(self, state: StudyState, reason: str) -> None:
        with self._transaction() as (session, study):
            if study.state == StudyState.QUEUED and state is StudyState.COMPLETED:
                advance_study(session, study, StudyState.RUNNING, "a coordinator took it up")
            advance_study(session, study, state, reason)
            study.lease_owner = None
            study.lease_expires_at = None

    def _attempts_of(self, session: Session, number: int) -> list[Attempt]:
        """The attempts of one trial so far, oldest first."""
        of_trial = select(Attempt).where(Attempt.study_id == self.study_id, Attempt.trial_number == number)
        return list(session.scalars(of_trial.order_by(Attempt.ordinal)))

    def _latest(self, session: Session) -> dict[int, Attempt]:
        rows = session.scalars(
            select(Attempt).where(Attempt.study_id == self.study_id).order_by(Attempt.ordinal)
        )
        return {a.trial_number: a for a in rows}

    def _live(self, session: Session, attempt_id: int, seq: int) -> Attempt | None:
        """The attempt, if this event of it is new and it still lives."""
        attempt = session.get(Attempt, attempt_id)
        if attempt is None or attempt.study_id != self.study_id or attempt.state not in LIVE_ATTEMPT_STATES:
            log.warning("an event of attempt %s was ignored: the attempt is not alive", attempt_id)
            return None
        return attempt if seq > attempt.last_event_seq else None

    def _max_examples(self, number: int, total_examples: int) -> int:
        """Training examples of the longest trial the space allows, from what this one sees."""
        epochs = build_recipe(self.definition, self._params[number]).epochs
        return max(total_examples, round(total_examples / epochs * self.definition.max_epochs))

    def _tell_of(self, attempt: Attempt) -> None:
        value = (attempt.outcome or {}).get("value")
        self._tell(attempt.trial_number, AttemptState(attempt.state), attempt.reason, value)

    def _tell(self, number: int, outcome: AttemptState, reason: str, value: float | None = None) -> None:
        optuna_store.tell(self._optuna, number, outcome, reason, value=value)
        self._closed[number] = outcome

    def _event(self, attempt: Attempt, kind: str, message: str) -> EventRow:
        return EventRow(study_id=self.study_id, trial_number=attempt.trial_number, kind=kind, message=message)


def _lose(session: Session, attempt: Attempt, reason: str) -> None:
    """End an attempt whose worker is lost; what the pruner has decided stands all the same."""
    if attempt.verdict_reason is None:
        advance_attempt(session, attempt, AttemptState.LOST, reason)
    else:
        advance_attempt(session, attempt, AttemptState.PRUNED, attempt.verdict_reason)


def _trials(number: int) -> str:
    return "1 trial" if number == 1 else f"{number} trials"


def _memory(event: PackCapacity) -> str:
    said = (("predicted", event.predicted_bytes), ("measured", event.measured_bytes))
    known = [f"{name} {size / 2**30:.2f} GiB" for name, size in said if size]
    return f" (memory: {', '.join(known)})" if known else ""
