"""Which rows of a shared pass are whose, and the adapters of a layer stacked into one tensor."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from itertools import accumulate, islice
from typing import Literal

import torch

from workers.base.causal_attention import positions_of
from workers.device.devices import to_device
from workers.lora.lora_dropout import RowDropout

Form = Literal["looped", "batched"]
"""How the LoRA products of a pass are taken: see `workers.lora.multi_lora`."""


@dataclass(frozen=True)
class LayerAdapter:
    """One adapter's matrices in one layer: views of its flat tensors."""

    a: torch.Tensor
    """float32 [r, d_in]: PEFT's lora_A weight."""
    b: torch.Tensor
    """float32 [r, d_out]: PEFT's lora_B weight, transposed."""
    grad_a: torch.Tensor
    """float32 [r, d_in]"""
    grad_b: torch.Tensor
    """float32 [r, d_out]"""
    scale: float
    """alpha / r, or alpha / sqrt(r) with rsLoRA."""

    @property
    def rank(self) -> int:
        """r."""
        return self.a.shape[0]

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
        self.even = len(set(self.counts)) == 1
        ends = list(accumulate(self.counts))
        self.spans = list(zip([0, *ends[:-1]], ends, strict=True))
        self._stacks: dict[int, AdapterStack | None] = {}
        self._indices: dict[tuple[float | None, ...], tuple[torch.Tensor, torch.Tensor]] = {}
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

    def stack(self, layer: int) -> AdapterStack | None:
        """All adapters of a layer as one tensor, made at the first use; None when no row targets it."""
        if layer not in self._stacks:
            self._stacks[layer] = AdapterStack.of(self, layer)
        return self._stacks[layer]

    def index(self, layer: int) -> tuple[torch.Tensor, torch.Tensor]:
        """Of each row, the adapter's place in the layer's stack, int64 [B], and its scale, [B, 1, 1].

        Most layers share one: layers are targeted by the same adapters.
        """
        present = [group.layers.get(layer) for group in self.groups]
        scales = [None if adapter is None else adapter.scale for adapter in present]
        if (key := tuple(scales)) not in self._indices:
            count = sum(scale is not None for scale in scales)
            places = iter(range(count))
            place = [count if scale is None else next(places) for scale in scales]
            rows = [own for own, count in zip(place, self.counts, strict=True) for _ in range(count)]
            factors = [
                own or 0.0 for own, count in zip(scales, self.counts, strict=True) for _ in range(count)
            ]
            # float32: rounded to half precision, 2 / sqrt(8) would be off by 0.2 %, in a pack and not alone.
            factor = to_device(torch.tensor(factors, dtype=torch.float32), self.device)[:, None, None]
            self._indices[key] = (to_device(torch.tensor(rows), self.device), factor)
        return self._indices[key]

    def add_stacked_gradients(self) -> None:
        """After the backward pass: moves what was gathered in stacks to the adapters' own gradients."""
        targets: list[torch.Tensor] = []
        sources: list[torch.Tensor] = []
        for stack in self._stacks.values():
            if stack is None or stack.grads is None:
                continue
            for name, gathered in zip(("grad_a", "grad_b"), stack.grads, strict=True):
                targets += [getattr(adapter, name) for adapter in stack.adapters]
                sources += stack.parts(gathered)
        if targets:
            torch._foreach_add_(targets, sources)


@dataclass(eq=False)
class AdapterStack:
    """The K adapters of one layer with their ranks padded to R, and a row of zeros for rows without one.

    Where all adapters have as many rows, they are K long rows of B / K * T tokens, and nothing is looked up.
    """

    adapters: list[LayerAdapter]
    ranks: tuple[int, ...]
    a: torch.Tensor
    """[K + 1, R, d_in], or [K, R, d_in] where every row has an adapter."""
    b: torch.Tensor
    """[K + 1, R, d_out], or [K, R, d_out]"""
    rows: torch.Tensor | None
    """int64 [B]: the adapter of each row; K for none. None where all adapters have as many rows."""
    scale: torch.Tensor
    """float32 [B, 1, 1], or [K, 1, 1] where all adapters have as many rows."""
    grads: tuple[torch.Tensor, torch.Tensor] | None = None
    """float32, like `a` and `b`; made in the backward pass, as an evaluation needs none."""

    @classmethod
    def of(cls, lora_pass: MultiLoraPass, layer: int) -> AdapterStack | None:
        adapters = [group.layers[layer] for group in lora_pass.groups if layer in group.layers]
        if not adapters:
            return None
        ranks = tuple(adapter.rank for adapter in adapters)
        spare = len(adapters) < len(lora_pass.groups)
        a, b = (
            _stacked(
                [getattr(adapter, name) for adapter in adapters], ranks, spare=spare, dtype=lora_pass.dtype
            )
            for name in ("a", "b")
        )
        rows, scale = lora_pass.index(layer)
        if lora_pass.even and not spare:
            return cls(adapters, ranks, a, b, None, scale[:: lora_pass.counts[0]])
        return cls(adapters, ranks, a, b, rows, scale)

    def parts(self, stacked: torch.Tensor) -> list[torch.Tensor]:
        """Each adapter's own part of a tensor like `a` or `b`."""
        whole = stacked.unbind(0)[: len(self.ranks)]
        if min(self.ranks) == stacked.shape[1]:
            return list(whole)
        return [part[:rank] for part, rank in zip(whole, self.ranks, strict=True)]

    def gradients(self) -> tuple[torch.Tensor, torch.Tensor]:
        """`grads`, zeros at first."""
        if self.grads is None:
            self.grads = (
                torch.zeros_like(self.a, dtype=torch.float32),
                torch.zeros_like(self.b, dtype=torch.float32),
            )
        return self.grads


def _stacked(
    matrices: Sequence[torch.Tensor], ranks: Sequence[int], *, spare: bool, dtype: torch.dtype
) -> torch.Tensor:
    """[K, R, d] from K matrices [r, d], and with `spare` zeros behind them."""
    if not spare and min(ranks) == max(ranks):
        return torch.stack(list(matrices)).to(dtype)
    like = matrices[0]
    stacked = torch.zeros(len(matrices) + spare, max(ranks), like.shape[1], dtype=dtype, device=like.device)
    targets = [part[:rank] for part, rank in zip(stacked.unbind(0), ranks, strict=False)]
    torch._foreach_copy_(targets, list(matrices))
    return stacked
