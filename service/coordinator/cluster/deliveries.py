"""What the coordinator asks of a cluster, and what it is told of its workers."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass
from typing import Protocol

from search_spaces.definition import ResourcesSpec
from service.coordinator.policy.placement import WorkerShape
from service.devices.cluster import Node
from service.states import LossCause
from workers.contract import NumberedEvent, TrialOrder, Verdict, WorkerInfo


@dataclass(frozen=True, kw_only=True)
class Ready:
    """A worker has started and can take orders; `info.running_attempts` survived a restart of ours."""

    worker_id: str
    info: WorkerInfo


@dataclass(frozen=True, kw_only=True)
class Delivered:
    """Events of one worker. They stay in its log until `acknowledge`."""

    worker_id: str
    events: tuple[NumberedEvent, ...]


@dataclass(frozen=True, kw_only=True)
class Refused:
    """A worker did not take an order."""

    worker_id: str
    attempt_id: int
    reason: str


@dataclass(frozen=True, kw_only=True)
class Gone:
    """A worker died, was pre-empted, or cannot be found."""

    worker_id: str
    reason: str
    cause: LossCause
    """What it was, as far as Ray tells: `service.coordinator.cluster.ray_deaths`."""


@dataclass(frozen=True, kw_only=True)
class Found:
    """A worker says that it is a study's, and nobody here knows it: its coordinator may have died."""

    worker_id: str
    study_id: str


Delivery = Ready | Delivered | Refused | Gone | Found


class Workers(Protocol):
    """What the coordinator asks of a cluster; `RayWorkers` is the real one."""

    def shape(self, resources: ResourcesSpec) -> WorkerShape: ...
    def nodes(self) -> tuple[Node, ...]: ...
    def capacity(self, shape: WorkerShape) -> int: ...
    def capacity_left(self, shape: WorkerShape) -> int: ...
    def gpus_in_all(self) -> float: ...
    def start(self, study_id: str, shape: WorkerShape, base: str) -> str: ...
    def attach(self, study_id: str, shape: WorkerShape, sent_to: Collection[str]) -> tuple[str, ...]: ...
    def release(self, worker_id: str) -> None: ...
    def keep_warm(self) -> None: ...
    def poll(self, timeout_s: float) -> list[Delivery]: ...
    def acknowledge(self, worker_id: str, seq: int) -> None: ...
    def submit(self, worker_id: str, order: TrialOrder) -> None: ...
    def send(self, worker_id: str, verdict: Verdict) -> None: ...
    def stop(self, worker_id: str) -> None: ...
    def forget(self, worker_id: str) -> None: ...
