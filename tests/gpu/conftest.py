"""What the tests on a CUDA device share. Without one they are skipped, and say so.

They need nothing but what a GPU worker needs, so they can run where the service is not installed:

    python -m pytest tests/gpu --confcutdir=tests/gpu
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest

os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")

import torch

from tests.support.workers.gpu_trials import DEVICE, Bases

HERE = Path(__file__).parent


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    reason = f"needs a CUDA device, and torch {torch.__version__} sees none"
    for item in items:
        if not item.path.is_relative_to(HERE):
            continue
        # PEFT 0.21 reads a property that transformers 5.23 renamed; it does so whenever it wraps a model.
        item.add_marker(pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing`:FutureWarning"))
        if not torch.cuda.is_available():
            item.add_marker(pytest.mark.skip(reason=reason))


@pytest.fixture(scope="session")
def bases(tmp_path_factory: pytest.TempPathFactory) -> Bases:
    """A tiny base with grouped key and value heads, like the models in use."""
    from tests.support.workers.models import build_tiny_base

    return Bases(build_tiny_base(tmp_path_factory.mktemp("base") / "tiny"))


@pytest.fixture
def full_memory() -> Iterator[None]:
    """Afterwards the process may use all of the device again."""
    yield
    torch.cuda.set_per_process_memory_fraction(1.0, DEVICE)
    torch.cuda.empty_cache()
