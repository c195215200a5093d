"""What is run while processes die at named points, and what must come out of it.

Each scenario runs its studies with the points armed, and compares them with an undisturbed one. A kill costs
a lease and a start, so as many points as possible are armed in one study: the processes die there one after
another, in whatever order they come by.
"""

from __future__ import annotations

import signal
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import Future
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from functools import partial
from typing import Any

from sqlalchemy import text

from tests.soak.faults import invariants, studies
from tests.soak.faults.deployment import Deployment
from tests.soak.faults.invariants import Record
from tests.soak.faults.kill_points import POINTS, Point, Scenario
from tests.soak.faults.processes import Process

EXTRA_STUDIES = 4
"""Further studies that are run when points are still to be passed."""


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
            return _firings(deployment, chosen, times)
        case "submission":
            return _submissions(deployment, chosen, times)
        case "migration":
            return _migrations(deployment, chosen, times)
        case "frozen" | "hung":
            raise ValueError(f"{scenario} points do not kill; see freeze_holders and moments")


# -- studies -----------------------------------------------------------------------------------------


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
            deployment.wait_for(partial(_is_in, deployment, name, state), f"the {change} of {name}")


def _is_in(deployment: Deployment, name: str, states: set[str]) -> bool:
    return deployment.client.study(name)["state"] in states


def rungs_of(deployment: Deployment, name: str) -> int:
    """Rungs that the trials of a study have reported, as the service has kept them."""
    query = text("SELECT count(*) FROM rung_reports r JOIN studies s ON s.id = r.study_id WHERE s.name = :n")
    with deployment.service_engine.connect() as connection:
        return int(connection.scalar(query, {"n": name}) or 0)


# -- one study for each firing and for each submission -----------------------------------------------


def _firings(deployment: Deployment, points: Sequence[Point], times: int) -> Tally:
    """A schedule that is due; exactly one study comes of it, whoever dies over it."""
    tally = Tally()
    calm = undisturbed(deployment, studies.grid)
    for turn in range(times):
        name = f"nightly-{turn + 1}"
        for point in points:
            deployment.arm(point, 1)
        fire(deployment, name, studies.grid(deployment.data, name))
        deployment.wait_for(
            lambda: all(deployment.is_spent(point) for point in points), "the death in mid firing"
        )
        for sweep in sweeps_of(deployment, name):
            wait_for_end(deployment, sweep)
        sweeps = sweeps_of(deployment, name)
        if len(sweeps) != 1:
            tally.violations.append(f"one firing of {name} made {sweeps}")
        for sweep in sweeps:
            record, wrong = verdict(deployment, sweep, calm)
            tally.studies, tally.trials = tally.studies + 1, tally.trials + len(record.trials)
            tally.violations += wrong
        for point in points:
            tally.killed(point, len(deployment.disarm(point)))
    return tally


def fire(deployment: Deployment, name: str, definition: dict[str, Any]) -> str:
    """Make a schedule and have it fire once; the name of the sweep."""
    make_schedule(deployment, name, definition)
    return make_due(deployment, name)


def make_schedule(deployment: Deployment, name: str, definition: dict[str, Any]) -> None:
    # The 29th of February at midnight: nothing fires but what is made to.
    schedule = {"name": name, "cron": "0 0 29 2 *", "timezone": "UTC", "definition": definition}
    answer = deployment.client.post("/v1/schedules", schedule)
    assert answer.status_code == 201, answer.text


def make_due(deployment: Deployment, name: str) -> str:
    """Have a schedule fire now; the name of its first sweep."""
    set_firing(deployment, name, datetime(2024, 2, 29, tzinfo=UTC))
    deployment.wait_for(lambda: len(sweeps_of(deployment, name)) > 0, f"the sweep of {name}")
    return sweeps_of(deployment, name)[0]


def set_firing(deployment: Deployment, name: str, at: datetime) -> None:
    """When a schedule fires next, as its row has it."""
    with deployment.service_engine.begin() as connection:
        connection.execute(
            text("UPDATE schedules SET next_fire_at = :at WHERE name = :n"),
            {"at": deployment.instant(at), "n": name},
        )


def sweeps_of(deployment: Deployment, schedule: str) -> list[str]:
    query = text("SELECT s.name FROM studies s JOIN schedules c ON c.id = s.schedule_id WHERE c.name = :n")
    with deployment.service_engine.connect() as connection:
        return list(connection.scalars(query, {"n": schedule}))


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
