"""Which worker gets the next trial, and how many each may have."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from types import SimpleNamespace
from typing import Any, cast

import pytest
from hypothesis import given
from hypothesis import strategies as st

from search_spaces.definition import ModelSpec
from service.coordinator.cluster import worker_group
from service.coordinator.cluster.deliveries import Ready
from service.coordinator.cluster.worker_group import WorkerGroup
from service.coordinator.policy.placement import WorkerShape
from service.devices.cluster import Node
from service.states import LossCause
from tests.support.fakes.cluster import FakeCluster
from workers.contract import TrialOrder

SHAPE = WorkerShape(num_cpus=1.0, num_gpus=0.0)


@dataclass
class Order:
    """All that a group looks at in an order."""

    attempt_id: int
    model: ModelSpec = field(default_factory=lambda: ModelSpec(id="m"))


NF4, INT8 = "m nf4", "m int8"


class Workshop(FakeCluster):
    """Workers that start, and do nothing of what they are told."""

    def submit(self, worker_id: str, order: TrialOrder) -> None:
        pass


class Bench:
    """A group and its workers; what they say is the test's."""

    def __init__(
        self,
        workers: int,
        *,
        at_once: int,
        patience: float = 1000.0,
        shape: WorkerShape = SHAPE,
        **options: Any,
    ) -> None:
        self.cluster = Workshop(workers, **options)
        self.group = WorkerGroup(self.cluster, "s", shape, base=NF4, at_once=at_once, patience=patience)
        self.group.resize(workers)
        self.sent: dict[str, list[int]] = {worker_id: [] for worker_id in self.cluster.alive}
        self._at_once = at_once
        self._attempts = 0
        self.meet()

    def meet(self) -> None:
        """Workers that have started by now say so."""
        for delivery in self.cluster.poll(0.0):
            if isinstance(delivery, Ready):
                self.group.on_ready(delivery.info)

    @property
    def free_slots(self) -> int:
        return self.group.placement.free

    def send(self, base: str = NF4) -> str | None:
        """Sends one order to whoever takes it."""
        worker_id = self.group.pick(base)
        if worker_id is not None:
            self._attempts += 1
            model = ModelSpec(id="m", quantization=base.removeprefix("m "))  # type: ignore[arg-type]
            self.group.submit(worker_id, cast(TrialOrder, Order(self._attempts, model)))
            self.sent[worker_id].append(self._attempts)
        return worker_id

    def fill(self, base: str = NF4) -> list[int]:
        """Sends orders as long as there is a free slot; the numbers of each worker's trials."""
        while self.group.live < self._at_once and self.send(base) is not None:
            pass
        return [len(attempts) for attempts in self.sent.values()]

    def end_one(self, worker_id: str) -> None:
        self.group.on_ended(worker_id, self.sent[worker_id].pop())


def test_a_worker_has_the_slots_it_said_last() -> None:
    bench = Bench(1, at_once=9)
    free = [bench.free_slots]
    for slots in (4, 2, 6):
        bench.group.on_capacity("w1", slots)
        free.append(bench.free_slots)
    assert free == [1, 4, 2, 6]


def test_a_pack_that_has_shrunk_below_its_trials_takes_nothing_from_the_others() -> None:
    bench = Bench(2, at_once=12)
    for worker_id in ("w1", "w2"):
        bench.group.on_capacity(worker_id, 6)
    assert bench.fill() == [6, 6]
    bench.end_one("w2")
    bench.group.on_capacity("w1", 1)
    assert (bench.free_slots, bench.group.pick(NF4)) == (1, "w2")
    assert bench.fill() == [6, 6]


def test_the_first_worker_to_be_ready_leaves_the_others_their_share() -> None:
    bench = Bench(4, at_once=8, start_polls={"w2": 1, "w3": 1, "w4": 2})
    bench.group.on_capacity("w1", 8)
    assert bench.fill() == [2, 0, 0, 0]
    bench.meet()
    assert bench.fill() == [2, 1, 1, 0]  # the second and the third have not said yet what they take
    bench.meet()
    for worker_id in ("w2", "w3", "w4"):
        bench.group.on_capacity(worker_id, 8)
    assert bench.fill() == [2, 2, 2, 2]


def test_a_worker_that_does_not_come_is_not_waited_for_without_end() -> None:
    bench = Bench(2, at_once=4, patience=0.0, start_polls={"w2": 1000})
    bench.group.on_capacity("w1", 8)
    assert bench.fill() == [4, 0]


def test_a_worker_that_ended_a_trial_without_asking_for_more_is_taken_at_its_word() -> None:
    bench = Bench(2, at_once=4)
    bench.group.on_capacity("w1", 8)
    assert bench.fill() == [2, 1]
    bench.end_one("w2")
    assert bench.fill() == [3, 1]


