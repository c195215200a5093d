"""Processes and threads that stand still: for less time than the limits, for more, or for ever."""

from __future__ import annotations

import contextlib
import os
import signal
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

from tests.soak.faults.deployment import Deployment
from tests.soak.faults.judging import rungs_of
from tests.soak.faults.kill_points import Point
from tests.soak.faults.moments.moment import busy_workers, ended, lost
from tests.soak.faults.processes import wait_until_gone

PATIENCE_SECONDS = 120.0
"""For what the limits of a deployment under test bring about within seconds on an idle machine."""


@contextmanager
def stopped(pids: Sequence[int]) -> Iterator[None]:
    """SIGSTOP, and SIGCONT at the end."""
    for pid in pids:
        _signal(pid, signal.SIGSTOP)
    try:
        yield
    finally:
        for pid in pids:
            _signal(pid, signal.SIGCONT)


def worker_for_a_moment(deployment: Deployment, study: dict[str, Any], _: float) -> list[str]:
    """SIGSTOP to a worker for a third of the limit: nothing is lost."""
    pid, _worker = _busy_worker(deployment, study)
    with stopped([pid]):
        time.sleep(deployment.settings.worker_silence_seconds / 3)
    return _nothing_lost(deployment, study)


def worker_for_ever(deployment: Deployment, study: dict[str, Any], _: float) -> list[str]:
    """SIGSTOP to a worker, which is never woken: its trial goes on elsewhere, and it does not stay."""
    pid, worker = _busy_worker(deployment, study)
    with stopped([pid]):
        return _given_up(deployment, study, pid, worker, cause="unreachable")


def ray_for_a_moment(program: str, deployment: Deployment, study: dict[str, Any], _: float) -> list[str]:
    """SIGSTOP to one of Ray's own processes for three seconds: nothing is lost."""
    with stopped(_of_ray(deployment, program)):
        time.sleep(3.0)
    return _nothing_lost(deployment, study)


def ray_for_long(program: str, deployment: Deployment, study: dict[str, Any], seconds: float) -> list[str]:
    """SIGSTOP to one of Ray's own processes until somebody has noticed, or for so long; then it is woken."""
    before = set(_of_ray(deployment, program))
    until = time.monotonic() + 2 * seconds
    with stopped(sorted(before)):
        deployment.wait_for(
            lambda: (
                bool(lost(deployment, study["id"]))
                or set(_of_ray(deployment, program)) != before
                or time.monotonic() > until
            ),
            f"an effect of {program} standing still",
        )
    return []


def training_thread(point: Point, deployment: Deployment, study: dict[str, Any], _: float) -> list[str]:
    """A worker's training thread hangs, while the worker answers: its trial goes on elsewhere."""
    deployment.arm(point, 1, action="hang")
    deployment.wait_for(
        lambda: deployment.is_spent(point) or ended(deployment, study),
        f"a thread that hangs at {point.name!r}",
    )
    hung = deployment.disarm(point)
    if not hung:
        return [f"the study ended without passing the point {point.name!r}"]
    pid = int(hung[0]["pid"])
    worker = (deployment.folder / "workers" / str(pid)).read_text()
    return _given_up(deployment, study, pid, worker, cause="stalled")


def _busy_worker(deployment: Deployment, study: dict[str, Any]) -> tuple[int, str]:
    deployment.wait_for(
        lambda: len(busy_workers(deployment, study["id"])) > 0, f"a busy worker of {study['name']}"
    )
    return min(busy_workers(deployment, study["id"]).items())


def _given_up(
    deployment: Deployment, study: dict[str, Any], pid: int, worker: str, *, cause: str
) -> list[str]:
    """A worker that does nothing more loses what it has, with the cause, and its process ends."""

    def causes() -> list[str | None]:
        return [found for _, of, found in lost(deployment, study["id"]) if of == worker]

    try:
        deployment.wait_for(lambda: bool(causes()), f"the loss of {worker}", seconds=PATIENCE_SECONDS)
        deployment.wait_for(
            lambda: pid not in deployment.workers(), f"the end of {worker}", seconds=PATIENCE_SECONDS
        )
    except AssertionError as error:
        _signal(pid, signal.SIGKILL)  # so that the study can end, and the rest of it can be looked at
        wait_until_gone([pid], PATIENCE_SECONDS)
        return [str(error)]
    wrong = [found for found in causes() if found != cause]
    return [f"attempts on {worker} were lost as {wrong}, not as {cause}"] if wrong else []


def _nothing_lost(deployment: Deployment, study: dict[str, Any]) -> list[str]:
    """Once its trials have gone on."""
    rungs = rungs_of(deployment, study["name"])
    deployment.wait_for(
        lambda: rungs_of(deployment, study["name"]) > rungs + 2 or ended(deployment, study),
        f"further rungs of {study['name']}",
    )
    losses = lost(deployment, study["id"])
    return [f"attempts were lost: {losses}"] if losses else []


def _of_ray(deployment: Deployment, program: str) -> list[int]:
    return deployment.pids(f"/{program} ")


def _signal(pid: int, number: int) -> None:
    with contextlib.suppress(ProcessLookupError):
        os.kill(pid, number)
