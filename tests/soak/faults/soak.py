"""`python -m tests.soak.faults.soak`: many small studies, and something dies every few seconds.

Seeded: the same seed makes the same studies and draws the same faults, though not at the same instants. At
the end every study is held against the invariants and against its undisturbed twin. Exits with 1 when
anything was violated.

Half of the time is spent on two coordinators, the other half under the real `nightsweep serve`.
"""

from __future__ import annotations

import argparse
import os
import random
import sys
import tempfile
import time
import traceback
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, TextIO, get_args

from sqlalchemy import text

from tests.soak.faults import firings, invariants, scenarios, studies
from tests.soak.faults.deployment import CPUS, DatabaseName, Deployment
from tests.soak.faults.drawn import DrawnFaults
from tests.soak.faults.invariants import Record
from tests.soak.faults.moments.catalog import open_deployment
from tests.soak.faults.moments.moment import DeploymentKind, waits_for_a_disk

LOG = Path(__file__).resolve().parents[3] / "benchmarks" / "out" / "soak.log"
AT_ONCE = 3
"""Studies that are under way at a time."""
PATIENCE_SECONDS = 900.0
"""For the studies that are left when the faults end."""

INVARIANTS = (
    "every study ends, and is completed unless somebody has cancelled it",
    "exactly the trials of the definition, numbered without a gap",
    "no parameters given out twice; every point of a grid once",
    "one end for each trial, by its last attempt, and Optuna was told the same",
    "each trial created once and told once, and nothing written to it afterwards",
    "no two attempts of a trial at a time; none left alive",
    "every rung once, in both databases",
    "nothing but 503 is answered while the database is away",
    "no write of a coordinator while another one held the lease, in either database",
    "parameters, ends, rungs and values equal to the undisturbed twin's; the best value, too",
    "`nightsweep db check` finds nothing; no worker is left",
)


@dataclass
class Sort:
    """A kind of study."""

    name: str
    make: Callable[..., dict[str, Any]]
    tolerance: float = invariants.EXACT
    pauses: bool = False
    cancelled: bool = False
    scheduled: bool = False


SORTS = (
    Sort("random", studies.random),
    Sort("grid", studies.grid),
    Sort("pruned", studies.pruned),
    Sort("packed", studies.packed, invariants.IN_A_PACK),
    Sort("random-paused", studies.random, pauses=True),
    Sort("pruned-paused", studies.pruned, pauses=True),
    Sort("random-cancelled", studies.random, cancelled=True),
    Sort("grid-scheduled", studies.grid, scheduled=True),
)


@dataclass
class Running:
    """A study under way, and what is still to be done to it."""

    name: str
    sort: Sort
    todo: str | None
    """`pause`, `resume` or `cancel`."""
    began: float


