"""What goes wrong with the machine under `nightsweep serve`: descriptors, disks, a folder that is removed."""

from __future__ import annotations

import resource
import shutil
import time
from contextlib import AbstractContextManager
from typing import Any

from service.devices.heartbeats import SILENCE_SECONDS
from tests.soak.faults import scenarios, studies
from tests.soak.faults.invariants import Record
from tests.soak.faults.moments.moment import wait_for_end
from tests.soak.faults.served import ServedDeployment

NO_DESCRIPTORS = 4
"""A limit at which a process can open nothing more."""


def supervisor_without_descriptors(
    deployment: ServedDeployment, study: dict[str, Any], seconds: float
) -> list[str]:
    """The coordinator dies while its supervisor can open no file; then the limit is as it was."""
    supervisor = deployment.serve.pid
    _, hard = before = resource.prlimit(supervisor, resource.RLIMIT_NOFILE)
    resource.prlimit(supervisor, resource.RLIMIT_NOFILE, (NO_DESCRIPTORS, hard))
    try:
        died = deployment.kill_coordinator()
        time.sleep(seconds)
        ready = deployment.client.http.get("/readyz")
    finally:
        resource.prlimit(supervisor, resource.RLIMIT_NOFILE, before)
    wrong = _looked_after_again(deployment, supervisor, died)
    if seconds > SILENCE_SECONDS and (ready.status_code != 503 or "coordinator" not in ready.text):
        wrong.append(f"/readyz answered {ready.status_code} {ready.text} without a coordinator")
    return wrong


def home_read_only(deployment: ServedDeployment, study: dict[str, Any], seconds: float) -> list[str]:
    """The coordinator dies while nothing can be opened for writing in the home folder."""
    return _death_meanwhile(deployment, deployment.home_disk.read_only(), seconds)


def home_full(deployment: ServedDeployment, study: dict[str, Any], seconds: float) -> list[str]:
    """Nothing more can be written to the home folder: databases (SQLite), artifacts, logs."""
    supervisor = deployment.serve.pid
    with deployment.home_disk.full():
        time.sleep(seconds)
    return [] if deployment.serve.pid == supervisor else ["`nightsweep serve` ended over a full disk"]


def home_full_at_a_death(deployment: ServedDeployment, study: dict[str, Any], seconds: float) -> list[str]:
    """The coordinator dies while nothing more can be written to the home folder."""
    return _death_meanwhile(deployment, deployment.home_disk.full(), seconds)


def temporary_folder_full(deployment: ServedDeployment, study: dict[str, Any], seconds: float) -> list[str]:
    """/tmp is full while a study runs and another one is submitted: both end as they would have."""
    name = f"{study['name']}-beside"
    calm: Record = scenarios.undisturbed(deployment, studies.grid)
    with deployment.temp_disk.full():
        deployment.client.submit(studies.grid(deployment.data, name))
        time.sleep(seconds)
    wait_for_end(deployment, name)
    return scenarios.verdict(deployment, name, calm)[1]


def rays_folder_removed(deployment: ServedDeployment, study: dict[str, Any], _: float) -> list[str]:
    """Somebody who cleans up /tmp removes the folder that Ray's sockets and logs are in."""
    temp = deployment.temp_disk.folder
    folders = deployment.ray_folders()
    for folder in folders:
        shutil.rmtree(temp / folder.relative_to(temp).parts[0])
    if not folders:
        return ["no Ray head runs whose folder could be removed"]

    def is_there() -> bool:
        return any(any(folder.glob("session_*")) for folder in deployment.ray_folders())

    try:
        deployment.wait_for(is_there, "a Ray head whose folder is there", seconds=90)
    except AssertionError as error:
        deployment.kill_node()  # so that the study can end, and the rest of it can be looked at
        return [str(error)]
    return []


def _death_meanwhile(
    deployment: ServedDeployment, fault: AbstractContextManager[object], seconds: float
) -> list[str]:
    """What was wrong after a coordinator's death during a fault that lasts so long."""
    supervisor = deployment.serve.pid
    with fault:
        died = deployment.kill_coordinator()
        time.sleep(seconds)
    return _looked_after_again(deployment, supervisor, died)


def _looked_after_again(deployment: ServedDeployment, supervisor: int, died: int) -> list[str]:
    try:
        deployment.wait_for(
            lambda: any(pid != died for pid in deployment.coordinator_pids()),
            "another coordinator",
            seconds=90,
        )
    except AssertionError as error:
        deployment.kill(deployment.serve)  # so that the study can end, and the rest of it can be looked at
        return [str(error)]
    return [] if deployment.serve.pid == supervisor else ["`nightsweep serve` itself was started again"]