def test_a_worker_that_an_earlier_coordinator_measured_needs_no_second_measurement() -> None:
    bench = Bench(1, at_once=4, slots=3)
    worker = bench.cluster._workers["w1"]
    worker.base = NF4
    worker.known.add(1)
    worker.announce(3, "as measured")
    later = WorkerGroup(bench.cluster, "s", SHAPE, base=NF4, at_once=4, patience=0.0)
    bench.cluster.lose_connection()
    later.attach(["w1"])
    [ready] = [d for d in bench.cluster.poll(0.0) if isinstance(d, Ready)]
    later.on_ready(ready.info)
    assert later.unknown_orders("w1", dict) == []
    assert (later.placement.free, later._members["w1"].measured) == (3, True)


def test_the_least_busy_worker_is_picked() -> None:
    bench = Bench(3, at_once=12)
    for worker_id in ("w1", "w2", "w3"):
        bench.group.on_capacity(worker_id, 4)
    assert bench.fill() == [4, 4, 4]
    for worker_id in ("w1", "w3", "w3"):
        bench.end_one(worker_id)
    assert bench.group.pick(NF4) == "w3"


def test_idle_workers_beyond_the_need_are_ended_and_busy_ones_are_not() -> None:
    bench = Bench(3, at_once=3)
    assert bench.fill() == [1, 1, 1]
    bench.end_one("w1")
    bench.group.resize(3)
    assert bench.cluster.alive == ["w1", "w2", "w3"]
    bench.group.resize(1)
    assert bench.cluster.alive == ["w2", "w3"]
    assert (bench.group.busy, bench.group.live) == (2, 2)


@given(st.lists(st.integers(0, 9), min_size=1, max_size=6), st.integers(1, 20))
def test_measured_workers_are_filled_evenly_and_as_far_as_they_go(slots: list[int], at_once: int) -> None:
    """Nothing that may run is left out, no worker has too many, and only full ones have fewer than others."""
    bench = Bench(len(slots), at_once=at_once)
    for worker_id, wanted in zip(bench.sent, slots, strict=True):
        bench.group.on_capacity(worker_id, wanted)
    filled = bench.fill()
    assert sum(filled) == min(at_once, sum(slots))
    assert all(has <= wanted for has, wanted in zip(filled, slots, strict=True))
    assert all(has == wanted for has, wanted in zip(filled, slots, strict=True) if has < max(filled) - 1)


def measured(workers: int, slots: int, *, at_once: int) -> Bench:
    bench = Bench(workers, at_once=at_once)
    for worker_id in bench.sent:
        bench.group.on_capacity(worker_id, slots)
    return bench


def test_trials_of_two_bases_never_share_a_worker() -> None:
    bench = measured(2, 4, at_once=8)
    assert [bench.send(base) for base in (NF4, INT8, NF4, INT8, INT8)] == ["w1", "w2", "w1", "w2", "w2"]


def test_a_trial_of_a_base_that_nobody_has_waits_until_a_worker_is_idle() -> None:
    bench = measured(1, 4, at_once=8)
    assert bench.send(NF4) == "w1"
    assert bench.send(INT8) is None
    bench.end_one("w1")
    assert bench.send(INT8) == "w1"
    assert bench.send(NF4) is None


def test_a_worker_that_has_the_base_is_taken_before_one_that_would_load_it() -> None:
    bench = measured(2, 4, at_once=8)
    assert [bench.send(NF4), bench.send(INT8)] == ["w1", "w2"]
    bench.end_one("w2")
    assert [bench.send(NF4) for _ in range(3)] == ["w1", "w1", "w1"]
    assert bench.send(NF4) == "w2"  # no worker that has it has a slot left


def test_slots_of_another_base_are_free_for_none_of_its_own() -> None:
    bench = measured(2, 4, at_once=8)
    bench.send(NF4)
    assert bench.send(INT8) == "w2"
    assert bench.free_slots == 6
    assert [bench.send(INT8) for _ in range(4)] == ["w2", "w2", "w2", None]


def test_a_share_is_no_limit_where_the_others_have_another_base() -> None:
    """A share of two each leaves two slots of the one worker with this base: nobody else can help."""
    bench = measured(2, 4, at_once=4)
    assert [bench.send(INT8), bench.send(NF4)] == ["w1", "w2"]
    assert [bench.send(NF4) for _ in range(4)] == ["w2", "w2", "w2", None]


