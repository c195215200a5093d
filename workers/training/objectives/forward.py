"""One forward pass of a language model, shared by training and evaluation so that both mean the same."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import AbstractContextManager
from functools import partial

import torch
import torch.nn.functional as F

from workers.base.base_model import LoadedBase
from workers.base.causal_attention import positions_of
from workers.base.chunked_loss import TargetLosses, hidden_states, target_losses
from workers.data.batches import MicroBatch
from workers.plugins import OwnLoss
from workers.training.objectives.own_losses import own_losses, values_and_slopes

LOGITS_BYTES_PER_CHUNK = {"cpu": 128 * 2**20, "cuda": 512 * 2**20}
"""What one chunk of float32 logits may take. Large enough for efficient products: with 152,000 tokens of
vocabulary, 880 tokens on a GPU."""

_OWN_LOSS_COPIES = 4
"""By how much fewer targets at once a loss of a study's own gets, because it makes copies of the logits."""


def chunk_tokens(base: LoadedBase) -> int:
    """Targets whose logits are made at once."""
    return max(16, LOGITS_BYTES_PER_CHUNK[base.device.type] // (4 * base.vocabulary_size))


def autocast(base: LoadedBase) -> AbstractContextManager[None]:
    """Activations and the adapters' products run in the base's compute dtype; adapters and heads stay
    float32, as with mixed precision in `transformers.Trainer`."""
    return torch.autocast(
        base.device.type, dtype=base.compute_dtype, enabled=base.compute_dtype != torch.float32
    )


def batch_losses(
    base: LoadedBase,
    batch: MicroBatch,
    weights: torch.Tensor | None = None,
    *,
    smoothing: torch.Tensor | None = None,
    focus: torch.Tensor | None = None,
    parts: Sequence[tuple[slice, OwnLoss | None]] = (),
) -> TargetLosses:
    """Losses at the positions that predict a supervised target, under whatever adapters are in force.

    Logits are made in chunks, in float32, and only where there is a target; architectures that do more than
    `head(hidden)` make them all at once.

    Args:
        base: The base.
        batch: On the base's device, with S targets.
        weights: float32 [S], what each target's loss counts in the objective; None: no gradient is wanted.
        smoothing: float32 [S], label smoothing in the objective; None: none. The part that goes to all tokens
            alike stays cross-entropy where there is a focus.
        focus: float32 [S], gamma of the focal loss in the objective, 0 for cross-entropy; None: all 0.
        parts: All targets in order, each part with its trial's loss where that is the study's own; empty: no
            trial has one.

    Raises:
        LossError: One of them goes wrong.
    """
    language = LanguagePass(base, batch)
    if not parts:
        return language.losses(weights, smoothing=smoothing, focus=focus)
    found = [
        language.losses(
            _part(weights, rows), smoothing=_part(smoothing, rows), focus=_part(focus, rows), rows=rows
        )
        if own is None
        else language.losses(_part(weights, rows), rows=rows, own=own)
        for rows, own in parts
    ]
    objectives = [one.objective for one in found if one.objective is not None]
    return TargetLosses(
        losses=torch.cat([one.losses for one in found]),
        correct=torch.cat([one.correct for one in found]),
        objective=torch.stack(objectives).sum() if objectives else None,
    )


def _part(values: torch.Tensor | None, rows: slice) -> torch.Tensor | None:
    return None if values is None else values[rows]


class LanguagePass:
    """A forward pass whose losses may be asked for twice: once to see them, and once to weigh them."""

    def __init__(self, base: LoadedBase, batch: MicroBatch) -> None:
        """Runs the model over a batch on the base's device."""
        self._base = base
        self._batch = batch
        self._chunked = base.head_is_plain
        ids, mask, decoder = batch.input_ids, batch.attention_mask, batch.decoder_input_ids
        lengths = batch.row_lengths
        positions = None if lengths is None else positions_of(lengths, ids.device).unsqueeze(0)
        with autocast(base):
            if self._chunked:
                hidden = hidden_states(base.model, ids, mask, decoder, positions)
                self._states = hidden.flatten(0, 1).index_select(0, batch.positions)
                return
            given = {} if decoder is None else {"decoder_input_ids": decoder}
            given |= {} if positions is None else {"position_ids": positions}
            output = base.model(input_ids=ids, attention_mask=mask, use_cache=False, **given)
        self._states = output.logits.flatten(0, 1).index_select(0, batch.positions).float()

    def losses(
        self,
        weights: torch.Tensor | None,
        *,
        smoothing: torch.Tensor | None = None,
        focus: torch.Tensor | None = None,
        rows: slice = slice(None),
        own: OwnLoss | None = None,
    ) -> TargetLosses:
        """As `batch_losses`, of a part of the targets; `own` is in the place of smoothing and focus."""
        if weights is not None and focus is not None:
            share = focal_factor(self.losses(None, rows=rows).losses, focus)
            if smoothing is not None:  # only the target's own part has the focus
                share = torch.lerp(share, torch.ones_like(share), smoothing)
                smoothing = smoothing / share.clamp_min(torch.finfo(share.dtype).tiny)
            weights = weights * share
        targets, states = self._batch.targets[rows], self._states[rows]
        if self._chunked:
            with autocast(self._base):
                return target_losses(
                    self._base.model.get_output_embeddings(),
                    states,
                    targets,
                    weights,
                    chunk_tokens=chunk_tokens(self._base) // (1 if own is None else _OWN_LOSS_COPIES),
                    smoothing=smoothing,
                    own=None if own is None else partial(values_and_slopes, own),
                )
        logits = states
        losses = F.cross_entropy(logits, targets, reduction="none")
        minimized = losses
        if own is not None and weights is not None:
            minimized = own_losses(own, logits, targets)
        elif smoothing is not None:
            minimized = (1 - smoothing) * losses - smoothing * F.log_softmax(logits, dim=-1).mean(dim=-1)
        return TargetLosses(
            losses=losses.detach(),
            correct=logits.detach().argmax(dim=-1) == targets,
            objective=None if weights is None else (minimized * weights).sum(),
        )


def focal_factor(losses: torch.Tensor, gamma: torch.Tensor) -> torch.Tensor:
    """What the gradient of the focal loss is of that of the cross-entropy, [S].

    With p = exp(-loss), the focal loss is (1 - p)^gamma * loss (Lin et al. 2017, arXiv 1708.02002), and its
    derivative with regard to the loss (1 - p)^gamma + gamma (1 - p)^(gamma - 1) p loss.

    Args:
        losses: float32 [S], cross-entropy in nats.
        gamma: float32 [S], at least 0; 0 is cross-entropy.
    """
    p = torch.exp(-losses)
    missed = (-torch.expm1(-losses)).clamp_min(torch.finfo(losses.dtype).tiny)
    return missed**gamma + gamma * missed ** (gamma - 1) * p * losses
