"""Micro-batches within a budget of tokens, and telling a lack of memory from other errors."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from workers.memory import (
    choose_micro_batch_size,
    is_device_fault,
    is_out_of_memory,
    peak_bytes,
    tokens_per_forward,
)

CPU, CUDA = torch.device("cpu"), torch.device("cuda")


@given(batch_size=st.integers(1, 256), longest=st.integers(1, 4096), budget=st.integers(1, 10_000))
def test_a_micro_batch_fits_the_budget_unless_one_example_does_not(
    batch_size: int, longest: int, budget: int
) -> None:
    chosen = choose_micro_batch_size(batch_size, longest, budget)
    assert 1 <= chosen <= batch_size
    assert chosen == 1 or chosen * longest <= budget
    assert chosen == batch_size or (chosen + 1) * longest > budget


def test_a_large_vocabulary_lowers_the_tokens_per_pass() -> None:
    assert [tokens_per_forward(device, size) for device in (CPU, CUDA) for size in (400, 152_000)] == [
        2048,
        441,
        8192,
        3532,
    ]


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
        (MemoryError("of Python's own"), False),
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
    assert 50 * 2**20 < peak_bytes(CPU) < 2**40
