"""The coordinator's loop: events in, actions out, for all the studies whose leases it holds.

One thread. Each round fires due schedules, takes and renews leases, applies what the workers sent, and
performs what `decide` wants for each study. A round can be cut short anywhere: what was not
acknowledged comes again, and what was recorded is not done twice.
"""

from __future__ import annotations

import logging
import os
import signal
import socket
import threading
import time
import uuid
from collections.abc import Callable
from functools import partial

from sqlalchemy.exc import SQLAlchemyError

from search_spaces.errors import SearchSpaceError
from service import optuna_store
from service.coordinator import leases
from service.coordinator.crew import Crew
from service.coordinator.decide import (
    Action,
    Ask,
    AskRepeat,
    Dispatch,
    EndStudy,
    EndTrial,
    StopAttempt,
    decide,
    starving_bases,
    trials_to_come,
)
from service.coordinator.dispatch import (
    ClusterError,
    Decision,
    Delivered,
    Delivery,
    Event,
    Gone,
    PackCapacity,
    Progress,
    RayWorkers,
    Ready,
    Refused,
    Report,
    TrialOutcome,
    TrialStarted,
    Verdict,
    Workers,
)
from service.coordinator.stages import advance_stages
from service.coordinator.study_run import StudyRun
from service.database import Database, check_schema, database_now, open_database
from service.errors import LeaseLost
from service.schedules.commands import fire_due
from service.settings import Settings, configure_logging
from service.states import StudyState, advance_study

log = logging.getLogger(__name__)

ALIVE_FILE = "coordinator.alive"
"""Touched in every round, in the home folder: what a container's health check looks at."""


