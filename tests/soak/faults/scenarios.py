"""What is run while processes die at named points, and what must come out of it.

Each scenario runs its studies with the points armed, and compares them with an undisturbed one. A kill costs
a lease and a start, so as many points as possible are armed in one study: the processes die there one after
another, in whatever order they come by.
"""

from __future__ import annotations

import signal
from collections.abc import Callable, Iterable, Sequence
from functools import partial
from typing import Any

from sqlalchemy import text

from tests.soak.faults import firings, studies
from tests.soak.faults.deployment import Deployment
from tests.soak.faults.judging import (
    Tally,
    is_in,
    rungs_of,
    undisturbed,
    verdict,
    wait_for_end,
)
from tests.soak.faults.kill_points import POINTS, Point, Scenario
from tests.soak.faults.processes import Process

EXTRA_STUDIES = 4
"""Further studies that are run when points are still to be passed."""


def of_scenario(scenario: Scenario, points: Sequence[Point] = POINTS) -> list[Point]:
    return [point for point in points if point.scenario == scenario]


def run_scenario(
    deployment: Deployment, scenario: Scenario, *, times: int = 1, points: Sequence[Point] = POINTS
) -> Tally:
    """Kill at each point of a scenario so many times."""
    chosen = of_scenario(scenario, points)
    if not chosen:
        return Tally()
    match scenario:
        case "search":
            return _storms(deployment, chosen, times, "search", studies.random)
        case "pruned":
            return _storms(deployment, chosen, times, "pruned", studies.pruned)
        case "paused":
            return _storms(deployment, chosen, times, "paused", studies.random, during=_pause_and_resume)
        case "warm":
            total = Tally()  # each by itself: a worker that died waits no more
            for one in chosen:
                total.add(_storms(deployment, [one], times, f"warm-{one.file}", studies.short))
            return total
        case "schedule":
            return firings.made_once(deployment, chosen, times)
        case "queued" | "cancelling" | "continued":
            return firings.beside_sweeps(deployment, scenario, chosen, times)
        case "champion":
            from tests.soak.faults import contests  # which builds on this module

            return contests.run(deployment, chosen, times)
        case "submission":
            return _submissions(deployment, chosen, times)
        case "migration":
            return _migrations(deployment, chosen, times)
        case "frozen" | "hung":
            raise ValueError(f"{scenario} points do not kill; see freeze_holders and moments")


# -- studies -----------------------------------------------------------------------------------------


def _storms(
    deployment: Deployment,
    points: Sequence[Point],
    times: int,
    name: str,
    make: Callable[..., dict[str, Any]],
    during: Callable[[Deployment, str, Callable[[], bool]], None] | None = None,
) -> Tally:
    calm = undisturbed(deployment, make)
    tally = Tally()
    owed = {point.name: times for point in points}
    for turn in range(times + EXTRA_STUDIES):
        due = [point for point in points if owed[point.name] > 0]
        if not due:
            break
        # Not at the first passing only; but in an extra study whatever comes first.
        turns = turn if turn < times else 0
        study = f"stormy-{name}-{turn + 1}"
        fired = _storm(deployment, due, turns, study, make, during)
        for point in due:
            owed[point.name] -= fired[point.name]
            tally.killed(point, fired[point.name])
        record, wrong = verdict(deployment, study, calm)
        tally.studies += 1
        tally.trials += len(record.trials)
        tally.violations += wrong
    missed = [point for point, left in owed.items() if left > 0]
    if missed:
        tally.violations.append(f"never passed: {', '.join(missed)}")
    return tally


def _storm(
    deployment: Deployment,
    points: Sequence[Point],
    turn: int,
    name: str,
    make: Callable[..., dict[str, Any]],
    during: Callable[[Deployment, str, Callable[[], bool]], None] | None,
) -> dict[str, int]:
    """One study with all points armed; how often each killed."""
    for point in points:
        if point.process != "ray":
            deployment.arm(point, 1 + 7 * turn % point.passings)
    study = deployment.client.submit(make(deployment.data, name))
    deaths = WorkerDeaths(deployment, study["id"], [point for point in points if point.process == "ray"])
    if during is not None:
        during(deployment, name, deaths.step)
    wait_for_end(deployment, name, deaths.step)
    # Some points come after the end; nobody waits for those that do not come at all.
    late = [point for point in points if point.after_end]
    deployment.wait_for(
        lambda: all(deployment.is_spent(point) for point in late), f"{[p.name for p in late]}", seconds=20
    )
    return {point.name: len(deployment.disarm(point)) for point in points}


class WorkerDeaths:
    """Arms one point of the workers after another.

    A trial whose worker dies twice in the same place is poisonous, by the product's own rule. So the next
    worker dies once the trials that the last one took along have got beyond where they were.
    """

    def __init__(self, deployment: Deployment, study_id: str, points: Iterable[Point]) -> None:
        self._deployment = deployment
        self._study_id = study_id
        self._left = list(points)
        self._armed: Point | None = None

    def step(self) -> bool:
        """Arm the next point if it is time. Whether one is armed that has not killed yet, or none is left."""
        deployment = self._deployment
        if self._armed is not None:
            fired = deployment.fired(self._armed)
            if not fired:
                return True
            if deployment.live_on(fired[0]["pid"]):
                return False  # its coordinator does not know yet that it has died
        if self._left and not behind(deployment, self._study_id):
            self._armed = self._left.pop(0)
            deployment.arm(self._armed, 1)
            return True
        return not self._left


