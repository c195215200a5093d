"""Noise on the embeddings of training examples: NEFTune (Jain et al. 2023, arXiv 2310.05914).

Each element of a token's embedding gets a uniform number between -1 and 1 times alpha / sqrt(T * d), with T
the example's tokens without padding and d the width of the embeddings, as in the authors' code
(https://github.com/neelsjain/NEFTune). `transformers.Trainer` counts the padding in T and adds noise to it.

The numbers are counted, not drawn (see `workers.lora.lora_dropout`): they depend on the trial's seed, the
step, the example, the token and the feature, and neither on a pack nor on padding.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn
from transformers import PreTrainedModel

from workers.base.causal_attention import positions_of
from workers.lora.lora_dropout import uniform_noise

_LAYER = -1
"""In the noise's hashes, in place of a layer's number."""


@contextmanager
def noisy_embeddings(
    model: PreTrainedModel,
    alphas: torch.Tensor,
    keys: torch.Tensor,
    lengths: torch.Tensor,
    *,
    end_to_end: bool = False,
) -> Iterator[None]:
    """Inside, the embeddings of a training pass have noise; an evaluation stays outside.

    Of an encoder-decoder model, the encoder's. Embeddings are padded on the right, and padding gets none.

    Args:
        model: The base, also with adapters on its layers.
        alphas: float32 [B], each row's alpha; 0 for none. On the model's device, like the others.
        keys: int32 or int64 [B], each row's key (`lora_dropout.row_keys`).
        lengths: int64 [B], each row's tokens without padding.
        end_to_end: Whether rows are laid end to end, without padding.
    """
    encoder = model.get_encoder() if model.config.is_encoder_decoder else model
    add = _adding_to_tokens if end_to_end else _adding
    handle = encoder.get_input_embeddings().register_forward_hook(add(alphas, keys, lengths))
    try:
        yield
    finally:
        handle.remove()


def _adding(alphas: torch.Tensor, keys: torch.Tensor, lengths: torch.Tensor) -> Any:
    def add(_module: nn.Module, _inputs: tuple[Any, ...], embeddings: torch.Tensor) -> torch.Tensor:
        _, tokens, features = embeddings.shape
        sizes = alphas / (lengths * features).sqrt()
        real = torch.arange(tokens, device=lengths.device) < lengths[:, None]
        noise = uniform_noise(keys, _LAYER, tokens, features).mul_((sizes[:, None] * real).unsqueeze(2))
        return embeddings + noise.to(embeddings.dtype)

    return add


def _adding_to_tokens(alphas: torch.Tensor, keys: torch.Tensor, lengths: torch.Tensor) -> Any:
    """The same to embeddings [1, N, d] of rows end to end."""

    def add(_module: nn.Module, _inputs: tuple[Any, ...], embeddings: torch.Tensor) -> torch.Tensor:
        features = embeddings.shape[2]
        sizes = (alphas / (lengths * features).sqrt()).repeat_interleave(lengths)
        places = positions_of(lengths.tolist(), lengths.device)
        noise = uniform_noise(keys.repeat_interleave(lengths), _LAYER, 1, features, places)
        return embeddings + noise.mul_(sizes[:, None, None]).transpose(0, 1).to(embeddings.dtype)

    return add
