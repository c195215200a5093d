"""A connection to Optuna's storage that breaks after a commit and before its answer: all is written once."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import optuna
import pytest
from sqlalchemy import event

from search_spaces.definition import StudyDefinition
from search_spaces.parsing.document import parse_definition
from service.optuna_store.asking import ask, ask_repeat
from service.optuna_store.fences import fenced, raise_fence
from service.optuna_store.reporting import report
from service.optuna_store.storage import Storage, StorageInternalError
from service.optuna_store.studies import ensure_study, load_study, read_trials
from service.optuna_store.telling import tell
from service.states import AttemptState

Make = Callable[..., dict[str, Any]]
Asked = tuple[int, dict[str, Any]]


@contextmanager
def losing_an_answer(storage: Storage) -> Iterator[list[str]]:
    """The first commit of a transaction that wrote succeeds, and its client hears that it failed.

    Gives what that transaction wrote.
    """
    dialect = storage.engine.dialect
    commit = dialect.do_commit
    written: list[str] = []
    lost: list[str] = []

    def note(_connection: Any, _cursor: Any, statement: str, *_: Any) -> None:
        if statement.startswith(("INSERT", "UPDATE")):
            written.append(statement)

    def lose(connection: Any) -> None:
        commit(connection)
        if written and not lost:
            lost.extend(written)
            raise dialect.loaded_dbapi.OperationalError("the connection was closed unexpectedly")

    event.listen(storage.engine, "after_cursor_execute", note)
    dialect.do_commit = lose  # type: ignore[method-assign]
    try:
        yield lost
    finally:
        dialect.do_commit = commit  # type: ignore[method-assign]
        event.remove(storage.engine, "after_cursor_execute", note)


@pytest.fixture(autouse=True)
def no_pauses(monkeypatch: pytest.MonkeyPatch) -> None:
    """Optuna waits for up to 2 s before it tries a creation again."""
    monkeypatch.setattr("optuna.storages._rdb.storage.time.sleep", lambda _: None)


@pytest.fixture
def wanted(definition: Make) -> StudyDefinition:
    return parse_definition(definition())


@pytest.fixture
def held(storage: Storage) -> Iterator[Callable[[str], Storage]]:
    """A storage as the holder of a study's lease has it."""
    made = []

    def hold(name: str) -> Storage:
        raise_fence(storage, name, number=1, owner="me")
        made.append(fenced(storage, name, number=1, owner="me"))
        return made[-1]

    yield hold
    for one in made:
        one.remove_session()


def ask_three(study: optuna.Study, wanted: StudyDefinition) -> list[Asked]:
    return [ask(study, wanted) for _ in range(3)]


def test_a_trial_whose_creation_was_not_answered_is_created_once(
    storage: Storage, held: Callable[[str], Storage], wanted: StudyDefinition
) -> None:
    calm = ask_three(ensure_study(held("calm"), "calm", wanted), wanted)
    study = ensure_study(held("a"), "a", wanted)
    with losing_an_answer(storage) as lost:
        asked = ask_three(study, wanted)
    assert any("INTO trials" in statement for statement in lost)
    assert asked == calm
    assert [trial.number for trial in study.trials] == [0, 1, 2]


def test_a_repeat_whose_creation_was_not_answered_is_created_once(
    storage: Storage, held: Callable[[str], Storage], wanted: StudyDefinition
) -> None:
    study = ensure_study(held("a"), "a", wanted)
    ask(study, wanted)
    with losing_an_answer(storage) as lost:
        number, _ = ask_repeat(study, wanted, of=0, seed=43)
    assert lost
    assert number == 1
    assert [trial.number for trial in study.trials] == [0, 1]


def test_another_asker_at_the_same_time_makes_no_trial_with_a_number_that_it_was_not_drawn_for(
    storage: Storage,
    held: Callable[[str], Storage],
    wanted: StudyDefinition,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """A fence that was raised without need, say: both hold it, and the second one draws for number 0 too."""
    first, second = held("a"), held("a")
    study = ensure_study(first, "a", wanted)
    other = load_study(second, "a")
    expected = ask(study, wanted)
    stale: list[list[Any]] = [[]]
    read = other.get_trials
    monkeypatch.setattr(other, "get_trials", lambda *a, **k: stale.pop() if stale else read(*a, **k))
    assert ask(other, wanted) == expected
    assert not stale
    assert [trial.number for trial in study.trials] == [0]


def test_a_rung_and_an_end_whose_answers_were_lost_are_written_once_when_tried_again(
    storage: Storage, held: Callable[[str], Storage], wanted: StudyDefinition
) -> None:
    study = ensure_study(held("a"), "a", wanted)
    ask(study, wanted)
    writes: list[Callable[[], object]] = [
        lambda: report(study, 0, 100, 0.5),
        lambda: tell(study, 0, AttemptState.COMPLETED, "done", value=0.5),
    ]
    for write in writes:
        with losing_an_answer(storage) as lost, pytest.raises(StorageInternalError):
            write()
        assert lost
        write()
    (trial,) = read_trials(storage, "a")
    assert (trial.value, trial.rungs, trial.state) == (0.5, ((100, 0.5),), "complete")
