"""One held study's events in and actions out: the effectful shell around `decide`.

Nothing here destroys what may be another coordinator's by now: workers are ended only after a look at the
lease (`still_held`), and let go of, never ended, once it is lost.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Iterable
from dataclasses import replace

from service.coordinator.cluster.ray_workers import (
    Decision,
    Delivered,
    Delivery,
    Event,
    Gone,
    PackCapacity,
    Preparing,
    Progress,
    Ready,
    Refused,
    Report,
    Stalled,
    TrialOutcome,
    TrialStarted,
    Verdict,
    WorkerInfo,
)
from service.coordinator.cluster.worker_group import Crew
from service.coordinator.outages import is_trouble
from service.coordinator.policy import waiting
from service.coordinator.policy.decide import (
    Action,
    Ask,
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
from service.coordinator.policy.snapshot import TrialPhase
from service.coordinator.study.study_run import StudyRun
from service.errors import LeaseLost, Torn
from service.states import LossCause, StudyState

log = logging.getLogger(__name__)

NOT_ALIVE = "the coordinator no longer counts this attempt as running"
"""What a worker is told that trains what nobody waits for any more."""

CANCELLED = "cancelled on request"

SERVICE_ENDS = "the service is ending, and its workers with it"


def clock() -> float:
    """Seconds that go on while this process, or the machine under it, stands still."""
    if hasattr(time, "CLOCK_BOOTTIME"):
        return time.clock_gettime(time.CLOCK_BOOTTIME)
    return time.monotonic()


class Performer:
    """A study whose lease is held, with the workers that train its trials.

    Args:
        run: the study.
        crew: its workers.
        lease_seconds: how long its lease lasts unless renewed.
    """

    def __init__(self, run: StudyRun, crew: Crew, *, lease_seconds: float) -> None:
        self.run = run
        self.crew = crew
        self.over = False
        """The lease was given back; nothing of the study is left to do here."""
        self._lease_seconds = lease_seconds
        self._renewed_at = clock()

    # -- the lease -----------------------------------------------------------------------------

    def still_held(self) -> None:
        """Renew the lease when a third of it has passed. Raises `LeaseLost` when somebody else has it.

        Called before every piece of work on the study, so that a coordinator that stood still finds out
        before it does anything.
        """
        if clock() - self._renewed_at >= self._lease_seconds / 3:
            self.renew()

    def renew(self) -> None:
        """Extend the lease. Raises `LeaseLost`."""
        began = clock()
        self.run.renew(self._lease_seconds)
        self._renewed_at = began

    # -- taking it up, letting go --------------------------------------------------------------

    def adopt(self) -> None:
        """Repair what a predecessor left half done, and find its workers."""
        self.run.begin()
        try:
            self.run.reconcile()
        except Torn as error:
            self.halt(str(error))
            return
        self.crew.attach()
        for worker_id in set(self.run.live_attempts().values()) - self.crew.members:
            self.run.events.on_lost(
                [worker_id], f"worker {worker_id} was not found on the cluster", LossCause.NODE_DIED
            )

    def halt(self, reason: str) -> None:
        """Pause a study that a person has to look at, and end its workers: what they say cannot be kept.

        One that nobody wants any more is cancelled.
        """
        log.error("study %s cannot go on: %s", self.run.name, reason)
        self.crew.attach()
        self.run.put_down_attempts(reason)
        if self.run.is_to_be_cancelled():
            self.run.close_trials(CANCELLED)
            self.end(StudyState.CANCELLED, CANCELLED)
        else:
            self.pause(reason, even_if_resumed=True)

    def detach(self) -> None:
        """Let go of the study: its workers train on, for whoever has its lease now."""
        self.over = True
        self.crew.detach()

    def abandon(self, reason: str) -> None:
        """Fail a study that cannot be worked on, with everything it has running."""
        self.crew.attach()  # It may have no worker yet, and nobody would look for them any more.
        try:
            self.run.events.on_lost(self.run.live_attempts().values(), reason, LossCause.UNREACHABLE)
            self.run.close_trials(reason)
        except LeaseLost:
            raise
        except Exception as error:
            if is_trouble(error):
                raise  # A database that is away now may be back for the end of the study.
            # Whatever keeps a trial from being closed must not keep the study from its end.
            log.exception("study %s leaves trials open in Optuna", self.run.name)
        self.end(StudyState.FAILED, reason)

    def end(self, state: StudyState, reason: str) -> None:
        """End the study and its workers."""
        self.renew()  # Whoever has lost the lease must leave the workers alone.
        # Before the end is recorded: nobody would look for the workers of a study that is over.
        self.crew.dismiss()
        self.run.end(state, reason)
        self.over = True
        log.info("study %s %s: %s", self.run.name, state, reason)

    def put_down(self) -> None:
        """Have what is alive write a checkpoint, since its workers are about to end.

        The study stays as it is. May be called again and again: a worker that does not obey is told again now
        and then.
        """
        for attempt_id in self.run.live_attempts():
            if self.run.told.is_to_hear(attempt_id):
                self.tell(attempt_id, Decision.PAUSE, SERVICE_ENDS)

    def pause(self, reason: str, *, even_if_resumed: bool = False) -> None:
        """Give the study's workers and its lease back, until somebody resumes it.

        Somebody may have done so since this was decided: then it goes on, with other workers.
        """
        self.renew()
        self.crew.dismiss()
        if not self.run.pause(reason, even_if_resumed=even_if_resumed):
            return
        self.over = True
        log.info("study %s paused: %s", self.run.name, reason)

    # -- events in -----------------------------------------------------------------------------

    def apply(self, delivery: Delivery) -> None:
        """Take in what the cluster says of one of the study's workers."""
        run, crew = self.run, self.crew
        match delivery:
            case Ready(info=info) if not self._is_ours(info):
                self._send_away(info.worker_id)
            case Ready(info=info):
                crew.on_ready(info, base=run.base_of_attempts(info.running_attempts))
                self._stop_the_dead(info.worker_id, info.running_attempts)
            case Delivered(worker_id=worker_id, events=events):
                for numbered in events:
                    if isinstance(numbered.event, Stalled):
                        self._end_stalled(worker_id, numbered.event.reason)
                        return
                    self._apply_event(worker_id, numbered.event, numbered.seq)
                crew.on_delivered(worker_id, max((n.seq for n in events), default=None))
                for attempt_id in crew.unknown_orders(worker_id, run.live_attempts()):
                    reason = f"its order never reached worker {worker_id}"
                    run.events.lose(attempt_id, reason, LossCause.NEVER_ARRIVED)
            case Refused(worker_id=worker_id, attempt_id=attempt_id, reason=reason):
                crew.on_ended(worker_id, attempt_id)
                reason = f"worker {worker_id} refused it: {reason}"
                run.events.lose(attempt_id, reason, LossCause.NEVER_ARRIVED)
            case Gone(worker_id=worker_id, reason=reason, cause=cause):
                crew.on_gone(worker_id, reason, cause)
                for number in run.events.on_lost([worker_id], f"worker {worker_id} is lost: {reason}", cause):
                    log.warning("trial %d of %s lost its worker: %s", number, run.name, reason)

    def _apply_event(self, worker_id: str, event: Event, seq: int) -> None:
        match event:
            case Preparing():
                self.run.events.on_preparing(event, seq)
                self.crew.on_started(worker_id, event.attempt_id)
            case TrialStarted():
                self.run.events.on_started(event, seq)
                self.crew.on_started(worker_id, event.attempt_id)
                self._stop_the_dead(worker_id, [event.attempt_id])
            case Progress():
                self.run.events.on_progress(event, seq)
            case Report():
                reason = self.run.events.on_report(event, seq)
                if reason is not None:
                    self._send(worker_id, event.attempt_id, Decision.PRUNE, reason)
                self._stop_the_dead(worker_id, [event.attempt_id])  # It may not have heard before.
            case TrialOutcome():
                self.run.events.on_outcome(event, seq)
                self.crew.on_ended(worker_id, event.attempt_id)
            case PackCapacity():
                self.run.events.on_capacity(worker_id, event)
                self.crew.on_capacity(worker_id, event.slots)

    def _end_stalled(self, worker_id: str, what: str) -> None:
        """End a worker whose training hangs: nothing else ends a call that does not return."""
        self.renew()  # Whoever has lost the lease must leave the workers alone.
        reason = f"worker {worker_id} hung and was killed: {what}"
        log.warning("%s", reason)
        self.crew.kill(worker_id)
        self.run.events.on_lost([worker_id], reason, LossCause.STALLED)

    def _is_ours(self, info: WorkerInfo) -> bool:
        """Whether the service's tables know the worker's last order, which they had before the worker.

        If not, they were put back to an earlier moment. The numbers of attempts that are forgotten are given
        out again, and the worker would take those orders for the ones it had.
        """
        return info.newest_attempt is None or self.run.has_sent(info.newest_attempt, info.worker_id)

    def _send_away(self, worker_id: str) -> None:
        reason = f"worker {worker_id} has orders that the database does not know, and was ended"
        self.renew()  # Whoever has lost the lease must leave the workers alone.
        log.warning("%s", reason)
        self.crew.kill(worker_id)
        self.run.events.on_lost([worker_id], reason, LossCause.NODE_DIED)

    def _stop_the_dead(self, worker_id: str, attempt_ids: Iterable[int]) -> None:
        """Have a worker drop attempts that have ended here, such as one whose order arrived too late.

        They are put down, not stopped: whoever stops deletes the trial's checkpoints, from which another
        attempt may be about to go on.
        """
        for attempt_id in set(attempt_ids) - set(self.run.live_attempts()):
            self._send(worker_id, attempt_id, Decision.PAUSE, NOT_ALIVE)

    # -- actions out ---------------------------------------------------------------------------

    def advance(self) -> None:
        """Perform what `decide` wants, and see that there are as many workers as have something to do."""
        run, crew = self.run, self.crew
        crew.put_aside(run.devices_aside())
        snapshot = run.snapshot(
            room=crew.room,
            unplaceable_reason=crew.unplaceable_reason(),
            stranded_reason=crew.stranded_reason(),
        )
        crew.isolate(snapshot.suspects, waiting=[t.avoid for t in suspects_waiting(snapshot)])
        snapshot = replace(snapshot, room=crew.room)
        had = crew.live
        for action in decide(snapshot):
            self.still_held()  # A sampler may take its time.
            self._perform(action)
        if self.over:
            return
        crew.make_way(starving_bases(snapshot))
        unsent = max(0, trials_to_come(snapshot) - (crew.live - had))
        wanted = run.wanted_workers(unsent, busy=crew.busy)
        self.still_held()  # It ends idle workers, which another holder may have filled meanwhile.
        crew.resize(wanted)
        if snapshot.pause_reason is None:
            standing = waiting.standing(
                training=snapshot.training,
                preparing=snapshot.preparing,
                live=crew.live,
                started=crew.started,
                starting=len(crew.members) - crew.started,
                no_worker=crew.no_worker_reason(wanted),
                resting=any(t.phase is TrialPhase.WAITING and not t.rested for t in snapshot.trials),
            )
            if standing is not None:
                run.say(standing)

    def _perform(self, action: Action) -> None:
        match action:
            case Ask():
                self._ask()
            case AskRepeat():
                self._dispatch(self.run.ask_repeat(action.of, action.seed))
            case Dispatch():
                self._dispatch(action.trial_number, alone=action.alone, avoid=action.avoid)
            case StopAttempt():
                self.tell(action.attempt_id, Decision.STOP, action.reason)
            case PauseAttempt():
                self.tell(action.attempt_id, Decision.PAUSE, action.reason)
            case KillWorker():
                self._kill_worker(action)
            case PauseStudy():
                self.pause(action.reason)
            case EndTrial():
                self.run.end_trial(action.trial_number, action.outcome, action.reason)
            case EndStudy():
                self.end(action.state, action.reason)

    def _ask(self) -> None:
        number = self.run.ask()
        if number is not None:
            self._dispatch(number)

    def _dispatch(self, number: int, *, alone: bool = False, avoid: str | None = None) -> None:
        """Send a trial to a worker that takes its base; without one it waits."""
        crew = self.crew
        worker_id = crew.pick(self.run.base_of(number), alone=alone, avoid=avoid)
        if worker_id is not None:
            order = self.run.open_attempt(
                number, worker_id=worker_id, shape=crew.shape, device_id=crew.device_of(worker_id)
            )
            crew.submit(worker_id, order, alone=alone)

    def tell(self, attempt_id: int, decision: Decision, reason: str) -> None:
        """Have a live attempt stop or pause, and remember since when it should."""
        worker_id = self.run.live_attempts().get(attempt_id)
        if worker_id is not None:
            self.run.told.tell(attempt_id, decision)
            self._send(worker_id, attempt_id, decision, reason)

    def _kill_worker(self, action: KillWorker) -> None:
        worker_id = self.run.live_attempts().get(action.attempt_id)
        if worker_id is None:
            return  # It had another overdue attempt, and is dead already.
        self.renew()  # Whoever has lost the lease must leave the workers alone.
        log.warning("worker %s of %s does not stop its trials and is killed", worker_id, self.run.name)
        self.crew.kill(worker_id)
        self.run.end_disobedient(worker_id, action.reason)

    def _send(self, worker_id: str, attempt_id: int, decision: Decision, reason: str) -> None:
        self.crew.send(worker_id, Verdict(attempt_id=attempt_id, decision=decision, reason=reason))
