"""Houses for the tests of the coordinator."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from service.coordinator.policy import retries
from tests.support.fakes.cluster import FakeCluster
from tests.support.service.coordinator import House


@pytest.fixture
def make_house(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[..., House]]:
    """Houses in which nobody waits after a loss, unless the test says so."""
    monkeypatch.setattr(retries, "LONGEST_REST_SECONDS", 0.0)
    houses: list[House] = []

    def make(cpus: int = 4, *, patience: float = 0.01, **options: Any) -> House:
        cluster = FakeCluster(cpus, **options)
        houses.append(House(tmp_path / str(len(houses)), cluster, patience=patience))
        return houses[-1]

    yield make
    for house in houses:
        house.close()
