"""Workers that wait, with everything imported, for a study: which one a study gets, and how many there are.

Pure. Whoever waits reserves what it has on the cluster as any worker does, so it must stand in nobody's way.
"""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass

from service.coordinator.policy.placement import WorkerShape
from service.devices.cluster import Node


@dataclass(frozen=True, kw_only=True)
class PoolLimits:
    """What bounds the pool."""

    per_node: int = 0
    """Workers that wait on each machine, at most."""
    keep_base_s: float = 0.0
    """Seconds for which one keeps the base of its last study."""


@dataclass(frozen=True, kw_only=True)
class Waiting:
    """A worker that belongs to no study."""

    worker_id: str
    shape: WorkerShape
    ready: bool = False
    """It has answered; else it may still be starting."""
    base: str | None = None
    """What it has in memory, if anything."""


def pick(waiting: Collection[Waiting], shape: WorkerShape, base: str) -> Waiting | None:
    """The worker for a study: one that has its base, then one that can begin at once; None: none fits."""
    fitting = [w for w in waiting if w.shape == shape]
    return min(
        fitting, key=lambda w: (w.base != base, not w.ready, w.base is not None, w.worker_id), default=None
    )


def in_the_way(waiting: Collection[Waiting], shape: WorkerShape, *, cpus: float, gpus: float) -> list[str]:
    """Waiting workers to end, so that one of this shape fits, those without a base first.

    Args:
        waiting: all of them.
        shape: what the new worker reserves.
        cpus: what is left beside all workers, those that wait included.
        gpus: likewise.
    """
    ended = []
    for worker in sorted(waiting, key=lambda w: (w.base is not None, w.ready, w.worker_id)):
        if cpus >= shape.num_cpus and gpus >= shape.num_gpus:
            break
        if gpus < shape.num_gpus and cpus >= shape.num_cpus and not worker.shape.num_gpus:
            continue  # only a GPU is missing
        ended.append(worker.worker_id)
        cpus += worker.shape.num_cpus
        gpus += worker.shape.num_gpus
    return ended


def most_waiting(nodes: Collection[Node], shape: WorkerShape, *, per_node: int) -> int:
    """How many may wait on the cluster: so many on each machine, and no more than it holds."""
    return sum(min(per_node, node.workers(shape.num_gpus)) for node in nodes)


def surplus(waiting: Collection[Waiting], most: int) -> list[str]:
    """Waiting workers to end because there are more than may be, those without a base first."""
    too_many = len(waiting) - most
    return [w.worker_id for w in sorted(waiting, key=lambda w: (w.base is not None, w.ready, w.worker_id))][
        : max(0, too_many)
    ]
