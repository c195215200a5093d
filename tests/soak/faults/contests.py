"""A schedule's champion while processes die: two sweeps and a promotion, compared with undisturbed ones."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from sqlalchemy import text

from tests.soak.faults import firings, invariants, studies
from tests.soak.faults.deployment import Deployment
from tests.soak.faults.judging import Tally, wait_for_end
from tests.soak.faults.kill_points import Point
from tests.soak.faults.scenarios import EXTRA_STUDIES, WorkerDeaths

EVALUATIONS = (1, 2)
"""Of the first sweep, which has no champion to evaluate, and of the second."""


@dataclass(frozen=True)
class Throne:
    """What the sweeps of a schedule have decided, and who reigns."""

    contests: tuple[dict[str, Any], ...]
    reigns: tuple[dict[str, Any], ...]


def run(deployment: Deployment, points: Sequence[Point], times: int) -> Tally:
    """Kill at each of these points so many times."""
    tally = Tally()
    calm = _sweeps(deployment, "calm-throne", [], Tally())
    owed = {point.name: times for point in points}
    for turn in range(times + EXTRA_STUDIES):
        due = [point for point in points if owed[point.name] > 0]
        if not due:
            break
        killed = dict(tally.kills)
        name = f"throne-{turn + 1}"
        stormy = _sweeps(deployment, name, due, tally)
        for point in due:
            owed[point.name] -= tally.kills.get(point.name, 0) - killed.get(point.name, 0)
        if stormy.contests != calm.contests:
            tally.violations.append(f"{name} decided {stormy.contests}, undisturbed {calm.contests}")
        if stormy.reigns != calm.reigns:
            tally.violations.append(f"{name} had the champions {stormy.reigns}, undisturbed {calm.reigns}")
    missed = [point for point, left in owed.items() if left > 0]
    if missed:
        tally.violations.append(f"never passed: {', '.join(missed)}")
    return tally


def _sweeps(deployment: Deployment, name: str, points: Sequence[Point], tally: Tally) -> Throne:
    """Two sweeps of a schedule, during each of which its coordinator and one of its workers die."""
    definition = studies.grid(deployment.data, name)
    firings.make_schedule(deployment, name, definition, champion=True, repeat_configurations=True)
    of_workers = [point for point in points if point.process == "ray"]
    for turn, evaluations in enumerate(EVALUATIONS):
        if turn == 0:  # they die one after the other, in whatever order they come by, in either sweep
            for point in points:
                if point.process == "coordinator":
                    deployment.arm(point, 1)
        answer = _post(deployment, f"/v1/schedules/{name}/run")
        deaths = WorkerDeaths(deployment, answer["id"], of_workers[turn : turn + 1])
        wait_for_end(deployment, answer["name"], deaths.step)
        record = invariants.read(deployment, answer["name"])
        tally.violations += invariants.check(record, trials=6 + evaluations, distinct=False)
        writes = invariants.Writes(deployment)
        tally.violations += invariants.check_writes(writes, record)
        tally.violations += invariants.check_fencing(writes, record)
        tally.studies, tally.trials = tally.studies + 1, tally.trials + len(record.trials)
    for point in points:
        if point.process == "api":
            deployment.arm(point, 1)
    _post(deployment, f"/v1/schedules/{name}/champion", {"study": answer["name"], "trial": 2})
    for point in points:
        tally.killed(point, len(deployment.disarm(point)))
    return _throne(deployment, name)


def _post(deployment: Deployment, path: str, body: Any = None) -> Any:
    answer = deployment.client.post(path, body)
    assert answer.is_success, f"POST {path}: {answer.status_code} {answer.text}"
    return answer.json()


def _throne(deployment: Deployment, name: str) -> Throne:
    contests = "decision, challenger_trial, round(CAST(challenger_value AS NUMERIC), 5) AS challenger,"
    contests += " round(CAST(champion_value AS NUMERIC), 5) AS champion, data_changed"
    reigns = "trial_number, t.until IS NULL AS reigns, promoted_by, contest_id IS NULL AS by_hand"
    with deployment.service_engine.connect() as connection:

        def rows(columns: str, table: str) -> tuple[dict[str, Any], ...]:
            query = f"SELECT {columns} FROM {table} t JOIN schedules s ON s.id = t.schedule_id"
            found = connection.execute(text(f"{query} WHERE s.name = :n ORDER BY t.id"), {"n": name})
            return tuple({key: _plain(value) for key, value in row._mapping.items()} for row in found)

        return Throne(rows(contests, "contests"), rows(reigns, "reigns"))


def _plain(value: Any) -> Any:
    """SQLite has no truth values, and PostgreSQL has decimals."""
    return value if value is None or isinstance(value, str) else round(float(value), 4)
