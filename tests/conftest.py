"""Fixtures that tests of every layer share."""

from __future__ import annotations

import gc
import logging
import os
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import HealthCheck, settings

pytest_plugins = ["tests.support.databases"]

# Set before any Hugging Face library is imported: they read these once. Tests use no network.
os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")  # no thread pool to warn about when a test forks
# The models of the tests are tiny, and a process of tests has a core of its own, as a worker on CPUs does: a
# second thread of torch's takes it from another process, and the first waits for it at each matrix product.
os.environ.setdefault("OMP_NUM_THREADS", "1")

# Until everything is collected: of what is imported next to nothing becomes garbage.
gc.disable()

# How long an example takes is the machine's affair: no test asserts a time.
settings.register_profile("untimed", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("untimed")


def pytest_collection_finish() -> None:
    """What was imported stays: the garbage collector need not go through all of it again and again."""
    gc.collect()
    gc.freeze()
    gc.set_threshold(5_000, 20, 20)
    gc.enable()


@pytest.fixture(autouse=True)
def _no_terminal_width(monkeypatch: pytest.MonkeyPatch) -> None:
    """Output has the width that it has in a pipe, whatever started the tests says (`COLUMNS`)."""
    monkeypatch.delenv("COLUMNS", raising=False)


@pytest.fixture(autouse=True)
def _no_log_to_a_closed_stream() -> Iterator[None]:
    """A command that a test runs in this process may log to its own stderr, which is closed after it."""
    root = logging.getLogger()
    level = root.level
    yield
    root.setLevel(level)
    for handler in list(root.handlers):
        if isinstance(handler, logging.StreamHandler) and getattr(handler.stream, "closed", False):
            root.removeHandler(handler)


@pytest.fixture(scope="session")
def tiny_base_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a tiny random base model and its tokenizer."""
    from tests.support.workers.models import build_tiny_base

    return build_tiny_base(tmp_path_factory.mktemp("base") / "tiny")


@pytest.fixture(scope="session")
def odd_base_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same with an MLP whose width is not divisible by 32."""
    from tests.support.workers.models import build_odd_base

    return build_odd_base(tmp_path_factory.mktemp("base") / "odd")
