"""A trial's own randomness, kept apart from its neighbours'."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch


def _state(device: torch.device) -> tuple[torch.Tensor, torch.Tensor | None]:
    """Torch's global generator states: CPU, and the device's where it is CUDA."""
    return torch.get_rng_state(), torch.cuda.get_rng_state(device) if device.type == "cuda" else None


def _set_state(state: tuple[torch.Tensor, torch.Tensor | None], device: torch.device) -> None:
    cpu, cuda = state
    torch.set_rng_state(cpu)
    if cuda is not None:
        torch.cuda.set_rng_state(cuda, device)


@contextmanager
def seeded(seed: int, device: torch.device) -> Iterator[None]:
    """Inside, torch's global generators start from `seed`; outside, they are as if nothing had happened."""
    before = _state(device)
    torch.manual_seed(seed)
    try:
        yield
    finally:
        _set_state(before, device)


class TrialGenerators:
    """Lends a trial's generator states to torch's global generators, which dropout draws from.

    A lending that is not followed by `commit` leaves the trial's state where it was, so a step that
    runs out of memory half-way is redone with the very same draws.
    """

    def __init__(self, seed: int, device: torch.device) -> None:
        self._device = device
        with seeded(seed, device):
            self._current = _state(device)
        self._drawn = self._current

    @contextmanager
    def lent(self) -> Iterator[None]:
        """Inside, torch draws the trial's numbers; afterwards the global states are as before."""
        before = _state(self._device)
        _set_state(self._current, self._device)
        try:
            yield
            self._drawn = _state(self._device)
        finally:
            _set_state(before, self._device)

    def commit(self) -> None:
        """Moves on to where the last completed lending ended."""
        self._current = self._drawn