class Coordinator:
    """Runs studies until told to stop.

    Args:
        settings: lease length, poll interval, limits.
        database: the service's tables.
        storage: Optuna's.
        workers: the cluster.
    """

    def __init__(
        self,
        settings: Settings,
        database: Database,
        storage: optuna_store.Storage,
        workers: Workers,
    ) -> None:
        self._settings = settings
        self._database = database
        self._storage = storage
        self._cluster = workers
        self.owner = f"{socket.gethostname()[:32]}-{os.getpid()}-{uuid.uuid4().hex[:8]}"
        self._runs: dict[str, StudyRun] = {}
        self._crews: dict[str, Crew] = {}
        self._chores_at = 0.0
        self._renewed_at = 0.0

    def run(self, stop: threading.Event) -> None:
        """Rounds until `stop` is set, then hand the leases back; the workers train on."""
        log.info("coordinator %s started", self.owner)
        while not stop.is_set():
            self.round()
        for run in self._runs.values():
            with self._database.write() as session:
                leases.release(session, run.lease)
        log.info("coordinator %s stopped", self.owner)

    def round(self) -> None:
        """One round; waits up to `poll_seconds` for events."""
        now = time.monotonic()
        if now - self._chores_at >= self._settings.poll_seconds:
            self._chores_at = now
            (self._settings.home / ALIVE_FILE).touch()
            self._cancel_unstarted()
            self._fire_schedules()
            advance_stages(self._database, self._storage)
            self._take_leases()
        if now - self._renewed_at >= self._settings.lease_seconds / 3:
            self._renewed_at = now
            self._for_each(self._renew)
        for delivery in self._cluster.poll(self._settings.poll_seconds):
            self._deliver(delivery)
        self._for_each(self._advance)

    # -- schedules and leases ------------------------------------------------------------------

    def _cancel_unstarted(self) -> None:
        """A study that waits for a free place is cancelled without one."""
        with self._database.write() as session:
            for study in leases.cancelled_while_queued(session):
                advance_study(session, study, StudyState.CANCELLED, "cancelled on request before it started")

    def _fire_schedules(self) -> None:
        with self._database.write() as session:
            for study in fire_due(session, database_now(session)):
                log.info("a schedule fired: study %s", study.name)

    def _take_leases(self) -> None:
        room = self._settings.max_running_studies - len(self._runs)
        with self._database.write() as session:
            taken = leases.take(session, owner=self.owner, seconds=self._settings.lease_seconds, limit=room)
        for lease in taken:
            try:
                run = StudyRun(
                    lease=lease,
                    database=self._database,
                    storage=self._storage,
                    artifacts_dir=self._settings.artifacts_dir,
                )
            except (ValueError, SearchSpaceError) as error:
                self._refuse(lease, f"this version cannot read the study's definition: {error}")
                continue
            log.info("took study %s, lease %d", run.name, lease.number)
            shape = self._cluster.shape(run.definition.resources)
            self._runs[run.study_id] = run
            self._crews[run.study_id] = Crew(
                self._cluster,
                run.study_id,
                shape,
                at_once=run.trials_at_once,
                patience=self._settings.resource_timeout_seconds,
            )
            self._guarded(run, partial(self._adopt, run))

    def _refuse(self, lease: leases.Lease, reason: str) -> None:
        """Fail a study that cannot even be taken up, or every coordinator would die of it."""
        log.error("study %s: %s", lease.study_id, reason)
        with self._database.write() as session:
            study = leases.hold(session, lease)
            advance_study(session, study, StudyState.FAILED, reason)

    def _adopt(self, run: StudyRun) -> None:
        """Repair what a predecessor left half done, and find its workers."""
        run.begin()
        run.reconcile()
        crew = self._crews[run.study_id]
        crew.attach()
        for worker_id in set(run.live_attempts().values()) - crew.members:
            run.events.on_lost([worker_id], f"worker {worker_id} was not found on the cluster")

    def _renew(self, run: StudyRun) -> None:
        with self._database.write() as session:
            leases.renew(session, run.lease, seconds=self._settings.lease_seconds)

    def _for_each(self, work: Callable[[StudyRun], None]) -> None:
        for run in list(self._runs.values()):
            self._guarded(run, partial(work, run))

    def _guarded(self, run: StudyRun, work: Callable[[], None]) -> None:
        """Do something for one study; whatever goes wrong there must not touch the others.

        A lost lease means letting go. Trouble with a database or with the cluster is every study's: it
        ends the process, whose successor takes up where SQL says. Anything else is a fault of ours that
        this study has met: it fails with the reason, in place of meeting it again for ever.
        """
        try:
            try:
                work()
            except (LeaseLost, SQLAlchemyError, optuna_store.StorageInternalError, ClusterError):
                raise
            except Exception as error:
                log.exception("study %s met an internal error", run.name)
                what = f"{type(error).__name__}: {error}"
                self._abandon(run, f"internal error, see the coordinator's log: {what}")
        except LeaseLost as error:
            log.warning("letting go of study %s: %s", run.name, error)
            self._runs.pop(run.study_id, None)
            self._crews.pop(run.study_id).detach()

    def _abandon(self, run: StudyRun, reason: str) -> None:
        """Fail a study that cannot be worked on, with everything it has running."""
        try:
            run.events.on_lost(run.live_attempts().values(), reason)
            run.close_trials(reason)
        except LeaseLost:
            raise
        except Exception:
            # Whatever keeps a trial from being closed must not keep the study from its end.
            log.exception("study %s leaves trials open in Optuna", run.name)
        self._end(run, StudyState.FAILED, reason)

    # -- events in -----------------------------------------------------------------------------

    def _deliver(self, delivery: Delivery) -> None:
        for study_id, crew in self._crews.items():
            if delivery.worker_id in crew.members:
                run = self._runs[study_id]
                self._guarded(run, partial(self._apply, run, crew, delivery))
                return

    def _apply(self, run: StudyRun, crew: Crew, delivery: Delivery) -> None:
        match delivery:
            case Ready(info=info):
                crew.on_ready(info, base=run.base_of_attempts(info.running_attempts))
            case Delivered(worker_id=worker_id, events=events):
                for numbered in events:
                    self._apply_event(run, crew, worker_id, numbered.event, numbered.seq)
                crew.on_delivered(worker_id, max((n.seq for n in events), default=None))
                for attempt_id in crew.unknown_orders(worker_id, run.live_attempts()):
                    run.events.lose(attempt_id, f"its order never reached worker {worker_id}")
            case Refused(worker_id=worker_id, attempt_id=attempt_id, reason=reason):
                crew.on_ended(worker_id, attempt_id)
                run.events.lose(attempt_id, f"worker {worker_id} refused it: {reason}")
            case Gone(worker_id=worker_id, reason=reason):
                crew.on_gone(worker_id, reason)
                for number in run.events.on_lost([worker_id], f"worker {worker_id} died: {reason}"):
                    log.warning("trial %d of %s lost its worker: %s", number, run.name, reason)

    def _apply_event(self, run: StudyRun, crew: Crew, worker_id: str, event: Event, seq: int) -> None:
        match event:
            case TrialStarted():
                run.events.on_started(event, seq)
            case Progress():
                run.events.on_progress(event, seq)
            case Report():
                reason = run.events.on_report(event, seq)
                if reason is not None:
                    crew.send(
                        worker_id,
                        Verdict(attempt_id=event.attempt_id, decision=Decision.PRUNE, reason=reason),
                    )
            case TrialOutcome():
                run.events.on_outcome(event, seq)
                crew.on_ended(worker_id, event.attempt_id)
            case PackCapacity():
                run.events.on_capacity(worker_id, event)
                crew.on_capacity(worker_id, event.slots)

    # -- actions out ---------------------------------------------------------------------------

    def _advance(self, run: StudyRun) -> None:
        crew = self._crews[run.study_id]
        snapshot = run.snapshot(room=crew.room, unplaceable_reason=crew.unplaceable_reason())
        had = crew.live
        for action in decide(snapshot):
            self._perform(run, crew, action)
        if run.study_id in self._runs:
            crew.make_way(starving_bases(snapshot))
            unsent = max(0, trials_to_come(snapshot) - (crew.live - had))
            crew.resize(run.wanted_workers(unsent, busy=crew.busy))

    def _perform(self, run: StudyRun, crew: Crew, action: Action) -> None:
        match action:
            case Ask():
                number = run.ask()
                if number is not None:
                    self._dispatch(run, crew, number)
            case AskRepeat(of=of, seed=seed):
                self._dispatch(run, crew, run.ask_repeat(of, seed))
            case Dispatch(trial_number=number):
                self._dispatch(run, crew, number)
            case StopAttempt(attempt_id=attempt_id, reason=reason):
                run.stop_sent(attempt_id)
                worker_id = run.live_attempts().get(attempt_id)
                if worker_id is not None:
                    crew.send(
                        worker_id, Verdict(attempt_id=attempt_id, decision=Decision.STOP, reason=reason)
                    )
            case EndTrial(trial_number=number, outcome=outcome, reason=reason):
                run.end_trial(number, outcome, reason)
            case EndStudy(state=state, reason=reason):
                self._end(run, state, reason)

    def _dispatch(self, run: StudyRun, crew: Crew, number: int) -> None:
        """Send a trial to a worker that takes its base; without one it waits."""
        worker_id = crew.pick(run.base_of(number))
        if worker_id is not None:
            order = run.open_attempt(number, worker_id=worker_id, shape=crew.shape)
            crew.submit(worker_id, order)

    def _end(self, run: StudyRun, state: StudyState, reason: str) -> None:
        self._renew(run)  # Whoever has lost the lease must leave the workers alone.
        # Before the end is recorded: nobody would look for the workers of a study that is over.
        self._crews[run.study_id].dismiss()
        run.end(state, reason)
        log.info("study %s %s: %s", run.name, state, reason)
        del self._crews[run.study_id], self._runs[run.study_id]


def run(settings: Settings) -> None:
    """The coordinator process: until SIGTERM or SIGINT."""
    configure_logging(settings)
    database = open_database(settings)
    check_schema(database.engine)
    storage = optuna_store.open_storage(settings)
    workers = RayWorkers(settings.ray_address or "auto", orphan_timeout_s=settings.orphan_timeout_seconds)
    stop = threading.Event()
    for signum in (signal.SIGTERM, signal.SIGINT):  # after Ray, which installs handlers of its own
        signal.signal(signum, lambda *_: stop.set())
    try:
        Coordinator(settings, database, storage, workers).run(stop)
    finally:
        workers.close()
        optuna_store.close_storage(storage)
        database.dispose()
