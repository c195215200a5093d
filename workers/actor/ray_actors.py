"""Workers as Ray actors: named, detached, started and found again by their names."""

from __future__ import annotations

import os
from enum import StrEnum
from typing import Any

from workers.actor.gpu_worker import GpuWorker
from workers.contract import WorkerSpec

NAMESPACE = "nightsweep"
"""Ray namespace of all workers."""

_CONCURRENT_CALLS = 8
"""Calls an actor serves at once: long polls of a coordinator and its successor, and the short ones."""


def start_worker(spec: WorkerSpec) -> Any:
    """Starts a worker and returns its actor handle without waiting for it to be placed or ready.

    The actor is detached and never restarted: what ran on it is lost, and the coordinator says what
    happens next.

    Raises:
        ValueError: A worker of that name is alive.
        RaySystemError: The folder that Ray's sockets are in was removed: Ray would queue the worker for ever.
    """
    import ray

    _require_session_folder()
    actor = ray.remote(GpuWorker).options(
        name=spec.name,
        namespace=NAMESPACE,
        lifetime="detached",
        max_restarts=0,
        max_task_retries=0,
        max_concurrency=_CONCURRENT_CALLS,
        num_cpus=spec.num_cpus,
        num_gpus=spec.num_gpus,
    )
    return actor.remote(spec)


def _require_session_folder() -> None:
    from ray._private import worker
    from ray.exceptions import RaySystemError

    folder = None if worker._global_node is None else worker._global_node.get_session_dir_path()
    if folder is not None and not os.path.isdir(folder):
        raise RaySystemError(f"Ray's folder {folder} was removed, so Ray starts no more processes")


class WorkerStage(StrEnum):
    """How far Ray has come with a worker."""

    QUEUED = "queued"
    """No machine has room for it yet."""
    STARTING = "starting"
    """Its process runs, and imports its libraries."""
    READY = "ready"
    """It should answer."""


def stage_of(handle: Any) -> WorkerStage:
    """What Ray's control process knows of a worker.

    Ray's public API for it needs its dashboard, which nobody starts here. `ray.nodes()` asks the same way.
    """
    from ray._private.state import actors

    row = actors(handle._actor_id.hex())
    if row.get("State") == "ALIVE":
        return WorkerStage.READY
    return WorkerStage.STARTING if row.get("Pid") else WorkerStage.QUEUED


def find_worker(name: str) -> Any | None:
    """The handle of a living worker, or None."""
    import ray

    try:
        return ray.get_actor(name, namespace=NAMESPACE)
    except ValueError:  # Ray's way of saying that there is none
        return None
