"""Attention that goes by causality alone, for rows that are padded on the right or laid end to end.

In a causal model a token sees what stands before it and nothing else. So padding on the right changes the
states of the padding only, which nobody reads, and needs no mask. transformers makes one all the same. To
find out whether it may be left out it reads it back from the device, in every forward pass, for which the
host must wait; and where a single row is padded, all rows lose the flash kernel and attend with copies of
the key and value heads.

Nor is padding needed where all but the attention treats each token by itself: rows of any length are laid end
to end as one long row, and only the attention takes them apart again.
"""

from __future__ import annotations

import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from transformers import AttentionInterface, PretrainedConfig, PreTrainedModel
from transformers.integrations.sdpa_attention import sdpa_attention_forward

NAME = "causal_sdpa"
"""Torch's scaled dot product attention, under a name for which transformers knows no mask to make."""

_TOLERANCE, _HALF_TOLERANCE = 1e-3, 0.03
"""Relative difference of hidden states by which two kernels may differ in float32, and in half precision.
Attending to padding, or to what comes later, changes them altogether."""

_LENGTHS = (5, 8, 3)
"""Of the rows that models are tried on."""


class _Layout(threading.local):
    """Of the rows in the pass that runs."""

    lengths: list[int] | None = None
    """None: they are padded."""


_layout = _Layout()


@contextmanager
def rows_end_to_end(lengths: Sequence[int] | None) -> Iterator[None]:
    """Inside, forward passes of models that `attend_without_masks` are over one long row made of these.

    So must be the backward pass, which may run layers again.

    Args:
        lengths: Tokens of each, in their order; None: rows stand below each other.
    """
    before, _layout.lengths = _layout.lengths, None if lengths is None else list(lengths)
    try:
        yield
    finally:
        _layout.lengths = before


def _attend(
    module: torch.nn.Module,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: torch.Tensor | None,
    **options: Any,
) -> tuple[torch.Tensor, None]:
    """transformers' own function, once for each row.

    Args:
        module: The layer.
        query: [B, heads, T, D]; B is 1 where rows are laid end to end.
        key: [B, key and value heads, T, D]
        value: Likewise.
        attention_mask: None, as there is none.
        options: As transformers gives them.

    Returns:
        [B, T, heads, D], and no weights.
    """
    if _layout.lengths is None:
        attended: torch.Tensor = sdpa_attention_forward(module, query, key, value, attention_mask, **options)[
            0
        ]
        return attended, None
    rows = zip(*(torch.split(states, _layout.lengths, dim=2) for states in (query, key, value)), strict=True)
    each = [sdpa_attention_forward(module, *row, None, **options)[0] for row in rows]
    return torch.cat(each, dim=1), None


@torch.no_grad()
def attend_without_masks(model: PreTrainedModel) -> bool:
    """Lets a model's attention do without masks, where that is the same.

    It is not for sliding windows and chunks, which the configuration tells; and not for architectures that
    put more into a mask than causality, or that do not look their attention up under a name. An experiment
    on three short rows shows those: do the tokens of a padded row get the states that they get with its mask?

    Args:
        model: Any model of transformers, on its device.

    Returns:
        Whether it does without from now on.
    """
    config = model.config.get_text_config()
    if config._attn_implementation != "sdpa" or _sees_less_than_all(config) or not _is_causal(model):
        return False
    AttentionInterface.register(NAME, _attend)
    with_masks = _states_beside_padding(model)
    model.set_attn_implementation(NAME)
    # Some architectures go on as before: they do not look their attention up.
    if config._attn_implementation == NAME and _same(_states_beside_padding(model), with_masks):
        return True
    model.set_attn_implementation("sdpa")
    return False


@torch.no_grad()
def may_lay_rows_end_to_end(model: PreTrainedModel) -> bool:
    """Whether rows laid end to end get the states that they get below each other.

    Not where anything but the attention looks at more than one token, such as a convolution, nor where
    positions cannot be given. The same experiment shows it.

    Args:
        model: One that attends without masks, on its device.
    """
    rows = _rows(model)
    expected = _states_beside_padding(model)
    try:
        with rows_end_to_end(_LENGTHS):
            output = model.base_model(
                input_ids=torch.cat(rows)[None],
                position_ids=positions_of(_LENGTHS, model.device)[None],
                use_cache=False,
            )
    except (TypeError, ValueError, RuntimeError, IndexError):
        return False  # it takes no positions, or wants a mask
    states = getattr(output, "last_hidden_state", None)
    return _same(None if states is None else states[0], expected)


def positions_of(lengths: Sequence[int], device: torch.device) -> torch.Tensor:
    """int64 [N]: 0, 1, 2, ... in each row in turn."""
    return torch.cat([torch.arange(length) for length in lengths]).to(device)


def _is_causal(model: PreTrainedModel) -> bool:
    """Whether no layer sees what comes later, as those of encoders do. Attention says so of itself."""
    known = [bool(layer.is_causal) for layer in model.modules() if hasattr(layer, "is_causal")]
    return bool(known) and all(known)


def _same(states: torch.Tensor | None, expected: torch.Tensor | None) -> bool:
    if states is None or expected is None:
        return False
    tolerance = _TOLERANCE if states.dtype == torch.float32 else _HALF_TOLERANCE
    difference = (states.float() - expected.float()).norm()
    return bool(difference <= tolerance * expected.float().norm())


def _sees_less_than_all(config: PretrainedConfig) -> bool:
    """Whether a token may not see everything that stands before it."""
    if any(kind != "full_attention" for kind in getattr(config, "layer_types", None) or ()):
        return True
    window = getattr(config, "sliding_window", None) if getattr(config, "use_sliding_window", True) else None
    return window is not None or getattr(config, "attention_chunk_size", None) is not None


def _rows(model: PreTrainedModel) -> list[torch.Tensor]:
    vocabulary = model.get_input_embeddings().weight.shape[0]
    tokens = torch.arange(1, sum(_LENGTHS) + 1, device=model.device) * 7919 % vocabulary
    return list(tokens.split(_LENGTHS))


def _states_beside_padding(model: PreTrainedModel) -> torch.Tensor | None:
    """[16, H]: the backbone's states of the tokens of three rows, two of which are padded."""
    rows, longest = _rows(model), max(_LENGTHS)
    input_ids = torch.stack([torch.nn.functional.pad(row, (0, longest - len(row))) for row in rows])
    attention_mask = torch.arange(longest, device=model.device) < torch.tensor(
        _LENGTHS, device=model.device
    ).unsqueeze(1)
    output = model.base_model(input_ids=input_ids, attention_mask=attention_mask.long(), use_cache=False)
    states = getattr(output, "last_hidden_state", None)
    return None if states is None else states[attention_mask]
