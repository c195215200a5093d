"""Memory: how much one forward pass may take, how much was taken, knowing when it ran out, and a limit for
reading and tokenising."""

from __future__ import annotations

import ctypes
import gc
import os
import platform
import resource
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import torch

from workers.errors import DataError

TOKENS_PER_FORWARD = {"cpu": 2_048, "cuda": 8_192}
"""Padded tokens in one forward and backward pass where nothing is known (`workers.pack.learned_costs`).

On CPU 2,048 tokens already keep the cores busy (8 x 64 tokens were found to saturate four of them), and
more only takes memory from the neighbouring single-threaded workers. A GPU saturates at about 8 x 512
tokens on a 7B base (mLoRA's measurement, arXiv 2312.02515); twice that leaves room for padding.
"""

_OUT_OF_MEMORY_WORDS = (
    "DefaultCPUAllocator: can't allocate memory",
    "DefaultCPUAllocator: not enough memory",
    "CUBLAS_STATUS_ALLOC_FAILED",
    "CUDA error: out of memory",
    "std::bad_alloc",
)
"""How a lack of memory reads where torch does not raise `OutOfMemoryError` for it."""

_LINUX = platform.system() == "Linux"

_peaks: dict[torch.device, int] = {}
"""By CUDA device: the peak before `peak_of_its_own` began another one."""


def tokens_per_forward(device: torch.device) -> int:
    """Padded tokens that one pass may hold where nothing has been measured."""
    return TOKENS_PER_FORWARD[device.type]


def is_out_of_memory(error: BaseException) -> bool:
    """Whether an exception means that the device has no memory left, and a smaller pass may succeed."""
    if isinstance(error, torch.OutOfMemoryError | MemoryError):
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
    """Starts a new peak at what is there now: allocated on CUDA, resident in the process on Linux.

    What has been freed on a CPU is given back to the system first, for the C library keeps it: the next trial
    would seem to need what the one before it did.
    """
    if device.type == "cuda":
        _peaks.pop(device, None)
        torch.cuda.reset_peak_memory_stats(device)
    elif _LINUX:
        with suppress(OSError, AttributeError):  # another C library than GNU's has no such call
            ctypes.CDLL(None).malloc_trim(0)
        with suppress(OSError):  # forbidden in some containers; the peak is then the process's own
            Path("/proc/self/clear_refs").write_text("5")


def peak_bytes(device: torch.device) -> int:
    """Peak allocated on the device since `reset_peak`; on CPU, peak resident memory of the process."""
    if device.type == "cuda":
        return max(torch.cuda.max_memory_allocated(device), _peaks.get(device, 0))
    if _LINUX:
        return _kilobytes(Path("/proc/self/status"), "VmHWM")
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss  # in bytes on macOS


def peak_of_its_own(device: torch.device) -> int:
    """Peak allocated on a CUDA device since the last call, or `reset_peak`; `peak_bytes` forgets nothing.

    On a CPU 0: what is freed there stays resident, so no pass has a peak of its own.
    """
    if device.type != "cuda":
        return 0
    peak = torch.cuda.max_memory_allocated(device)
    _peaks[device] = max(peak, _peaks.get(device, 0))
    torch.cuda.reset_peak_memory_stats(device)
    return peak


def allocated_bytes(device: torch.device) -> int:
    """Allocated on the device now; on CPU, resident memory of the process (on Linux; elsewhere its peak)."""
    if device.type == "cuda":
        return torch.cuda.memory_allocated(device)
    if _LINUX:
        return _kilobytes(Path("/proc/self/status"), "VmRSS")
    return peak_bytes(device)


def available_bytes(device: torch.device) -> int:
    """What could still be allocated on the device.

    On a CPU, this process's share of what the machine has left: workers with one thread each are as many
    as there are cores, and each must expect the others to grow as it does.
    """
    if device.type == "cuda":
        free, _total = torch.cuda.mem_get_info(device)
        return free + torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
    if not _LINUX:
        return 2**33  # nothing in the standard library tells; a pack on a laptop stays small anyway
    share = torch.get_num_threads() / (os.cpu_count() or 1)
    return int(_kilobytes(Path("/proc/meminfo"), "MemAvailable") * min(1.0, share))


@contextmanager
def limited_memory(gib: float | None, what: str) -> Iterator[None]:
    """Lets the process take only so much more memory than it has (`RLIMIT_DATA`; nothing but on Linux).

    A small file may unpack to any size, and a machine without memory ends processes that did nothing wrong.
    Libraries in Python notice the limit as a `MemoryError`; some native ones abort the process at it.

    Args:
        gib: GiB; None: half of the machine's memory.
        what: What is being done, for the message.

    Raises:
        DataError: It was not enough.
    """
    gib = gib if gib is not None else machine_bytes() / 2 / 2**30
    if not _LINUX:
        yield
        return
    soft, hard = resource.getrlimit(resource.RLIMIT_DATA)
    wanted = _kilobytes(Path("/proc/self/status"), "VmData") + int(gib * 2**30)
    known = [limit for limit in (wanted, soft, hard) if limit != resource.RLIM_INFINITY]
    place = None
    resource.setrlimit(resource.RLIMIT_DATA, (min(known), hard))
    try:
        yield
    except Exception as error:
        if not is_out_of_memory(error) or isinstance(error, torch.OutOfMemoryError):
            raise
        place = next(iter(getattr(error, "__notes__", ())), what)
    finally:
        resource.setrlimit(resource.RLIMIT_DATA, (soft, hard))
    if place is not None:  # with the limit lifted, and without the frames that hold the memory
        raise DataError(
            f"{place}: this needs more than {gib:.3g} GiB of memory (NIGHTSWEEP_LOADING_MEMORY_GIB). Use "
            "less data or shorter rows, check that the file is what it should be, or raise the limit."
        )


def machine_bytes() -> int:
    """Memory of the machine, or of the container (cgroup v2) where that is less."""
    total = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    with suppress(OSError, ValueError):  # "max", or no cgroup
        total = min(total, int(Path("/sys/fs/cgroup/memory.max").read_text()))
    return total


def _kilobytes(file: Path, field: str) -> int:
    """A field of a file in /proc, in bytes."""
    line = next(line for line in file.read_text().splitlines() if line.startswith(f"{field}:"))
    return int(line.split()[1]) * 1024


def describe(device: torch.device) -> str:
    """The device's memory in words that continue a sentence; nothing on CPU."""
    if device.type != "cuda":
        return ""
    free, total = torch.cuda.mem_get_info(device)
    peak = peak_bytes(device)
    return (
        f" ({total / 2**30:.1f} GiB on the device, {free / 2**30:.1f} GiB free now,"
        f" {peak / 2**30:.1f} GiB at the trial's peak)"
    )
