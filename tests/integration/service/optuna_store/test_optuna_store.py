"""Asks, reports, pruning and tells against Optuna's real storage, on both databases."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import optuna
import pytest
from optuna.storages import RDBStorage

from search_spaces.definition import StudyDefinition
from search_spaces.parsing.document import parse_definition
from service.optuna_store.asking import ask, ask_repeat, complete_ask, unfinished_asks
from service.optuna_store.reporting import report, should_prune
from service.optuna_store.storage import Storage
from service.optuna_store.studies import (
    STUDY_ID_ATTR,
    ensure_study,
    find_study_number,
    load_study,
    read_summary,
    read_trials,
)
from service.optuna_store.telling import tell
from service.optuna_store.values import StudySummary, TrialValues
from service.states import AttemptState

Make = Callable[..., dict[str, Any]]
HALVING = {
    "pruning": {"algorithm": "asha", "min_examples": 100, "reduction_factor": 2, "n_min_trials": 1},
    "evaluation": {"every_examples": 100},
}


def _definition(make: Make, **sections: Any) -> StudyDefinition:
    return parse_definition(make(**sections))


def test_a_study_is_made_once_however_often_it_is_ensured(storage: Storage, definition: Make) -> None:
    for _ in range(2):
        study = ensure_study(storage, "a", _definition(definition), study_id="x1")
    assert [s.study_name for s in storage.get_all_studies()] == ["a"]
    assert study.user_attrs[STUDY_ID_ATTR] == "x1"
    assert study.direction == optuna.study.StudyDirection.MINIMIZE
    assert study.metric_names == ["eval_loss"]


def test_a_study_that_nobody_made_has_no_trials(storage: Storage) -> None:
    assert read_trials(storage, "nobody") == []
    assert read_summary(storage, "nobody") is None


def test_asks_are_numbered_and_hold_every_parameter(storage: Storage, definition: Make) -> None:
    wanted = _definition(definition)
    study = ensure_study(storage, "a", wanted)
    asked = [ask(study, wanted) for _ in range(3)]
    assert [number for number, _ in asked] == [0, 1, 2]
    assert all(set(params) == {"learning_rate", "batch_size"} for _, params in asked)
    assert [dict(t.params) for t in read_trials(storage, "a")] == [p for _, p in asked]


def test_an_ask_cut_short_is_completed_as_it_would_have_been(storage: Storage, definition: Make) -> None:
    wanted = _definition(definition)
    whole = ensure_study(storage, "whole", wanted)
    expected = [ask(whole, wanted)[1] for _ in range(2)]
    broken = ensure_study(storage, "broken", wanted)
    ask(broken, wanted)
    broken.ask()  # its asker died before it drew anything
    again = load_study(storage, "broken")
    assert [t.number for t in unfinished_asks(again)] == [0, 1]
    assert complete_ask(again, wanted, 1) == expected[1]


def test_a_rung_is_reported_once(storage: Storage, definition: Make) -> None:
    wanted = _definition(definition)
    study = ensure_study(storage, "a", wanted)
    number, _ = ask(study, wanted)
    report(study, number, 100, 2.0)
    report(study, number, 100, 9.0)
    assert read_trials(storage, "a")[0].rungs == ((100, 2.0),)


def test_a_report_for_a_finished_trial_is_left_out(storage: Storage, definition: Make) -> None:
    wanted = _definition(definition)
    study = ensure_study(storage, "a", wanted)
    number, _ = ask(study, wanted)
    tell(study, number, AttemptState.FAILED, "no rows")
    report(study, number, 100, 2.0)
    assert read_trials(storage, "a")[0].rungs == ()


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
    storage: Storage,
    definition: Make,
    outcome: AttemptState,
    value: float | None,
    state: str,
) -> None:
    wanted = _definition(definition)
    study = ensure_study(storage, "a", wanted)
    number, params = ask(study, wanted)
    report(study, number, 100, 3.0)
    tell(study, number, outcome, "because", value=value)
    tell(study, number, AttemptState.FAILED, "told again")
    assert read_trials(storage, "a") == [
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


def test_only_running_out_of_memory_violates_a_constraint(storage: Storage, definition: Make) -> None:
    wanted = _definition(definition)
    study = ensure_study(storage, "a", wanted)
    for outcome in (AttemptState.OUT_OF_MEMORY, AttemptState.PRUNED):
        number, _ = ask(study, wanted)
        tell(study, number, outcome, "because")
    assert [dict(t.constraints) for t in study.trials] == [{"out_of_memory": 1.0}, {}]


def test_tpe_goes_on_asking_after_every_kind_of_end(storage: Storage, definition: Make) -> None:
    search = {**definition()["search"], "algorithm": "tpe", "trials": 16}
    wanted = _definition(definition, search=search)
    study = ensure_study(storage, "a", wanted)
    ends = [AttemptState.COMPLETED, AttemptState.OUT_OF_MEMORY, AttemptState.DIVERGED, AttemptState.FAILED]
    for i in range(12):
        number, _ = ask(study, wanted)
        end = ends[i % len(ends)]
        tell(study, number, end, "because", value=float(i) if i % len(ends) == 0 else None)
    assert ask(study, wanted)[0] == 12


def test_the_summary_names_the_best_completed_trial(storage: Storage, definition: Make) -> None:
    wanted = _definition(definition)
    study = ensure_study(storage, "a", wanted)
    for value in (3.0, 1.0, 2.0):
        number, _ = ask(study, wanted)
        tell(study, number, AttemptState.COMPLETED, "done", value=value)
    number, _ = ask(study, wanted)
    report(study, number, 100, 0.1)
    tell(study, number, AttemptState.PRUNED, "unlucky")
    best = read_trials(storage, "a")[1]
    assert read_summary(storage, "a") == StudySummary(
        number=find_study_number(storage, "a") or 0, trials=4, best=best
    )


def test_the_best_trial_is_feasible_and_no_repeat(storage: Storage, definition: Make) -> None:
    wanted = _definition(definition)
    study = ensure_study(storage, "a", wanted)
    for value, violation in ((3.0, 0.0), (2.0, -1.0), (1.0, 0.5)):
        number, _ = ask(study, wanted)
        violations = {"accuracy": violation}
        tell(study, number, AttemptState.COMPLETED, "done", value=value, violations=violations)
    number, _ = ask_repeat(study, wanted, of=1, seed=43)
    tell(study, number, AttemptState.COMPLETED, "done", value=0.1)
    trials = read_trials(storage, "a")
    assert [t.feasible for t in trials] == [True, True, False, True]
    assert [(t.repeat_of, t.seed) for t in trials[2:]] == [(None, None), (1, 43)]
    summary = read_summary(storage, "a")
    assert summary is not None
    assert summary.best == trials[1]


def test_a_study_with_costs_has_an_objective_for_each(storage: Storage, definition: Make) -> None:
    wanted = _definition(definition, objective={"metric": "accuracy", "costs": ["trainable_parameters"]})
    study = ensure_study(storage, "a", wanted)
    for value in (0.5, 0.75, 0.75):
        number, _ = ask(study, wanted)
        report(study, number, 100, value)
        tell(study, number, AttemptState.COMPLETED, "done", value=value, costs=(100.0,))
    assert [d.name for d in study.directions] == ["MAXIMIZE", "MINIMIZE"]
    assert study.metric_names == ["accuracy", "trainable_parameters"]
    trials = read_trials(storage, "a")
    assert [(t.value, t.values) for t in trials][:2] == [(0.5, (0.5, 100.0)), (0.75, (0.75, 100.0))]
    summary = read_summary(storage, "a")
    assert summary is not None
    assert summary.best == trials[1]


def test_halving_prunes_with_a_reason_in_numbers(storage: Storage, definition: Make) -> None:
    wanted = _definition(definition, **HALVING)
    study = ensure_study(storage, "a", wanted)
    verdicts = []
    for value in (1.0, 2.0, 0.5, 3.0):
        number, _ = ask(study, wanted)
        report(study, number, 100, value)
        verdicts.append(should_prune(study, wanted, number, 800))
    assert verdicts == [
        None,
        "eval_loss 2 at 100 examples, cut-off 1 of 1 peer",
        None,
        "eval_loss 3 at 100 examples, cut-off 1 of 3 peers",
    ]


def test_the_median_prunes_with_a_reason_in_numbers(storage: Storage, definition: Make) -> None:
    wanted = _definition(
        definition,
        pruning={"algorithm": "median", "n_startup_trials": 2, "min_examples": 1000},
        evaluation={"every_examples": 1000},
    )
    study = ensure_study(storage, "a", wanted)
    for value in (1.5, 2.5):
        number, _ = ask(study, wanted)
        report(study, number, 1000, value)
        assert should_prune(study, wanted, number, 4000) is None
        tell(study, number, AttemptState.COMPLETED, "done", value=value)
    number, _ = ask(study, wanted)
    report(study, number, 1000, 2.25)
    reason = should_prune(study, wanted, number, 4000)
    assert reason == "eval_loss 2.25 at 1,000 examples, cut-off 2 of 2 peers"


def test_a_summary_builds_no_trials(
    storage: Storage, definition: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A page of studies asks for many summaries, and a study may have thousands of trials."""
    wanted = _definition(definition)
    study = ensure_study(storage, "a", wanted)
    for value in (2.0, 1.0):
        number, _ = ask(study, wanted)
        tell(study, number, AttemptState.COMPLETED, "", value=value)

    def refuse(*_: Any, **__: Any) -> None:
        raise AssertionError("all trials were read")

    monkeypatch.setattr(storage, "get_all_trials", refuse)
    summary = read_summary(storage, "a")
    assert summary is not None
    assert summary.best is not None
    assert (summary.trials, summary.best.value) == (2, 1.0)


def test_the_versions_that_optuna_knows_are_optunas_and_read_once(
    storage: Storage, monkeypatch: pytest.MonkeyPatch
) -> None:
    known = RDBStorage.get_all_versions(storage)
    reads: list[None] = []

    def read(_: RDBStorage) -> list[str]:
        reads.append(None)
        return known

    monkeypatch.setattr(RDBStorage, "get_all_versions", read)
    monkeypatch.setattr(Storage, "_versions", ())
    assert storage.get_head_version() == RDBStorage.get_head_version(storage) == storage.get_current_version()
    assert storage.get_all_versions() == known
    assert len(reads) == 1
