"""Device memory: how much one forward pass may take, how much was taken, and knowing when it ran out."""

from __future__ import annotations

import gc
import resource
import sys

import torch

TOKENS_PER_FORWARD = {"cpu": 2_048, "cuda": 8_192}
"""Padded tokens in one forward and backward pass when the order does not fix the micro-batch.

On CPU 2,048 tokens already keep the cores busy (8 x 64 tokens were found to saturate four of them), and
more only takes memory from the neighbouring single-threaded workers. A GPU saturates at about 8 x 512
tokens on a 7B base (mLoRA's measurement, arXiv 2312.02515); twice that leaves room for padding.
"""

LOGITS_BYTES_PER_FORWARD = {"cpu": 512 * 2**20, "cuda": 4 * 2**30}
"""What the logits of one pass may take, since with a large vocabulary and a small base they outweigh all
the rest: 152,000 tokens of vocabulary make 1.2 MB of fp32 logits and gradients for every single token."""

_OUT_OF_MEMORY_WORDS = (
    "DefaultCPUAllocator: can't allocate memory",
    "DefaultCPUAllocator: not enough memory",
    "CUBLAS_STATUS_ALLOC_FAILED",
    "CUDA error: out of memory",
)
"""How a lack of memory reads where torch does not raise `OutOfMemoryError` for it."""


def tokens_per_forward(device: torch.device, vocabulary: int) -> int:
    """Padded tokens that one pass may hold, at least 1.

    Args:
        device: Where the pass runs.
        vocabulary: Size of the model's vocabulary. A token costs its row of logits and of their gradient
            in float32, 8 bytes x vocabulary.
    """
    by_logits = LOGITS_BYTES_PER_FORWARD[device.type] // (8 * vocabulary)
    return max(1, min(TOKENS_PER_FORWARD[device.type], by_logits))


def choose_micro_batch_size(batch_size: int, longest: int, token_budget: int) -> int:
    """Examples per pass so that even the longest ones fit `token_budget`, from 1 to `batch_size`."""
    return max(1, min(batch_size, token_budget // longest))


def is_out_of_memory(error: BaseException) -> bool:
    """Whether an exception means that the device has no memory left, and a smaller pass may succeed."""
    if isinstance(error, torch.OutOfMemoryError):
        return True
    return isinstance(error, RuntimeError) and any(words in str(error) for words in _OUT_OF_MEMORY_WORDS)


def is_device_fault(error: BaseException) -> bool:
    """Whether an exception leaves the CUDA context unusable, so that only a new process helps."""
    return isinstance(error, torch.AcceleratorError) and not is_out_of_memory(error)


def release(device: torch.device) -> None:
    """Gives back what Python and the caching allocator hold on to but nobody uses."""
    gc.collect()
    if device.type == "cuda":
        torch.cuda.empty_cache()


def reset_peak(device: torch.device) -> None:
    """Starts a new peak on CUDA. A process's peak resident memory cannot be started anew."""
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)


def peak_bytes(device: torch.device) -> int:
    """Peak allocated on the device since `reset_peak`; on CPU, the process's peak resident memory."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024  # Linux counts in kilobytes


def describe(device: torch.device) -> str:
    """The device's memory in words that continue a sentence; nothing on CPU."""
    if device.type != "cuda":
        return ""
    free, total = torch.cuda.mem_get_info(device)
    peak = torch.cuda.max_memory_allocated(device)
    return (
        f" ({total / 2**30:.1f} GiB on the device, {free / 2**30:.1f} GiB free now,"
        f" {peak / 2**30:.1f} GiB at the trial's peak)"
    )
