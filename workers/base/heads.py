"""What each task makes of a checkpoint: the class that loads it, and the heads that stand on its backbone."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from transformers import (
    AutoModelForCausalLM,
    AutoModelForSeq2SeqLM,
    AutoModelForSequenceClassification,
    AutoModelForTokenClassification,
    PretrainedConfig,
    PreTrainedModel,
)
from transformers import (
    initialization as init,
)

from search_spaces.tasks import Task

_POOLER = "pooler"
"""What BERT and its kin call the layer between backbone and head; checkpoints made without it lack it."""


@dataclass(frozen=True)
class Labels:
    """What a model with a head can answer."""

    names: tuple[str, ...]
    """By their number."""
    multi_label: bool = False
    """Whether a row may have several of them, or none."""


@dataclass(frozen=True)
class TaskModel:
    """How transformers and PEFT call the model of a task."""

    auto: Any
    """The `AutoModelFor...` class that loads it."""
    peft_type: str
    """`task_type` in adapter_config.json."""


_CAUSAL = TaskModel(AutoModelForCausalLM, "CAUSAL_LM")
_SEQUENCE = TaskModel(AutoModelForSequenceClassification, "SEQ_CLS")

TASK_MODELS: Mapping[Task, TaskModel] = {
    "causal_lm": _CAUSAL,
    "preference": _CAUSAL,
    "seq2seq_lm": TaskModel(AutoModelForSeq2SeqLM, "SEQ_2_SEQ_LM"),
    "sequence_classification": _SEQUENCE,
    "regression": _SEQUENCE,
    "ranking": _SEQUENCE,
    "token_classification": TaskModel(AutoModelForTokenClassification, "TOKEN_CLS"),
}


def configure_head(config: PretrainedConfig, task: Task, labels: Labels | None, pad_id: int) -> None:
    """Writes into a model's configuration what its head must answer.

    Args:
        config: Of the checkpoint; changed.
        task: One with a head.
        labels: Those of the train data; None: the head gives one number.
        pad_id: Decoders find a row's last token by it.
    """
    config.pad_token_id = pad_id
    text = config.get_text_config()
    if text is not config:
        text.pad_token_id = pad_id
    if labels is None:
        config.id2label, config.label2id = {0: "LABEL_0"}, {"LABEL_0": 0}
        config.problem_type = "regression"
        return
    config.id2label = dict(enumerate(labels.names))
    config.label2id = {name: number for number, name in enumerate(labels.names)}
    if task == "sequence_classification":
        kind = "multi_label_classification" if labels.multi_label else "single_label_classification"
        config.problem_type = kind


def head_paths(model: PreTrainedModel) -> tuple[str, ...]:
    """Paths of the modules with parameters that stand outside the backbone, in the model's order."""
    backbone = model.base_model_prefix
    return tuple(
        name
        for name, module in model.named_children()
        if name != backbone and any(True for _ in module.parameters())
    )


def pooler_path(model: PreTrainedModel) -> str | None:
    """The path of the backbone's pooler, if it has one with parameters."""
    module = getattr(model.base_model, _POOLER, None)
    if not isinstance(module, torch.nn.Module) or not any(True for _ in module.parameters()):
        return None
    return f"{model.base_model_prefix}.{_POOLER}"


def row_end_id(config: PretrainedConfig, task: Task) -> int | None:
    """The token at whose last place an encoder-decoder model with a head reads a row. transformers takes only
    rows that have as many of it (`T5ForSequenceClassification`, `BartForSequenceClassification`).

    Args:
        config: The model's.
        task: What it is trained for.

    Returns:
        None: The model reads rows in another way.
    """
    end = config.eos_token_id if TASK_MODELS[task] is _SEQUENCE and config.is_encoder_decoder else None
    return None if end is None else int(end)


def lies_in(path: str, modules: Collection[str]) -> str | None:
    """Which of the modules a path belongs to."""
    return next((module for module in modules if path == module or path.startswith(f"{module}.")), None)


def initialise(model: PreTrainedModel, heads: Collection[str]) -> None:
    """Gives heads the weights that the architecture begins with, drawn from torch's global generator.

    As transformers does where a checkpoint lacks them: module by module in the model's order, and the whole
    model at last, as which some architectures (ModernBERT, T5 for tokens) initialise their heads.

    Args:
        model: With the heads themselves in their places, not PEFT's wrappers.
        heads: Their paths.
    """
    for parameter in model.parameters():
        parameter._is_hf_initialized = True  # left alone
    with init.guard_torch_init_functions():
        for path in heads:
            head = model.get_submodule(path)
            for parameter in head.parameters():
                parameter._is_hf_initialized = False
            head.apply(model._init_weights)
        model._init_weights(model)


def undecayed(module: torch.nn.Module) -> Iterator[str]:
    """Names of a head's parameters that weight decay spares, as in `transformers.Trainer`: biases, and what
    belongs to a normalisation layer."""
    for path, layer in module.named_modules():
        normalises = "norm" in type(layer).__name__.lower()
        for name, _ in layer.named_parameters(recurse=False):
            if normalises or name == "bias" or "norm" in path.lower():
                yield f"{path}.{name}" if path else name
