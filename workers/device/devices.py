"""Copies to a device, and which GPU a process has, so that one that fails repeatedly is recognised."""

from __future__ import annotations

import os
import socket

import torch


def device_id(device: torch.device) -> str | None:
    """`<node>/GPU-<the GPU's own UUID>`, as `nvidia-smi -L` has it; None: it is no GPU.

    Where the driver tells no UUID it is `<node>/<index>`, by the machine's own count as far as
    `CUDA_VISIBLE_DEVICES` tells it.
    """
    if device.type != "cuda":
        return None
    index = device.index or 0
    uuid = str(getattr(torch.cuda.get_device_properties(index), "uuid", "") or "").removeprefix("GPU-")
    return f"{socket.gethostname()}/{f'GPU-{uuid}' if uuid else _own_index(index)}"


def to_device(tensor: torch.Tensor, device: torch.device) -> torch.Tensor:
    """A CPU tensor on a device; to CUDA through pinned memory, without waiting for the copy."""
    return tensor if device.type == "cpu" else tensor.pin_memory().to(device, non_blocking=True)


def _own_index(index: int) -> str:
    """What the process calls `index`, by the count of the machine."""
    visible = [name.strip() for name in os.environ.get("CUDA_VISIBLE_DEVICES", "").split(",")]
    return visible[index] if index < len(visible) and visible[index] else str(index)
