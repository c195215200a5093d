"""What was learnt of passes is kept on both databases, whoever writes it first."""

from __future__ import annotations

from dataclasses import replace
from datetime import UTC, datetime

import pytest

from service.coordinator.study.pass_costs import keep, known
from service.db.database import Database
from workers.contract import PassCosts

COSTS = PassCosts(
    key="a" * 64,
    form="looped",
    device="cpu",
    threads=1,
    fixed_s=0.5,
    per_token_s=0.001,
    per_trial_s=0.0,
    bytes_per_token=None,
    passes=4,
)


def test_costs_are_written_over_those_of_the_same_setting(
    service_database: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    hours = (datetime(2026, 1, 1, hour, tzinfo=UTC) for hour in range(24))
    monkeypatch.setattr("service.coordinator.study.pass_costs.database_now", lambda _: next(hours))
    gpu = replace(COSTS, device="NVIDIA H200", threads=0, form="chosen")
    better = replace(COSTS, passes=64, bytes_per_token=2.0**20)
    for costs in (COSTS, gpu, better, replace(COSTS, key="b" * 64)):
        service_database.transact(lambda session, costs=costs: keep(session, costs))
    with service_database.read() as session:
        assert known(session, COSTS.key) == (better, gpu)
        assert known(session, "c" * 64) == ()
