"""What Ray runs as a worker: a pack behind thread-safe calls, which owns one GPU or some CPU cores.

Light to import: the coordinator's host has Ray but neither torch nor the models' libraries, which are
imported where the actor runs (`workers.actor.ray_actors`). The actor holds no credentials and knows nobody:
the coordinator finds it by its name, sends orders and verdicts, and long-polls its event log. It trains for
one study at a time, waits in the pool before and after that, and outlives any coordinator. It ends itself
when none has asked for events, or attended to it in the pool, for `orphan_timeout_s`.
"""

from __future__ import annotations

import gc
import logging
import os
import socket
import threading
import time
import warnings
from collections import deque
from typing import TYPE_CHECKING

from workers.actor.assignment import FORSAKEN_SECONDS, Assignment
from workers.actor.event_log import EventLog
from workers.contract import (
    Decision,
    Event,
    NumberedEvent,
    PackCapacity,
    Stalled,
    TrialOrder,
    TrialOutcome,
    Verdict,
    WorkerInfo,
    WorkerSpec,
)
from workers.device.heartbeat import Heartbeat

if TYPE_CHECKING:
    from workers.pack.pack import Pack

_SHUTDOWN_GRACE_S = 0.5
"""How long the process lives on after `shutdown`, so that its reply reaches the caller."""

_log = logging.getLogger(__name__)


