"""Which examples each optimizer step sees, and how they become tensors. Pure.

A trial's data order depends on its seed and the epoch, never on its batch size, its micro-batches or its
neighbours: step k of a trial is a function of (seed, batch size, k), so a cursor is one integer.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch

from search_spaces.trial_length import TrainingPlan
from workers.data.examples import Example, Seq2SeqExample
from workers.data.tokenization import IGNORED
from workers.device.devices import to_device
from workers.device.generators import derive_seed


def epoch_order(examples: int, seed: int, epoch: int) -> list[int]:
    """The order of the examples' indices in one epoch (the first is epoch 0)."""
    generator = torch.Generator().manual_seed(derive_seed(seed, "data order", epoch))
    order: list[int] = torch.randperm(examples, generator=generator).tolist()
    return order


class DataOrder:
    """A trial's effective batches, addressed by step. Holds the current epoch's order and no more."""

    def __init__(self, plan: TrainingPlan, seed: int) -> None:
        self._plan = plan
        self._seed = seed
        self._epoch = -1
        self._order: list[int] = []

    def batch(self, step: int) -> list[int]:
        """Indices of the examples of optimizer step `step` (the first is step 0)."""
        epoch, step_in_epoch = divmod(step, self._plan.steps_per_epoch)
        if epoch != self._epoch:
            self._order = epoch_order(self._plan.examples, self._seed, epoch)
            self._epoch = epoch
        start = step_in_epoch * self._plan.batch_size
        return self._order[start : start + self._plan.batch_size]


@dataclass(frozen=True)
class MicroBatch:
    """B examples with S supervised targets among them: padded on the right to T tokens, or laid end to end.

    Targets are given by position in place of a [B, T] label mask: the loss then upcasts and
    normalises S rows of logits, not B * T, and needs no device-to-host synchronisation to find them.
    """

    input_ids: torch.Tensor
    """int64 [B, T]; [1, T] laid end to end."""
    attention_mask: torch.Tensor | None
    """int64 [B, T], 1 for a token and 0 for padding; None laid end to end."""
    positions: torch.Tensor
    """int64 [S], in the flattened `input_ids`: where the logits that predict a target stand."""
    targets: torch.Tensor
    """int64 [S], the token ids to predict."""
    decoder_input_ids: torch.Tensor | None = None
    """int64 [B, U]: what the decoder of an encoder-decoder model is given; positions are then in [B * U]."""
    row_lengths: tuple[int, ...] | None = None
    """Tokens of each example, laid end to end; None: they are padded."""

    @property
    def supervised_tokens(self) -> int:
        """S."""
        return self.targets.numel()

    @property
    def rows(self) -> int:
        """B."""
        return self.input_ids.shape[0] if self.row_lengths is None else len(self.row_lengths)

    @property
    def tokens(self) -> int:
        """T."""
        return self.input_ids.shape[1]

    @property
    def padded_tokens(self) -> int:
        """Positions of `input_ids`, and B * U more with a decoder of its own."""
        decoded = 0 if self.decoder_input_ids is None else self.decoder_input_ids.numel()
        return self.input_ids.numel() + decoded

    @property
    def target_examples(self) -> torch.Tensor:
        """int64 [S]: the row of each target."""
        if self.row_lengths is not None:
            lengths = torch.tensor(self.row_lengths, device=self.positions.device)
            return torch.arange(self.rows, device=lengths.device).repeat_interleave(lengths)[self.positions]
        written = self.input_ids if self.decoder_input_ids is None else self.decoder_input_ids
        return self.positions // written.shape[1]

    def to(self, device: torch.device) -> MicroBatch:
        """The same on a device; to CUDA through pinned memory, without waiting for the copy."""
        return MicroBatch(
            input_ids=to_device(self.input_ids, device),
            attention_mask=None if self.attention_mask is None else to_device(self.attention_mask, device),
            positions=to_device(self.positions, device),
            targets=to_device(self.targets, device),
            decoder_input_ids=(
                None if self.decoder_input_ids is None else to_device(self.decoder_input_ids, device)
            ),
            row_lengths=self.row_lengths,
        )


def collate(examples: Sequence[Example], pad_token_id: int) -> MicroBatch:
    """Pads examples on the right into one micro-batch (on the CPU).

    Args:
        examples: At least one.
        pad_token_id: Any valid token id; padding is masked out of the attention and of the loss.
    """
    length = max(len(example.input_ids) for example in examples)
    input_ids = torch.full((len(examples), length), pad_token_id, dtype=torch.int64)
    attention_mask = torch.zeros((len(examples), length), dtype=torch.int64)
    shifted = torch.full((len(examples), length), IGNORED, dtype=torch.int64)
    for row, example in enumerate(examples):
        tokens = len(example.input_ids)
        input_ids[row, :tokens] = example.input_ids
        attention_mask[row, :tokens] = 1
        # Position t predicts the token at t + 1.
        shifted[row, : tokens - 1] = example.labels[1:]
    flat = shifted.flatten()
    positions = (flat != IGNORED).nonzero().squeeze(1)
    return MicroBatch(input_ids, attention_mask, positions, flat[positions])


def lay_end_to_end(examples: Sequence[Example]) -> MicroBatch:
    """Examples as one long row (on the CPU), for a base that is `padding_free`; at least one."""
    # Position t predicts the token at t + 1; the last one of a row predicts none.
    shifted = torch.cat([part for e in examples for part in (e.labels[1:], e.labels.new_full((1,), IGNORED))])
    positions = (shifted != IGNORED).nonzero().squeeze(1)
    return MicroBatch(
        input_ids=torch.cat([example.input_ids for example in examples]).unsqueeze(0),
        attention_mask=None,
        positions=positions,
        targets=shifted[positions],
        row_lengths=tuple(len(example.input_ids) for example in examples),
    )


def collate_sources(
    examples: Sequence[Seq2SeqExample], pad_token_id: int, decoder_start_id: int
) -> MicroBatch:
    """Pads sources and targets on the right into one micro-batch (on the CPU).

    Args:
        examples: At least one.
        pad_token_id: Any valid token id; it is masked in the sources, and no target sees it in the decoder.
        decoder_start_id: What the decoder is given before the first token of a target.
    """
    sources = [example.input_ids for example in examples]
    batch = collate([Example(source, torch.full_like(source, IGNORED)) for source in sources], pad_token_id)
    length = max(len(example.labels) for example in examples)
    given = torch.full((len(examples), length), pad_token_id, dtype=torch.int64)
    wanted = torch.full((len(examples), length), IGNORED, dtype=torch.int64)
    for row, example in enumerate(examples):
        tokens = len(example.labels)
        given[row, 0] = decoder_start_id
        given[row, 1:tokens] = example.labels[:-1]
        wanted[row, :tokens] = example.labels
    flat = wanted.flatten()
    positions = (flat != IGNORED).nonzero().squeeze(1)
    return MicroBatch(batch.input_ids, batch.attention_mask, positions, flat[positions], given)
