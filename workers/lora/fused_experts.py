"""Layers that PEFT takes for fused experts, of a mixture of experts: they cannot be adapted."""

from __future__ import annotations

import copy

from peft import LoraConfig
from peft.utils.transformers_weight_conversion import convert_peft_config_for_transformers
from transformers import PreTrainedModel

from workers.errors import AdapterError


def refuse_fused_experts(config: LoraConfig, model: PreTrainedModel) -> None:
    """PEFT takes the names that a base's layers share with its fused experts for the experts'.

    So it does when an adapter is loaded, too: one of those layers alone could be saved, but not used.

    Args:
        config: Of the adapter.
        model: Its base, with or without weights.

    Raises:
        AdapterError: The adapter would be one of the experts.
    """
    converted = copy.deepcopy(config)
    try:
        convert_peft_config_for_transformers(converted, model, None)
    except ValueError as error:  # some of the names that are fused into one, but not all
        raise AdapterError(f"target_modules cannot be adapted: {error}") from error
    if converted.target_parameters:
        taken = sorted(set(config.target_modules or ()) - set(converted.target_modules or ()))
        raise AdapterError(
            f"PEFT takes {', '.join(taken)} of {type(model).__name__} for its fused experts,"
            " which cannot be adapted. Leave them out of target_modules, for example with `attention`."
        )
