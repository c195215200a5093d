"""What a coordinator sees of the cluster, and what is told of it later."""

from __future__ import annotations

from collections.abc import Callable
from types import SimpleNamespace

import pytest
from sqlalchemy import func, select

from service.coordinator import loop
from service.coordinator.cluster import ray_resources
from service.coordinator.cluster.ray_resources import RayMachines
from service.db.models import EventRow
from service.devices.cluster import CLUSTER_SEEN, Node, latest, record
from tests.support.service.coordinator import CoordinatorLab


def seen(lab: CoordinatorLab) -> tuple[tuple[Node, ...] | None, int]:
    """The last thing that was seen, and how often something was."""
    with lab.database.read() as session:
        found = latest(session)
        times = select(func.count()).where(EventRow.kind == CLUSTER_SEEN)
        return (None if found is None else found.nodes), session.scalars(times).one()


def test_nothing_is_known_before_a_coordinator_has_looked(make_lab: Callable[..., CoordinatorLab]) -> None:
    assert seen(make_lab()) == (None, 0)


def test_a_coordinator_keeps_what_the_cluster_has_when_it_changes(
    make_lab: Callable[..., CoordinatorLab], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(loop, "NODES_SECONDS", 0.0)
    lab = make_lab(cpus=2)
    looks = iter(range(3))
    lab.rounds(lambda: next(looks) == 2)
    assert seen(lab) == ((Node(cpus=2, gpus=0),), 1)
    lab.cluster.gpus = 1
    lab.rounds(lambda: seen(lab) == ((Node(cpus=2, gpus=1),), 2))


def test_a_large_cluster_is_kept_whole(make_lab: Callable[..., CoordinatorLab]) -> None:
    lab = make_lab()
    nodes = [Node(8, 1)] * 500 + [Node(2, 0)] * 300
    with lab.database.write() as session:
        record(session, nodes)
    assert seen(lab) == (tuple(sorted(nodes)), 1)


def test_nodes_that_an_older_version_kept_are_read(make_lab: Callable[..., CoordinatorLab]) -> None:
    lab = make_lab()
    with lab.database.write() as session:
        session.add(EventRow(kind=CLUSTER_SEEN, message='[{"cpus": 2, "gpus": 0}, {"cpus": 2, "gpus": 0}]'))
    assert seen(lab) == ((Node(2, 0), Node(2, 0)), 1)


def test_nodes_are_those_that_live(monkeypatch: pytest.MonkeyPatch) -> None:
    nodes = [
        {"Alive": True, "Resources": {"CPU": 8.0, "GPU": 1.0, "memory": 1e9}},
        {"Alive": False, "Resources": {"CPU": 64.0}},
        {"Alive": True, "Resources": {"CPU": 2.0}},
        {"Alive": True, "Resources": {}},
    ]
    monkeypatch.setattr(ray_resources, "ray", SimpleNamespace(nodes=lambda: nodes))
    assert RayMachines().nodes() == (Node(0, 0), Node(2, 0), Node(8, 1))


@pytest.mark.parametrize(
    ("node", "gpus_each", "workers"),
    [
        (Node(8, 2), 1, 2),
        (Node(8, 2), 0.5, 4),
        (Node(1, 2), 0.5, 1),
        (Node(8, 1), 2, 0),
        (Node(8, 0), 0, 8),
        (Node(0, 0), 0, 0),
    ],
)
def test_a_worker_takes_a_core_and_its_gpus(node: Node, gpus_each: float, workers: int) -> None:
    assert node.workers(gpus_each) == workers
