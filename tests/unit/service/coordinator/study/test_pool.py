"""Studies one after another on workers that are given back and taken again."""

from __future__ import annotations

import random
from collections.abc import Callable

import pytest

from service.coordinator.loop import Coordinator
from service.states import StudyState
from tests.support.fakes.cluster import FakeCluster
from tests.support.service.coordinator import DEFINITION, CoordinatorLab

MakeLab = Callable[..., CoordinatorLab]
RANDOM = {**DEFINITION["search"], "algorithm": "random", "trials": 8}


def test_the_next_study_gets_the_workers_of_the_last(make_lab: MakeLab) -> None:
    lab = make_lab(cpus=2, pools=True)
    first = lab.submit(name="first", search=RANDOM)
    lab.run(first)
    assert lab.cluster.started == ["w1", "w2"] == lab.cluster.alive
    loads = list(lab.cluster.loads)
    second = lab.submit(search=RANDOM)
    lab.run(second)
    assert lab.cluster.started == ["w1", "w2"]
    assert lab.cluster.loads == loads  # the base was there
    assert {a.worker_id for a in lab.attempts() if a.study_id == second} == {"w1", "w2"}


def test_two_studies_side_by_side_never_share_a_worker(make_lab: MakeLab) -> None:
    lab = make_lab(cpus=2, pools=True)
    studies = [lab.submit(name=name, search=RANDOM, resources={"workers": 1}) for name in ("a", "b")]
    last: dict[str, str] = {}

    def look() -> None:
        for worker in lab.cluster._workers.values():
            of = {order.study_id for order in worker.waiting}
            of |= {training.order.study_id for training in worker.pack.values()}
            assert len(of) <= 1
            last.update(dict.fromkeys(of, worker.worker_id))

    lab.run(*studies, each=look)
    assert set(last) == set(studies)


@pytest.mark.parametrize("seed", range(3))
def test_deaths_around_assignment_and_return_change_no_value(
    make_lab: MakeLab, monkeypatch: pytest.MonkeyPatch, seed: int
) -> None:
    """Coordinators die before or after they take a worker, send an order, or give a worker back."""
    calm = make_lab(cpus=2)
    calm.run(calm.submit(search=RANDOM))
    stormy = make_lab(cpus=2, pools=True)
    stormy.run(stormy.submit(name="first", search=RANDOM))
    assert stormy.run_through_deaths(stormy.submit(search=RANDOM), random.Random(seed), monkeypatch) > 2
    assert stormy.values() == calm.values()


def dying_after(name: str, lab: CoordinatorLab, monkeypatch: pytest.MonkeyPatch) -> None:
    """The coordinator dies once, right after a call to the cluster."""
    call = getattr(lab.cluster, name)

    class Dead(BaseException):
        pass

    def once(*arguments: object) -> object:
        call(*arguments)
        monkeypatch.setattr(lab.cluster, name, call)
        raise Dead

    monkeypatch.setattr(lab.cluster, name, once)
    with pytest.raises(Dead):
        lab.rounds(lambda: False)
    lab.crash()


@pytest.mark.parametrize("moment", ["start", "submit", "release"])
def test_a_successor_goes_on_with_the_same_workers(
    make_lab: MakeLab, monkeypatch: pytest.MonkeyPatch, moment: str
) -> None:
    lab = make_lab(cpus=2, pools=True)
    lab.run(lab.submit(name="first", search=RANDOM))
    study_id = lab.submit(search=RANDOM)
    dying_after(moment, lab, monkeypatch)
    lab.run(study_id)
    assert lab.study(study_id).state == StudyState.COMPLETED
    assert lab.cluster.started == ["w1", "w2"]


def test_a_worker_of_a_suspect_trial_goes_to_no_other_study(make_lab: MakeLab) -> None:
    """Trial 0 kills its first worker, and trains by itself on the next."""
    died: list[str] = []

    def lethal(order: object, seen: int) -> bool:
        if not died and seen > 0:
            died.append("w1")
            return True
        return False

    lab = make_lab(cpus=1, pools=True, lethal=lethal)
    lab.run(lab.submit(search={**RANDOM, "trials": 2}, budget={"max_parallel_trials": 1}))
    assert died == ["w1"]
    assert lab.cluster.alive == []


def test_a_worker_that_another_coordinator_took_is_no_failed_start(make_lab: MakeLab) -> None:
    lab = make_lab(cpus=1, pools=True)
    lab.run(lab.submit(name="first", search=RANDOM))
    study_id = lab.submit(search=RANDOM)
    lab.rounds(lambda: bool(lab.runners) and bool(lab.runners[0].workers.members))
    assert isinstance(lab.coordinator, Coordinator)
    assert isinstance(lab.cluster, FakeCluster)
    group = lab.runners[0].workers
    from service.states import LossCause

    [worker_id] = group.members
    group.on_gone(worker_id, "the worker was given to another study", LossCause.NEVER_ARRIVED)
    assert group._failed_starts == 0
    lab.cluster.stop(worker_id)
    lab.run(study_id)