class GpuWorker:
    """One pack, trained by one background thread, behind thread-safe calls."""

    def __init__(self, spec: WorkerSpec) -> None:
        self._spec = spec
        self._wake = threading.Condition()
        self._assignment = Assignment(spec.study_id, keep_base_s=spec.keep_base_s)
        self._begin()
        self._leaving = False  # the training thread is about to forget the study
        self._stopping = False
        self._last_poll = time.monotonic()
        self._heartbeat = Heartbeat(training_s=spec.training_silence_s, loading_s=spec.loading_silence_s)
        self._pack = self._make_pack()
        self._training = threading.Thread(target=self._train, name="training", daemon=True)
        self._training.start()
        self._watching = threading.Thread(target=self._watch, name="orphan watch", daemon=True)
        self._watching.start()

    def _begin(self) -> None:
        """Everything that is one study's, with nothing in it."""
        self._log = EventLog()
        self._orders: deque[TrialOrder] = deque()  # taken, and waiting for room in the pack
        self._verdicts: deque[Verdict] = deque()
        self._known: set[int] = set()  # every attempt ever accepted
        self._live: dict[int, TrialOrder] = {}  # those without an outcome yet
        self._most_slots = 0  # ever announced

    def assign(self, study_id: str) -> WorkerInfo | None:
        """Gives the worker to a study, if it waits: the first that asks has it until `release`.

        Returns:
            What `info` does; None: it is another study's, or about to end. Asking again changes nothing.
        """
        with self._wake:
            if self._leaving or self._stopping or not self._assignment.take(study_id):
                return None
            self._last_poll = time.monotonic()
        return self.info()

    def release(self, study_id: str) -> WorkerInfo | None:
        """Takes the worker back from a study, whose events, data and trials it forgets, to wait for the next.

        Returns:
            What `info` does, once it waits; or at once if it has orders or is another study's. None: it ends,
            since it is of no use to another study.
        """
        with self._wake:
            if self._assignment.study_id == study_id and not self._live:
                if not self._assignment.reusable:
                    self.shutdown()
                    return None
                self._leave()
            while self._leaving and not self._stopping:
                self._wake.wait()
        return self.info()

    def attend(self) -> WorkerInfo:
        """What `info` does; a worker that waits knows by it that there is a coordinator."""
        with self._wake:
            if self._assignment.study_id is None:
                self._last_poll = time.monotonic()
        return self.info()

    def submit(self, order: TrialOrder) -> bool:
        """Takes an order, to be trained as soon as the pack has room for it.

        An order was sent for a slot that had been announced. If the pack has shrunk since, the order waits
        here for its turn: it is no lost attempt.

        Returns:
            True when it was accepted, now or before: sending the same attempt again changes nothing.
            False when as many orders are live as there ever were slots, when those train on another base,
            when the worker is another study's, or when it is shutting down; ask another worker.
        """
        with self._wake:
            if order.attempt_id in self._known:
                return True
            self._slots_at_present()
            if self._leaving or order.study_id != self._assignment.study_id:
                return False
            if self._stopping or len(self._live) >= self._most_slots:
                return False
            if any(other.model != order.model for other in self._live.values()):
                return False
            self._assignment.note_order(order)
            self._known.add(order.attempt_id)
            self._live[order.attempt_id] = order
            self._orders.append(order)
            self._wake.notify_all()
            return True

    def verdict(self, verdict: Verdict) -> bool:
        """Takes a verdict; it has its effect between two optimizer steps.

        Returns:
            Whether the attempt is live here. A verdict for one that has ended has no effect.
        """
        with self._wake:
            if verdict.attempt_id not in self._live:
                return False
            self._verdicts.append(verdict)
            return True

    def events(self, study_id: str, after: int, timeout_s: float = 0.0) -> tuple[NumberedEvent, ...] | None:
        """Acknowledges every event up to `after` and returns the newer ones, waiting up to `timeout_s`.

        Returns:
            None: the worker is not this study's.

        Raises:
            ValueError: `after` is a number this worker never gave out to this study.
        """
        with self._wake:
            if self._assignment.study_id != study_id:
                return None
            log = self._log
            self._last_poll = time.monotonic() + timeout_s  # who waits is not gone
        try:
            return log.events(after, timeout_s)
        finally:
            self._last_poll = time.monotonic()

    def info(self) -> WorkerInfo:
        """Who and where this worker is, and what it is doing."""
        with self._wake:
            live, slots = tuple(self._live), self._slots_at_present()
            newest, study_id = max(self._known, default=None), self._assignment.study_id
        return WorkerInfo(
            worker_id=self._spec.name,
            node=socket.gethostname(),
            pid=os.getpid(),
            device=self._device,
            slots=slots,
            free_slots=max(0, slots - len(live)),
            running_attempts=live,
            base=self._pack.base,
            newest_attempt=newest,
            device_id=self._device_id,
            study_id=study_id,
            num_cpus=self._spec.num_cpus,
            num_gpus=self._spec.num_gpus,
        )

    def shutdown(self) -> None:
        """Ends the process soon, in the middle of whatever it trains; refuses orders from now on."""
        with self._wake:
            self._stopping = True
            self._wake.notify_all()

    def _make_pack(self) -> Pack:
        import workers.pack.preload  # noqa: F401 - first, so that what follows has been imported

        os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")  # the cores are the training's
        import torch
        from transformers.utils import logging as transformers_logging

        from workers.base.base_model import pick_device
        from workers.device.devices import device_id
        from workers.pack.pack import Pack

        # Library advice to people who watch a notebook; a worker's log is for what this project does.
        warnings.simplefilter("ignore")
        transformers_logging.set_verbosity_error()
        transformers_logging.disable_progress_bar()
        logging.getLogger("bitsandbytes").setLevel(logging.ERROR)
        # The libraries' own objects stay to the end: collecting after a trial need not visit them.
        gc.collect()
        gc.freeze()
        device = pick_device() if self._spec.num_gpus > 0 else torch.device("cpu")
        self._device = str(device)
        self._device_id = device_id(device)
        self._threads = max(1, int(self._spec.num_cpus)) if device.type == "cpu" else None
        return Pack(self._record, device=device, heartbeat=self._heartbeat)

    def _slots_at_present(self) -> int:
        """What the pack wants now. A coordinator may act on it later, so the most is remembered."""
        slots = self._pack.slots
        self._most_slots = max(self._most_slots, slots)
        return slots

    def _record(self, event: Event) -> None:
        self._heartbeat.beat()
        with self._wake:  # first, so that whoever reads the event finds it in force
            if isinstance(event, TrialOutcome):
                del self._live[event.attempt_id]
                self._assignment.note_outcome(event)
            elif isinstance(event, PackCapacity):
                self._most_slots = max(self._most_slots, event.slots)
        self._log.append(event)

    def _train(self) -> None:
        """The training thread. What escapes a pack leaves the process unusable, so it ends."""
        import torch

        if self._threads is not None:
            torch.set_num_threads(self._threads)  # OpenMP counts threads per thread that starts them
        try:
            while not self._stopping:
                self._heartbeat.beat()
                if self._leaving:
                    self._forget_study()
                # Verdicts first: an order that is wanted no more need not be loaded.
                for verdict in self._next_verdicts():
                    self._apply(verdict)
                while (order := self._next_order()) is not None:
                    self._pack.admit(order)
                self._pack.step()
        except BaseException:  # noqa: BLE001 - whatever it is, a worker without its thread must not linger
            _log.critical("worker %s cannot go on", self._spec.name, exc_info=True)
            _end_process(1)

    def _next_verdicts(self) -> list[Verdict]:
        """Verdicts that have come; waits for an order while there is nothing to train."""
        with self._wake:
            if not self._has_work():
                with self._heartbeat.waiting():
                    while not self._has_work():
                        self._wake.wait()
            verdicts = list(self._verdicts)
            self._verdicts.clear()
            return verdicts

    def _has_work(self) -> bool:
        return bool(self._orders or self._pack.running_attempts or self._leaving or self._stopping)

    def _leave(self) -> None:
        """Has the training thread forget the study."""
        self._leaving = True
        self._wake.notify_all()

    def _forget_study(self) -> None:
        self._pack.leave_study()
        with self._wake:
            self._begin()
            self._assignment.give_back()
            self._leaving = False
            self._last_poll = time.monotonic()
            self._wake.notify_all()

    def _apply(self, verdict: Verdict) -> None:
        """Passes a verdict to the pack, or ends the order that still waits for its turn."""
        with self._wake:
            waiting = next((o for o in self._orders if o.attempt_id == verdict.attempt_id), None)
            if waiting is not None:
                self._orders.remove(waiting)
        if waiting is None:
            self._pack.apply(verdict)
        else:
            if verdict.decision is not Decision.PAUSE:
                from workers.artifacts.checkpoints import remove_checkpoints

                remove_checkpoints(waiting.resume_from)  # of attempts before it; nobody resumes from them
            self._record(
                TrialOutcome(
                    attempt_id=verdict.attempt_id, status=verdict.decision.ends_as, reason=verdict.reason
                )
            )

    def _next_order(self) -> TrialOrder | None:
        """The order whose turn it is, if the pack has room for it."""
        with self._wake:
            if not self._orders:
                return None
            # An empty pack is not asked: an order that it refuses now it would refuse for ever.
            if self._pack.running_attempts and not self._pack.accepts(self._orders[0]):
                return None
            return self._orders.popleft()

    def _watch(self) -> None:
        """Ends the process after `shutdown`, or when nobody has asked for events for too long.

        Says when the training thread hangs; a coordinator then ends the process, and knows why. An idle
        worker whose coordinator has died waits in the pool again; one that has waited there ends in the end.
        """
        stalled = False
        with self._wake:
            while not self._stopping:
                silence = time.monotonic() - self._last_poll
                left = self._spec.orphan_timeout_s - silence
                if self._assignment.base_left_s(self._pack.base) <= 0:
                    self._stopping = True
                    self._wake.notify_all()
                    break
                if self._is_forsaken(silence):
                    self._leave()
                if left <= 0:
                    _log.warning(
                        "worker %s: no coordinator has asked for events for %g seconds; ending",
                        self._spec.name,
                        self._spec.orphan_timeout_s,
                    )
                    self._stopping = True
                    self._wake.notify_all()
                    break
                reason = None if stalled else self._heartbeat.stalled()
                if reason is not None:
                    _log.error("worker %s hangs: %s", self._spec.name, reason)
                    self._log.append(Stalled(reason=reason))
                    stalled = True
                self._wake.wait(min(left, self._heartbeat.asking_interval_s))
        time.sleep(_SHUTDOWN_GRACE_S)
        _end_process(0)

    def _is_forsaken(self, silence: float) -> bool:
        """Whether a study's coordinator has died that had sent it nothing, or knows all that it did."""
        has_nothing = not self._live and not len(self._log) and self._assignment.study_id is not None
        return has_nothing and self._assignment.reusable and silence > FORSAKEN_SECONDS


def _end_process(status: int) -> None:
    """Ends the process from any of its threads; Ray's `exit_actor` works inside an actor's call only."""
    logging.shutdown()
    os._exit(status)
