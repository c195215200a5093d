"""The best recipes again with other seeds, after the search."""

from __future__ import annotations

import random
from collections.abc import Callable
from datetime import timedelta
from typing import Any

import pytest

from service.db.models import Attempt, Study
from service.optuna_store.studies import read_summary, read_trials
from service.states import AttemptState, StudyState
from tests.support.service.coordinator import DEFINITION, CoordinatorLab
from workers.contract import OutcomeStatus, TrialOrder, TrialOutcome

SEARCH = {**DEFINITION["search"], "algorithm": "random", "trials": 8}
REPEATS = {"top_k": 2, "seeds": 3}
PRUNING = {"algorithm": "median", "min_examples": 25, "n_startup_trials": 1}


def repeats(lab: CoordinatorLab) -> dict[int, tuple[int, int | None]]:
    """Repeat -> the trial that it repeats, and its seed."""
    trials = read_trials(lab.storage, "s")
    return {t.number: (t.repeat_of, t.seed) for t in trials if t.repeat_of is not None}


def best(lab: CoordinatorLab, count: int) -> list[int]:
    found = [(v, n) for n, (_, v, _) in lab.values().items() if v is not None and n < 8]
    return [number for _, number in sorted(found)[:count]]


def test_the_best_are_run_again_with_other_seeds_and_are_never_pruned(
    make_lab: Callable[..., CoordinatorLab],
) -> None:
    lab = make_lab(cpus=2)
    study_id = lab.submit(search=SEARCH, repeats=REPEATS, pruning=PRUNING, recipe={"seed": 100})
    lab.run(study_id)
    study = lab.study(study_id)
    assert (study.state, study.reason) == (
        StudyState.COMPLETED,
        "all 8 trials ended; the 2 best were run again with 3 seeds each",
    )
    first, second = best(lab, 2)
    wanted = [(of, seed) for seed in (101, 102, 103) for of in (first, second)]
    assert list(repeats(lab).items()) == list(enumerate(wanted, start=8))
    values = lab.values()
    for number, (of, seed) in repeats(lab).items():
        outcome, value, params = values[number]
        [order] = [o for o in lab.cluster.orders if o.trial_number == number]
        assert (outcome, params, order.recipe.seed) == ("completed", values[of][2], seed)
        assert order.recipe.model_copy(update={"seed": 100}) == next(
            o.recipe for o in lab.cluster.orders if o.trial_number == of
        )
        assert value is not None


def test_a_repeat_is_never_the_best(make_lab: Callable[..., CoordinatorLab]) -> None:
    def lucky(order: TrialOrder) -> TrialOutcome | None:
        if order.recipe.seed == 42:
            return None
        return TrialOutcome(
            attempt_id=order.attempt_id, status=OutcomeStatus.COMPLETED, reason="lucky", value=0.01
        )

    lab = make_lab(ending=lucky)
    study_id = lab.submit(search=SEARCH, repeats=REPEATS)
    lab.run(study_id)
    assert lab.study(study_id).state == StudyState.COMPLETED
    summary = read_summary(lab.storage, "s")
    assert summary is not None
    assert summary.best is not None
    assert (summary.trials, summary.best.number) == (14, best(lab, 1)[0])
    assert min(v for _, v, _ in lab.values().values() if v is not None) == 0.01


def test_repeats_are_the_same_through_deaths(
    make_lab: Callable[..., CoordinatorLab], monkeypatch: pytest.MonkeyPatch
) -> None:
    study: dict[str, Any] = {
        "search": SEARCH,
        "repeats": REPEATS,
        "budget": {"max_parallel_trials": 3, "max_retries": 1000},
    }
    calm, stormy = make_lab(cpus=1), make_lab(cpus=2, slots=2)
    calm.run(calm.submit(**study))
    study_id = stormy.submit(**study)
    dice = random.Random(0)
    tick = stormy.cluster.poll

    def poll(timeout_s: float) -> Any:
        if stormy.cluster.alive and dice.random() < 0.05:
            stormy.cluster.kill(dice.choice(stormy.cluster.alive))
        return tick(timeout_s)

    monkeypatch.setattr(stormy.cluster, "poll", poll)
    assert stormy.run_through_deaths(study_id, dice, monkeypatch) > 3
    assert stormy.study(study_id).reason == "all 8 trials ended; the 2 best were run again with 3 seeds each"
    assert (stormy.values(), repeats(stormy)) == (calm.values(), repeats(calm))
    ends = [a.trial_number for a in stormy.attempts() if a.state != AttemptState.LOST]
    assert sorted(ends) == list(range(14))


def test_a_cancel_ends_the_repeats(make_lab: Callable[..., CoordinatorLab]) -> None:
    lab = make_lab()
    study_id = lab.submit(search=SEARCH, repeats=REPEATS)
    lab.rounds(lambda: len(read_trials(lab.storage, "s")) > 9)
    with lab.database.write() as session:
        session.get_one(Study, study_id).cancel_requested = True
    lab.run(study_id)
    assert lab.study(study_id).state == StudyState.CANCELLED
    assert lab.values()[9][0] == "cancelled"
    assert lab.cluster.alive == []


def test_the_wall_clock_ends_the_repeats_and_the_study_is_completed(
    make_lab: Callable[..., CoordinatorLab],
) -> None:
    lab = make_lab()
    study_id = lab.submit(search=SEARCH, repeats=REPEATS, budget={"timeout": "1h"})
    lab.rounds(lambda: len(read_trials(lab.storage, "s")) > 9)
    with lab.database.write() as session:
        session.get_one(Attempt, 1).dispatched_at -= timedelta(hours=2)
    lab.run(study_id)
    study = lab.study(study_id)
    assert study.state == StudyState.COMPLETED
    assert study.reason == (
        "all 8 trials ended; the 2 best were run again with 3 seeds each, 0 of 6 runs completed: "
        "budget.timeout of 3600 s reached"
    )


def test_a_fault_that_all_repeats_share_ends_them_and_not_the_search(
    make_lab: Callable[..., CoordinatorLab],
) -> None:
    def gone(order: TrialOrder) -> TrialOutcome | None:
        if order.recipe.seed == 42:
            return None
        return TrialOutcome(
            attempt_id=order.attempt_id,
            status=OutcomeStatus.FAILED,
            reason="/t.jsonl is gone",
            fatal_to_study=True,
        )

    lab = make_lab(ending=gone)
    study_id = lab.submit(search=SEARCH, repeats=REPEATS, budget={"max_failed_trials": 0})
    lab.run(study_id)
    study = lab.study(study_id)
    assert study.state == StudyState.COMPLETED
    assert study.reason.endswith("with 3 seeds each, 0 of 6 runs completed: /t.jsonl is gone")
    assert lab.cluster.alive == []
