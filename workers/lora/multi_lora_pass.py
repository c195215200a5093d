"""Which rows of a shared pass are whose, and which of them one product can be for."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from itertools import accumulate, islice
from typing import Literal

import torch

from workers.base.causal_attention import positions_of
from workers.device.devices import to_device
from workers.lora.bank import Bank, Span
from workers.lora.divided_rows import DividedRows
from workers.lora.lora_dropout import RowDropout

Form = Literal["looped", "batched", "grouped"]
"""How the LoRA products of a pass are taken: see `workers.lora.multi_lora`."""


@dataclass(frozen=True, eq=False)
class LayerAdapter:
    """One adapter's matrices in one layer, views of its slot."""

    bank: Bank
    row: int
    """Its slot."""
    span: Span
    scale: float
    """alpha / r, or alpha / sqrt(r) with rsLoRA."""

    @property
    def rank(self) -> int:
        """r."""
        return self.span.rank

    @cached_property
    def a(self) -> torch.Tensor:
        """float32 [r, d_in]: PEFT's lora_A weight."""
        return self.span.a(self.bank.weights[self.row, None])[0]

    @cached_property
    def b(self) -> torch.Tensor:
        """float32 [r, d_out]: PEFT's lora_B weight, transposed."""
        return self.span.b(self.bank.weights[self.row, None])[0]

    @cached_property
    def grad_a(self) -> torch.Tensor:
        """float32 [r, d_in]"""
        return self.span.a(self.bank.gradients[self.row, None])[0]

    @cached_property
    def grad_b(self) -> torch.Tensor:
        """float32 [r, d_out]"""
        return self.span.b(self.bank.gradients[self.row, None])[0]

    @cached_property
    def a_t(self) -> torch.Tensor:
        """[d_in, r]: a view of `a`."""
        return self.a.t()

    @cached_property
    def b_t(self) -> torch.Tensor:
        """[d_out, r]: a view of `b`."""
        return self.b.t()


@dataclass(frozen=True, eq=False)
class RowGroup:
    """The rows of one adapter in a pass."""

    layers: dict[int, LayerAdapter]
    """By layer number; a layer that the adapter does not target is missing."""
    rows: int
    dropout: float = 0.0
    keys: Sequence[int] = ()
    """One key per row (`lora_dropout.row_keys`), when there is dropout."""
    heads: Mapping[str, torch.nn.Module] = field(default_factory=dict)
    """Its own heads, by their path in the model."""


