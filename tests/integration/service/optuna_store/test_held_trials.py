"""What the holder of a lease has in memory of a study's trials, against what the database has."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import optuna
import pytest
from optuna.storages import RDBStorage
from sqlalchemy import event

from search_spaces.definition import StudyDefinition
from search_spaces.parsing.document import parse_definition
from service.optuna_store.asking import ask, ask_repeat, complete_ask, conditions
from service.optuna_store.held_trials import HeldTrials
from service.optuna_store.reporting import report, should_prune
from service.optuna_store.storage import Storage
from service.optuna_store.studies import ensure_study, frozen_trial, load_study
from service.optuna_store.telling import tell
from service.states import AttemptState

Make = Callable[..., dict[str, Any]]


@pytest.fixture
def wanted(definition: Make) -> StudyDefinition:
    pruning = {"algorithm": "asha", "min_examples": 100, "reduction_factor": 2, "n_min_trials": 1}
    return parse_definition(definition(pruning=pruning, evaluation={"every_examples": 100}))


@pytest.fixture
def study(storage: Storage, wanted: StudyDefinition) -> Iterator[optuna.Study]:
    yield ensure_study(HeldTrials(storage), "a", wanted)
    storage.remove_session()


def seen(study: optuna.Study) -> list[dict[str, Any]]:
    """All that is known of each trial, but for when it began and ended, which nobody looks at."""
    hidden = {"_datetime_start", "datetime_complete"}
    return [
        {name: value for name, value in vars(trial).items() if name not in hidden}
        for trial in study.get_trials(deepcopy=False)
    ]


def test_it_is_what_the_database_has_after_every_kind_of_write(
    storage: Storage, study: optuna.Study, wanted: StudyDefinition
) -> None:
    def check() -> None:
        assert seen(study) == seen(load_study(storage, "a"))

    check()
    for number in range(4):
        ask(study, wanted)
        for rung, value in ((100, 1.0 + number), (200, float("inf") if number == 3 else 0.5)):
            assert report(study, number, rung, value)
            should_prune(study, wanted, number, 800)
            check()
    tell(study, 0, AttemptState.COMPLETED, "done", value=0.5, violations={"perplexity": -1.0})
    check()
    tell(study, 1, AttemptState.OUT_OF_MEMORY, "no room")
    tell(study, 2, AttemptState.PRUNED, "behind")
    check()
    tell(study, 3, AttemptState.FAILED, "bad data")
    ask_repeat(study, wanted, of=0, seed=43)
    check()
    study.ask()  # without parameters, as an asker of an earlier version may have left one
    complete_ask(study, wanted, 5)
    check()
    assert {trial["state"].name for trial in seen(study)} == {"COMPLETE", "PRUNED", "FAIL", "RUNNING"}


def test_it_reads_the_trials_once(storage: Storage, study: optuna.Study, wanted: StudyDefinition) -> None:
    for _ in range(3):
        ask(study, wanted)
    statements: list[str] = []
    event.listen(storage.engine, "before_cursor_execute", lambda *given: statements.append(given[2]))
    for number in range(3):
        assert frozen_trial(study, number).number == number
    assert len(conditions(study)) == 3
    assert statements == []


def test_what_was_given_out_stays_as_it_was(study: optuna.Study, wanted: StudyDefinition) -> None:
    ask(study, wanted)
    before = frozen_trial(study, 0)
    report(study, 0, 100, 1.0)
    tell(study, 0, AttemptState.COMPLETED, "done", value=1.0)
    assert (before.intermediate_values, before.user_attrs, before.values) == ({}, {}, None)
    assert not before.state.is_finished()


def test_after_a_write_of_which_nobody_heard_it_looks_again(
    storage: Storage, study: optuna.Study, wanted: StudyDefinition, monkeypatch: pytest.MonkeyPatch
) -> None:
    ask(study, wanted)
    write = RDBStorage.set_trial_intermediate_value

    def unheard(*given: Any) -> None:
        write(*given)
        raise ConnectionError

    monkeypatch.setattr(RDBStorage, "set_trial_intermediate_value", unheard)
    with pytest.raises(ConnectionError):
        report(study, 0, 100, 1.0)
    assert frozen_trial(study, 0).intermediate_values == {100: 1.0}
    assert seen(study) == seen(load_study(storage, "a"))
