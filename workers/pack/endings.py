"""How a trial ends that does not end well."""

from __future__ import annotations

import logging
import traceback
from dataclasses import dataclass
from typing import NamedTuple

import torch

from search_spaces.errors import machine_fault
from workers.artifacts.checkpoints import remove_checkpoints
from workers.artifacts.folders import ArtifactFolder
from workers.contract import OutcomeStatus, TrialOrder, TrialOutcome
from workers.device.memory import describe, is_device_fault, is_out_of_memory
from workers.errors import (
    ArtifactError,
    DataError,
    ModelError,
    PluginError,
    UnusableAdapterError,
    WorkerError,
)
from workers.training.shared_pass import DoesNotFitError
from workers.training.trial_run import TrialEndedError, TrialRun

_log = logging.getLogger(__name__)


class Ending(NamedTuple):
    """What a `TrialOutcome` says of an end."""

    status: OutcomeStatus
    reason: str
    fatal_to_study: bool = False
    """Every trial of the study would fail alike."""
    storage_fault: bool = False
    """The artifacts could not be written or read, or the machine has run out of something, so the trial is to
    go on from its checkpoint."""
    unusable_adapter: bool = False
    """The adapter that was to be evaluated is gone, or fits no more."""


@dataclass(frozen=True)
class Parked:
    """A trial that waits outside the device's memory while another trains alone."""

    order: TrialOrder
    last: TrialOutcome
    """What its outcome would be, but for status and reason."""
    started: bool = True


def ending(error: Exception) -> Ending:
    """How a trial ends by an error.

    Raises:
        Exception: `error` itself, when it has broken the CUDA context: no later trial could run in this
            process, so the worker must die and the attempt go on elsewhere.
    """
    if is_device_fault(error):
        raise error
    if isinstance(error, TrialEndedError):
        return Ending(error.status, error.reason)
    fault = machine_fault(error)
    if fault is not None:
        reason = str(error) if isinstance(error, WorkerError) else fault
        return Ending(OutcomeStatus.FAILED, reason, storage_fault=True)
    if isinstance(error, WorkerError):
        return Ending(
            OutcomeStatus.FAILED,
            str(error),
            fatal_to_study=isinstance(error, DataError | ModelError | PluginError),
            storage_fault=isinstance(error, ArtifactError),
            unusable_adapter=isinstance(error, UnusableAdapterError),
        )
    if isinstance(error, DoesNotFitError):
        return Ending(OutcomeStatus.OUT_OF_MEMORY, f"Out of memory {error.what}.")
    if is_out_of_memory(error):
        return Ending(OutcomeStatus.OUT_OF_MEMORY, f"Out of memory outside a forward pass: {error}")
    # As text: a log record that is kept somewhere would keep the traceback's frames and their tensors.
    _log.error("a trial failed unexpectedly\n%s", "".join(traceback.format_exception(error)))
    return Ending(OutcomeStatus.FAILED, f"{type(error).__name__}: {error}")


def does_not_fit(run: TrialRun, what: str, device: torch.device) -> str:
    """Why a trial that has the device alone ends, with what can be done about it."""
    return (
        f"Out of memory {what}, with LoRA rank {run.recipe.lora_r}"
        f" ({run.adapter.trainable_parameters:,} trainable parameters) beside the base{describe(device)}."
        " Shorten max_length, lower the rank, or use a larger device."
    )


def is_resumed(outcome: TrialOutcome) -> bool:
    """Whether another attempt is to resume from this one's checkpoint."""
    return outcome.status is OutcomeStatus.PAUSED or outcome.storage_fault


def forget_checkpoints(order: TrialOrder) -> None:
    """Removes the checkpoints of a trial that has ended: optimizer states are large."""
    remove_checkpoints((ArtifactFolder(order.artifact_dir).checkpoint, *order.resume_from))
