"""What an undisturbed study comes to, and what is wrong with a disturbed one."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import Future
from dataclasses import dataclass, field, replace
from typing import Any

from sqlalchemy import text

from tests.soak.faults import invariants, studies
from tests.soak.faults.deployment import Deployment
from tests.soak.faults.invariants import Record
from tests.soak.faults.kill_points import Point


@dataclass
class Tally:
    """Kills by point, and what was wrong afterwards."""

    kills: dict[str, int] = field(default_factory=dict)
    violations: list[str] = field(default_factory=list)
    studies: int = 0
    trials: int = 0
    skipped: dict[str, str] = field(default_factory=dict)
    """Moments that cannot be had on this machine, and why."""

    def killed(self, point: Point, times: int) -> None:
        self.kills[point.name] = self.kills.get(point.name, 0) + times

    def add(self, other: Tally) -> None:
        for name, times in other.kills.items():
            self.kills[name] = self.kills.get(name, 0) + times
        self.violations += other.violations
        self.skipped |= other.skipped
        self.studies += other.studies
        self.trials += other.trials


def undisturbed(deployment: Deployment, make: Callable[..., dict[str, Any]]) -> Record:
    """A study of a kind that was run with nobody in its way; what it comes to.

    Run once for all deployments that share `calm`: by the one that asks first, for which the others wait. The
    trials of a `short` study are the first ones of a `random` study.
    """
    if make is studies.short and studies.random.__name__ in deployment.calm:
        whole = undisturbed(deployment, studies.random)
        return replace(whole, trials=whole.trials[: studies.SHORT])
    own: Future[Record] = Future()
    found = deployment.calm.setdefault(make.__name__, own)
    if found is own:
        try:
            own.set_result(_run_undisturbed(deployment, make))
        except BaseException as error:
            own.set_exception(error)
            raise
    return found.result()


def _run_undisturbed(deployment: Deployment, make: Callable[..., dict[str, Any]]) -> Record:
    name = f"calm-{make.__name__}"
    deployment.client.submit(make(deployment.data, name))
    wait_for_end(deployment, name)
    record = invariants.read(deployment, name)
    wrong = invariants.check(record, trials=len(record.trials))
    assert not wrong, f"already undisturbed: {wrong}"
    return record


def wait_for_end(deployment: Deployment, name: str, meanwhile: Callable[[], object] = lambda: None) -> None:
    def ended() -> bool:
        meanwhile()
        return has_ended(deployment, name)

    deployment.wait_for(ended, f"the end of {name}", seconds=900)


def has_ended(deployment: Deployment, name: str) -> bool:
    """By the service's tables: it is asked often, and an answer of the API takes more processor time."""
    with deployment.service_engine.connect() as connection:
        query = text("SELECT ended_at FROM studies WHERE name = :n")
        return connection.execute(query, {"n": name}).scalar_one() is not None


def verdict(
    deployment: Deployment, name: str, calm: Record, tolerance: float = invariants.EXACT
) -> tuple[Record, list[str]]:
    """A study that has ended, and everything that is wrong with it."""
    record = invariants.read(deployment, name)
    wrong = invariants.check(record, trials=len(calm.trials))
    writes = invariants.Writes(deployment)
    wrong += invariants.check_writes(writes, record)
    wrong += invariants.check_fencing(writes, record)
    wrong += invariants.compare(record, calm, tolerance=tolerance)
    return record, wrong


def rungs_of(deployment: Deployment, name: str) -> int:
    """Rungs that the trials of a study have reported, as the service has kept them."""
    query = text("SELECT count(*) FROM rung_reports r JOIN studies s ON s.id = r.study_id WHERE s.name = :n")
    with deployment.service_engine.connect() as connection:
        return int(connection.scalar(query, {"n": name}) or 0)


def is_in(deployment: Deployment, name: str, states: set[str]) -> bool:
    return deployment.client.study(name)["state"] in states