class Soak:
    """One run.

    Args:
        deployment: The processes.
        seed: Of studies and faults.
        every: Mean seconds between two faults.
        log: What happened, line by line.
    """

    def __init__(self, deployment: Deployment, *, seed: int, every: float, log: _Both) -> None:
        self._deployment = deployment
        self._of_studies = random.Random(f"{seed} studies")
        self._of_times = random.Random(f"{seed} times")
        self._drawn = DrawnFaults(deployment, random.Random(f"{seed} faults"))
        self._every = every
        self._log = log
        self._began = time.monotonic()
        self._calm: dict[str, Record] = {}
        self._running: list[Running] = []
        self._ended: list[Running] = []
        self._made = 0
        self.faults: Counter[str] = Counter()
        self.violations: list[str] = []
        self.losses: Counter[str] = Counter()
        self.trials = 0

    def run(self, minutes: float) -> None:
        """Baselines, faults, the rest of the studies, and the verdict."""
        for sort in SORTS:
            self._calm_of(sort)
        self._say("undisturbed twins are done; the faults begin")
        self._began = time.monotonic()
        end = self._began + 60 * minutes
        next_fault = self._began + self._every
        while time.monotonic() < end:
            self._submit()
            self._drawn.end_due()
            self._look_after()
            if time.monotonic() >= next_fault:
                kind, detail = self._drawn.draw()
                self.faults[kind] += 1
                self._say(f"FAULT {kind}: {detail}")
                next_fault = time.monotonic() + self._of_times.uniform(0.5, 1.5) * self._every
            time.sleep(0.1)
        self._say("no more faults; waiting for the studies that are left")
        self._drawn.end_due(everything=True)
        patience = time.monotonic() + PATIENCE_SECONDS
        while self._running and time.monotonic() < patience:
            self._look_after()
            time.sleep(0.2)
        for study in self._running:
            self.violations.append(f"{study.name} has not ended: {self._deployment.client.study(study.name)}")
        self._judge()

    # -- studies ---------------------------------------------------------------------------------

    def _calm_of(self, sort: Sort) -> Record:
        kind = sort.make.__name__
        if kind not in self._calm:
            self._calm[kind] = scenarios.undisturbed(self._deployment, sort.make)
        return self._calm[kind]

    def _submit(self) -> None:
        if len(self._running) >= AT_ONCE:
            return
        # Each sort in turn, in an order of its own every time round.
        if self._made % len(SORTS) == 0:
            self._order = self._of_studies.sample(SORTS, len(SORTS))
        sort = self._order[self._made % len(SORTS)]
        self._made += 1
        name = f"soak-{self._made}-{sort.name}"
        definition = sort.make(self._deployment.data, name)
        if sort.scheduled:
            name = firings.fire(self._deployment, name, definition)
        else:
            self._deployment.client.submit(definition)
        todo = "pause" if sort.pauses else "cancel" if sort.cancelled else None
        self._running.append(Running(name, sort, todo, time.monotonic()))
        self._say(f"submitted {name}")

    def _look_after(self) -> None:
        """Carry out what is to be done to the studies, and see which have ended. Never waits."""
        for study in list(self._running):
            seen = self._deployment.client.study(study.name)
            if seen["ended_at"] is not None:
                self._running.remove(study)
                self._ended.append(study)
                self._say(f"{study.name} {seen['state']} after {time.monotonic() - study.began:.0f} s")
            elif study.todo in ("pause", "cancel") and scenarios.rungs_of(self._deployment, study.name) >= 3:
                self._change(study, study.todo)
                study.todo = "resume" if study.todo == "pause" else None
            elif study.todo == "resume" and seen["state"] == "paused":
                self._change(study, "resume")
                study.todo = None
            elif study.todo != "resume" and waits_for_a_disk(seen):
                self._change(study, "resume")

    def _change(self, study: Running, what: str) -> None:
        answer = self._deployment.client.post(f"/v1/studies/{study.name}/{what}")
        # It may have ended since it was looked at.
        if answer.status_code not in (202, 409):
            self.violations.append(f"{what} of {study.name} was answered {answer.status_code} {answer.text}")
        self._say(f"{what} of {study.name}: {answer.status_code}")

    # -- the end ---------------------------------------------------------------------------------

    def _judge(self) -> None:
        self._say("all studies have ended; looking at what is left")
        self.violations += self._drawn.violations
        writes = invariants.Writes(self._deployment)
        for study in self._ended:
            record = invariants.read(self._deployment, study.name)
            calm = self._calm_of(study.sort)
            self.trials += len(record.trials)
            cancelled = study.sort.cancelled and record.state == "cancelled"
            wrong = invariants.check(
                record,
                trials=None if cancelled else len(calm.trials),
                ends="cancelled" if cancelled else "completed",
            )
            wrong += invariants.check_writes(writes, record)
            wrong += invariants.check_fencing(writes, record)
            if not cancelled:
                wrong += invariants.compare(record, calm, tolerance=study.sort.tolerance)
            self.violations += wrong
        self.violations += self._deployment.db_check()
        try:
            self._deployment.wait_for(
                lambda: len(self._deployment.workers()) <= CPUS, "no workers but those that wait", seconds=60
            )
        except AssertionError:
            self.violations.append(f"workers are left: {sorted(self._deployment.workers().values())}")
        query = text(
            "SELECT state || COALESCE(' (' || loss_cause || ')', ''), count(*) FROM attempts GROUP BY 1"
        )
        with self._deployment.service_engine.connect() as connection:
            self.losses.update({str(state): count for state, count in connection.execute(query)})

    def summary(self) -> str:
        """Faults by kind, studies, trials, invariants held, violations."""
        kinds = Counter(study.sort.name for study in self._ended)
        answers = self._drawn.answers
        exits = [(end.name, end.code) for end in self._deployment.exits]
        lines = [
            f"{sum(self.faults.values())} faults: " + _listed(self.faults),
            f"{len(self._ended)} studies: {_listed(kinds)}",
            f"{self.trials} trials; attempts by their end: {_listed(self.losses)}",
            f"processes that ended by themselves: {exits or 'none'}",
            f"answers while the database was away: {answers[503]} of 503, {answers[None]} none",
            "",
            f"{len(self.violations)} violations of:",
            *(f"  - {invariant}" for invariant in INVARIANTS),
            *(f"VIOLATION {fault}" for fault in self.violations),
        ]
        return "\n".join(lines)

    def _say(self, what: str) -> None:
        line = f"{time.monotonic() - self._began:7.1f} s  {what}"
        print(line, file=self._log, flush=True)


