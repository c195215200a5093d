"""What a pass may take, what the process has, and telling a lack of memory from other errors."""

from __future__ import annotations

import os
import sys
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from workers.device.memory import (
    allocated_bytes,
    available_bytes,
    is_device_fault,
    is_out_of_memory,
    peak_bytes,
    release,
    reset_peak,
    tokens_per_forward,
)
from workers.training.objectives.forward import LOGITS_BYTES_PER_CHUNK, chunk_tokens

CPU, CUDA = torch.device("cpu"), torch.device("cuda")
MEGABYTE = 2**20

on_linux = pytest.mark.skipif(sys.platform != "linux", reason="only Linux tells")


def test_a_pass_holds_what_keeps_the_device_busy_until_something_is_measured() -> None:
    assert [tokens_per_forward(device) for device in (CPU, CUDA)] == [2048, 8192]


@pytest.mark.parametrize("device", [CPU, CUDA], ids=str)
def test_a_large_vocabulary_lowers_the_logits_made_at_once_and_not_the_tokens_of_a_pass(
    device: torch.device,
) -> None:
    """As many rows of float32 logits as the limit has room for, 16 at least."""
    limit = LOGITS_BYTES_PER_CHUNK[device.type]
    for vocabulary in (400, 32_000, 152_000):
        base: Any = SimpleNamespace(device=device, vocabulary_size=vocabulary)
        assert chunk_tokens(base) * 4 * vocabulary <= limit < (chunk_tokens(base) + 1) * 4 * vocabulary
    huge: Any = SimpleNamespace(device=device, vocabulary_size=10**9)
    assert chunk_tokens(huge) == 16


@pytest.mark.parametrize(
    ("error", "expected"),
    [
        (torch.OutOfMemoryError("CUDA out of memory."), True),
        (
            RuntimeError("[enforce fail at alloc_cpu.cpp:118] . DefaultCPUAllocator: can't allocate memory"),
            True,
        ),
        (RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`"), True),
        (RuntimeError("mat1 and mat2 shapes cannot be multiplied"), False),
        (RuntimeError("std::bad_alloc"), True),
        (MemoryError("of Python's own"), True),
        (ValueError("std::bad_alloc"), False),
    ],
)
def test_what_counts_as_out_of_memory(error: Exception, expected: bool) -> None:
    assert is_out_of_memory(error) is expected


def test_a_cuda_error_that_is_no_lack_of_memory_is_a_device_fault() -> None:
    errors = (
        torch.AcceleratorError("CUDA error: an illegal memory access was encountered"),
        torch.AcceleratorError("CUDA error: out of memory"),
        RuntimeError("shapes"),
    )
    assert [is_device_fault(error) for error in errors] == [True, False, False]


def test_the_peak_on_cpu_is_the_resident_memory_of_a_process_with_torch_in_it() -> None:
    assert 50 * MEGABYTE < peak_bytes(CPU) < 2**40


@on_linux
def test_resident_memory_grows_with_what_is_held_and_the_peak_stays_when_it_is_let_go() -> None:
    before = allocated_bytes(CPU)
    held = torch.ones(64 * MEGABYTE // 4)
    grown = allocated_bytes(CPU)
    del held
    release(CPU)
    assert 60 * MEGABYTE <= grown - before <= 80 * MEGABYTE
    assert allocated_bytes(CPU) <= grown - 60 * MEGABYTE
    assert peak_bytes(CPU) >= grown - 4 * MEGABYTE  # the kernel counts in batches


@on_linux
def test_a_new_peak_begins_from_what_is_held_now() -> None:
    try:
        with open("/proc/self/clear_refs", "w") as file:
            file.write("5")
    except OSError:
        pytest.skip("this container does not let a process start a new peak")
    release(CPU)
    reset_peak(CPU)
    before = peak_bytes(CPU)  # of now: tests that ran here earlier may have taken more than the one below
    held = torch.ones(128 * MEGABYTE // 4)
    del held
    assert peak_bytes(CPU) > before
    reset_peak(CPU)
    assert peak_bytes(CPU) <= allocated_bytes(CPU) + 16 * MEGABYTE


@on_linux
def test_a_process_counts_on_its_threads_share_of_the_machines_memory(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """As many workers as there are cores may grow at the same time."""
    cores = os.cpu_count() or 1
    machine = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    monkeypatch.setattr(torch, "get_num_threads", lambda: 1)
    assert 0 < available_bytes(CPU) <= machine / cores
    monkeypatch.setattr(torch, "get_num_threads", lambda: 10 * cores)
    assert machine / cores / 100 < available_bytes(CPU) <= machine
