"""What the machines of the Ray cluster have, and how many workers fit on them."""

from __future__ import annotations

import math
import socket
import time
from contextlib import suppress
from typing import Any

import ray

from search_spaces.definition import ResourcesSpec
from service.coordinator.policy.placement import WorkerShape
from service.devices.cluster import Node

RESOURCES_SECONDS = 2.0
"""How long an answer about the cluster's resources is good for: it costs Ray's control process work."""


class RayMachines:
    """Asks Ray's control process what there is, not more often than is useful."""

    _resources: tuple[float, dict[str, float]] = (-math.inf, {})

    def shape(self, resources: ResourcesSpec) -> WorkerShape:
        """What a worker of a study reserves: a GPU where there are any, one core otherwise.

        One single-threaded worker per core beats one many-threaded worker on small batches.
        """
        gpus = resources.gpus_per_worker
        if gpus == "auto":
            gpus = 1.0 if self.gpus_in_all() >= 1 else 0.0
        return WorkerShape(num_cpus=1.0, num_gpus=float(gpus))

    def nodes(self) -> tuple[Node, ...]:
        """What the machines of the cluster have."""
        resources = [node["Resources"] for node in _live_nodes()]
        return tuple(sorted(Node(cpus=has.get("CPU", 0.0), gpus=has.get("GPU", 0.0)) for has in resources))

    def capacity(self, shape: WorkerShape) -> int:
        """How many such workers fit on the cluster if nothing else ran there."""
        return sum(node.workers(shape.num_gpus) for node in self.nodes())

    def gpus_in_all(self) -> float:
        """How many GPUs the cluster has, whoever uses them."""
        return self._in_all().get("GPU", 0.0)

    def _in_all(self) -> dict[str, float]:
        at, resources = self._resources
        if time.monotonic() - at > RESOURCES_SECONDS:
            resources = ray.cluster_resources()
            self._resources = (time.monotonic(), resources)
        return resources


def until_it_listens(address: str, seconds: float) -> None:
    """Wait for a Ray that is still starting, but not longer than so many seconds.

    Args:
        address: `host:port` of its head.
        seconds: after which connecting to it says what is wrong.
    """
    host, _, port = address.rpartition(":")
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        with suppress(OSError):
            socket.create_connection((host, int(port)), timeout=1).close()
            return
        time.sleep(0.05)


def addresses() -> set[str]:
    """Of the machines that live."""
    return {str(node["NodeManagerAddress"]) for node in _live_nodes()}


def free() -> dict[str, float]:
    """What nobody has reserved, as Ray knew it a moment ago."""
    found: dict[str, float] = ray.available_resources()
    return found


def fits(resources: dict[str, float], shape: WorkerShape) -> int:
    """How many workers fit."""
    by_cpu = resources.get("CPU", 0.0) / shape.num_cpus
    if shape.num_gpus <= 0:
        return max(0, int(by_cpu))
    return max(0, int(min(by_cpu, resources.get("GPU", 0.0) / shape.num_gpus)))


def _live_nodes() -> list[dict[str, Any]]:
    return [node for node in ray.nodes() if node.get("Alive", node.get("alive"))]