def behind(deployment: Deployment, study_id: str) -> set[int]:
    """Trials that have lost an attempt and not yet reported a rung beyond all that had been reported."""
    query = text(
        "SELECT a.trial_number FROM attempts a JOIN attempts b"
        "  ON b.study_id = a.study_id AND b.trial_number = a.trial_number AND b.ordinal <= a.ordinal"
        " WHERE a.study_id = :s AND a.state IN ('lost', 'paused', 'dispatched', 'running')"
        "  AND b.state = 'lost'"
        "  AND (a.state IN ('lost', 'paused') OR a.last_rung <= b.last_rung"
        "   OR a.last_rung <= b.resumed_at_examples)"
        " AND NOT EXISTS (SELECT 1 FROM attempts c WHERE c.study_id = a.study_id"
        "  AND c.trial_number = a.trial_number AND c.ordinal > a.ordinal)"
    )
    with deployment.service_engine.connect() as connection:
        return set(connection.scalars(query, {"s": study_id}))


def _pause_and_resume(deployment: Deployment, name: str, armed: Callable[[], bool]) -> None:
    """Twice: with trials running, and again further on."""

    def has_rungs(least: int) -> bool:
        return armed() and rungs_of(deployment, name) >= least

    for least in (2, 10):
        deployment.wait_for(partial(has_rungs, least), f"{least} rungs of {name}")
        for change, state in (("pause", {"paused"}), ("resume", {"queued", "running"})):
            answer = deployment.client.post(f"/v1/studies/{name}/{change}")
            assert answer.status_code == 202, f"{change}: {answer.status_code} {answer.text}"
            deployment.wait_for(partial(is_in, deployment, name, state), f"the {change} of {name}")


# -- one study for each firing and for each submission -----------------------------------------------


def _submissions(deployment: Deployment, points: Sequence[Point], times: int) -> Tally:
    """The API dies over a submission, the client asks again: one study, and an answer that says so."""
    tally = Tally()
    calm = undisturbed(deployment, studies.grid)
    for turn in range(times):
        for point in points:
            name = f"submitted-{point.file}-{turn + 1}"
            deployment.arm(point, 1)
            answer = deployment.client.post("/v1/studies", studies.grid(deployment.data, name))
            if answer.status_code != 201:
                tally.violations.append(
                    f"{name}: the submission was answered {answer.status_code} {answer.text}"
                )
            kills = len(deployment.disarm(point))
            tally.killed(point, kills)
            if kills != 1:
                tally.violations.append(f"{name}: the API died {kills} times")
            wait_for_end(deployment, name)
            record, wrong = verdict(deployment, name, calm)
            tally.studies, tally.trials = tally.studies + 1, tally.trials + len(record.trials)
            tally.violations += wrong
            if answer.status_code == 201 and answer.json()["id"] != record.id:
                tally.violations.append(f"{name}: the answer names another study")
    return tally


# -- upgrades ----------------------------------------------------------------------------------------


def _migrations(deployment: Deployment, points: Sequence[Point], times: int) -> Tally:
    """Upgrades of an empty database that die; the next one ends right."""
    tally = Tally()
    for turn in range(times):
        for point in points:
            folder = deployment.folder / f"upgrade-{point.file}-{turn + 1}"
            environment = {
                "NIGHTSWEEP_HOME": str(folder),
                "NIGHTSWEEP_ARTIFACTS_DIR": str(folder / "artifacts"),
            }
            if deployment.postgres is not None:
                url = deployment.postgres.new_database()
                environment["NIGHTSWEEP_DATABASE_URL"] = url
            else:
                environment["NIGHTSWEEP_DATABASE_URL"] = f"sqlite:///{folder / 'nightsweep.db'}"
            environment["NIGHTSWEEP_OPTUNA_URL"] = ""  # made from the other, as by default
            deployment.arm(point, 1 + 7 * turn % point.passings)
            died = _command(deployment, environment, "db", "upgrade")
            tally.killed(point, len(deployment.disarm(point)))
            if died != -signal.SIGKILL:
                tally.violations.append(f"{point.name}: the upgrade ended with {died} in place of dying")
            codes = [_command(deployment, environment, "db", what) for what in ("upgrade", "check")]
            if codes != [0, 0]:
                tally.violations.append(f"{point.name}: the next upgrade and check ended with {codes}")
    return tally


def _command(deployment: Deployment, environment: dict[str, str], *command: str) -> int | None:
    process: Process = deployment.another("upgrade", *command, **environment)
    process.start()
    code = process.wait(120)
    process.kill_group()
    return code
