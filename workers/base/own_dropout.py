"""The dropout of a base itself, beside that of adapters."""

from __future__ import annotations

import torch
from transformers import PretrainedConfig, PreTrainedModel


def switch_dropout_off(config: PretrainedConfig) -> None:
    """Whatever the architecture drops in training, its heads included."""
    for part in {id(part): part for part in (config, config.get_text_config())}.values():
        for key, value in part.to_dict().items():
            if "drop" in key and isinstance(value, float) and value > 0:
                setattr(part, key, 0.0)


def disable_dropout_layers(model: PreTrainedModel) -> None:
    """Those of heads on decoders, too, whose share no configuration names."""
    for module in model.modules():
        if isinstance(module, torch.nn.Dropout):
            module.p = 0.0


def has_dropout(model: PreTrainedModel) -> bool:
    """By its modules, and by its configuration for what is drawn inside functions: dropped or jittered.

    Configurations also hold the dropout of heads that the model does not have; those it has are modules.
    """
    layers = any(isinstance(module, torch.nn.Dropout) and module.p > 0 for module in model.modules())
    return layers or any(
        ("drop" in key or "jitter" in key)
        and not key.startswith(("classifier", "summary", "qa", "seq_classif"))
        and isinstance(value, float)
        and value > 0
        for key, value in model.config.get_text_config().to_dict().items()
    )
