"""Studies whose trials train on bases of two quantizations, which never share a worker."""

from __future__ import annotations

import random
from collections.abc import Callable
from typing import Any

import pytest

from service.states import AttemptState, StudyState
from tests.support.fakes.training import base_of
from tests.support.service.coordinator import CoordinatorLab

NF4, INT8 = "org/model nf4", "org/model int8"


def search(trials: int = 24, quantizations: tuple[str, ...] = ("nf4", "int8")) -> dict[str, Any]:
    return {
        "algorithm": "random",
        "trials": trials,
        "space": {
            "learning_rate": {"min": 1e-5, "max": 1e-1, "scale": "log"},
            "quantization": {"choices": list(quantizations)},
            "epochs": {"choices": [1, 2, 3]},
        },
    }


def check(lab: CoordinatorLab, study_id: str, trials: int) -> None:
    assert lab.study(study_id).state == StudyState.COMPLETED
    ends = [a for a in lab.attempts() if a.state != AttemptState.LOST]
    assert sorted(a.trial_number for a in ends) == list(range(trials))
    assert lab.cluster.refused == []
    values = lab.values()
    assert all(o.model.quantization == values[o.trial_number][2]["quantization"] for o in lab.cluster.orders)
    assert {o.model.quantization for o in lab.cluster.orders} == {"nf4", "int8"}


def test_on_one_worker_the_bases_take_turns_with_full_packs(make_lab: Callable[..., CoordinatorLab]) -> None:
    """The worker goes to a base for as many trials as may overtake one that waits, not for one."""
    lab = make_lab(cpus=1, slots=4)
    study_id = lab.submit(search=search(), budget={"max_parallel_trials": 8})
    most = 0

    def look() -> None:
        nonlocal most
        most = max([most, *lab.cluster.packs.values()])
        assert all(len(worker.bases) <= 1 for worker in lab.cluster._workers.values())

    lab.run(study_id, each=look)
    check(lab, study_id, 24)
    assert most == 4
    turns = [base for _, base in lab.cluster.loads]
    switches = sum(
        base_of(one) != base_of(other)
        for one, other in zip(lab.cluster.orders, lab.cluster.orders[1:], strict=False)
    )
    assert len(turns) == switches + 1
    assert 2 <= len(turns) <= 8  # 24 trials at random, one after another, would load it about 12 times


def test_on_two_workers_each_base_gets_one(make_lab: Callable[..., CoordinatorLab]) -> None:
    lab = make_lab(cpus=2, slots=4)
    study_id = lab.submit(search=search(), budget={"max_parallel_trials": 8})
    together = 0

    def look() -> None:
        nonlocal together
        bases = [worker.bases for worker in lab.cluster._workers.values()]
        together += {NF4} in bases and {INT8} in bases

    lab.run(study_id, each=look)
    check(lab, study_id, 24)
    assert together > 10
    assert {base for _, base in lab.cluster.loads[:2]} == {NF4, INT8}


@pytest.mark.parametrize("cpus", [1, 2])
def test_a_single_trial_of_another_base_is_overtaken_by_so_many_and_no_more(
    make_lab: Callable[..., CoordinatorLab], cpus: int
) -> None:
    """One int8 trial among twenty: it does not wait for the end of the study."""
    quantizations = ("nf4",) * 3 + ("int8",) + ("nf4",) * 20
    lab = make_lab(cpus=cpus, slots=4)
    points = [
        {"quantization": q, "learning_rate": 10.0 ** -(1 + n / 10)} for n, q in enumerate(quantizations)
    ]
    preparation = {"enqueued": [{**point, "epochs": 1} for point in points]}
    study_id = lab.submit(
        search=search(), budget={"max_parallel_trials": 4}, columns={"preparation": preparation}
    )
    lab.run(study_id)
    check(lab, study_id, 24)
    place = [o.trial_number for o in lab.cluster.orders].index(3)
    assert place <= 3 + 4 + 4  # as many as may overtake it, and those that fill the packs meanwhile


def test_bases_are_never_mixed_through_deaths_of_coordinators_and_workers(
    make_lab: Callable[..., CoordinatorLab], monkeypatch: pytest.MonkeyPatch
) -> None:
    lab = make_lab(cpus=2, slots=3)
    study_id = lab.submit(search=search(16), budget={"max_parallel_trials": 6, "max_retries": 1000})
    dice = random.Random(0)
    tick = lab.cluster.poll

    def poll(timeout_s: float) -> Any:
        if lab.cluster.alive and dice.random() < 0.05:
            lab.cluster.kill(dice.choice(lab.cluster.alive))
        assert all(len(worker.bases) <= 1 for worker in lab.cluster._workers.values())
        return tick(timeout_s)

    monkeypatch.setattr(lab.cluster, "poll", poll)
    assert lab.run_through_deaths(study_id, dice, monkeypatch, chance=0.01) > 1
    check(lab, study_id, 16)


def test_a_recipe_s_length_travels_in_the_order_and_divides_no_workers(
    make_lab: Callable[..., CoordinatorLab],
) -> None:
    lab = make_lab(cpus=1, slots=4)
    space = {"max_length": {"choices": [64, 128]}, "lora_r": {"choices": [2, 4, 8]}}
    study_id = lab.submit(search={"algorithm": "grid", "space": space}, budget={"max_parallel_trials": 4})
    lab.run(study_id)
    assert lab.study(study_id).state == StudyState.COMPLETED
    assert {o.recipe.max_length for o in lab.cluster.orders} == {64, 128}
    assert {o.data.max_length for o in lab.cluster.orders} == {512}
    assert lab.cluster.loads == [("w1", NF4)]
