"""Banks of slots: the numbers of adapters with the same matrices, a row of one tensor for each of them.

A layer's matrices of all slots are then one strided view [slots, r, d], of the weights and of the
gradients, which a batched product reads and writes where they are. What is in a slot stays there: a shape
of which there are more adapters than slots gets a further bank.
"""

from __future__ import annotations

from collections.abc import Hashable
from dataclasses import dataclass, field

import torch

from workers.device.memory import available_bytes

MOST_SLOTS = 8
"""Of one bank. A batched product of eight adapters has an eighth of their kernels already."""

_ALIGNED = 16
"""Numbers that a row is a multiple of, 64 bytes: kernels may round by how their operands are aligned, and a
trial's numbers may not depend on its slot."""

_BYTES = 8
"""Of a number: its weight and its gradient."""

_SPARE_SHARE = 32
"""Slots for adapters that are not there yet take at most the 32nd part of the memory that is left."""


@dataclass(eq=False)
class Bank:
    """Slots for adapters of one shape."""

    weights: torch.Tensor
    """float32 [S, W]: an adapter's flat tensor in each row; in a free one, anything."""
    gradients: torch.Tensor
    """float32 [S, W]"""
    shape: Hashable = None
    number: int = 0
    """Its own on a device."""
    free: set[int] = field(default_factory=set)
    """Rows."""

    @classmethod
    def of(
        cls, numbers: int, slots: int, device: torch.device, *, shape: Hashable = None, number: int = 0
    ) -> Bank:
        """A bank of free slots for adapters of so many numbers."""
        width = -(-numbers // _ALIGNED) * _ALIGNED
        weights, gradients = (torch.empty(slots, width, device=device) for _ in range(2))
        return cls(weights, gradients, shape, number, set(range(slots)))


@dataclass(frozen=True)
class Span:
    """Where the rows of a bank have one layer's matrices."""

    start: int
    rank: int
    d_in: int
    d_out: int

    @property
    def stop(self) -> int:
        """Where the next layer's begin."""
        return self.start + self.rank * (self.d_in + self.d_out)

    def fits_grouped(self, dtype: torch.dtype) -> bool:
        """Whether torch's `grouped_mm` takes the matrices in a dtype: it wants them in steps of 16 bytes."""
        step = 16 // dtype.itemsize
        return all(number % step == 0 for number in (self.start, self.rank, self.d_in, self.d_out))

    def a(self, rows: torch.Tensor) -> torch.Tensor:
        """[k, r, d_in], a view of rows [k, W]: PEFT's lora_A weights."""
        return self._matrices(rows, self.start, self.d_in)

    def b(self, rows: torch.Tensor) -> torch.Tensor:
        """[k, r, d_out], a view of rows [k, W]: PEFT's lora_B weights, transposed."""
        return self._matrices(rows, self.start + self.rank * self.d_in, self.d_out)

    def _matrices(self, rows: torch.Tensor, start: int, width: int) -> torch.Tensor:
        return rows[:, start : start + self.rank * width].view(-1, self.rank, width)


@dataclass(frozen=True)
class Slot:
    """A row of a bank."""

    bank: Bank
    row: int

    @property
    def place(self) -> tuple[int, int]:
        """By which slots are in order: those of a bank follow each other."""
        return self.bank.number, self.row


class Banks:
    """The banks on a device."""

    def __init__(self, device: torch.device, most: int | None = None) -> None:
        """
        Args:
            device: Where they are.
            most: Slots of one bank; None: 1 on a CPU, where products are taken one adapter after another, so
                that no memory is held for adapters that are not there.
        """
        self._device = device
        self._most = most or (1 if device.type == "cpu" else MOST_SLOTS)
        self._banks: list[Bank] = []
        self._made = 0

    def take(self, shape: Hashable, numbers: int) -> Slot:
        """A free slot for an adapter, of a new bank where there is none.

        A new bank has as many slots as there are adapters of the shape: no more are free than
        are taken.

        Args:
            shape: Equal for adapters that have the same matrices in the same layers.
            numbers: P, of each adapter of this shape.
        """
        banks = [bank for bank in self._banks if bank.shape == shape]
        bank = next((bank for bank in banks if bank.free), None)
        if bank is None:
            self._made += 1
            slots = self._slots(sum(len(bank.weights) for bank in banks), numbers)
            bank = Bank.of(numbers, slots, self._device, shape=shape, number=self._made)
            self._banks.append(bank)
        row = min(bank.free)
        bank.free.remove(row)
        return Slot(bank, row)

    def give_back(self, slot: Slot) -> None:
        """Frees a slot. A bank goes with its last adapter."""
        slot.bank.free.add(slot.row)
        if len(slot.bank.free) == len(slot.bank.weights):
            self._banks.remove(slot.bank)

    def _slots(self, there: int, numbers: int) -> int:
        """Of a new bank, when there are so many of its shape."""
        slots = max(1, min(there, self._most))
        if slots > 1:
            slots = min(slots, 1 + available_bytes(self._device) // (_SPARE_SHARE * _BYTES * numbers))
        return slots
