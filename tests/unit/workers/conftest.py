"""What the tests of the training code share."""

from __future__ import annotations

import pytest
import torch


@pytest.fixture(autouse=True, scope="session")
def _one_thread() -> None:
    """Tiny models gain nothing from threads, which only wait for each other on a busy machine."""
    torch.set_num_threads(1)
