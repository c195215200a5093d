"""Asks, reports, pruning and tells against Optuna's real storage, on both databases."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import optuna
import pytest

from search_spaces.definition import StudyDefinition
from search_spaces.parsing.document import parse_definition
from service import optuna_store
from service.optuna_store.values import StudySummary, TrialValues
from service.states import AttemptState

Make = Callable[..., dict[str, Any]]
HALVING = {
    "pruning": {"algorithm": "asha", "min_examples": 100, "reduction_factor": 2, "n_min_trials": 1},
    "evaluation": {"every_examples": 100},
}


def _definition(make: Make, **sections: Any) -> StudyDefinition:
    return parse_definition(make(**sections))


def test_a_study_is_made_once_however_often_it_is_ensured(
    storage: optuna_store.Storage, definition: Make
) -> None:
    for _ in range(2):
        study = optuna_store.ensure_study(storage, "a", _definition(definition), study_id="x1")
    assert [s.study_name for s in storage.get_all_studies()] == ["a"]
    assert study.user_attrs[optuna_store.STUDY_ID_ATTR] == "x1"
    assert study.direction == optuna.study.StudyDirection.MINIMIZE
    assert study.metric_names == ["eval_loss"]


def test_a_study_that_nobody_made_has_no_trials(storage: optuna_store.Storage) -> None:
    assert optuna_store.read_trials(storage, "nobody") == []
    assert optuna_store.read_summary(storage, "nobody") is None


def test_asks_are_numbered_and_hold_every_parameter(storage: optuna_store.Storage, definition: Make) -> None:
    wanted = _definition(definition)
    study = optuna_store.ensure_study(storage, "a", wanted)
    asked = [optuna_store.ask(study, wanted) for _ in range(3)]
    assert [number for number, _ in asked] == [0, 1, 2]
    assert all(set(params) == {"learning_rate", "batch_size"} for _, params in asked)
    assert [dict(t.params) for t in optuna_store.read_trials(storage, "a")] == [p for _, p in asked]


def test_an_ask_cut_short_is_completed_as_it_would_have_been(
    storage: optuna_store.Storage, definition: Make
) -> None:
    wanted = _definition(definition)
    whole = optuna_store.ensure_study(storage, "whole", wanted)
    expected = [optuna_store.ask(whole, wanted)[1] for _ in range(2)]
    broken = optuna_store.ensure_study(storage, "broken", wanted)
    optuna_store.ask(broken, wanted)
    broken.ask()  # its asker died before it drew anything
    again = optuna_store.load_study(storage, "broken")
    assert [t.number for t in optuna_store.unfinished_asks(again)] == [0, 1]
    assert optuna_store.complete_ask(again, wanted, 1) == expected[1]


def test_a_rung_is_reported_once(storage: optuna_store.Storage, definition: Make) -> None:
    wanted = _definition(definition)
    study = optuna_store.ensure_study(storage, "a", wanted)
    number, _ = optuna_store.ask(study, wanted)
    optuna_store.report(study, number, 100, 2.0)
    optuna_store.report(study, number, 100, 9.0)
    assert optuna_store.read_trials(storage, "a")[0].rungs == ((100, 2.0),)


def test_a_report_for_a_finished_trial_is_left_out(storage: optuna_store.Storage, definition: Make) -> None:
    wanted = _definition(definition)
    study = optuna_store.ensure_study(storage, "a", wanted)
    number, _ = optuna_store.ask(study, wanted)
    optuna_store.tell(study, number, AttemptState.FAILED, "no rows")
    optuna_store.report(study, number, 100, 2.0)
    assert optuna_store.read_trials(storage, "a")[0].rungs == ()


@pytest.mark.parametrize(
    ("outcome", "value", "state"),
    [
        (AttemptState.COMPLETED, 1.5, "complete"),
        (AttemptState.PRUNED, None, "pruned"),
        (AttemptState.DIVERGED, None, "pruned"),
        (AttemptState.OUT_OF_MEMORY, None, "pruned"),
        (AttemptState.FAILED, None, "fail"),
        (AttemptState.CANCELLED, None, "fail"),
    ],
)
def test_each_outcome_is_told_once_with_its_reason(
    storage: optuna_store.Storage,
    definition: Make,
    outcome: AttemptState,
    value: float | None,
    state: str,
) -> None:
    wanted = _definition(definition)
    study = optuna_store.ensure_study(storage, "a", wanted)
    number, params = optuna_store.ask(study, wanted)
    optuna_store.report(study, number, 100, 3.0)
    optuna_store.tell(study, number, outcome, "because", value=value)
    optuna_store.tell(study, number, AttemptState.FAILED, "told again")
    assert optuna_store.read_trials(storage, "a") == [
        TrialValues(
            number=0,
            params=params,
            value=value,
            values=() if value is None else (value,),
            feasible=outcome is not AttemptState.OUT_OF_MEMORY,
            rungs=((100, 3.0),),
            state=state,
            user_attrs={"outcome": str(outcome), "reason": "because"},
        )
    ]


def test_only_running_out_of_memory_violates_a_constraint(
    storage: optuna_store.Storage, definition: Make
) -> None:
    wanted = _definition(definition)
    study = optuna_store.ensure_study(storage, "a", wanted)
    for outcome in (AttemptState.OUT_OF_MEMORY, AttemptState.PRUNED):
        number, _ = optuna_store.ask(study, wanted)
        optuna_store.tell(study, number, outcome, "because")
    assert [dict(t.constraints) for t in study.trials] == [{"out_of_memory": 1.0}, {}]


def test_tpe_goes_on_asking_after_every_kind_of_end(storage: optuna_store.Storage, definition: Make) -> None:
    search = {**definition()["search"], "algorithm": "tpe", "trials": 16}
    wanted = _definition(definition, search=search)
    study = optuna_store.ensure_study(storage, "a", wanted)
    ends = [AttemptState.COMPLETED, AttemptState.OUT_OF_MEMORY, AttemptState.DIVERGED, AttemptState.FAILED]
    for i in range(12):
        number, _ = optuna_store.ask(study, wanted)
        end = ends[i % len(ends)]
        optuna_store.tell(study, number, end, "because", value=float(i) if i % len(ends) == 0 else None)
    assert optuna_store.ask(study, wanted)[0] == 12


def test_the_summary_names_the_best_completed_trial(storage: optuna_store.Storage, definition: Make) -> None:
    wanted = _definition(definition)
    study = optuna_store.ensure_study(storage, "a", wanted)
    for value in (3.0, 1.0, 2.0):
        number, _ = optuna_store.ask(study, wanted)
        optuna_store.tell(study, number, AttemptState.COMPLETED, "done", value=value)
    number, _ = optuna_store.ask(study, wanted)
    optuna_store.report(study, number, 100, 0.1)
    optuna_store.tell(study, number, AttemptState.PRUNED, "unlucky")
    best = optuna_store.read_trials(storage, "a")[1]
    assert optuna_store.read_summary(storage, "a") == StudySummary(
        number=optuna_store.find_study_number(storage, "a") or 0, trials=4, best=best
    )


def test_the_best_trial_is_feasible_and_no_repeat(storage: optuna_store.Storage, definition: Make) -> None:
    wanted = _definition(definition)
    study = optuna_store.ensure_study(storage, "a", wanted)
    for value, violation in ((3.0, 0.0), (2.0, -1.0), (1.0, 0.5)):
        number, _ = optuna_store.ask(study, wanted)
        violations = {"accuracy": violation}
        optuna_store.tell(study, number, AttemptState.COMPLETED, "done", value=value, violations=violations)
    number, _ = optuna_store.ask_repeat(study, wanted, of=1, seed=43)
    optuna_store.tell(study, number, AttemptState.COMPLETED, "done", value=0.1)
    trials = optuna_store.read_trials(storage, "a")
    assert [t.feasible for t in trials] == [True, True, False, True]
    assert [(t.repeat_of, t.seed) for t in trials[2:]] == [(None, None), (1, 43)]
    summary = optuna_store.read_summary(storage, "a")
    assert summary is not None
    assert summary.best == trials[1]


def test_a_study_with_costs_has_an_objective_for_each(
    storage: optuna_store.Storage, definition: Make
) -> None:
    wanted = _definition(definition, objective={"metric": "accuracy", "costs": ["trainable_parameters"]})
    study = optuna_store.ensure_study(storage, "a", wanted)
    for value in (0.5, 0.75, 0.75):
        number, _ = optuna_store.ask(study, wanted)
        optuna_store.report(study, number, 100, value)
        optuna_store.tell(study, number, AttemptState.COMPLETED, "done", value=value, costs=(100.0,))
    assert [d.name for d in study.directions] == ["MAXIMIZE", "MINIMIZE"]
    assert study.metric_names == ["accuracy", "trainable_parameters"]
    trials = optuna_store.read_trials(storage, "a")
    assert [(t.value, t.values) for t in trials][:2] == [(0.5, (0.5, 100.0)), (0.75, (0.75, 100.0))]
    summary = optuna_store.read_summary(storage, "a")
    assert summary is not None
    assert summary.best == trials[1]


def test_halving_prunes_with_a_reason_in_numbers(storage: optuna_store.Storage, definition: Make) -> None:
    wanted = _definition(definition, **HALVING)
    study = optuna_store.ensure_study(storage, "a", wanted)
    verdicts = []
    for value in (1.0, 2.0, 0.5, 3.0):
        number, _ = optuna_store.ask(study, wanted)
        optuna_store.report(study, number, 100, value)
        verdicts.append(optuna_store.should_prune(study, wanted, number, 800))
    assert verdicts == [
        None,
        "eval_loss 2 at 100 examples, cut-off 1 of 1 peer",
        None,
        "eval_loss 3 at 100 examples, cut-off 1 of 3 peers",
    ]


def test_the_median_prunes_with_a_reason_in_numbers(storage: optuna_store.Storage, definition: Make) -> None:
    wanted = _definition(
        definition,
        pruning={"algorithm": "median", "n_startup_trials": 2, "min_examples": 1000},
        evaluation={"every_examples": 1000},
    )
    study = optuna_store.ensure_study(storage, "a", wanted)
    for value in (1.5, 2.5):
        number, _ = optuna_store.ask(study, wanted)
        optuna_store.report(study, number, 1000, value)
        assert optuna_store.should_prune(study, wanted, number, 4000) is None
        optuna_store.tell(study, number, AttemptState.COMPLETED, "done", value=value)
    number, _ = optuna_store.ask(study, wanted)
    optuna_store.report(study, number, 1000, 2.25)
    reason = optuna_store.should_prune(study, wanted, number, 4000)
    assert reason == "eval_loss 2.25 at 1,000 examples, cut-off 2 of 2 peers"


def test_a_summary_builds_no_trials(
    storage: optuna_store.Storage, definition: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A page of studies asks for many summaries, and a study may have thousands of trials."""
    wanted = _definition(definition)
    study = optuna_store.ensure_study(storage, "a", wanted)
    for value in (2.0, 1.0):
        number, _ = optuna_store.ask(study, wanted)
        optuna_store.tell(study, number, AttemptState.COMPLETED, "", value=value)

    def refuse(*_: Any, **__: Any) -> None:
        raise AssertionError("all trials were read")

    monkeypatch.setattr(storage, "get_all_trials", refuse)
    summary = optuna_store.read_summary(storage, "a")
    assert summary is not None
    assert summary.best is not None
    assert (summary.trials, summary.best.value) == (2, 1.0)