def test_a_worker_is_emptied_for_a_base_that_nobody_has() -> None:
    bench = measured(2, 4, at_once=8)
    for _ in range(3):
        bench.send(NF4)  # w1 two, w2 one
    bench.group.reserve_for([INT8])
    assert [bench.send(NF4) for _ in range(3)] == ["w1", "w1", None]
    bench.end_one("w2")
    assert bench.send(NF4) is None  # idle, and kept
    assert bench.send(INT8) == "w2"


def test_no_worker_is_kept_for_a_base_that_nothing_waits_for() -> None:
    bench = measured(1, 4, at_once=8)
    bench.send(NF4)
    bench.group.reserve_for([INT8])
    assert bench.send(NF4) is None
    bench.group.reserve_for([])
    assert bench.send(NF4) == "w1"


def test_a_trial_that_trains_by_itself_has_its_worker_for_itself() -> None:
    bench = measured(2, 4, at_once=8)
    bench.send(NF4)
    bench.group.isolate({1}, waiting=[])
    assert [bench.send(NF4) for _ in range(5)] == ["w2", "w2", "w2", "w2", None]
    assert bench.group.pick(NF4, isolated=True) is None
    bench.group.isolate(set(), waiting=[])
    assert bench.send(NF4) == "w1"


def test_the_least_busy_worker_is_emptied_for_a_trial_that_trains_by_itself() -> None:
    bench = measured(2, 4, at_once=8)
    for _ in range(3):
        bench.send(NF4)  # w1 two, w2 one
    bench.group.isolate(set(), waiting=[None])
    assert bench.group.pick(NF4, isolated=True) is None
    assert [bench.send(NF4) for _ in range(3)] == ["w1", "w1", None]
    bench.end_one("w2")
    bench.group.isolate(set(), waiting=[None])
    assert (bench.free_slots, bench.group.pick(NF4)) == (0, None)  # idle, and kept
    assert bench.group.pick(NF4, isolated=True) == "w2"
    bench.group.isolate(set(), waiting=[])
    assert bench.group.pick(NF4) == "w2"


def test_no_worker_is_emptied_while_another_is_starting() -> None:
    bench = Bench(2, at_once=4, start_polls={"w2": 1})
    bench.group.on_capacity("w1", 4)
    bench.send(NF4)
    bench.group.isolate(set(), waiting=[None])
    assert bench.group.pick(NF4) == "w1"
    bench.meet()
    bench.group.isolate(set(), waiting=[None])
    assert (bench.group.pick(NF4), bench.group.pick(NF4, isolated=True)) == ("w1", "w2")


def gpu_bench(workers: int) -> Bench:
    """Workers of four slots each: w1 has n1/GPU-0, w2 n1/GPU-1 and so on."""
    bench = Bench(workers, at_once=8, gpus=workers, shape=WorkerShape(num_cpus=1.0, num_gpus=1.0))
    for worker_id in bench.sent:
        bench.group.on_capacity(worker_id, 4)
    return bench


def test_a_suspect_does_not_go_back_to_its_gpu_while_there_is_another() -> None:
    bench = gpu_bench(2)
    assert bench.group.pick(NF4, isolated=True, avoid="n1/GPU-0") == "w2"
    bench.send(NF4)
    assert bench.send(NF4) == "w2"
    bench.end_one("w1")
    assert bench.group.pick(NF4, isolated=True, avoid="n1/GPU-0") is None
    assert bench.group.pick(NF4, isolated=True, avoid="n1/GPU-1") == "w1"
    bench.group.isolate(set(), waiting=["n1/GPU-0"])
    assert bench.send(NF4) == "w1"  # of no use to it, so others may have it
    bench.end_one("w2")
    bench.group.isolate(set(), waiting=["n1/GPU-0"])
    assert (bench.group.pick(NF4), bench.group.pick(NF4, isolated=True, avoid="n1/GPU-0")) == ("w1", "w2")


def test_a_suspect_goes_back_to_the_only_gpu_there_is() -> None:
    assert gpu_bench(1).group.pick(NF4, isolated=True, avoid="n1/GPU-0") == "w1"


def test_a_worker_whose_gpu_was_put_aside_gets_nothing_and_another_is_started() -> None:
    bench = gpu_bench(2)
    bench.group.put_aside({"n1/GPU-0"})
    assert [bench.send(NF4) for _ in range(5)] == ["w2", "w2", "w2", "w2", None]
    bench.cluster.gpus = 3
    bench.group.resize(2)
    assert bench.cluster.alive == ["w1", "w2", "w3"]
    bench.meet()
    assert bench.group.pick(NF4) == "w3"
    bench.group.resize(0)
    assert "w1" in bench.cluster.alive
    bench.group.put_aside(set())
    assert bench.group.pick(NF4) == "w1"


