"""Several objectives, constraints, and what is measured beside the objective."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest

from service.optuna_store.studies import load_study, read_summary, read_trials
from service.states import AttemptState, StudyState
from tests.support.fakes.training import costs_of, loss_of
from tests.support.service.coordinator import DEFINITION, CoordinatorLab
from workers.contract import OutcomeStatus, TrialOrder, TrialOutcome

SPACE = {
    "learning_rate": {"min": 1e-5, "max": 1e-1, "scale": "log"},
    "lora_r": {"choices": [4, 8, 16, 32]},
    "epochs": {"choices": [1, 2]},
}
ALONE = {"trials_per_worker": 1}
COSTS = ["train_seconds", "peak_memory_gb", "trainable_parameters"]


def search(algorithm: str, trials: int = 16) -> dict[str, Any]:
    return {"algorithm": algorithm, "trials": trials, "space": SPACE}


def completed(order: TrialOrder) -> TrialOutcome:
    value = loss_of(order.recipe, round(100 * order.recipe.epochs))
    return TrialOutcome(
        attempt_id=order.attempt_id,
        status=OutcomeStatus.COMPLETED,
        reason="trained to the end",
        value=value,
        metrics={"eval_loss": value},
        **costs_of(order.recipe),
    )


@pytest.mark.parametrize("algorithm", ["random", "tpe"])
def test_completed_trials_are_told_with_their_costs(
    make_lab: Callable[..., CoordinatorLab], algorithm: str
) -> None:
    lab = make_lab()
    study_id = lab.submit(search=search(algorithm), objective={"costs": COSTS}, resources=ALONE)
    lab.run(study_id)
    assert lab.study(study_id).state == StudyState.COMPLETED
    study = load_study(lab.storage, "s")
    assert study.metric_names == ["eval_loss", *COSTS]
    assert [d.name for d in study.directions] == ["MINIMIZE"] * 4
    for trial in read_trials(lab.storage, "s"):
        recipe = next(o.recipe for o in lab.cluster.orders if o.trial_number == trial.number)
        costs = (10.0 * recipe.epochs, 0.25 * recipe.lora_r, 1000.0 * recipe.lora_r)
        assert trial.values == (loss_of(recipe, round(100 * recipe.epochs)), *costs)
        assert trial.value == trial.values[0]
    summary = read_summary(lab.storage, "s")
    assert summary is not None
    assert summary.best is not None
    assert summary.best.value == min(v for _, v, _ in lab.values().values() if v is not None)


def test_tpe_learns_of_several_objectives_whatever_becomes_of_trials(
    make_lab: Callable[..., CoordinatorLab],
) -> None:
    def mixed(order: TrialOrder) -> TrialOutcome | None:
        ends = {1: OutcomeStatus.DIVERGED, 2: OutcomeStatus.OUT_OF_MEMORY, 3: OutcomeStatus.FAILED}
        status = ends.get(order.trial_number % 5)
        return status and TrialOutcome(attempt_id=order.attempt_id, status=status, reason="as it came")

    lab = make_lab(ending=mixed)
    study_id = lab.submit(search=search("tpe"), objective={"costs": ["train_seconds"]}, resources=ALONE)
    lab.run(study_id)
    assert lab.study(study_id).reason == "all 16 trials ended"
    assert len(lab.values()) == 16


@pytest.mark.parametrize(
    ("missing", "name"),
    [
        ({"trainable_parameters": None}, "trainable_parameters"),
        ({"peak_memory_bytes": 0}, "peak_memory_gb"),
        ({"train_seconds": 0.0}, "train_seconds"),
    ],
)
def test_a_cost_that_is_missing_fails_its_trial_and_nothing_is_made_up(
    make_lab: Callable[..., CoordinatorLab], missing: dict[str, Any], name: str
) -> None:
    def without(order: TrialOrder) -> TrialOutcome | None:
        return replace(completed(order), **missing) if order.trial_number == 1 else None

    lab = make_lab(ending=without)
    lab.run(lab.submit(search=search("random", 3), objective={"costs": COSTS}, resources=ALONE))
    [failed] = [a for a in lab.attempts() if a.state == AttemptState.FAILED]
    assert failed.trial_number == 1
    assert failed.reason == f"it ended without {name}, which objective.costs requires"
    assert lab.values()[1][:2] == ("failed", None)


@pytest.mark.parametrize("value", [None, float("nan"), float("inf")])
def test_a_completed_trial_without_a_finite_objective_has_failed(
    make_lab: Callable[..., CoordinatorLab], value: float | None
) -> None:
    lab = make_lab(ending=lambda order: replace(completed(order), value=value))
    study_id = lab.submit(search=search("random", 2))
    lab.run(study_id)
    assert lab.study(study_id).state == StudyState.FAILED
    assert all("without a finite value of eval_loss" in a.reason for a in lab.attempts())


def test_a_trial_that_breaks_a_constraint_is_never_the_best_and_the_sampler_is_told(
    make_lab: Callable[..., CoordinatorLab],
) -> None:
    lab = make_lab()
    bounds = {"peak_memory_gb": {"max": 2.0}, "eval_loss": {"min": 0.0, "max": 3.5}}
    study_id = lab.submit(search=search("tpe"), constraints=bounds, resources=ALONE)
    lab.run(study_id)
    assert lab.study(study_id).state == StudyState.COMPLETED
    trials = read_trials(lab.storage, "s")
    by_number = {o.trial_number: o.recipe for o in lab.cluster.orders}
    frozen = load_study(lab.storage, "s").get_trials()
    for trial in trials:
        memory, loss = 0.25 * by_number[trial.number].lora_r, trial.value
        assert loss is not None
        told = frozen[trial.number].constraints
        assert told == {"peak_memory_gb": memory - 2.0, "eval_loss": max(loss - 3.5, -loss)}
        assert trial.feasible == (memory <= 2.0 and loss <= 3.5)
    kept = [t for t in trials if t.feasible]
    broken = [t for t in trials if not t.feasible]
    assert kept
    assert broken
    summary = read_summary(lab.storage, "s")
    assert summary is not None
    assert summary.best == min(kept, key=lambda t: t.values)


def test_a_study_in_which_every_trial_breaks_a_constraint_has_no_best(
    make_lab: Callable[..., CoordinatorLab],
) -> None:
    lab = make_lab()
    study_id = lab.submit(
        search=search("random", 3), constraints={"peak_memory_gb": {"max": 0.1}}, resources=ALONE
    )
    lab.run(study_id)
    summary = read_summary(lab.storage, "s")
    assert summary is not None
    assert summary.best is None
    assert lab.study(study_id).reason == ("all 3 trials ended, and no completed trial meets the constraints")


def test_each_rung_is_kept_once_with_what_was_measured_at_it(make_lab: Callable[..., CoordinatorLab]) -> None:
    lab = make_lab(cpus=1)
    lab.submit(search={**DEFINITION["search"], "trials": 1})
    lab.rounds(lambda: 50 in lab.rungs().get(0, {}))
    lab.cluster.kill(lab.cluster.alive[0])
    lab.rounds(lambda: 100 in lab.rungs().get(0, {}))
    assert lab.cluster.reported == [(1, 25), (1, 50), (2, 50), (2, 75), (2, 100)]
    rows = lab.rung_reports()
    assert [(r.trial_number, r.rung, r.attempt_id) for r in rows] == [
        (0, 25, 1),
        (0, 50, 1),
        (0, 75, 2),
        (0, 100, 2),
    ]
    for row in rows:
        loss = lab.rungs()[0][row.rung]
        assert (row.metrics, row.train_loss, row.examples_seen, row.step) == (
            {"eval_loss": loss},
            loss,
            row.rung,
            row.rung,
        )
        assert (row.epoch, row.train_seconds, row.gradient_noise_scale) == (row.rung / 100, 1.0, 100.0)


def shares(order: TrialOrder, rung: int) -> dict[str, float]:
    """An accuracy that is the better the lower the loss, in 0..1."""
    loss = loss_of(order.recipe, rung)
    return {"eval_loss": loss, "accuracy": 1.0 / loss}


ACCURACY = {"metric": "accuracy"}


@pytest.mark.parametrize(
    "pruning",
    [{"algorithm": "median", "n_startup_trials": 2}, {"algorithm": "threshold", "lower": 0.26}],
    ids=lambda pruning: str(pruning["algorithm"]),
)
def test_a_pruner_stops_the_low_accuracies(
    make_lab: Callable[..., CoordinatorLab], pruning: dict[str, Any]
) -> None:
    lab = make_lab(cpus=1, measures=shares)
    study_id = lab.submit(
        search={**search("random", 12), "seed": 3}, objective=ACCURACY, pruning=pruning, resources=ALONE
    )
    lab.run(study_id)
    trials = read_trials(lab.storage, "s")
    last = {trial.number: trial.rungs[-1][1] for trial in trials}
    pruned = [last[trial.number] for trial in trials if trial.state == "pruned"]
    completed = [trial.value for trial in trials if trial.value is not None]
    assert pruned
    assert max(pruned) < max(completed)
    summary = read_summary(lab.storage, "s")
    assert summary is not None
    assert summary.best is not None
    assert summary.best.value == max(completed)


def test_an_accuracy_that_is_high_enough_ends_the_search(make_lab: Callable[..., CoordinatorLab]) -> None:
    lab = make_lab(cpus=1, measures=shares)
    study_id = lab.submit(
        search=search("random"), objective=ACCURACY, budget={"target_value": 0.45}, resources=ALONE
    )
    lab.run(study_id)
    trials = read_trials(lab.storage, "s")
    assert [trial.value is not None and trial.value >= 0.45 for trial in trials][-1]
    assert all(trial.value is None or trial.value < 0.45 for trial in trials[:-1])
    assert lab.study(study_id).reason.startswith("budget.target_value of 0.45 reached: trial")


def test_repeats_run_the_highest_accuracies_again(make_lab: Callable[..., CoordinatorLab]) -> None:
    lab = make_lab(cpus=1, measures=shares)
    study_id = lab.submit(
        search=search("random", 6), objective=ACCURACY, repeats={"top_k": 2, "seeds": 2}, resources=ALONE
    )
    lab.run(study_id)
    trials = read_trials(lab.storage, "s")
    ranked = sorted(
        (trial for trial in trials if trial.repeat_of is None), key=lambda trial: -(trial.value or 0.0)
    )
    assert {trial.repeat_of for trial in trials} - {None} == {trial.number for trial in ranked[:2]}


@pytest.mark.parametrize("pruning", ["none", "median"])
def test_a_metric_that_is_measured_at_the_end_alone_leaves_the_rungs_before_it_without_one(
    make_lab: Callable[..., CoordinatorLab], pruning: str
) -> None:
    """As texts are, which take long to generate."""

    def at_the_end(order: TrialOrder, rung: int) -> dict[str, float]:
        measured = shares(order, rung)
        return measured if rung == round(100 * order.recipe.epochs) else {"eval_loss": measured["eval_loss"]}

    lab = make_lab(cpus=1, measures=at_the_end)
    study_id = lab.submit(
        search=search("random", 3), objective=ACCURACY, pruning={"algorithm": pruning}, resources=ALONE
    )
    lab.run(study_id)
    assert lab.study(study_id).state == StudyState.COMPLETED
    for trial in read_trials(lab.storage, "s"):
        assert len(trial.rungs) == 1
        assert trial.value == trial.rungs[0][1]