class MultiLoraPass:
    """A forward and backward pass over rows of several adapters, as a target layer must know it.

    In force inside `MultiLora.running`.
    """

    def __init__(
        self,
        groups: Sequence[RowGroup],
        *,
        tokens: int,
        form: Form,
        device: torch.device,
        dtype: torch.dtype,
        row_lengths: Sequence[int] | None = None,
    ) -> None:
        """
        Args:
            groups: In the order of the rows.
            tokens: T, what every row is padded to.
            form: How the products are taken.
            device: Where the pass runs.
            dtype: What the LoRA products are computed in.
            row_lengths: Tokens of each row, where they are laid end to end. To the layers, and in
                everything here, each token is then a row of one token.
        """
        self.groups = tuple(groups)
        self.tokens = tokens if row_lengths is None else 1
        self.form = form
        self.device = device
        self.dtype = dtype
        self.row_lengths = row_lengths
        self.counts = [group.rows for group in groups]
        """Rows of each group."""
        if row_lengths is not None:
            lengths = iter(row_lengths)
            self.counts = [sum(islice(lengths, group.rows)) for group in groups]
        self.rows = sum(self.counts)
        ends = list(accumulate(self.counts))
        self.spans = list(zip([0, *ends[:-1]], ends, strict=True))
        self._stretches: dict[int, list[tuple[slice, Stretch | None]]] = {}
        self._divided: dict[tuple[int, ...], DividedRows] = {}
        self._weights: dict[tuple[Bank, int, int], torch.Tensor] = {}
        self._row_scales: dict[tuple[tuple[float, ...], tuple[int, ...]], torch.Tensor] = {}
        self._dropouts: dict[tuple[int, int], RowDropout] = {}
        self._drops = any(group.dropout > 0 for group in groups)
        self._places: torch.Tensor | None = None
        if self._drops:
            rates = torch.tensor([rate for group in groups for rate in [group.dropout] * group.rows])
            keys = torch.tensor([key for group in groups for key in (group.keys or [0] * group.rows)])
            if row_lengths is not None:
                counts = torch.tensor(row_lengths)
                rates, keys = rates.repeat_interleave(counts), keys.repeat_interleave(counts)
                self._places = positions_of(row_lengths, device)
            self._rates, self._keys = to_device(rates, device), to_device(keys, device)

    def parts(self, *tensors: torch.Tensor) -> tuple[tuple[torch.Tensor, ...], ...]:
        """Of each tensor [B, T, d], the rows of each group as [rows * T, d]: views where the tensor allows.

        Of one group alone, all of it, whatever its shape.
        """
        flat = [tensor.flatten(0, 1) for tensor in tensors]
        sizes = [count * tensors[0].shape[1] for count in self.counts]
        return tuple((one,) if len(sizes) == 1 else torch.split(one, sizes) for one in flat)

    def keep(self, layer: int, x: torch.Tensor) -> torch.Tensor | None:
        """Dropout factors for a layer's input [B, T, d_in], the same at every call; None without dropout."""
        if not self._drops:
            return None
        rows, tokens, features = x.shape
        if (rows, tokens) not in self._dropouts:
            self._dropouts[rows, tokens] = RowDropout(
                self._keys[:rows], self._rates[:rows], tokens, self.dtype, self._places
            )
        return self._dropouts[rows, tokens].keep_scale(layer, features)

    def stretches(self, layer: int) -> list[tuple[slice, Stretch | None]]:
        """The rows of the pass, cut where one product cannot go on in a layer; None: they have no adapter."""
        if layer not in self._stretches:
            found = [group.layers.get(layer) for group in self.groups]
            firsts = [k for k in range(len(found)) if k == 0 or not self._goes_on(found, k)]
            self._stretches[layer] = [
                (slice(self.spans[first][0], self.spans[end - 1][1]), self._stretch(found[first:end], first))
                for first, end in zip(firsts, [*firsts[1:], len(found)], strict=True)
            ]
        return self._stretches[layer]

    def _goes_on(self, found: Sequence[LayerAdapter | None], k: int) -> bool:
        """Whether a group can be in one product with the group before it."""
        before, here = found[k - 1], found[k]
        if before is None or here is None:
            return before is here
        if before.bank is not here.bank or before.row + 1 != here.row:
            return False
        grouped = self.form == "grouped" and here.span.fits_grouped(self.dtype)
        return grouped or self.counts[k - 1] == self.counts[k]

    def _stretch(self, found: Sequence[LayerAdapter | None], first: int) -> Stretch | None:
        adapters = [adapter for adapter in found if adapter is not None]
        if not adapters:
            return None
        bank, span, row = adapters[0].bank, adapters[0].span, adapters[0].row
        rows = slice(row, row + len(adapters))
        counts = tuple(self.counts[first : first + len(adapters)])
        if counts not in self._divided:
            self._divided[counts] = DividedRows(counts, self.device)
        if (bank, row, len(adapters)) not in self._weights:
            self._weights[bank, row, len(adapters)] = bank.weights[rows].to(self.dtype)
        weights, gradients = self._weights[bank, row, len(adapters)], bank.gradients[rows]
        return Stretch(
            self._divided[counts],
            *(span.a(weights), span.b(weights), span.a(gradients), span.b(gradients)),
            self._scales(tuple(adapter.scale for adapter in adapters), counts),
        )

    def _scales(self, scales: tuple[float, ...], counts: tuple[int, ...]) -> torch.Tensor:
        """float32, as a stretch has them. Most layers share one."""
        if (scales, counts) not in self._row_scales:
            # float32: rounded to half precision, 2 / sqrt(8) would be off by 0.2 %, in a pack and not alone.
            # Of one adapter alone one for all rows: a layer may be given its tokens as one long row.
            each = counts if len(counts) > 1 else (1,)
            rows = [scale for scale, count in zip(scales, each, strict=True) for _ in range(count)]
            self._row_scales[scales, counts] = to_device(torch.tensor(rows), self.device)[:, None, None]
        return self._row_scales[scales, counts]


@dataclass(frozen=True, eq=False)
class Stretch:
    """The matrices of k adapters in neighbouring slots, which are for neighbouring rows of a pass."""

    rows: DividedRows
    a: torch.Tensor
    """[k, r, d_in]: a view of the bank's, or, for products in half precision, rounded once a pass."""
    b: torch.Tensor
    """[k, r, d_out]"""
    grad_a: torch.Tensor
    """float32 [k, r, d_in]: a view of the bank's."""
    grad_b: torch.Tensor
    """float32 [k, r, d_out]"""
    scale: torch.Tensor
    """float32 [n, 1, 1]: of each row; [1, 1, 1] of one adapter."""
