"""The coordinator's loop: events in, actions out, for all the studies whose leases it holds.

One thread. Each round fires due schedules, takes and renews leases, applies what the workers sent, and
performs what `decide` wants for each study (`service.coordinator.study.runner`). A round can be cut short
anywhere: what was not acknowledged comes again, and what was recorded is not done twice.
"""

from __future__ import annotations

import logging
import math
import os
import socket
import threading
import time
import uuid
from collections.abc import Callable
from contextlib import suppress
from datetime import timedelta
from functools import partial

from sqlalchemy.exc import DataError, IntegrityError, SQLAlchemyError
from sqlalchemy.orm import Session

from search_spaces.errors import SearchSpaceError, machine_fault
from search_spaces.wording import counted
from service.coordinator import leases
from service.coordinator.chores.artifact_sweeper import Sweeper
from service.coordinator.chores.fingerprints import FingerprintReader
from service.coordinator.chores.preparation import advance_stages
from service.coordinator.chores.schedules import (
    cancel_unstarted,
    close_windows,
    fire_schedules,
    repair_schedules,
    say_who_waits,
)
from service.coordinator.chores.signs_of_life import SignsOfLife
from service.coordinator.cluster.deliveries import Delivery, Found, Workers
from service.coordinator.cluster.orders import base_of
from service.coordinator.cluster.ray_deaths import first_line
from service.coordinator.cluster.ray_workers import ClusterError
from service.coordinator.cluster.worker_group import WorkerGroup
from service.coordinator.outages import Outages, is_trouble
from service.coordinator.policy.placement import trials_at_once
from service.coordinator.policy.waiting import Standing
from service.coordinator.study.attempts import live_attempts
from service.coordinator.study.leased_study import LeasedStudy
from service.coordinator.study.runner import StudyRunner
from service.coordinator.study.snapshot_reader import limits_of
from service.db.database import Database, database_now
from service.db.transitions import advance_study
from service.devices import cluster
from service.devices.cluster import Node
from service.errors import LeaseLost
from service.optuna_store.storage import Storage, StorageInternalError
from service.settings import Settings
from service.states import StudyState
from service.studies.limits import Limits
from service.telemetry.logs import about

log = logging.getLogger(__name__)

SEEN_LATELY = timedelta(days=7)
"""A machine that the cluster had within this time is waited for."""

CLOCKS_SECONDS = 10.0
"""How often it is looked whether a wrong clock has put a schedule's next firing too far away."""

CONNECT_SECONDS = 120.0
"""How long connecting to Ray may take at least, however short the limits on silence are set: Ray starts a
process for it, which takes seconds on an idle machine."""

