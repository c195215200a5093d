"""Every stop, through whole studies on a cluster that trains nothing."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from datetime import timedelta
from typing import Any

import pytest

from search_spaces.errors import SearchSpaceExhausted
from service import optuna_store
from service.db.models import Attempt
from service.states import AttemptState, StudyState
from tests.support.service.coordinator import DEFINITION, CoordinatorLab
from workers.contract import OutcomeStatus, TrialOrder, TrialOutcome

SEARCH = {
    **DEFINITION["search"],
    "algorithm": "random",
    "trials": 30,
    # Of different lengths, so that some run while others end.
    "space": {**DEFINITION["search"]["space"], "epochs": {"choices": [1, 2, 3, 4, 5]}},
}


def budget(**changes: Any) -> dict[str, Any]:
    return {"max_parallel_trials": 3, **changes}


def end(lab: CoordinatorLab, study_id: str) -> tuple[str, str]:
    study = lab.study(study_id)
    return study.state, study.reason


def outcomes(lab: CoordinatorLab) -> dict[int, str]:
    return {number: outcome for number, (outcome, _, _) in lab.values().items()}


def test_a_target_that_is_reached_ends_the_search_and_stops_what_runs(
    make_lab: Callable[..., CoordinatorLab],
) -> None:
    lab = make_lab()
    study_id = lab.submit(search=SEARCH, budget=budget(target_value=1.9))
    lab.run(study_id)
    told = lab.values()
    first, value = next((n, v) for n, (_, v, _) in told.items() if v is not None and v <= 1.9)
    assert end(lab, study_id) == (
        StudyState.COMPLETED,
        f"budget.target_value of 1.9 reached: trial {first} has eval_loss {value:.6g}",
    )
    assert len(told) < 30
    assert list(outcomes(lab).values()).count("cancelled") == 2
    stopped = [a.reason for a in lab.attempts() if a.state == AttemptState.CANCELLED]
    assert all(reason.startswith("the search ended: budget.target_value of 1.9") for reason in stopped)


@pytest.mark.parametrize("crashes", [False, True])
def test_trials_in_a_row_without_improvement_end_the_search(
    make_lab: Callable[..., CoordinatorLab], crashes: bool
) -> None:
    """One after another, so that they end in order: the same with a crash in every tenth round."""
    lab = make_lab(cpus=1)
    rounds = itertools.count(1)

    def crash() -> None:
        if crashes and next(rounds) % 10 == 0:
            lab.crash()

    study_id = lab.submit(search=SEARCH, budget=budget(max_parallel_trials=1, no_improvement_trials=4))
    lab.run(study_id, each=crash)
    values = [value for _, value, _ in lab.values().values()]
    assert len(values) < 30
    best = values.index(min(v for v in values if v is not None))
    assert best == len(values) - 5
    assert end(lab, study_id) == (
        StudyState.COMPLETED,
        f"budget.no_improvement_trials of 4 reached: trial {best} has the best eval_loss, "
        f"{values[best]:.6g}, and 4 trials in a row ended after it",
    )


def test_too_many_failed_trials_fail_the_study(make_lab: Callable[..., CoordinatorLab]) -> None:
    def bad(order: TrialOrder) -> TrialOutcome:
        return TrialOutcome(attempt_id=order.attempt_id, status=OutcomeStatus.FAILED, reason="bad code")

    lab = make_lab(ending=bad)
    study_id = lab.submit(search=SEARCH, budget=budget(max_failed_trials=1))
    lab.run(study_id)
    state, reason = end(lab, study_id)
    assert state == StudyState.FAILED
    assert reason.endswith("trials failed; budget.max_failed_trials allows 1")


def test_the_wall_clock_ends_the_study(make_lab: Callable[..., CoordinatorLab]) -> None:
    lab = make_lab()
    study_id = lab.submit(search=SEARCH, budget=budget(timeout="1h"))
    lab.rounds(lambda: "completed" in (a.state for a in lab.attempts()))
    with lab.database.write() as session:
        session.get_one(Attempt, 1).dispatched_at -= timedelta(hours=2)
    lab.run(study_id)
    assert end(lab, study_id) == (StudyState.COMPLETED, "budget.timeout of 3600 s reached")
    assert "cancelled" in outcomes(lab).values()


def test_the_gpu_hours_end_the_study(make_lab: Callable[..., CoordinatorLab]) -> None:
    lab = make_lab()
    study_id = lab.submit(search=SEARCH, budget=budget(max_gpu_hours=2))
    lab.rounds(lambda: "completed" in (a.state for a in lab.attempts()))
    with lab.database.write() as session:
        first = session.get_one(Attempt, 1)
        assert first.started_at is not None
        first.gpus, first.started_at = 0.5, first.started_at - timedelta(hours=5)
    lab.run(study_id)
    assert end(lab, study_id) == (
        StudyState.COMPLETED,
        "budget.max_gpu_hours of 2 reached (2.50 spent)",
    )


@pytest.mark.parametrize(
    ("algorithm", "trials"), [("random", 20), ("tpe", 20), ("grid", None)], ids=["random", "tpe", "grid"]
)
def test_a_space_with_fewer_configurations_than_trials_is_gone_through_once(
    make_lab: Callable[..., CoordinatorLab], algorithm: str, trials: int | None
) -> None:
    lab = make_lab()
    space = {"lora_r": {"choices": [2, 4, 8]}, "batch_size": {"choices": [4, 8]}}
    study_id = lab.submit(search={"algorithm": algorithm, "trials": trials, "space": space})
    lab.run(study_id)
    what = "grid" if algorithm == "grid" else "search space"
    assert end(lab, study_id) == (StudyState.COMPLETED, f"all 6 trials ended: the {what} is exhausted")
    assert len({tuple(sorted(params.items())) for _, _, params in lab.values().values()}) == 6


def test_a_sampler_that_runs_out_early_crashes_nothing(
    make_lab: Callable[..., CoordinatorLab], monkeypatch: pytest.MonkeyPatch
) -> None:
    lab = make_lab()
    study_id = lab.submit(search=SEARCH)
    ask = optuna_store.ask

    def scarce(study: Any, *args: Any) -> Any:
        if len(study.get_trials(deepcopy=False)) >= 5:
            raise SearchSpaceExhausted("no sixth")
        return ask(study, *args)

    monkeypatch.setattr(optuna_store, "ask", scarce)
    lab.rounds(lambda: len(lab.attempts()) == 5)
    lab.crash()
    lab.run(study_id)
    assert end(lab, study_id) == (
        StudyState.COMPLETED,
        "all 5 trials ended: the search space is exhausted",
    )
