"""Memory that runs out where a test wants it to."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.hooks import RemovableHandle

from workers.base.base_model import LoadedBase

Where = Literal["forward", "backward"]


@dataclass
class LimitedMemory:
    """A base that runs out of memory on passes of more than `limit` padded tokens.

    In the middle of the pass: the first layer has done its work, or, on the way back, the last one has.
    """

    limit: int
    where: Where = "forward"
    refused: int = 0
    largest: int = 0
    """Padded tokens of the largest pass that was let through."""

    @classmethod
    @contextmanager
    def of(cls, base: LoadedBase, limit: int, where: Where = "forward") -> Iterator[LimitedMemory]:
        """In force inside."""
        memory = cls(limit, where)
        handle = memory.watch(base)
        try:
            yield memory
        finally:
            handle.remove()

    def watch(self, base: LoadedBase) -> RemovableHandle:
        """In force until the handle is removed."""
        return base.model.model.layers[0].register_forward_hook(self._after)

    def _after(self, _layer: torch.nn.Module, _inputs: Any, output: torch.Tensor) -> None:
        rows, tokens, _width = output.shape
        if rows * tokens <= self.limit:
            self.largest = max(self.largest, rows * tokens)
        elif self.where == "forward":
            self._refuse()
        elif output.requires_grad:
            output.register_hook(self._refuse)

    def _refuse(self, _gradient: torch.Tensor | None = None) -> None:
        self.refused += 1
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB")


class FailingAllocation(TorchDispatchMode):
    """Lets one allocation fail: that of the operation with number `at`. Counts those that allocate."""

    def __init__(self, at: int) -> None:
        super().__init__()
        self.at = at
        self.count = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        given = {_address(value) for value in tree_leaves((args, kwargs)) if isinstance(value, torch.Tensor)}
        made = [value for value in tree_leaves(result) if isinstance(value, torch.Tensor)]
        if any(value.numel() and _address(value) not in given for value in made):
            self.count += 1
            if self.count == self.at:
                raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB")
        return result


def _address(tensor: torch.Tensor) -> int:
    return tensor.untyped_storage().data_ptr()
