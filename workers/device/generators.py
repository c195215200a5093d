"""A trial's own randomness, kept apart from its neighbours'."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from contextlib import contextmanager

import torch


def derive_seed(seed: int, purpose: str, number: int = 0) -> int:
    """An independent 32-bit seed for one purpose of one trial.

    Torch's CPU generator keeps only the low 32 bits of a seed, so seeds are hashed, not shifted or added:
    two trials, two purposes or two epochs share no random numbers.
    """
    digest = hashlib.sha256(f"{seed}/{purpose}/{number}".encode()).digest()
    return int.from_bytes(digest[:4], "big")


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