NODES_SECONDS = 10.0
"""How often the cluster is asked what it has."""


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
        storage: Storage,
        workers: Workers,
    ) -> None:
        self._settings = settings
        self._database = database
        self._storage = storage
        self._cluster = workers
        self._sweeper = Sweeper(settings, database, storage)
        self._fingerprints = FingerprintReader()
        self.owner = f"{socket.gethostname()[:32]}-{os.getpid()}-{uuid.uuid4().hex[:8]}"
        self.studies: dict[str, StudyRunner] = {}
        """Those whose leases it holds, by id."""
        self._chores_at = 0.0
        self._clocks_at = -math.inf
        self._nodes: tuple[Node, ...] | None = None
        self._nodes_at = -math.inf
        self._life = SignsOfLife(settings, database, self.owner)
        self._outages = Outages(database, storage, write=self._life.write)
        self._said: dict[str, tuple[int, str]] = {}

    def run(self, stop: threading.Event, cut_short: threading.Event | None = None) -> None:
        """Rounds until `stop` is set, then hand the leases back; the workers train on.

        Where the workers end with this process, their trials write checkpoints before (`drain`), until
        `cut_short` is set.

        An outage of a database is sat out. Whatever else escapes a round, such as a Ray cluster that does
        not answer, ends the process, whose successor takes up where SQL says.
        """
        log.info("coordinator %s started", self.owner)
        try:
            while not stop.is_set():
                self.live_through(self.round, stop)
            if self._settings.workers_end_with_coordinator:
                self.live_through(lambda: self.drain(cut_short or threading.Event()), stop)
        finally:
            self.hand_back()
            self._sweeper.close()
        log.info("coordinator %s stopped", self.owner)

    def live_through(self, work: Callable[[], None], stop: threading.Event) -> None:
        """Do something that needs the databases; if one of them is away, wait until they are back."""
        try:
            work()
        except Exception as error:
            if not is_trouble(error):
                raise
            self._let_go_of_all()
            self._outages.sit_out(error, stop, self._life.touch)

    def round(self) -> None:
        """One round; waits up to `poll_seconds` for events."""
        now = time.monotonic()
        if now - self._chores_at >= self._settings.poll_seconds:
            self._chores_at = now
            self._life.show(now)
            self._note_cluster(now)
            self._cluster.keep_warm()
            cancel_unstarted(self._database)
            if now - self._clocks_at >= CLOCKS_SECONDS:
                self._clocks_at = now
                repair_schedules(self._database)
            close_windows(self._database)
            fire_schedules(self._database, Limits.of(self._settings), self._settings.data_roots)
            advance_stages(self._database, self._storage, self._fingerprints)
            self._take_leases()
            say_who_waits(
                self._database,
                self._said,
                limit=self._settings.max_running_studies,
                per_owner=self._settings.max_running_studies_per_owner,
            )
            self._sweeper.look()
        for delivery in self._cluster.poll(self._settings.poll_seconds):
            self._deliver(delivery)
        for runner in list(self.studies.values()):
            self._guarded(runner, runner.advance)

    def drain(self, cut_short: threading.Event) -> None:
        """Have every live trial put down with a checkpoint, for as long as `drain_seconds` at most.

        The studies stay as they are, and whoever takes them up next goes on from there. Trials that do not
        make it go on from their last checkpoint.
        """
        began, limit = time.monotonic(), self._settings.drain_seconds
        log.info("trials write their checkpoints, for up to %g s", limit)
        while not cut_short.is_set() and time.monotonic() - began < limit:
            self._life.show(time.monotonic())
            for runner in list(self.studies.values()):
                self._guarded(runner, runner.put_down)
            if not any(live_attempts(runner.study) for runner in self.studies.values()):
                log.info("all trials wrote their checkpoints within %.1f s", time.monotonic() - began)
                return
            for delivery in self._cluster.poll(self._settings.poll_seconds):
                self._deliver(delivery)
        left = sum(len(live_attempts(runner.study)) for runner in self.studies.values())
        why = "a second signal ended the wait" if cut_short.is_set() else f"not paused within {limit:g} s"
        log.warning("%s will resume from earlier checkpoints: %s", counted(left, "trial"), why)

    def hand_back(self) -> None:
        """Give all leases back, so that a successor need not wait for them to run out."""
        runners = list(self.studies.values())
        self._let_go_of_all()
        for runner in runners:
            lease = runner.study.lease
            try:
                self._database.transact(partial(leases.release, lease=lease))
            except Exception as error:
                if not is_trouble(error):
                    raise
                log.warning("the lease on study %s was not handed back: %s", runner.study.name, error)
        self._life.end()

    def _let_go_of_all(self) -> None:
        for runner in self.studies.values():
            runner.detach()
        self.studies.clear()

    def _note_cluster(self, now: float) -> None:
        """Keep what the cluster has, for plans, when it has changed."""
        if now - self._nodes_at < NODES_SECONDS:
            return
        self._nodes_at, nodes = now, self._cluster.nodes()
        if nodes != self._nodes:
            self._database.transact(partial(cluster.record, nodes=nodes))
            self._nodes = nodes

    def _lately_seen(self) -> set[Node]:
        """The machines that the cluster had in the last days, those that are away now included."""
        with self._database.read() as session:
            return cluster.seen_since(session, database_now(session) - SEEN_LATELY)

    # -- leases --------------------------------------------------------------------------------

    def _take_leases(self) -> None:
        more = self._settings.max_running_studies - len(self.studies)
        taken = self._database.transact(
            lambda session: leases.take(
                session,
                owner=self.owner,
                seconds=self._settings.lease_seconds,
                limit=more,
                in_hand=self.studies,
                per_owner=self._settings.max_running_studies_per_owner,
            )
        )
        for lease in taken:
            self._take_up(lease)

    def _take_up(self, lease: leases.Lease) -> None:
        settings = self._settings
        try:
            study = LeasedStudy(lease=lease, database=self._database, storage=self._storage)
            limits = limits_of(study)
        except LeaseLost as error:
            log.warning("another coordinator took study %s at once: %s", lease.study_id, error)
            return
        except (ValueError, SearchSpaceError) as error:
            self._refuse(lease, f"this version cannot read the study's definition: {error}")
            return
        log.info("took study %s, lease %d", study.name, study.lease.number)
        earlier = self.studies.pop(study.study_id, None)
        if earlier is not None:  # its lease ran out in this very round; the workers are the new lease's
            earlier.detach()
        workers = WorkerGroup(
            self._cluster,
            study.study_id,
            self._cluster.shape(study.definition.resources),
            base=base_of(study.definition.model),
            at_once=trials_at_once(limits),
            patience=settings.resource_timeout_seconds,
            seen=self._lately_seen,
        )
        runner = StudyRunner(study, limits, workers, settings)
        self.studies[study.study_id] = runner
        self._guarded(runner, runner.adopt)

    def _refuse(self, lease: leases.Lease, reason: str) -> None:
        """Fail a study that cannot even be taken up, or every coordinator would die of it."""
        log.error("study %s: %s", lease.study_id, reason)

        def fail(session: Session) -> None:
            advance_study(session, leases.hold(session, lease), StudyState.FAILED, reason)

        try:
            self._database.transact(fail)
        except LeaseLost as error:
            log.warning("another coordinator took study %s at once: %s", lease.study_id, error)

    # -- one study at a time -------------------------------------------------------------------

    def _deliver(self, delivery: Delivery) -> None:
        if isinstance(delivery, Found):
            runner = self.studies.get(delivery.study_id)
            if runner is not None:
                self._guarded(runner, partial(runner.workers.attach, [delivery.worker_id]))
            return
        for runner in self.studies.values():
            if delivery.worker_id in runner.workers.members:
                self._guarded(runner, partial(runner.apply, delivery))
                return

    def _guarded(self, runner: StudyRunner, work: Callable[[], None]) -> None:
        """Do something for one study; whatever goes wrong there must not touch the others.

        A study whose lease is lost is let go of. A database, a cluster or a machine that fails concerns every
        study, so `run` deals with it. Anything else is an internal error: the study fails with the reason, so
        that it does not meet the error again in every round.
        """
        with about(study=runner.study.name, study_id=runner.study.study_id):
            try:
                runner.renew_when_due()
                self._fail_by_itself(runner, work)
            except LeaseLost as error:
                log.warning("gave up study %s: %s", runner.study.name, error)
                runner.detach()
        if runner.over:
            self.studies.pop(runner.study.study_id, None)

    def _fail_by_itself(self, runner: StudyRunner, work: Callable[[], None]) -> None:
        """Do it; end the study where that is internal and the study's own."""
        try:
            work()
        except LeaseLost:
            raise
        except Exception as error:
            if not _is_of_one_study(error):
                _say_what_is_waited_for(runner, error)
                raise
            log.exception("study %s met an internal error", runner.study.name)
            what = f"{type(error).__name__}: {error}"
            runner.abandon(f"internal error, see the coordinator's log: {what}")


def _say_what_is_waited_for(runner: StudyRunner, error: Exception) -> None:
    """Write down what keeps a study from going on, where that can be written."""
    fault = machine_fault(error)
    if fault is None and not isinstance(error, ClusterError):
        return
    what = f"this machine: {fault}" if fault is not None else f"the Ray cluster: {first_line(str(error))}"
    with suppress(Exception):
        runner.study.say(Standing(words=f"waiting for {what}", waits=True))


def _is_of_one_study(error: Exception) -> bool:
    """Whether the other studies would not meet it, too.

    What a database says is everybody's, unless it is about the values that it was to store. So is a cluster
    that does not answer, and a machine that has run out of disk space, say.
    """
    if isinstance(error, ClusterError) or machine_fault(error) is not None:
        return False
    if isinstance(error, IntegrityError | DataError):
        return True
    if isinstance(error, StorageInternalError):
        return isinstance(error.__cause__, IntegrityError | DataError)
    return not isinstance(error, SQLAlchemyError)
