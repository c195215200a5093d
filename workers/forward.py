"""One forward pass over a micro-batch, shared by training and evaluation so that both mean the same."""

from __future__ import annotations

import torch
import torch.nn.functional as F

from workers.base_model import LoadedBase
from workers.batches import MicroBatch


def target_logits(base: LoadedBase, batch: MicroBatch) -> torch.Tensor:
    """Logits of the positions that predict a supervised target, under the active adapter.

    Activations and the adapter's products run in the base's compute dtype; the LoRA matrices themselves
    stay float32, as with mixed precision in `transformers.Trainer`.

    Args:
        base: The base, with whatever adapter is active in it.
        batch: On the base's device.

    Returns:
        float32 [S, vocabulary].
    """
    with torch.autocast(
        base.device.type, dtype=base.compute_dtype, enabled=base.compute_dtype != torch.float32
    ):
        output = base.model(input_ids=batch.input_ids, attention_mask=batch.attention_mask, use_cache=False)
    logits: torch.Tensor = output.logits
    # Rows are selected before the upcast: masked prompts and padding cost no float32 logits.
    return logits.flatten(0, 1).index_select(0, batch.positions).float()


def loss_sum(logits: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
    """Cross-entropy summed over S targets, in nats: a scalar to divide by however many tokens belong."""
    return F.cross_entropy(logits, targets, reduction="sum")
