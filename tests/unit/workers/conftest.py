"""What the tests of the training code share."""

from __future__ import annotations

import gc

import pytest
import torch


@pytest.fixture(autouse=True, scope="session")
def _lean_process() -> None:
    """One thread, because tiny models gain nothing from threads that wait for each other on a busy machine;
    and the libraries' own objects out of the garbage collector's way, as in a worker."""
    torch.set_num_threads(1)
    gc.collect()
    gc.freeze()
