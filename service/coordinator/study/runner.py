"""Runs one leased study, events in and actions out: the effectful shell around `decide`.

Nothing here destroys what may be another coordinator's by now: workers are ended only after a look at the
lease (`renew_when_due`), and let go of, never ended, once it is lost.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Iterable
from dataclasses import replace
from datetime import datetime
from functools import partial

from service.coordinator.cluster.deliveries import Delivered, Delivery, Gone, Ready, Refused
from service.coordinator.cluster.sent_verdicts import SentVerdicts
from service.coordinator.cluster.worker_group import WorkerGroup
from service.coordinator.outages import is_trouble
from service.coordinator.policy import waiting
from service.coordinator.policy.decide import (
    Action,
    Ask,
    AskEvaluation,
    AskRepeat,
    Dispatch,
    EndStudy,
    EndTrial,
    KillWorker,
    PauseAttempt,
    PauseStudy,
    StopAttempt,
    decide,
    starving_bases,
    suspects_waiting,
    trials_to_come,
)
from service.coordinator.policy.limits import Limits
from service.coordinator.policy.placement import wanted_workers
from service.coordinator.policy.snapshot import Snapshot, TrialPhase
from service.coordinator.study import attempts, contests, recovery, snapshot_reader
from service.coordinator.study.device_health import devices_aside
from service.coordinator.study.leased_study import LeasedStudy
from service.coordinator.study.worker_events import DROP, WorkerEvents
from service.errors import Inconsistent, LeaseLost
from service.settings import Settings
from service.states import LossCause, StudyState
from workers.contract import (
    Decision,
    Event,
    PackCapacity,
    PassCosts,
    Preparing,
    Progress,
    Report,
    Stalled,
    TrialOutcome,
    TrialStarted,
    Verdict,
    WorkerInfo,
)

log = logging.getLogger(__name__)

CANCELLED = "cancelled on request"

SERVICE_ENDS = "the service is ending, and its workers with it"


def clock() -> float:
    """Seconds that go on while this process, or the machine under it, stands still."""
    if hasattr(time, "CLOCK_BOOTTIME"):
        return time.clock_gettime(time.CLOCK_BOOTTIME)
    return time.monotonic()


class StudyRunner:
    """Runs one leased study on the workers that train its trials.

    Args:
        study: the study.
        limits: what bounds it.
        workers: its workers.
        settings: how long its lease and its patience last, and what its workers may read.
    """

    def __init__(self, study: LeasedStudy, limits: Limits, workers: WorkerGroup, settings: Settings) -> None:
        self.study = study
        self.workers = workers
        self.events = WorkerEvents(study)
        """Takes in what its workers say."""
        self.over = False
        """The lease was given back; nothing of the study is left to do here."""
        self._limits = limits
        self._settings = settings
        self._sent = SentVerdicts(
            stop_grace=settings.stop_grace_seconds, pause_grace=settings.pause_grace_seconds
        )
        self._renewed_at = clock()

    # -- the lease -----------------------------------------------------------------------------

    def renew_when_due(self) -> None:
        """Renew the lease when a third of it has passed. Raises `LeaseLost` when somebody else has it.

        Called before every piece of work on the study, so that a coordinator that stood still finds out
        before it does anything.
        """
        if clock() - self._renewed_at >= self._settings.lease_seconds / 3:
            self.renew()

    def renew(self) -> None:
        """Extend the lease. Raises `LeaseLost`."""
        began = clock()
        self.study.renew(self._settings.lease_seconds)
        self._renewed_at = began

    # -- taking it up, letting go --------------------------------------------------------------

    def adopt(self) -> None:
        """Repair what a predecessor left half done, and find its workers."""
        self.study.begin()
        try:
            recovery.reconcile(self.study)
        except Inconsistent as error:
            self.halt(str(error))
            return
        sent_to = set(attempts.live_attempts(self.study).values())
        self.workers.attach(sent_to)
        for worker_id in sent_to - self.workers.members:
            self.events.on_lost(
                [worker_id], f"worker {worker_id} was not found on the cluster", LossCause.NODE_DIED
            )

    def halt(self, reason: str) -> None:
        """Pause a study that a person has to look at, and end its workers: their reports cannot be recorded.

        A study that is to be cancelled is cancelled instead.
        """
        log.error("study %s cannot go on: %s", self.study.name, reason)
        self.workers.attach(attempts.live_attempts(self.study).values())
        attempts.put_down_attempts(self.study, reason)
        if self.study.is_to_be_cancelled():
            recovery.close(self.study, CANCELLED)
            self.end(StudyState.CANCELLED, CANCELLED)
        else:
            self.pause(reason, even_if_resumed=True)

    def detach(self) -> None:
        """Let go of the study: its workers train on, for whoever has its lease now."""
        self.over = True
        self.workers.detach()

    def abandon(self, reason: str) -> None:
        """Fail a study that cannot be worked on, with everything it has running."""
        sent_to = attempts.live_attempts(self.study).values()
        self.workers.attach(sent_to)  # It may have no worker yet, and nobody would look for them any more.
        try:
            self.events.on_lost(sent_to, reason, LossCause.UNREACHABLE)
            recovery.close(self.study, reason)
        except LeaseLost:
            raise
        except Exception as error:
            if is_trouble(error):
                raise  # A database that is away now may be back for the end of the study.
            # Whatever keeps a trial from being closed must not keep the study from its end.
            log.exception("study %s leaves trials open in Optuna", self.study.name)
        self.end(StudyState.FAILED, reason)

    def end(self, state: StudyState, reason: str) -> None:
        """End the study, and give its workers back."""
        self.renew()  # Whoever has lost the lease must leave the workers alone.
        # Before the end is recorded: nobody would look for the workers of a study that is over.
        self.workers.dismiss()
        if not self.study.end(state, reason, contests.settlement(self.study, state, reason)):
            return  # it was extended meanwhile, and goes on with other workers
        self.over = True
        log.info("study %s %s: %s", self.study.name, state, reason)

    def put_down(self) -> None:
        """Have what is alive write a checkpoint, since its workers are about to end.

        The study stays as it is. May be called again and again: a worker that does not obey is told again now
        and then.
        """
        for attempt_id in attempts.live_attempts(self.study):
            if self._sent.is_due(attempt_id):
                self.tell(attempt_id, Decision.PAUSE, SERVICE_ENDS)

    def pause(
        self, reason: str, *, resumed_at: datetime | None = None, even_if_resumed: bool = False
    ) -> None:
        """Give the study's workers and its lease back, until somebody resumes it (`LeasedStudy.pause`).

        Somebody may have done so since this was decided: then it goes on, with other workers.
        """
        self.renew()
        self.workers.dismiss()
        if not self.study.pause(reason, resumed_at=resumed_at, even_if_resumed=even_if_resumed):
            return
        self.over = True
        log.info("study %s paused: %s", self.study.name, reason)

    # -- events in -----------------------------------------------------------------------------

    def apply(self, delivery: Delivery) -> None:
        """Take in what the cluster says of one of the study's workers."""
        workers = self.workers
        match delivery:
            case Ready(info=info) if not self._knows_orders_of(info):
                self._end_unknown(info.worker_id)
            case Ready(info=info):
                workers.on_ready(info, base=attempts.base_of_attempts(self.study, info.running_attempts))
                self._drop_ended(info.worker_id, info.running_attempts)
            case Delivered(worker_id=worker_id, events=events):
                for numbered in events:
                    if isinstance(numbered.event, Stalled):
                        self._end_stalled(worker_id, numbered.event.reason)
                        return
                    self._apply_event(worker_id, numbered.event, numbered.seq)
                workers.on_delivered(worker_id, max((n.seq for n in events), default=None))
                live = partial(attempts.live_attempts, self.study)
                for attempt_id in workers.unknown_orders(worker_id, live):
                    reason = f"its order never reached worker {worker_id}"
                    self.events.lose(attempt_id, reason, LossCause.NEVER_ARRIVED)
            case Refused(worker_id=worker_id, attempt_id=attempt_id, reason=reason):
                workers.on_ended(worker_id, attempt_id)
                reason = f"worker {worker_id} refused it: {reason}"
                self.events.lose(attempt_id, reason, LossCause.NEVER_ARRIVED)
            case Gone(worker_id=worker_id, reason=reason, cause=cause):
                workers.on_gone(worker_id, reason, cause)
                for number in self.events.on_lost(
                    [worker_id], f"worker {worker_id} is lost: {reason}", cause
                ):
                    log.warning("trial %d of %s lost its worker: %s", number, self.study.name, reason)

    def _apply_event(self, worker_id: str, event: Event, seq: int) -> None:
        match event:
            case Preparing():
                self.events.on_preparing(event, seq)
                self.workers.on_started(worker_id, event.attempt_id)
            case TrialStarted():
                said = self.events.on_started(event, seq)
                self.workers.on_started(worker_id, event.attempt_id)
                self._answer(worker_id, event.attempt_id, said)
            case Progress():
                self.events.on_progress(event, seq)
            case Report():
                said = self.events.on_report(event, seq)
                self._answer(worker_id, event.attempt_id, said)
            case TrialOutcome():
                self.events.on_outcome(event, seq)
                self.workers.on_ended(worker_id, event.attempt_id)
            case PackCapacity():
                self.events.on_capacity(worker_id, event)
                self.workers.on_capacity(worker_id, event.slots)
            case PassCosts():
                self.events.on_pass_costs(event)

    def _end_stalled(self, worker_id: str, what: str) -> None:
        """End a worker whose training hangs: nothing else ends a call that does not return."""
        self.renew()  # Whoever has lost the lease must leave the workers alone.
        reason = f"worker {worker_id} hung and was killed: {what}"
        log.warning("%s", reason)
        self.workers.kill(worker_id)
        self.events.on_lost([worker_id], reason, LossCause.STALLED)

    def _knows_orders_of(self, info: WorkerInfo) -> bool:
        """Whether the service's tables know the worker's last order, which they had before the worker.

        If not, they were put back to an earlier moment. The numbers of attempts that are forgotten are given
        out again, and the worker would take those orders for the ones it had.
        """
        return info.newest_attempt is None or attempts.has_sent(
            self.study, info.newest_attempt, info.worker_id
        )

    def _end_unknown(self, worker_id: str) -> None:
        reason = f"worker {worker_id} was ended: the database does not know its orders"
        self.renew()  # Whoever has lost the lease must leave the workers alone.
        log.warning("%s", reason)
        self.workers.kill(worker_id)
        self.events.on_lost([worker_id], reason, LossCause.NODE_DIED)

    def _drop_ended(self, worker_id: str, attempt_ids: Iterable[int]) -> None:
        """Have a worker drop attempts that have ended here, such as one whose order arrived too late."""
        for attempt_id in set(attempt_ids) - set(attempts.live_attempts(self.study)):
            self._send(worker_id, attempt_id, *DROP)

    def _answer(self, worker_id: str, attempt_id: int, said: tuple[Decision, str] | None) -> None:
        if said is not None:
            self._send(worker_id, attempt_id, *said)

    # -- actions out ---------------------------------------------------------------------------

    def advance(self) -> None:
        """Perform what `decide` wants, and see that there are as many workers as have something to do."""
        study, workers = self.study, self.workers
        with study.database.read() as session:
            workers.put_aside(devices_aside(session))
            if study.follow(session):
                self._limits = snapshot_reader.limits_of(study)
                study.exhausted = False
        snapshot = snapshot_reader.read_snapshot(
            study,
            self._limits,
            self._sent,
            placement=workers.placement,
            unplaceable_reason=workers.unplaceable_reason(),
            stranded_reason=workers.stranded_reason(),
        )
        workers.isolate(snapshot.suspects, waiting=[t.avoid for t in suspects_waiting(snapshot)])
        snapshot = replace(snapshot, placement=workers.placement)
        live_before = workers.live
        for action in decide(snapshot):
            self.renew_when_due()  # A sampler may take its time.
            self._perform(action, snapshot)
        if self.over:
            return
        workers.reserve_for(starving_bases(snapshot))
        unsent = max(0, trials_to_come(snapshot) - (workers.live - live_before))
        wanted = wanted_workers(
            self._limits, unsent, busy=workers.busy, most=study.definition.resources.workers
        )
        self.renew_when_due()  # It ends idle workers, which another holder may have filled meanwhile.
        workers.resize(wanted)
        if snapshot.pause_reason is None:
            standing = waiting.standing(
                training=snapshot.training,
                preparing=snapshot.preparing,
                live=workers.live,
                started=workers.started,
                starting=len(workers.members) - workers.started,
                no_worker=workers.no_worker_reason(wanted),
                resting=any(t.phase is TrialPhase.WAITING and not t.rested for t in snapshot.trials),
            )
            if standing is not None:
                study.say(standing)

    def _perform(self, action: Action, snapshot: Snapshot) -> None:
        match action:
            case Ask():
                number = self.study.ask()
                if number is not None:
                    self._dispatch(number)
            case AskEvaluation():
                number = contests.ask(self.study, action.role)
                if number is not None:
                    self._dispatch(number)
            case AskRepeat():
                self._dispatch(self.study.ask_repeat(action.of, action.seed))
            case Dispatch():
                self._dispatch(action.trial_number, isolated=action.isolated, avoid=action.avoid)
            case StopAttempt():
                self.tell(action.attempt_id, Decision.STOP, action.reason)
            case PauseAttempt():
                self.tell(action.attempt_id, Decision.PAUSE, action.reason)
            case KillWorker():
                self._kill_worker(action)
            case PauseStudy():
                self.pause(action.reason, resumed_at=snapshot.resumed_at)
            case EndTrial():
                self.study.end_trial(action.trial_number, action.outcome, action.reason)
            case EndStudy():
                self.end(action.state, action.reason)

    def _dispatch(self, number: int, *, isolated: bool = False, avoid: str | None = None) -> None:
        """Send a trial to a worker that takes its base; without one it waits."""
        workers, settings = self.workers, self._settings
        worker_id = workers.pick(self.study.base(number), isolated=isolated, avoid=avoid)
        if worker_id is not None:
            order = attempts.open_attempt(
                self.study,
                number,
                worker_id=worker_id,
                shape=workers.shape,
                device_id=workers.device_of(worker_id),
                artifacts=settings.artifacts_root,
                limits=settings.loading_limits,
            )
            workers.submit(worker_id, order, isolated=isolated)

    def tell(self, attempt_id: int, decision: Decision, reason: str) -> None:
        """Have a live attempt stop or pause, and remember since when it should."""
        worker_id = attempts.live_attempts(self.study).get(attempt_id)
        if worker_id is not None:
            self._sent.note(attempt_id, decision)
            self._send(worker_id, attempt_id, decision, reason)

    def _kill_worker(self, action: KillWorker) -> None:
        worker_id = attempts.live_attempts(self.study).get(action.attempt_id)
        if worker_id is None:
            return  # It had another overdue attempt, and is dead already.
        self.renew()  # Whoever has lost the lease must leave the workers alone.
        log.warning("worker %s of %s does not stop its trials and is killed", worker_id, self.study.name)
        self.workers.kill(worker_id)
        attempts.end_disobedient(self.study, self._sent, worker_id, action.reason)

    def _send(self, worker_id: str, attempt_id: int, decision: Decision, reason: str) -> None:
        self.workers.send(worker_id, Verdict(attempt_id=attempt_id, decision=decision, reason=reason))
