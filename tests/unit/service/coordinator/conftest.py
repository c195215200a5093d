"""Labs for the tests of the coordinator."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from service.coordinator.policy import hand_over, retries
from tests.support.fakes.cluster import FakeCluster
from tests.support.service.coordinator import CoordinatorLab


@pytest.fixture
def make_lab(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[..., CoordinatorLab]]:
    """Labs in which nobody waits after a loss and no trial is handed over, unless the test says so."""
    monkeypatch.setattr(retries, "LONGEST_REST_SECONDS", 0.0)
    monkeypatch.setattr(hand_over, "LEAST_GAIN_SECONDS", math.inf)  # by this machine's time
    labs: list[CoordinatorLab] = []

    def make(cpus: int = 4, *, patience: float = 0.01, **options: Any) -> CoordinatorLab:
        cluster = FakeCluster(cpus, **options)
        labs.append(CoordinatorLab(tmp_path / str(len(labs)), cluster, patience=patience))
        return labs[-1]

    yield make
    for lab in labs:
        lab.close()
