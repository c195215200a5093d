"""Whether a study can be trained at all, found out before its first trial on a base.

One forward and backward pass over one row, the longest, with the least adapter that a trial of the study may
have. If that fails, so would every trial, and the study ends with a reason; whatever else goes wrong later is
one trial's. What the first trial itself takes is measured after it (`workers.pack.probe`).
"""

from __future__ import annotations

import logging
import traceback
from collections.abc import Iterator
from contextlib import contextmanager

from search_spaces.errors import machine_fault
from workers.base.base_model import set_training
from workers.base.heads import lies_in
from workers.base.target_modules import linear_layers
from workers.contract import TrialOrder
from workers.device.generators import seeded
from workers.device.memory import describe, is_device_fault, is_out_of_memory, release
from workers.errors import LossError, ModelError, PluginError, WorkerError, without_values
from workers.pack.loaded import Loaded
from workers.pack.probe import one_pass

_log = logging.getLogger(__name__)

_NAME = "preflight"
_UNDECIDED = {"max_length", "quantization"}
"""Where trials differ in these, one that fails says nothing of the others."""


def preflight(order: TrialOrder, loaded: Loaded) -> None:
    """Tries a study's least demanding trial, once for each base, unless trials are on it already.

    Raises:
        ModelError: No trial of the study can be trained.
        AdapterError: The recipe's adapter cannot be put on this base.
        PluginError: The loss of all trials, one of the study's own, goes wrong.
        LossError: The loss of this trial does.
        Exception: What is no study's fault, such as a broken device.
    """
    base, varied = loaded.base, order.varied
    if varied is None or _UNDECIDED & set(varied) or order.study_id in base.preflighted:
        return
    if base.host.has_adapters:  # they show that the base can be trained, and have the memory
        return
    fault = _fault(order, loaded)
    release(base.host.base.device)
    if fault is not None:
        raise ModelError(fault)
    base.preflighted.add(order.study_id)


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


def _fault(order: TrialOrder, loaded: Loaded) -> str | None:
    """Why the study cannot be trained, as a sentence with what to do; None: it can."""
    host = loaded.base.host
    longest = max(loaded.train.examples, key=lambda example: example.length)
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
            one_pass(host, adapter, [longest], 1, own_loss=loaded.own_loss)
    except Exception as error:
        if is_device_fault(error) or machine_fault(error) is not None or isinstance(error, WorkerError):
            raise
        if is_out_of_memory(error):
            return _does_not_fit(order, loaded, longest.length)
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


def _does_not_fit(order: TrialOrder, loaded: Loaded, tokens: int) -> str:
    base = loaded.base.host.base
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
