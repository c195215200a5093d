"""Schedules over a quarter, on both databases: every firing comes to something exactly once, or is said."""

from __future__ import annotations

import os
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from starlette.testclient import TestClient

from service.db.database import Database
from service.db.kinds import CatchUp, Overlap, UntilAction
from service.schedules.firings import next_firing
from tests.support.service.quarter import Quarter, fired_by_the_clock

Make = Callable[..., dict[str, Any]]

PLACES = {
    "Europe/Berlin": "30 2 * * *",
    "America/New_York": "30 1,2 * * 0,3",
    "Australia/Lord_Howe": "15,45 1-2 * * 0",
}
"""Times that the clocks skip in spring and show twice in autumn."""
SPRING = datetime(2026, 1, 20, 12, tzinfo=UTC)
"""Of the north: Berlin on 29 March, New York on 8 March; Lord Howe's autumn on 5 April."""
AUTUMN = datetime(2026, 8, 20, 12, tzinfo=UTC)
"""Berlin on 25 October, New York on 1 November; Lord Howe's spring on 4 October."""
DAYS = 90


def _schedules() -> list[dict[str, Any]]:
    policies: list[dict[str, Any]] = [
        {"overlap": overlap, "catch_up": catch_up} for overlap in Overlap for catch_up in CatchUp
    ]
    policies += [{"until": "06:00", "until_action": action} for action in UntilAction]
    policies += [
        {"overlap": overlap, "until": "02:30", "until_action": "continue"}
        for overlap in (Overlap.QUEUE, Overlap.CANCEL_RUNNING)
    ]
    found = [
        {"cron": cron, "timezone": timezone, **policy}
        for policy in policies
        for timezone, cron in PLACES.items()
    ]
    found.append(
        {"cron": "0 */6 * * *", "timezone": "Europe/Berlin", "start": "2026-03-20", "end": "2026-10-25"}
    )
    return found


@pytest.mark.timeout(1200)  # a minute by itself; thousands of transactions beside a busy machine's others
@pytest.mark.parametrize("begin", [SPRING, AUTUMN], ids=["spring", "autumn"])
def test_every_firing_of_a_quarter_comes_to_something_exactly_once(
    client: TestClient,
    definition: Make,
    service_database: Database,
    monkeypatch: pytest.MonkeyPatch,
    begin: datetime,
) -> None:
    quarter = Quarter(service_database, begin, DAYS, seed=begin.month, patch=monkeypatch)
    for number, fields in enumerate(_schedules()):
        body = {"name": f"s{number:02}", "definition": definition(), **fields}
        answer = client.post("/v1/schedules", json=body)
        assert answer.status_code == 201, answer.text
    quarter.run()
    assert list(quarter.wrong()) == []
    happened = quarter.happened
    if path := os.environ.get("NIGHTSWEEP_TEST_TABLE"):
        with open(path, "a") as file:
            counts = {name: count for name, count in happened.items() if "/" not in name}
            file.write("\n".join([f"{begin} {counts}", *quarter.table(), ""]))
    for catch_up in CatchUp:
        assert min(happened[f"{overlap}, {catch_up}/firings missed"] for overlap in Overlap) > 0
        assert happened[f"skip, {catch_up}/skipped"] > 0
        assert happened[f"queue, {catch_up}/queued"] > 0
        assert happened[f"cancel_running, {catch_up}/cancelled_earlier"] > 0
    assert happened["skip, latest, continue/continued"] > 0
    assert happened["deaths in mid firing"] > 0


@pytest.mark.parametrize(("timezone", "cron"), PLACES.items())
@pytest.mark.parametrize("begin", [SPRING, AUTUMN], ids=["spring", "autumn"])
def test_the_walk_over_minutes_and_the_product_agree(timezone: str, cron: str, begin: datetime) -> None:
    for expression in (cron, "*/30 * * * *", "0 */6 * * *", "30 * * * *", "*/30 2-3 * * *"):
        end = begin + timedelta(days=DAYS)
        expected, at = fired_by_the_clock(expression, timezone, begin, end), begin
        found = []
        while (following := next_firing(expression, timezone, at)) is not None and following <= end:
            found.append(following)
            at = following
        assert [each for each in expected if each > begin] == found
