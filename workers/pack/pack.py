"""The training loop: trials that share one base, from order to outcome.

Knows orders, verdicts and a callback for events, and nothing else of the world. A step is one pass that
all the trials share; between two steps trials join and leave.
"""

from __future__ import annotations

import logging
import math
import time
import traceback
from collections.abc import Callable, Sequence
from dataclasses import replace

import torch

from search_spaces.wording import counted
from workers.contract import (
    Decision,
    Event,
    OutcomeStatus,
    Progress,
    TrialOrder,
    TrialOutcome,
    Verdict,
)
from workers.device.heartbeat import UNWATCHED, Heartbeat
from workers.device.memory import is_device_fault, is_out_of_memory, release, reset_peak
from workers.pack.admission import prepare
from workers.pack.attempt import Attempt
from workers.pack.capacity import Slots, limited
from workers.pack.endings import Ending, Parked, does_not_fit, ending, forget_checkpoints, is_resumed
from workers.pack.loaded import LoadedStudies, SharedBase, share_a_base
from workers.pack.study_faults import Failed, judged
from workers.training.shared_pass import DoesNotFitError
from workers.training.trial_run import Advance

_log = logging.getLogger(__name__)


class Pack:
    """Trials training on one base. Used by one thread.

    Exactly one `TrialOutcome` is emitted for each admitted order, whatever happens to the trial; it is the
    last event of its attempt.
    """

    def __init__(
        self,
        emit: Callable[[Event], object],
        *,
        device: torch.device,
        slots: int | None = None,
        progress_interval_s: float = 1.0,
        heartbeat: Heartbeat = UNWATCHED,
    ) -> None:
        """
        Args:
            emit: Receives every event, in order.
            device: Where the base and its adapters live.
            slots: Places for trials; None: as many as memory and throughput allow, which is learnt from their
                passes and announced by a `PackCapacity` whenever it changes.
            progress_interval_s: Seconds between two `Progress` events of a trial, so that whoever waits
                for events is not woken at every step.
            heartbeat: Notified of each pass.
        """
        self._slots = Slots(slots, emit, device)
        self._emit = emit
        self._device = device
        self._heartbeat = heartbeat
        self._progress_interval_s = progress_interval_s
        self._loaded = LoadedStudies(device, heartbeat)
        self._running: dict[int, Attempt] = {}
        self._parked: dict[int, Parked] = {}
        self._most_before: int | None = None
        """`SharedBase.most` before the newest trial that was given the device alone."""
        self._failed: list[tuple[Failed, TrialOutcome]] = []
        """Trials that have left in this step, and how they end unless their study is at fault."""
        self._verdicts: dict[int, Verdict] = {}
        self._last_progress: dict[int, float] = {}

    @property
    def running_attempts(self) -> tuple[int, ...]:
        """Attempts in the pack's slots, and those that wait for room to go on."""
        return (*self._running, *self._parked)

    @property
    def slots(self) -> int:
        """Trials that it wants at once."""
        return self._slots.count

    @property
    def base(self) -> str | None:
        """Model id and quantization of the loaded base, if any."""
        return self._loaded.description

    def accepts(self, order: TrialOrder) -> bool:
        """Whether one more trial may join, and those that are there use the same base."""
        if self._parked or len(self._running) >= self._slots.most:
            return False
        return all(share_a_base(other, order) for other in self._orders())

    def admit(self, order: TrialOrder) -> None:
        """Loads what the trial needs and gives it a slot; emits `TrialStarted`, or the outcome `failed`.

        Raises:
            RuntimeError: The pack does not accept the order.
        """
        if not self.accepts(order):
            raise RuntimeError(f"no free slot for attempt {order.attempt_id}")
        idle = not self.running_attempts
        if idle:
            reset_peak(self._device)
        last = TrialOutcome(attempt_id=order.attempt_id, status=OutcomeStatus.CANCELLED, reason="")
        self._join(Parked(order, last, started=False))
        if idle:
            reset_peak(self._device)  # loading is not the trial's own

    def apply(self, verdict: Verdict) -> None:
        """Takes a verdict, which takes effect at the next `step`.

        A verdict for an ended attempt has no effect, and a pause does not replace an earlier verdict.
        """
        before = self._verdicts.get(verdict.attempt_id)
        if before is not None and verdict.decision is Decision.PAUSE:
            return
        if verdict.attempt_id in self.running_attempts:
            self._verdicts[verdict.attempt_id] = verdict

    def step(self) -> None:
        """One shared pass and whatever follows from it: steps, reports, outcomes, free slots."""
        self._carry_out_verdicts()
        self._report_due()  # of trials that were resumed at a rung
        if self._running:
            self._train(list(self._running.values()))
            self._slots.learn(self._shared, list(self._running.values()))
        self._report_due()
        self._judge_failed()
        if self._parked and len(self._running) < self.slots:
            self._join(self._parked.pop(next(iter(self._parked))))

    def leave_study(self) -> None:
        """Forgets all that is one study's, once no trial is left. The base stays for the next study."""
        self._loaded.leave_study()
        self._slots.begin_anew()
        release(self._device)

    @property
    def _shared(self) -> SharedBase:
        assert self._loaded.base is not None
        return self._loaded.base

    def _orders(self) -> list[TrialOrder]:
        return [a.order for a in self._running.values()] + [p.order for p in self._parked.values()]

    # -- joining -----------------------------------------------------------------------------------

    def _join(self, trial: Parked) -> None:
        """Gives a trial a slot, from its beginning or from its newest checkpoint."""
        order = trial.order
        loaded = None
        try:
            loaded = self._loaded.load(order, self._orders(), self._emit)
            attempt = prepare(order, loaded)
        except Exception as error:  # noqa: BLE001 - becomes the trial's outcome; the worker lives on
            end = ending(error)
        else:
            self._running[order.attempt_id] = attempt
            if order.attempt_id in loaded.base.limits_by_attempt:
                loaded.base.limits_by_attempt[order.attempt_id] = len(self._running)
            if not trial.started or attempt.run.examples_seen == 0 < trial.last.examples_seen:
                self._emit(attempt.started(loaded, self._device))
                for report in attempt.reports:  # whoever has heard of a rung before passes over it
                    self._emit(report)
            self._plan_capacity()
            return
        release(self._device)
        if end.status is OutcomeStatus.OUT_OF_MEMORY and self._running:
            self._parked[order.attempt_id] = trial
            self._shared.limits_by_attempt[order.attempt_id] = len(self._running)
            self._slots.announce(limited(len(self._running), end.reason))
            return
        if loaded is not None:
            end = judged(Failed(order, loaded.train.examples, loaded.own_loss), loaded.base, end)
        self._end(trial, end)

    def _end(self, trial: Parked, end: Ending) -> None:
        """Emits the outcome of a trial that has no slot."""
        if self._loaded.base is not None:
            self._loaded.base.limits_by_attempt.pop(trial.order.attempt_id, None)
        self._close(trial.order, replace(trial.last, **end._asdict()))

    def _plan_capacity(self) -> None:
        if self._running:
            self._slots.plan(self._shared, list(self._running.values()))

    # -- training ----------------------------------------------------------------------------------

    def _train(self, attempts: Sequence[Attempt]) -> None:
        """One pass of these trials. If it fails, each trains by itself, which shows whose fault it is."""
        try:
            advances = self._shared.passes.train([attempt.run for attempt in attempts])
        except DoesNotFitError as error:
            misfit = error
        except Exception as error:  # noqa: BLE001 - becomes a trial's outcome
            self._isolate(attempts, error, self._train)
            return
        else:
            self._take(advances)
            return
        self._train_without_others(misfit)

    def _take(self, advances: Sequence[Advance]) -> None:
        by_run = {id(attempt.run): attempt for attempt in self._running.values()}
        for advance in advances:
            attempt = by_run[id(advance.run)]
            # Those that took part go behind those that did not.
            self._running[attempt.order.attempt_id] = self._running.pop(attempt.order.attempt_id)
            try:
                if advance.ended is not None:
                    raise advance.ended
                if advance.step is not None:
                    self._say(attempt.took(advance.step))
            except Exception as error:  # noqa: BLE001 - becomes the trial's outcome
                if is_out_of_memory(error) and len(self._running) > 1:
                    self._resume_later(attempt, str(error))
                else:
                    self._retire(attempt, ending(error))

    def _say(self, progress: Progress) -> None:
        """Emits progress, at most once in `progress_interval_s`."""
        now = time.monotonic()
        if now - self._last_progress.get(progress.attempt_id, -math.inf) >= self._progress_interval_s:
            self._last_progress[progress.attempt_id] = now
            self._emit(progress)

    def _report_due(self) -> None:
        """Evaluates the trials that are at a rung, those with the same data together."""
        while due := [attempt for attempt in self._running.values() if attempt.due is not None]:
            data, measures = due[0].eval_examples, due[0].measures
            together = [a for a in due if a.eval_examples is data and a.measures is measures]
            self._evaluate(sorted(together, key=lambda attempt: attempt.run.adapter.place))

    def _evaluate(self, attempts: Sequence[Attempt]) -> None:
        passes = self._shared.passes
        try:
            per_row = any(attempt.per_row for attempt in attempts)
            totals = passes.evaluate([a.run for a in attempts], attempts[0].eval_examples, per_row=per_row)
            writers = [a for a, total in zip(attempts, totals, strict=True) if a.measures_all(total)]
            texts = attempts[0].measures.write(passes, [a.run for a in writers])
            written = {a.order.attempt_id: own for a, own in zip(writers, texts, strict=True)}
        except DoesNotFitError as error:
            misfit = error
        except Exception as error:  # noqa: BLE001 - becomes a trial's outcome
            self._isolate(attempts, error, self._evaluate)
            return
        else:
            for attempt, total in zip(attempts, totals, strict=True):
                self._heartbeat.beat()  # some metrics take their time
                try:
                    if (report := attempt.report(total, written.get(attempt.order.attempt_id))) is not None:
                        self._emit(report)
                    outcome = attempt.complete(self._device) if attempt.finished else None
                except Exception as error:  # noqa: BLE001 - becomes the trial's outcome
                    self._retire(attempt, ending(error))
                    continue
                if outcome is not None:
                    self._finish(attempt, outcome)
            return
        self._train_without_others(misfit)

    def _isolate(
        self, attempts: Sequence[Attempt], error: Exception, work: Callable[[Sequence[Attempt]], None]
    ) -> None:
        """Repeats what failed for several trials with each by itself, which shows whose fault it is."""
        if len(attempts) == 1:
            self._retire(attempts[0], ending(error))
        elif is_device_fault(error):
            raise error
        else:
            _log.warning("a pass of %d trials failed, so each is tried by itself: %r", len(attempts), error)
            traceback.clear_frames(error.__traceback__)  # they hold the tensors of the broken pass
            for attempt in attempts:
                if attempt.order.attempt_id in self._running:  # not parked for one before it
                    work([attempt])

    # -- leaving -----------------------------------------------------------------------------------

    def _carry_out_verdicts(self) -> None:
        for attempt_id, verdict in list(self._verdicts.items()):
            if attempt_id in self._parked:
                del self._verdicts[attempt_id]
                self._end(self._parked.pop(attempt_id), Ending(verdict.decision.ends_as, verdict.reason))
            elif verdict.decision is Decision.PAUSE:
                self._pause(self._running[attempt_id], verdict.reason)
            else:
                self._retire(self._running[attempt_id], Ending(verdict.decision.ends_as, verdict.reason))

    def _pause(self, attempt: Attempt, reason: str) -> None:
        """Ends the attempt with a checkpoint of where its trial is, between two passes."""
        attempt.checkpoint_if_possible()  # if not, it resumes from the one before, or restarts
        self._finish(attempt, attempt.outcome(OutcomeStatus.PAUSED, reason, self._device))

    def _retire(self, attempt: Attempt, end: Ending) -> None:
        """Ends a trial that was training."""
        outcome = attempt.outcome(end.status, end.reason, self._device)
        self._finish(attempt, replace(outcome, storage_fault=end.storage_fault))

    def _finish(self, attempt: Attempt, outcome: TrialOutcome) -> None:
        """Frees the slot and the memory of the trial, then emits the outcome.

        Nothing else may refer to the attempt's tensors by now, or their memory would not be freed. So whether
        the study of one that failed is at fault is found out later, when the step is over.
        """
        order = attempt.order
        failed = Failed(order, attempt.run.examples, attempt.run.own_loss)
        del self._running[order.attempt_id]
        self._shared.limits_by_attempt.pop(order.attempt_id, None)
        attempt.leave()
        self._verdicts.pop(order.attempt_id, None)
        self._last_progress.pop(order.attempt_id, None)
        del attempt
        release(self._device)
        if failed.may_be_the_studys(outcome.status):
            self._failed.append((failed, outcome))
        else:
            self._close(order, outcome)

    def _judge_failed(self) -> None:
        """Emits the outcomes of the trials that have failed in this step."""
        while self._failed:
            failed, outcome = self._failed.pop(0)
            end = Ending(outcome.status, outcome.reason, storage_fault=outcome.storage_fault)
            end = judged(failed, self._shared, end)
            self._close(failed.order, replace(outcome, **end._asdict()))

    def _close(self, order: TrialOrder, outcome: TrialOutcome) -> None:
        if not is_resumed(outcome):
            forget_checkpoints(order)
        self._emit(outcome)
        self._plan_capacity()

    # -- out of memory -----------------------------------------------------------------------------

    def _train_without_others(self, misfit: DoesNotFitError) -> None:
        """A single row did not fit. Parks the other trials, to see whether it fits without them."""
        attempt = next(a for a in self._running.values() if a.run is misfit.run)
        others = [other for other in self._running.values() if other is not attempt]
        if not others:
            if attempt.order.attempt_id in self._shared.limits_by_attempt:
                self._shared.most = self._most_before  # it was not the others' fault
            reason = does_not_fit(attempt.run, misfit.what, self._device)
            self._retire(attempt, Ending(OutcomeStatus.OUT_OF_MEMORY, reason))
            return
        for other in others:
            other.checkpoint_if_possible()  # if not, it resumes from the one before, or restarts
            self._park(other)
        base, count = self._shared, len(others)
        self._most_before, base.most = base.most, count
        base.limits_by_attempt[attempt.order.attempt_id] = 1
        del others, other, attempt
        release(self._device)
        waiting = f"{counted(count, 'other trial')}, which now {'waits' if count == 1 else 'wait'}"
        self._slots.announce(limited(1, f"out of memory {misfit.what} beside {waiting}"))

    def _resume_later(self, attempt: Attempt, reason: str) -> None:
        """Parks a trial whose optimizer step ran out of memory: it resumes from its last checkpoint."""
        self._park(attempt)
        release(self._device)
        self._shared.limits_by_attempt[attempt.order.attempt_id] = len(self._running)
        self._slots.announce(limited(len(self._running), f"out of memory outside a forward pass: {reason}"))

    def _park(self, attempt: Attempt) -> None:
        """Takes a trial out of the pack."""
        attempt_id = attempt.order.attempt_id
        last = attempt.outcome(OutcomeStatus.CANCELLED, "", self._device)
        earlier = (attempt.checkpoint_dir, *attempt.order.resume_from)
        order = replace(attempt.order, resume_from=earlier)
        del self._running[attempt_id]
        self._parked[attempt_id] = Parked(order, last)
        attempt.leave()