def test_a_study_is_stranded_only_when_all_gpus_of_the_cluster_are_put_aside() -> None:
    bench = gpu_bench(2)
    bench.group._patience = 0.0
    bench.group.put_aside({"n1/GPU-0"})
    assert bench.group.stranded_reason() is None
    bench.group.put_aside({"n1/GPU-0", "n1/GPU-1"})
    assert str(bench.group.stranded_reason()).startswith(
        "every GPU that this study could use was put aside (n1/GPU-0, n1/GPU-1)"
    )
    bench.cluster.gpus = 3  # another machine has joined, where another study trains for the time being
    bench.group.put_aside({"n1/GPU-0", "n1/GPU-1"})
    assert bench.group.stranded_reason() is None


def test_a_worker_that_went_down_with_its_machine_is_no_failed_start() -> None:
    bench = Bench(1, at_once=1, start_polls={"w1": 99})
    for number in range(1, 4):
        _lose_a_start(bench, number, LossCause.NODE_DIED)
        bench.group.resize(1)
        assert bench.cluster.started[-1] == f"w{number + 1}"


def _lose_a_start(bench: Bench, number: int, cause: LossCause) -> None:
    bench.group.on_gone(f"w{number}", "no space left on device", cause)
    bench.cluster.stop(f"w{number}")
    bench.cluster._start_polls[f"w{number + 1}"] = 99


def test_workers_that_die_while_starting_are_tried_again_after_growing_pauses(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    now = [1000.0]
    monkeypatch.setattr(worker_group, "time", SimpleNamespace(monotonic=lambda: now[0]))
    bench = Bench(1, at_once=1, start_polls={"w1": 99})
    for number, pause in enumerate([1.0, 2.0, 4.0, 8.0, 16.0, 32.0, 60.0, 60.0], 1):
        _lose_a_start(bench, number, LossCause.WORKER_DIED)
        bench.group.resize(1)
        assert len(bench.cluster.started) == number
        assert bench.group.unplaceable_reason() is None
        assert str(bench.group.no_worker_reason(1)).endswith("died while starting: no space left on device")
        now[0] += pause
        bench.group.resize(1)
        assert len(bench.cluster.started) == number + 1


def test_after_a_death_while_starting_one_worker_shows_whether_the_others_would_die(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    now = [1000.0]
    monkeypatch.setattr(worker_group, "time", SimpleNamespace(monotonic=lambda: now[0]))
    bench = Bench(1, at_once=3, start_polls={"w1": 99})
    _lose_a_start(bench, 1, LossCause.WORKER_DIED)
    bench.cluster._start_polls["w2"] = 0
    bench.cluster.cpus = 3
    now[0] += 1.0
    bench.group.resize(3)
    bench.group.resize(3)
    assert bench.cluster.started == ["w1", "w2"]
    bench.meet()
    bench.group.resize(3)
    assert bench.cluster.started == ["w1", "w2", "w3", "w4"]


@pytest.mark.parametrize(
    ("there", "lately", "fails"),
    [
        ([Node(cpus=4, gpus=0)], set(), True),
        ([Node(cpus=4, gpus=0)], {Node(cpus=8, gpus=1)}, True),
        ([Node(cpus=4, gpus=0)], {Node(cpus=8, gpus=2)}, False),
        ([Node(cpus=0, gpus=0)], set(), False),
        ([], set(), False),
    ],
    ids=["never there", "never large enough", "away for the moment", "only the head", "no node at all"],
)
def test_a_machine_that_is_away_is_waited_for(there: list[Node], lately: set[Node], fails: bool) -> None:
    cluster = FakeCluster(0, gpus=0)
    cluster.nodes = lambda: tuple(there)  # type: ignore[method-assign]
    shape = WorkerShape(num_cpus=1.0, num_gpus=2.0)
    one = worker_group.WorkerGroup(
        cluster, "s", shape, base=NF4, at_once=1, patience=0.0, seen=lambda: lately
    )
    one.resize(1)
    assert (one.unplaceable_reason() is not None) is fails


def test_a_worker_found_again_has_the_base_of_its_orders_and_not_the_one_it_still_holds() -> None:
    bench = Bench(1, at_once=4, slots=3)
    worker = bench.cluster._workers["w1"]
    worker.base = NF4
    worker.known.add(1)
    worker.announce(3, "as measured")
    later = WorkerGroup(bench.cluster, "s", SHAPE, base=NF4, at_once=4, patience=0.0)
    bench.cluster.lose_connection()
    later.attach(["w1"])
    [ready] = [d for d in bench.cluster.poll(0.0) if isinstance(d, Ready)]
    later.on_ready(replace(ready.info, running_attempts=(7,)), base=INT8)
    later.unknown_orders("w1", dict)
    assert (later.pick(NF4), later.pick(INT8)) == (None, "w1")
