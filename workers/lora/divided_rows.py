"""Products of neighbouring rows with the matrices of the adapters that they belong to, all in one kernel."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import accumulate

import torch
from torch.nn.functional import grouped_mm

from workers.device.devices import to_device


class DividedRows:
    """n rows of k adapters: those of the first one, then those of the second, and so on."""

    def __init__(self, counts: Sequence[int], device: torch.device) -> None:
        """
        Args:
            counts: Rows of each adapter.
            device: Where they are.
        """
        self.counts = tuple(counts)
        self._device = device
        self.even = len(set(counts)) == 1
        """Whether all adapters have as many rows: then a batched product will do."""
        self._ends: dict[int, torch.Tensor] = {}

    def times(self, rows: torch.Tensor, matrices: torch.Tensor) -> torch.Tensor:
        """[n, T, e]: rows [n, T, d], each times its own adapter's matrix of [k, d, e]."""
        if self.even:
            product = torch.bmm(self._each(rows), matrices)
        else:
            product = grouped_mm(rows.flatten(0, 1), matrices, offs=self._vectors(rows.shape[1]))
        return product.view(*rows.shape[:2], -1)

    def put(
        self,
        result: torch.Tensor,
        rows: torch.Tensor,
        matrices: torch.Tensor,
        *,
        beside: torch.Tensor | None = None,
    ) -> None:
        """Writes `times(rows, matrices)` into contiguous [n, T, e], added to what is `beside`."""
        if not self.even or result.dtype != rows.dtype:
            product = self.times(rows, matrices)
            result.copy_(product if beside is None else beside + product)
        elif beside is None:
            torch.bmm(self._each(rows), matrices, out=self._each(result))
        else:
            torch.baddbmm(self._each(beside), self._each(rows), matrices, out=self._each(result))

    def add_products(self, total: torch.Tensor, one: torch.Tensor, other: torch.Tensor) -> None:
        """Adds to float32 [k, d, e], for each adapter, the product of its rows of [n, T, d] and [n, T, e]."""
        if not self.even:
            vectors = self._vectors(one.shape[1])
            total.add_(grouped_mm(one.flatten(0, 1).t(), other.flatten(0, 1), offs=vectors))
        elif one.dtype == total.dtype:
            total.baddbmm_(self._each(one).transpose(1, 2), self._each(other))
        else:
            total.add_(torch.bmm(self._each(one).transpose(1, 2), self._each(other)))

    def _each(self, rows: torch.Tensor) -> torch.Tensor:
        """[n, T, d] as [k, n / k * T, d], where rows are even: a view if the tensor allows it."""
        return rows.reshape(len(self.counts), -1, rows.shape[-1])

    def _vectors(self, tokens: int) -> torch.Tensor:
        """int32 [k]: where each adapter's vectors end, with so many to a row."""
        if tokens not in self._ends:
            ends = [tokens * rows for rows in accumulate(self.counts)]
            self._ends[tokens] = to_device(torch.tensor(ends, dtype=torch.int32), self._device)
        return self._ends[tokens]
