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
