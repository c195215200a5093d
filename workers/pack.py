"""The training loop: trials that share one base, from order to outcome.

Knows orders, verdicts and a callback for events, and nothing else of the world. Each optimizer step here
is one trial's own; running several trials in one forward pass replaces `Pack.step`, not what surrounds it.
"""

from __future__ import annotations

import logging
import time
import traceback
from collections.abc import Callable

import torch

from workers.attempt import Attempt
from workers.contract import (
    DataSummary,
    Decision,
    Event,
    OutcomeStatus,
    TrialOrder,
    TrialOutcome,
    TrialStarted,
    Verdict,
)
from workers.errors import DataError, ModelError, WorkerError
from workers.loaded_study import LoadedStudies
from workers.memory import is_device_fault, is_out_of_memory, release, reset_peak
from workers.rungs import rung_reached
from workers.trial_run import TrialEndedError, TrialRun

_log = logging.getLogger(__name__)

_STATUS = {Decision.PRUNE: OutcomeStatus.PRUNED, Decision.STOP: OutcomeStatus.CANCELLED}


class Pack:
    """Trials training on one base, at most `slots` of them. Used by one thread.

    Exactly one `TrialOutcome` is emitted for each admitted order, whatever happens to the trial; it is the
    last event of its attempt.
    """

    def __init__(
        self,
        emit: Callable[[Event], object],
        *,
        device: torch.device,
        slots: int = 1,
        progress_interval_s: float = 1.0,
    ) -> None:
        """
        Args:
            emit: Receives every event, in order.
            device: Where the base and its adapters live.
            slots: Places for trials.
            progress_interval_s: Seconds between two `Progress` events of a trial, so that whoever waits
                for events is not woken at every step.
        """
        self.slots = slots
        self._emit = emit
        self._device = device
        self._progress_interval_s = progress_interval_s
        self._loaded = LoadedStudies(device)
        self._running: dict[int, Attempt] = {}
        self._verdicts: dict[int, Verdict] = {}
        self._last_progress: dict[int, float] = {}

    @property
    def running_attempts(self) -> tuple[int, ...]:
        """Attempts in the pack's slots."""
        return tuple(self._running)

    @property
    def base(self) -> str | None:
        """Model id and quantization of the loaded base, if any."""
        return self._loaded.description

    def accepts(self, order: TrialOrder) -> bool:
        """Whether a slot is free and the trials in the others use the same base."""
        if len(self._running) >= self.slots:
            return False
        return all(attempt.order.model == order.model for attempt in self._running.values())

    def admit(self, order: TrialOrder) -> None:
        """Loads what the trial needs and gives it a slot; emits `TrialStarted`, or the outcome `failed`.

        Raises:
            RuntimeError: The pack does not accept the order.
        """
        if not self.accepts(order):
            raise RuntimeError(f"no free slot for attempt {order.attempt_id}")
        reset_peak(self._device)
        try:
            attempt = self._prepare(order)
        except Exception as error:  # noqa: BLE001 - becomes the trial's outcome; the worker lives on
            status, reason, fatal = _ending(error)
            outcome = TrialOutcome(
                attempt_id=order.attempt_id, status=status, reason=reason, fatal_to_study=fatal
            )
        else:
            self._running[order.attempt_id] = attempt
            return
        release(self._device)
        self._emit(outcome)

    def apply(self, verdict: Verdict) -> None:
        """Takes a verdict; it has its effect at the next `step`. One for an ended attempt has none."""
        if verdict.attempt_id in self._running:
            self._verdicts[verdict.attempt_id] = verdict

    def step(self) -> None:
        """Gives every trial one optimizer step and whatever follows from it: report, outcome, free slot."""
        for attempt_id in self.running_attempts:
            outcome = self._advance(self._running[attempt_id], self._verdicts.pop(attempt_id, None))
            if outcome is not None:
                self._retire(attempt_id, outcome)

    def _prepare(self, order: TrialOrder) -> Attempt:
        host, train, evaluation = self._loaded.load(order, self._running_orders())
        name = f"attempt-{order.attempt_id}"
        adapter = host.add(name, order.recipe)
        try:
            run = TrialRun(
                order.recipe,
                host.base,
                adapter,
                train.examples,
                divergence_factor=order.evaluation.divergence_factor,
                micro_batch_size=order.micro_batch_size,
            )
        except BaseException:
            host.remove(name)
            raise
        self._emit(
            TrialStarted(
                attempt_id=order.attempt_id,
                total_examples=run.plan.total_examples,
                total_steps=run.plan.total_steps,
                micro_batch_size=run.micro_batch_size,
                device=str(self._device),
                trainable_parameters=adapter.trainable_parameters,
                data=DataSummary(
                    train_rows=train.rows,
                    train_skipped=train.skipped,
                    train_truncated=train.truncated,
                    eval_rows=evaluation.rows,
                    eval_skipped=evaluation.skipped,
                    eval_truncated=evaluation.truncated,
                ),
            )
        )
        return Attempt(order, run, host, name, evaluation.examples)

    def _running_orders(self) -> list[TrialOrder]:
        return [attempt.order for attempt in self._running.values()]

    def _advance(self, attempt: Attempt, verdict: Verdict | None) -> TrialOutcome | None:
        if verdict is not None:
            return attempt.outcome(_STATUS[verdict.decision], verdict.reason, self._device)
        try:
            return self._train(attempt)
        except Exception as error:  # noqa: BLE001 - becomes the trial's outcome; the worker lives on
            status, reason, _fatal = _ending(error)
            return attempt.outcome(status, reason, self._device)

    def _train(self, attempt: Attempt) -> TrialOutcome | None:
        run, order = attempt.run, attempt.order
        before = run.examples_seen
        progress = attempt.step()
        now = time.monotonic()
        if now - self._last_progress.get(order.attempt_id, -float("inf")) >= self._progress_interval_s:
            self._last_progress[order.attempt_id] = now
            self._emit(progress)
        rung = rung_reached(
            before, run.examples_seen, every=order.evaluation.every_examples, total=run.plan.total_examples
        )
        if rung is not None:
            self._emit(attempt.report(rung))
        return attempt.complete(self._device) if run.finished else None

    def _retire(self, attempt_id: int, outcome: TrialOutcome) -> None:
        """Frees the slot and everything the trial held, then lets the outcome be known.

        By now nothing else may refer to the attempt, or its memory would outlive it.
        """
        self._running.pop(attempt_id).retire()
        self._verdicts.pop(attempt_id, None)
        self._last_progress.pop(attempt_id, None)
        release(self._device)
        self._emit(outcome)


def _ending(error: Exception) -> tuple[OutcomeStatus, str, bool]:
    """How an exception ends a trial: status, reason, and whether every trial of the study would fail alike.

    Raises:
        Exception: `error` itself, when it has broken the CUDA context: no later trial could run in this
            process, so the worker must die and the attempt go on elsewhere.
    """
    if is_device_fault(error):
        raise error
    if isinstance(error, TrialEndedError):
        return error.status, error.reason, False
    if isinstance(error, WorkerError):
        return OutcomeStatus.FAILED, str(error), isinstance(error, DataError | ModelError)
    if is_out_of_memory(error):
        return OutcomeStatus.OUT_OF_MEMORY, f"Out of memory outside a forward pass: {error}", False
    # As text: a log record that is kept somewhere would keep the traceback's frames and their tensors.
    _log.error("a trial failed unexpectedly\n%s", "".join(traceback.format_exception(error)))
    return OutcomeStatus.FAILED, f"{type(error).__name__}: {error}", False
