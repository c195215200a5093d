"""Attention that goes by causality alone, for rows that are padded on the right.

In a causal model a token sees what stands before it and nothing else. So padding on the right changes the
states of the padding only, which nobody reads, and needs no mask. transformers makes one all the same. To
find out whether it may be left out it reads it back from the device, in every forward pass, for which the
host must wait; and where a single row is padded, all rows lose the flash kernel and attend with copies of
the key and value heads.
"""

from __future__ import annotations

import torch
from transformers import AttentionInterface, PretrainedConfig, PreTrainedModel
from transformers.integrations.sdpa_attention import sdpa_attention_forward

NAME = "causal_sdpa"
"""Torch's scaled dot product attention, under a name for which transformers knows no mask to make."""

_TOLERANCE = 0.03
"""Relative difference of hidden states by which two kernels may differ in half precision. Attending to
padding, or to what comes later, changes them altogether."""


@torch.no_grad()
def attend_without_masks(model: PreTrainedModel) -> bool:
    """Lets a model's attention do without masks, where that is the same.

    It is not for sliding windows and chunks, which the configuration tells; and not for architectures that
    put more into a mask than causality, or that do not look their attention up under a name. An experiment
    on two short rows shows those: do the tokens of a padded row get the states that they get with its mask?

    Args:
        model: Any model of transformers, on its device.

    Returns:
        Whether it does without from now on.
    """
    config = model.config.get_text_config()
    if config._attn_implementation != "sdpa" or _sees_less_than_all(config) or not _is_causal(model):
        return False
    AttentionInterface.register(NAME, sdpa_attention_forward)
    with_masks = _states_beside_padding(model)
    model.set_attn_implementation(NAME)
    # Some architectures go on as before: they do not look their attention up.
    if config._attn_implementation == NAME and _same(_states_beside_padding(model), with_masks):
        return True
    model.set_attn_implementation("sdpa")
    return False


def _is_causal(model: PreTrainedModel) -> bool:
    """Whether no layer sees what comes later, as those of encoders do. Attention says so of itself."""
    known = [bool(layer.is_causal) for layer in model.modules() if hasattr(layer, "is_causal")]
    return bool(known) and all(known)


def _same(states: torch.Tensor | None, expected: torch.Tensor | None) -> bool:
    if states is None or expected is None:
        return False
    return bool((states - expected).norm() <= _TOLERANCE * expected.norm())


def _sees_less_than_all(config: PretrainedConfig) -> bool:
    """Whether a token may not see everything that stands before it."""
    if any(kind != "full_attention" for kind in getattr(config, "layer_types", None) or ()):
        return True
    window = getattr(config, "sliding_window", None) if getattr(config, "use_sliding_window", True) else None
    return window is not None or getattr(config, "attention_chunk_size", None) is not None


def _states_beside_padding(model: PreTrainedModel) -> torch.Tensor | None:
    """float32 [12, H]: the backbone's states of two rows' tokens, the second row half padding."""
    vocabulary = model.get_input_embeddings().weight.shape[0]
    input_ids = (torch.arange(1, 17, device=model.device) * 7919 % vocabulary).view(2, 8)
    attention_mask = torch.ones_like(input_ids)
    attention_mask[1, 4:] = 0
    output = model.base_model(input_ids=input_ids, attention_mask=attention_mask, use_cache=False)
    states = getattr(output, "last_hidden_state", None)
    return None if states is None else torch.cat((states[0], states[1, :4])).float()