def _listed(counts: Counter[str]) -> str:
    return ", ".join(f"{count} {kind}" for kind, count in sorted(counts.items())) or "none"


def main(arguments: Sequence[str] | None = None) -> int:
    """Run, print, log."""
    parser = argparse.ArgumentParser(prog="python -m tests.soak.faults.soak", description=__doc__)
    parser.add_argument(
        "--minutes", type=float, default=30.0, help="of faults, all deployments together (30)"
    )
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--every", type=float, default=12.0, help="mean seconds between two faults (12)")
    parser.add_argument("--database", choices=get_args(DatabaseName), default="postgresql")
    parser.add_argument(
        "--deployment",
        choices=get_args(DeploymentKind),
        action="append",
        help="half of the time each, if not given",
    )
    parser.add_argument("--folder", type=Path, default=None, help="for logs and databases; a new one")
    parser.add_argument("--log", type=Path, default=LOG, help="written anew")
    options = parser.parse_args(arguments)
    folder = options.folder or Path(tempfile.mkdtemp(prefix="nightsweep-soak-"))
    data = studies.make_data(folder / "data")
    print(f"logs in {folder}")
    options.log.parent.mkdir(parents=True, exist_ok=True)
    with options.log.open("w") as file:
        log = _Both(file)
        head = f"seed {options.seed}, {options.minutes:g} minutes, {options.database}, {os.cpu_count()} cores"
        print(f"soak, {datetime.now(UTC):%Y-%m-%d %H:%M} UTC: {head}\n", file=log)
        kinds = options.deployment or get_args(DeploymentKind)
        violated = False
        for kind in kinds:
            print(f"\n== {kind}", file=log)
            with open_deployment(kind, options.database, folder / kind, data) as deployment:
                soak = Soak(deployment, seed=options.seed, every=options.every, log=log)
                try:
                    soak.run(options.minutes / len(kinds))
                except Exception:  # noqa: BLE001 - what has been seen so far must be printed all the same
                    soak.violations.append(f"the soak itself failed: {traceback.format_exc()}")
                print(f"\n{soak.summary()}", file=log)
            violated = violated or bool(soak.violations)
    return 1 if violated else 0


class _Both:
    """To a file and to standard output."""

    def __init__(self, file: TextIO) -> None:
        self._file = file

    def write(self, text: str) -> int:
        sys.stdout.write(text)
        return self._file.write(text)

    def flush(self) -> None:
        sys.stdout.flush()
        self._file.flush()


if __name__ == "__main__":
    sys.exit(main())
