"""A coordinator that stands still for longer than its lease, and then goes on as if nothing had happened."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from tests.soak.faults.deployment import Deployment
from tests.soak.faults.invariants import Record
from tests.soak.faults.judging import has_ended, rungs_of, verdict, wait_for_end
from tests.soak.faults.kill_points import Point


def freeze_holders(
    deployment: Deployment,
    name: str,
    moments: Sequence[Point | None],
    calm: Record,
    definition: dict[str, Any],
) -> list[str]:
    """Stop whoever holds a study for longer than its lease, again and again, and wake it each time.

    Args:
        deployment: With two coordinators.
        name: A new study's.
        moments: Where the holder stops itself; None: from outside, wherever it is without SQLite's lock.
        calm: The same study undisturbed.
        definition: The study's.

    Returns:
        What is wrong.
    """
    study = deployment.client.submit(definition)
    deployment.wait_for(lambda: rungs_of(deployment, name) >= 1, f"a first rung of {name}")
    wrong = []
    for moment in moments:
        wrong += _freeze(deployment, study["id"], name, moment)
    wait_for_end(deployment, name)
    until = time.monotonic() + deployment.settings.lease_seconds
    deployment.wait_for(lambda: time.monotonic() > until, "time for the last one that was woken")
    return wrong + verdict(deployment, name, calm)[1]


def _freeze(deployment: Deployment, study_id: str, name: str, moment: Point | None) -> list[str]:
    def ended() -> bool:
        return has_ended(deployment, name)

    if moment is None:
        deployment.wait_for(lambda: deployment.holder(study_id) is not None or ended(), f"a holder of {name}")
        frozen = deployment.holder(study_id)
        if frozen is None:
            return [f"{name}: it ended before anybody was stopped from outside"]
        run, pid = frozen.name, frozen.pid
        with nobody_writing(deployment):
            deployment.freeze(frozen)
            deployment.wait_for(lambda: stands_still(pid), f"{run} to stand still")
    else:
        deployment.arm(moment, 1, action="stop")
        deployment.wait_for(
            lambda: deployment.is_spent(moment) or ended(), f"a coordinator that stops {moment.name}"
        )
        stops = deployment.disarm(moment)
        if not stops:
            return [f"{name}: it ended without passing the point {moment.name!r}"]
        (stopped,) = stops
        run, pid = stopped["process"], stopped["pid"]
    since = time.monotonic()

    def taken_over() -> bool:
        holder = deployment.holder(study_id)
        return (holder is not None and holder.name != run) or ended()

    if moment is not None and moment.locks and deployment.database == "sqlite":
        # Whoever is stopped inside SQLite has the file's lock. Nobody else can go on, and nobody does.
        deployment.wait_for(
            lambda: time.monotonic() > since + 2 * deployment.settings.lease_seconds, "two leases"
        )
    else:
        deployment.wait_for(taken_over, f"another holder of {name}")
        rungs = rungs_of(deployment, name)
        deployment.wait_for(lambda: rungs_of(deployment, name) > rungs or ended(), f"the next rung of {name}")
    os.kill(pid, signal.SIGCONT)
    return []


@contextmanager
def nobody_writing(deployment: Deployment) -> Iterator[None]:
    """On SQLite the test has the write locks meanwhile: whoever stands still with one holds all others up."""
    if deployment.database == "postgresql":
        yield
        return
    with deployment.service_engine.connect() as service, deployment.optuna_engine.connect() as optuna:
        service.exec_driver_sql("BEGIN IMMEDIATE")
        optuna.exec_driver_sql("BEGIN IMMEDIATE")
        yield


def stands_still(pid: int) -> bool:
    """Whether all threads have been stopped; a signal takes its time."""
    states = [
        stat.read_text().rpartition(")")[2].split()[0] for stat in Path(f"/proc/{pid}/task").glob("*/stat")
    ]
    return set(states) == {"T"}
