"""The rows of trials: written step by step, they are what attempts, events and Optuna say together."""

from __future__ import annotations

import random
from collections.abc import Callable
from typing import Any

import pytest
from sqlalchemy import select

from service import optuna_store
from service.coordinator.study import leased_study
from service.db.models import Study, Trial
from service.definitions.stored import read_definition
from service.maintenance import integrity
from service.optuna_store.studies import read_trials
from service.reports import queries
from service.reports.queries import find_importance, get_importance
from service.states import StudyState
from service.studies import results
from service.trials.rebuilding import rebuild_all
from tests.support.service.coordinator import CoordinatorLab, Killed

Make = Callable[..., CoordinatorLab]
STUDIES: dict[str, dict[str, Any]] = {
    "pruned": {
        "pruning": {"algorithm": "asha", "min_examples": 25, "reduction_factor": 2, "n_min_trials": 1}
    },
    "repeated": {"repeats": {"top_k": 2, "seeds": 2}},
    "with costs": {
        "objective": {"metric": "eval_loss", "costs": ["train_seconds"]},
        "resources": {"trials_per_worker": 1},
    },
    "constrained": {"constraints": {"eval_loss": {"max": 1.0}}},
}


def rows(lab: CoordinatorLab) -> dict[int, Trial]:
    with lab.database.read() as session:
        return {row.number: row for row in session.scalars(select(Trial))}


def assert_as_told(lab: CoordinatorLab) -> None:
    """Rows are what Optuna was told; nothing is to be written and no rule is broken."""
    assert rebuild_all(lab.database, lab.storage) == 0
    assert integrity.read_violations(lab.database.engine, lab.storage.engine) == []
    told, kept = read_trials(lab.storage, "s"), rows(lab)
    assert sorted(kept) == [trial.number for trial in told]
    for trial in told:
        values = results.values_of(kept[trial.number])
        assert (values.params, values.values, values.feasible, values.state) == (
            trial.params,
            trial.values,
            trial.feasible,
            trial.state,
        )
        assert (values.rungs, values.repeat_of, values.seed) == (trial.rungs, trial.repeat_of, trial.seed)
        assert values.user_attrs["outcome"] == trial.user_attrs["outcome"]


@pytest.mark.parametrize("kind", STUDIES)
def test_after_every_round_there_is_nothing_to_be_made_again(make_lab: Make, kind: str) -> None:
    lab = make_lab(cpus=3)
    budget = {"max_parallel_trials": 3, "max_retries": 1}
    study_id = lab.submit(budget=budget, **STUDIES[kind])

    def look() -> None:
        assert rebuild_all(lab.database, lab.storage) == 0

    lab.rounds(lambda: lab.cluster.running > 1 and look() is None)
    lab.cluster.kill(lab.cluster.alive[0])
    lab.run(study_id, each=look)
    assert any(attempt.state == "lost" for attempt in lab.attempts())
    assert_as_told(lab)
    assert any(row.findings for row in rows(lab).values())


@pytest.mark.parametrize("kind", STUDIES)
def test_coordinators_that_die_anywhere_leave_rows_that_the_next_one_mends(
    make_lab: Make, monkeypatch: pytest.MonkeyPatch, kind: str
) -> None:
    lab = make_lab(cpus=3)
    budget = {"max_parallel_trials": 3, "max_retries": 1000}
    study_id = lab.submit(budget=budget, **STUDIES[kind])
    assert lab.run_through_deaths(study_id, random.Random(kind), monkeypatch, chance=0.01) > 3
    assert lab.study(study_id).state == StudyState.COMPLETED
    assert_as_told(lab)


@pytest.mark.parametrize("first", ["recorded", "told"])
def test_a_death_between_the_record_of_an_end_and_optuna_leaves_the_row_as_recorded(
    make_lab: Make, monkeypatch: pytest.MonkeyPatch, first: str
) -> None:
    lab = make_lab()
    study_id = lab.submit()
    tell = optuna_store.tell

    def die(*given: Any, **named: Any) -> None:
        if first == "told":
            tell(*given, **named)
        raise Killed

    with monkeypatch.context() as deadly:
        deadly.setattr(optuna_store, "tell", die)
        with pytest.raises(Killed):
            lab.run(study_id)
    [ended] = [row for row in rows(lab).values() if row.ended_at is not None]
    assert (ended.state, ended.findings) == ("completed", None)
    assert ended.value is not None
    told = {trial.number: trial.value for trial in read_trials(lab.storage, "s")}
    assert told[ended.number] == (ended.value if first == "told" else None)
    lab.crash()
    lab.run(study_id)
    assert_as_told(lab)


def test_a_death_after_an_ask_leaves_a_trial_without_a_row_until_the_study_is_taken(
    make_lab: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    lab = make_lab()
    study_id = lab.submit()
    ask = optuna_store.ask

    def die(*given: Any) -> None:
        ask(*given)
        raise Killed

    with monkeypatch.context() as deadly:
        deadly.setattr(optuna_store, "ask", die)
        with pytest.raises(Killed):
            lab.run(study_id)
    assert [trial.number for trial in read_trials(lab.storage, "s")] == [0]
    assert rows(lab) == {}
    lab.crash()
    lab.rounds(lambda: bool(rows(lab)))
    assert rebuild_all(lab.database, lab.storage) == 0
    lab.run(study_id)
    assert_as_told(lab)


def test_a_large_study_keeps_the_importance_of_its_hyperparameters(
    make_lab: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(leased_study, "LARGE", 12)
    lab = make_lab(cpus=3)
    study_id = lab.submit()
    lab.run(study_id)
    kept = lab.study(study_id).importance
    assert kept is not None
    with lab.database.read() as session:
        study = session.get_one(Study, study_id)
        assert kept["trials"] == results.count_eligible(session, study) == 12
        assert get_importance(session, lab.storage, study).model_dump(mode="json") == kept
    assert find_importance(lab.storage, "s", read_definition(study)).model_dump(mode="json") == kept


def test_a_large_study_ends_also_where_its_importance_cannot_be_found(
    make_lab: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(*_: object) -> None:
        raise ZeroDivisionError

    monkeypatch.setattr(leased_study, "LARGE", 2)
    monkeypatch.setattr(queries, "find_importance", broken)
    lab = make_lab(cpus=3)
    study_id = lab.submit()
    lab.run(study_id)
    study = lab.study(study_id)
    assert (study.state, study.importance) == (StudyState.COMPLETED, None)
