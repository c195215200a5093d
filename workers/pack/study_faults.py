"""Whether a trial that cannot be trained shows that no trial of its study can.

Only asked when one has failed or did not fit: one forward and backward pass over one row, the longest, with
the least adapter that a trial of the study may have. If that fails, too, so would every trial, and the
study ends with a reason; whatever else goes wrong is one trial's.
"""

from __future__ import annotations

import logging
import traceback
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import torch

from search_spaces.errors import machine_fault
from workers.base.base_model import set_training
from workers.base.heads import lies_in
from workers.base.target_modules import linear_layers
from workers.contract import OutcomeStatus, TrialOrder
from workers.data.examples import AnyExample
from workers.device.generators import seeded
from workers.device.memory import describe, is_device_fault, is_out_of_memory, release
from workers.errors import LossError, ModelError, PluginError, WorkerError, without_values
from workers.lora.adapters import Adapter, AdapterHost
from workers.pack.endings import Ending, ending
from workers.pack.loaded import SharedBase
from workers.plugins import OwnLoss
from workers.training.objectives.base import Share
from workers.training.objectives.registry import objective_of

_log = logging.getLogger(__name__)

_NAME = "least"
_UNDECIDED = {"max_length", "quantization"}
"""Where trials differ in these, one that fails says nothing of the others."""


@dataclass(frozen=True)
class Failed:
    """A trial that has failed, without anything of it on the base."""

    order: TrialOrder
    examples: Sequence[AnyExample]
    own_loss: OwnLoss | None

    def may_be_the_studys(self, status: OutcomeStatus) -> bool:
        """Whether an end may come from what all trials have in common, such as a loss that is not finite."""
        if self.order.evaluates is not None:
            return False
        if status is OutcomeStatus.DIVERGED:
            return self.own_loss is not None
        return status in (OutcomeStatus.FAILED, OutcomeStatus.OUT_OF_MEMORY)


def judged(failed: Failed, base: SharedBase, end: Ending) -> Ending:
    """How a trial ends: as `end` says, or as its study must end, if no trial of it could be trained.

    A study is tried once on each base, and not while trials are on it: they show that it can be trained, and
    have the memory.

    Raises:
        Exception: What is no study's fault, such as a broken device.
    """
    order, varied = failed.order, failed.order.varied
    if not failed.may_be_the_studys(end.status) or end.fatal_to_study or end.storage_fault:
        return end
    if varied is None or _UNDECIDED & set(varied) or order.study_id in base.sound:
        return end
    if base.host.has_adapters:
        return end
    try:
        fault = _fault(failed, base.host)
    except Exception as error:  # noqa: BLE001 - a loss that is no trial's own, or the trial's own fault again
        of_study = ending(error)
        return of_study if of_study.fatal_to_study else end
    finally:
        release(base.host.base.device)
    if fault is not None:
        return ending(ModelError(fault))
    base.sound.add(order.study_id)
    return end


@contextmanager
def faults_of_all(order: TrialOrder, *fields: str) -> Iterator[None]:
    """What a loss of the study's own does wrong is the study's fault, if all trials have the same fields.

    Raises:
        PluginError: In place of a `LossError`, if they have.
    """
    try:
        yield
    except LossError as error:
        if order.varied is None or {*fields} & {*order.varied}:
            raise
        raise PluginError(str(error)) from error


def _fault(failed: Failed, host: AdapterHost) -> str | None:
    """Why the study cannot be trained, as a sentence with what to do; None: it can."""
    order = failed.order
    longest = max(failed.examples, key=lambda example: example.length)
    least: dict[str, object] = {"lora_r": 1, "lora_alpha": None, "lora_dropout": 0.0, "neftune_alpha": 0.0}
    if order.varied is not None and "target_modules" in order.varied:
        # Any other choice has its adapters there or before it, and keeps more for the backward pass.
        linear = [path for path in linear_layers(host.base.model) if not lies_in(path, host.base.heads)]
        least["target_modules"] = (linear[-1],)
    adapter = host.add(_NAME, order.recipe.model_copy(update=least))
    set_training(host.base.model, True)
    try:
        # The seed is for a base with dropout of its own.
        with seeded(0, host.base.device), faults_of_all(order, "loss"):
            _one_pass(host, adapter, longest, failed.own_loss)
    except Exception as error:
        if is_device_fault(error) or machine_fault(error) is not None or isinstance(error, WorkerError):
            raise
        if is_out_of_memory(error):
            return _does_not_fit(order, host, longest.length)
        # As text: a log record that is kept somewhere would keep the traceback's frames and their tensors.
        _log.error("a study cannot be trained\n%s", "".join(traceback.format_exception(error)))
        return (
            f"The model {order.model.id} ({type(host.base.model).__name__}) cannot be trained for the task"
            f" {order.task}: a pass over one row fails with {type(error).__name__}:"
            f" {without_values(str(error)).rstrip('.') or 'no reason given'}. Choose another model, or report"
            " this if the model should work."
        )
    finally:
        host.remove(_NAME)
    return None


def _one_pass(host: AdapterHost, adapter: Adapter, example: AnyExample, own_loss: OwnLoss | None) -> None:
    """Forward and backward over one example, which nothing comes of."""
    base, objective = host.base, objective_of(host.base)
    batch = objective.collate([example], base).to(base.device)
    owners = torch.zeros_like(batch.target_examples)
    groups = [adapter.rows(example.rows)]
    # Without one of its own, a recipe whose loss is the study's own has the task's first.
    share = Share(1, adapter.recipe, 1e-6, own_loss=own_loss)
    with host.multi_lora.running(
        groups,
        tokens=batch.tokens,
        form=host.choose_form(groups),
        device=base.device,
        row_lengths=batch.row_lengths,
    ):
        losses = objective.losses(base, batch, owners, [share], gradient=True)
        assert losses.objective is not None
        losses.objective.backward()  # type: ignore[no-untyped-call]


def _does_not_fit(order: TrialOrder, host: AdapterHost, tokens: int) -> str:
    base = host.base
    changes = [f"shorten data.max_length ({order.data.max_length})"]
    if not order.gradient_checkpointing:
        changes.append("set resources.gradient_checkpointing to true")
    if base.spec.quantization not in ("nf4", "fp4"):
        changes.append("set model.quantization to nf4")
    text = ", ".join([*changes, "or use a smaller model or a device with more memory"])
    return (
        f"No trial of the study fits the memory: training {order.model.id} ({base.spec.quantization}) on one"
        f" example of {tokens} tokens with LoRA rank 1 ran out of it{describe(base.device)}."
        f" {text[0].upper()}{text[1:]}."
    )
