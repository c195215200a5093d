"""Which waiting worker a study gets, which give way, and how many there may be."""

from __future__ import annotations

import pytest

from service.coordinator.policy.placement import WorkerShape
from service.coordinator.policy.warm_pool import Waiting, in_the_way, most_waiting, pick, surplus
from service.devices.cluster import Node

CORE = WorkerShape(num_cpus=1.0, num_gpus=0.0)
GPU = WorkerShape(num_cpus=1.0, num_gpus=1.0)
HALF = WorkerShape(num_cpus=1.0, num_gpus=0.5)


def one(worker_id: str, *, shape: WorkerShape = CORE, ready: bool = True, base: str | None = None) -> Waiting:
    return Waiting(worker_id=worker_id, shape=shape, ready=ready, base=base)


@pytest.mark.parametrize(
    ("waiting", "chosen"),
    [
        ([], None),
        ([one("a"), one("b", base="mine")], "b"),
        ([one("a", base="other"), one("b")], "b"),
        ([one("a", ready=False), one("b", base="other")], "b"),
        ([one("a", ready=False)], "a"),
        ([one("a", shape=GPU, base="mine"), one("b")], "b"),
        ([one("a", shape=HALF), one("b", shape=GPU)], None),
    ],
    ids=["none", "its base", "no base to unload", "ready", "starting", "shape before base", "no shape"],
)
def test_a_study_gets_the_worker_that_begins_soonest(waiting: list[Waiting], chosen: str | None) -> None:
    found = pick(waiting, CORE, "mine")
    assert (None if found is None else found.worker_id) == chosen


@pytest.mark.parametrize(
    ("shape", "cpus", "gpus", "ended"),
    [
        (CORE, 1, 0, []),
        (CORE, 0, 0, ["core"]),
        (GPU, 4, 0, ["gpu"]),
        (GPU, 0, 0, ["core", "gpu"]),
        (WorkerShape(num_cpus=1.0, num_gpus=2.0), 4, 0, ["gpu", "keeps"]),
    ],
)
def test_as_few_give_way_as_must_and_those_with_a_base_last(
    shape: WorkerShape, cpus: float, gpus: float, ended: list[str]
) -> None:
    waiting = [one("keeps", shape=GPU, base="b"), one("gpu", shape=GPU), one("core")]
    assert in_the_way(waiting, shape, cpus=cpus, gpus=gpus) == ended


@pytest.mark.parametrize(
    ("nodes", "shape", "per_node", "most"),
    [
        ([Node(8, 0), Node(2, 0)], CORE, 4, 6),
        ([Node(8, 2), Node(16, 0)], GPU, 4, 2),
        ([Node(8, 8)], GPU, 0, 0),
        ([], CORE, 4, 0),
    ],
)
def test_no_more_wait_than_each_machine_holds(
    nodes: list[Node], shape: WorkerShape, per_node: int, most: int
) -> None:
    assert most_waiting(nodes, shape, per_node=per_node) == most


def test_those_without_a_base_are_the_first_that_are_too_many() -> None:
    waiting = [one("keeps", base="b"), one("starting", ready=False), one("ready")]
    assert [surplus(waiting, most) for most in (3, 2, 1, 0)] == [
        [],
        ["starting"],
        ["starting", "ready"],
        ["starting", "ready", "keeps"],
    ]
