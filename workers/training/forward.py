"""One forward pass over a micro-batch, shared by training and evaluation so that both mean the same."""

from __future__ import annotations

import torch
import torch.nn.functional as F

from workers.base.base_model import LoadedBase
from workers.base.chunked_loss import TargetLosses, hidden_states, target_losses
from workers.data.batches import MicroBatch

LOGITS_BYTES_PER_CHUNK = {"cpu": 128 * 2**20, "cuda": 512 * 2**20}
"""What one chunk of float32 logits may take. Large enough for efficient products: with 152,000 tokens of
vocabulary, 880 tokens on a GPU."""


def chunk_tokens(base: LoadedBase) -> int:
    """Targets whose logits are made at once."""
    return max(16, LOGITS_BYTES_PER_CHUNK[base.device.type] // (4 * base.vocabulary_size))


def batch_losses(base: LoadedBase, batch: MicroBatch, weights: torch.Tensor | None = None) -> TargetLosses:
    """Losses at the positions that predict a supervised target, under whatever adapters are in force.

    Activations and the adapters' products run in the base's compute dtype; the LoRA matrices themselves
    stay float32, as with mixed precision in `transformers.Trainer`. Logits are made in chunks, in float32,
    and only where there is a target; architectures that do more than `head(hidden)` make them all at once.

    Args:
        base: The base.
        batch: On the base's device, with S targets.
        weights: float32 [S], what each target's loss counts in the objective; None: no gradient is wanted.
    """
    with torch.autocast(
        base.device.type, dtype=base.compute_dtype, enabled=base.compute_dtype != torch.float32
    ):
        if base.head_is_plain:
            hidden = hidden_states(base.model, batch.input_ids, batch.attention_mask)
            rows = hidden.flatten(0, 1).index_select(0, batch.positions)
            head = base.model.get_output_embeddings()
            return target_losses(head, rows, batch.targets, weights, chunk_tokens=chunk_tokens(base))
        output = base.model(input_ids=batch.input_ids, attention_mask=batch.attention_mask, use_cache=False)
    logits = output.logits.flatten(0, 1).index_select(0, batch.positions).float()
    losses = F.cross_entropy(logits, batch.targets, reduction="none")
    return TargetLosses(
        losses=losses.detach(),
        correct=logits.detach().argmax(dim=-1) == batch.targets,
        objective=None if weights is None else (losses * weights).sum(),
    )
