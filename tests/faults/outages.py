"""PostgreSQL is away for a while in the middle of a study."""

from __future__ import annotations

import time
from typing import Any

from tests.faults import scenarios
from tests.faults.house import House
from tests.faults.invariants import Record


def outage(
    house: House, name: str, *, seconds: float, calm: Record, definition: dict[str, Any], kill: bool = False
) -> list[str]:
    """Take the database away for so long once a study has its first rungs; what is wrong afterwards.

    Meanwhile the API must answer 503; afterwards it must answer again, and every process must be the one that
    it was before: nobody has to start anything.
    """
    house.client.submit(definition)
    house.wait_for(lambda: scenarios.rungs_of(house, name) >= 2, f"two rungs of {name}")
    processes = (house.api, *house.coordinators)
    before = [process.name for process in processes]
    with house.without_database(kill=kill):
        until = time.monotonic() + seconds
        house.wait_for(lambda: house.client.status("/v1/studies") == 503, "an answer of 503", seconds=60)
        house.wait_for(lambda: time.monotonic() > until, "the end of the outage", seconds=2 * seconds)
        wrong = []
        answer = house.client.status("/v1/studies")
        if answer != 503:
            wrong.append(f"{name}: the API answers {answer} while the database is away")
    house.wait_for(lambda: house.client.status("/v1/studies") == 200, "an answer of 200", seconds=60)
    scenarios.wait_for_end(house, name)
    if [process.name for process in processes] != before:
        wrong.append(f"{name}: the processes were {before} and are {[p.name for p in processes]}")
    return wrong + scenarios.verdict(house, name, calm)[1]
