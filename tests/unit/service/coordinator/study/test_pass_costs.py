"""What a worker has learnt of its passes goes along with the orders of studies that come after."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
from sqlalchemy import func, select

from service.db.models import PassCostsRow
from service.states import StudyState
from tests.support.service.coordinator import DEFINITION, CoordinatorLab
from workers.contract import PassCosts

LEARNT: dict[str, Any] = {
    "form": "looped",
    "device": "cpu",
    "threads": 1,
    "fixed_s": 0.5,
    "per_token_s": 0.001,
    "per_trial_s": 0.0,
    "bytes_per_token": None,
    "passes": 4,
}


SEARCH: dict[str, Any] = {**DEFINITION["search"], "algorithm": "random", "trials": 1}


def submit(lab: CoordinatorLab, **changes: Any) -> str:
    """A study of one trial."""
    return lab.submit(name=f"study-{len(lab.cluster.orders)}", search=SEARCH, **changes)


def learn(lab: CoordinatorLab, **changes: Any) -> PassCosts:
    """A study whose worker says what it has learnt, run to its end."""
    study_id = submit(lab)
    lab.rounds(lambda: lab.cluster.running == 1)
    costs = PassCosts(**{"key": lab.cluster.orders[-1].cost_key, **LEARNT, **changes})
    lab.cluster.say(lab.cluster.started[-1], costs)
    lab.run(study_id)
    assert lab.study(study_id).state == StudyState.COMPLETED
    return costs


def test_the_second_study_begins_with_what_the_first_has_learnt(
    make_lab: Callable[..., CoordinatorLab],
) -> None:
    lab = make_lab(cpus=1)
    costs = learn(lab)
    lab.run(submit(lab))
    first, second = lab.cluster.orders
    assert first.known_costs == ()
    assert second.known_costs == (costs,)


def test_what_is_learnt_later_takes_the_place_of_what_was_known(
    make_lab: Callable[..., CoordinatorLab],
) -> None:
    lab = make_lab(cpus=1)
    learn(lab)
    learn(lab, device="a GPU", threads=0)
    newest = learn(lab, fixed_s=0.25, bytes_per_token=2.0**20, passes=64)
    lab.run(submit(lab))
    known = lab.cluster.orders[-1].known_costs
    assert known[0] == newest
    assert [costs.device for costs in known] == ["cpu", "a GPU"]


@pytest.mark.parametrize(
    "other",
    [
        {"model": {**DEFINITION["model"], "quantization": "fp4"}},
        {"data": {**DEFINITION["data"], "max_length": 2_048}},
        {"resources": {"gradient_checkpointing": True}},
        {"resources": {"keep_decoded": "never"}},
    ],
    ids=["base", "length", "checkpoints", "decoded weights"],
)
def test_a_study_whose_passes_cost_something_else_is_told_nothing(
    make_lab: Callable[..., CoordinatorLab], other: dict[str, Any]
) -> None:
    lab = make_lab(cpus=1)
    learn(lab)
    lab.run(submit(lab, **other))
    assert lab.cluster.orders[-1].known_costs == ()
    with lab.database.read() as session:
        assert session.scalar(select(func.count()).select_from(PassCostsRow)) == 1
