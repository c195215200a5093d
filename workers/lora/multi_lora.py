"""Multi-LoRA: many adapters in one forward and backward pass of one base.

Each row of a pass belongs to exactly one adapter, and the rows of an adapter stand together. A target
layer computes, for the rows X_i of adapter i,

    Y_i = base(X_i) + scale_i * (drop_i(X_i) A_i^T) B_i^T

in one of three forms, equal to rounding:

- `looped`: two small products per adapter. The oracle of the others, and the fastest on a CPU core.
- `batched`: two batched products for all adapters in neighbouring slots of a bank (`workers.lora.bank`)
  whose rows follow each other and are as many for each.
- `grouped`: the same, and by `torch.nn.functional.grouped_mm` where they are not as many and their
  matrices are in steps of 16 bytes.

None multiplies one adapter's numbers with another's, so what is not finite in one trial stays in it.

The matrices are PEFT's own parameters, seen through the banks; gradients are added where the banks keep
them. Nothing is copied but in half precision, where a bank's weights are rounded once a pass.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch

from workers.base.causal_attention import rows_end_to_end
from workers.lora.multi_lora_pass import Form, LayerAdapter, MultiLoraPass, RowGroup
from workers.lora.products import MultiLoraProduct

__all__ = [
    "Form",
    "LayerAdapter",
    "MultiLora",
    "MultiLoraPass",
    "RowGroup",
    "RowsUnknownError",
    "by_rows",
]


class MultiLora:
    """Takes the place of the forward of PEFT's LoRA layers, and knows the pass that is running."""

    def __init__(self, compute_dtype: torch.dtype) -> None:
        self._dtype = compute_dtype
        self._running: MultiLoraPass | None = None
        self._anchor = torch.zeros((), requires_grad=True)
        self.rows_separate = True
        """Whether all layers were given [rows, tokens, features], so that a row's adapter is known."""

    def take_over(self, layer: Any, number: int) -> None:
        """Gives a PEFT LoRA layer the forward for rows of many adapters. PEFT's own runs outside passes.

        Args:
            layer: A `peft.tuners.lora.LoraLayer`.
            number: The same for the same layer of a base whatever adapters there are: dropout depends on it.
        """
        own = layer.forward

        def forward(x: torch.Tensor, *args: Any, **kwargs: Any) -> torch.Tensor:
            lora_pass = self._running
            if lora_pass is None:
                output: torch.Tensor = own(x, *args, **kwargs)
                return output
            return self._forward(lora_pass, number, x, layer.base_layer(x, *args, **kwargs))

        layer.forward = forward

    def take_over_head(self, wrapper: Any, path: str) -> None:
        """Gives a head that PEFT trains whole the forward for rows of many adapters, each with its own.

        Args:
            wrapper: A `peft.utils.other.ModulesToSaveWrapper`.
            path: Of the head in the model, as in `RowGroup.heads`.
        """
        own = wrapper.forward

        def forward(x: torch.Tensor, *args: Any, **kwargs: Any) -> torch.Tensor:
            lora_pass = self._running
            if lora_pass is None:
                output: torch.Tensor = own(x, *args, **kwargs)
                return output
            for group in lora_pass.groups:
                group.heads[path].requires_grad_(True)  # PEFT freezes all but those of its active adapter
            if x.shape[0] != lora_pass.rows:
                self.rows_separate = False
                if len(lora_pass.groups) > 1:
                    raise RowsUnknownError(
                        f"a head was given {list(x.shape)} in a pass of {lora_pass.rows} rows"
                    )
                return lora_pass.groups[0].heads[path](x, *args, **kwargs)  # type: ignore[no-any-return]
            parts = zip(lora_pass.groups, lora_pass.spans, strict=True)
            return torch.cat(
                [group.heads[path](x[first:last], *args, **kwargs) for group, (first, last) in parts]
            )

        wrapper.forward = forward

    @contextmanager
    def running(
        self,
        groups: Sequence[RowGroup],
        *,
        tokens: int,
        form: Form,
        device: torch.device,
        row_lengths: Sequence[int] | None = None,
    ) -> Iterator[MultiLoraPass]:
        """Inside, forward passes are over these rows; the backward pass must come inside, too.

        The arguments are those of a `MultiLoraPass`.
        """
        self._running = MultiLoraPass(
            groups, tokens=tokens, form=form, device=device, dtype=self._dtype, row_lengths=row_lengths
        )
        try:
            with rows_end_to_end(row_lengths):
                yield self._running
        finally:
            self._running = None

    def _forward(
        self, lora_pass: MultiLoraPass, number: int, x: torch.Tensor, base: torch.Tensor
    ) -> torch.Tensor:
        if not any(number in group.layers for group in lora_pass.groups):
            return base
        rows = self._by_rows(x, lora_pass)
        adapted: torch.Tensor = MultiLoraProduct.apply(
            self._anchor, rows, base.reshape(*rows.shape[:2], -1), lora_pass, number
        )  # type: ignore[no-untyped-call]
        return adapted.view(base.shape)

    def _by_rows(self, x: torch.Tensor, lora_pass: MultiLoraPass) -> torch.Tensor:
        """The input as `by_rows` gives it. Where that cannot be told, one adapter alone takes it as one long
        row."""
        separate = by_rows(x, lora_pass.rows, lora_pass.tokens)
        if separate is not None:
            return separate
        self.rows_separate = False
        if len(lora_pass.groups) == 1:
            return x.reshape(1, -1, x.shape[-1])
        raise RowsUnknownError(f"a layer was given {list(x.shape)} in a pass of {lora_pass.rows} rows")


def by_rows(x: torch.Tensor, rows: int, tokens: int) -> torch.Tensor | None:
    """A layer's input as [B, T, d_in]; None: it does not tell which of its vectors belong to which row.

    Some architectures flatten it, as OPT does before its MLP. Poolers are given one token of each row. The
    tokens routed to an expert are neither.

    Args:
        x: The input, [..., d_in].
        rows: Of the pass, B; laid end to end, all its tokens.
        tokens: Of each row, T; laid end to end, 1.
    """
    if x.dim() == 3 and x.shape[0] == rows:
        return x
    if x.dim() == 3 and x.shape[:2] == (1, rows) and tokens == 1:
        return x.transpose(0, 1)  # laid end to end
    if x.dim() == 2 and x.shape[0] == rows * tokens:
        return x.view(rows, tokens, -1)
    if x.dim() == 2 and x.shape[0] == rows:
        return x.unsqueeze(1)
    return None


class RowsUnknownError(Exception):
    """A layer's input does not tell which of its vectors belong to which row of the pass."""
