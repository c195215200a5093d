"""What passes cost: seconds on the clock that fits the device, and the memory at the peak of the largest."""

from __future__ import annotations

import time
from collections import deque
from dataclasses import dataclass

import torch

from workers.device.memory import peak_bytes, peak_of_its_own

_KEPT = 64
"""Measurements that wait for whoever reads them; older ones are dropped."""


@dataclass(frozen=True)
class PassSample:
    """One training pass, with the optimizer steps that followed it."""

    tokens: int
    """Padded."""
    trials: int
    seconds: float
    peak_bytes: int | None = None
    """All that was allocated at its peak (on a CPU: resident in the process); None: a pass of this size does
    not show it."""


@dataclass(frozen=True)
class PassStart:
    """When a pass began, and with which peak."""

    seconds: float
    peak: int | None
    """None: its own peak is not looked at."""


class PassMeter:
    """Measures passes as they are made, at hardly any cost: they train all the same.

    The peak is looked at in passes that are larger than any before: only those can raise it. On a CPU a pass
    whose peak stays below an earlier one, such as an evaluation's, shows nothing.
    """

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._samples: deque[PassSample] = deque(maxlen=_KEPT)
        self._largest = 0

    def begin(self, tokens: int) -> PassStart:
        """Before a pass of about so many padded tokens."""
        peak = None
        if tokens > self._largest:
            peak = 0 if self._device.type == "cuda" else peak_bytes(self._device)
            peak_of_its_own(self._device)
        return PassStart(_clock(self._device), peak)

    def end(self, start: PassStart, *, tokens: int, trials: int) -> None:
        """After a pass that went well, and its steps."""
        seconds = _clock(self._device) - start.seconds
        peak = None
        if start.peak is not None:
            after = peak_of_its_own(self._device) if self._device.type == "cuda" else peak_bytes(self._device)
            if after > start.peak:
                peak, self._largest = after, tokens
        if seconds > 0:
            self._samples.append(PassSample(tokens, trials, seconds, peak))

    def take(self) -> list[PassSample]:
        """The passes since the last call, oldest first."""
        samples = list(self._samples)
        self._samples.clear()
        return samples


def _clock(device: torch.device) -> float:
    """Seconds. On CUDA without waiting for the device: a pass waits once itself, at its end.

    A worker with one thread counts the time it was on its core: on a busy machine the clock on the wall
    runs on while others are, and most of all during the longer passes.
    """
    if device.type != "cuda" and torch.get_num_threads() == 1:
        return time.thread_time()
    return time.perf_counter()
