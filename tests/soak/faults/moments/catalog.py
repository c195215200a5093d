"""All moments, and one run of them: `python -m tests.soak.faults.points` and the acceptance tests."""

from __future__ import annotations

import sys
import time
from collections.abc import Sequence
from concurrent.futures import Future
from functools import partial
from pathlib import Path
from typing import Any, get_args

from tests.soak.faults.deployment import BrokenDeploymentError, DatabaseName, Deployment
from tests.soak.faults.judging import Tally
from tests.soak.faults.kill_points import HANG_POINTS
from tests.soak.faults.moments import clocks, machine, silences
from tests.soak.faults.moments.moment import DeploymentKind, Moment, disturb
from tests.soak.faults.served import ServedDeployment

LIMITS: dict[str, Any] = {
    "worker_silence_seconds": 9.0,
    "training_silence_seconds": 9.0,
    "loading_silence_seconds": 90.0,
}
"""Settings under which moments are run: seconds, where the product's own are meant for a night."""


def _pair(name: str, inject: Any) -> Moment:
    return Moment(name=name, deployment="pair", inject=inject)


def _served(name: str, inject: Any, needs: Any = None) -> Moment:
    return Moment(name=name, deployment="served", inject=inject, needs=needs)


MOMENTS: tuple[Moment, ...] = (
    # Standing still.
    _pair("a worker stopped for less than the limit", silences.worker_for_a_moment),
    _pair("a worker stopped for ever", silences.worker_for_ever),
    *(_pair(point.name, partial(silences.training_thread, point)) for point in HANG_POINTS),
    _served("raylet stopped for a moment", partial(silences.ray_for_a_moment, "raylet")),
    _served("raylet stopped for long", partial(silences.ray_for_long, "raylet")),
    _served("gcs_server stopped for a moment", partial(silences.ray_for_a_moment, "gcs_server")),
    _served("gcs_server stopped for long", partial(silences.ray_for_long, "gcs_server")),
    # Clocks.
    _pair("a lease from two hours in the future", clocks.lease_from_the_future),
    _pair("a cancel of a lease from the future", clocks.cancel_of_a_lease_from_the_future),
    _pair("a clock that jumped two hours ahead", clocks.lease_from_the_past),
    _pair("a firing years ahead", clocks.firing_from_the_future),
    # The machine under `nightsweep serve`.
    _served("the supervisor has no descriptors", machine.supervisor_without_descriptors),
    _served("Ray's folder is removed", machine.rays_folder_removed),
    _served("the temporary folder is full", machine.temporary_folder_full, "disks"),
    _served("the home folder is full", machine.home_full, "disks"),
    _served("the home folder is full at a death", machine.home_full_at_a_death, "disks"),
    _served("the home folder is read-only at a death", machine.home_read_only, "disks"),
)


def open_deployment(kind: DeploymentKind, database: DatabaseName, folder: Path, data: Path) -> Deployment:
    """A deployment for moments of a kind, not entered yet."""
    if kind == "served":
        return ServedDeployment(database, folder, data, **LIMITS)
    return Deployment(database, folder, data, **LIMITS)


def disturb_everywhere(
    deployment: Deployment, moments: Sequence[Moment], *, times: int, seconds: float
) -> Tally:
    """Have each of these moments so many times; says on standard error how it goes.

    One that does not end is a violation, and the others are had all the same.
    """
    total = Tally()
    for moment in moments:
        began = time.monotonic()
        refusal = moment.refusal(deployment)
        if refusal is not None:
            print(f"{deployment.database}: SKIPPED {moment.name}: {refusal}", file=sys.stderr)
            total.skipped[moment.name] = refusal
            continue
        tally = Tally()
        for turn in range(times):
            try:
                tally.add(disturb(deployment, moment, turn, seconds))
            except BrokenDeploymentError:
                raise
            except AssertionError as error:
                tally.violations.append(f"{moment.name}, turn {turn + 1}: {error}")
        said = f"{tally.studies} of {times} studies ended, {len(tally.violations)} violations"
        print(
            f"{deployment.database}, {moment.name}: {said}, {time.monotonic() - began:.0f} s",
            *tally.violations,
            sep="\n  ",
            file=sys.stderr,
        )
        total.add(tally)
    return total


def run(
    database: DatabaseName,
    folder: Path,
    data: Path,
    moments: Sequence[Moment],
    *,
    times: int,
    seconds: float,
    calm: dict[str, Future[Any]] | None = None,
) -> Tally:
    """These moments on one database, in a deployment of each kind that they need.

    Args:
        calm: What undisturbed studies come to, of other deployments on the same data.
    """
    total = Tally()
    for kind in get_args(DeploymentKind):
        chosen = [moment for moment in moments if moment.deployment == kind]
        if not chosen:
            continue
        with open_deployment(kind, database, folder / f"{database}-{kind}", data) as deployment:
            if calm is not None:
                deployment.calm = calm
            total.add(disturb_everywhere(deployment, chosen, times=times, seconds=seconds))
            total.violations += deployment.db_check()
            total.violations += [f"{e.name} ended by itself, with code {e.code}" for e in deployment.exits]
    return total
