"""A coordinator that was frozen beyond its lease and wakes: no write of it reaches Optuna's storage."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import optuna
import pytest
from optuna.trial import TrialState
from sqlalchemy import Engine, MetaData, event, select

from search_spaces.definition import StudyDefinition
from search_spaces.parsing.document import parse_definition
from service.errors import LeaseLost
from service.optuna_store.asking import ask, ask_repeat, complete_ask, drop_orphan
from service.optuna_store.fences import fenced, raise_fence
from service.optuna_store.reporting import report, should_prune
from service.optuna_store.storage import Storage
from service.optuna_store.studies import ensure_study, load_study, read_trials
from service.optuna_store.telling import tell
from service.states import AttemptState

Make = Callable[..., dict[str, Any]]
Write = Callable[[Storage, optuna.Study, StudyDefinition], object]

HALVING: dict[str, Any] = {
    "pruning": {"algorithm": "asha", "min_examples": 100, "reduction_factor": 2, "n_min_trials": 1},
    "evaluation": {"every_examples": 100},
}


def _ensure(storage: Storage, _: optuna.Study, wanted: StudyDefinition) -> None:
    ensure_study(storage, "never-made", wanted, study_id="x")


def _rename(storage: Storage, _: optuna.Study, wanted: StudyDefinition) -> None:
    ensure_study(storage, "a", wanted, study_id="another")


WRITES: dict[str, Write] = {
    "make the study": _ensure,
    "change the study": _rename,
    "ask": lambda _, study, wanted: ask(study, wanted),
    "ask for a repeat": lambda _, study, wanted: ask_repeat(study, wanted, of=0, seed=43),
    "complete an ask": lambda _, study, wanted: complete_ask(study, wanted, 3),
    "drop a stray": lambda _, study, __: drop_orphan(study, 1),
    "report": lambda _, study, __: report(study, 1, 200, 1.0),
    "judge": lambda _, study, wanted: should_prune(study, wanted, 2, 800),
    "tell": lambda _, study, __: tell(study, 1, AttemptState.COMPLETED, "done", value=1.0),
}


@pytest.fixture
def wanted(definition: Make) -> StudyDefinition:
    return parse_definition(definition(**HALVING))


@pytest.fixture
def held(storage: Storage, wanted: StudyDefinition) -> Iterator[Storage]:
    """A storage as the holder of the lease 1 has it, with a study of four trials, the last without values."""
    mine = _held(storage)
    study = ensure_study(mine, "a", wanted, study_id="x")
    for number in range(3):
        ask(study, wanted)
        report(study, number, 100, 1.0 + number)
    tell(study, 0, AttemptState.COMPLETED, "done", value=1.0)
    study.ask()
    yield mine
    mine.remove_session()


def _held(storage: Storage, name: str = "a") -> Storage:
    assert raise_fence(storage, name, number=1, owner="frozen") is None
    return fenced(storage, name, number=1, owner="frozen")


@contextmanager
def _overtaken(storage: Storage, name: str, number: int) -> Iterator[list[str]]:
    """The next write is frozen after its first statement until another has raised the fence."""
    frozen: list[str] = []

    def freeze(_connection: Any, _cursor: Any, statement: str, *_: Any) -> None:
        if not frozen and statement.startswith(("INSERT", "UPDATE")) and "fences" not in statement:
            frozen.append(statement)
            raise_fence(storage, name, number=number, owner="awake")

    event.listen(storage.engine, "after_cursor_execute", freeze)
    try:
        yield frozen
    finally:
        event.remove(storage.engine, "after_cursor_execute", freeze)


def _rows(engine: Engine) -> dict[str, list[Any]]:
    """Everything in Optuna's tables, beside the fences."""
    tables = MetaData()
    tables.reflect(engine)
    with engine.connect() as connection:
        return {
            table.name: sorted(map(repr, connection.execute(select(table))))
            for table in tables.sorted_tables
            if table.name != "nightsweep_fences"
        }


def test_no_write_lands_after_another_took_the_lease(
    storage: Storage, held: Storage, wanted: StudyDefinition
) -> None:
    study, newcomer = load_study(held, "a"), _held(storage, "never-made")
    before = _rows(storage.engine)
    for name in ("a", "never-made"):
        assert raise_fence(storage, name, number=2, owner="awake") is None
    for what, write in WRITES.items():
        with pytest.raises(LeaseLost, match="lease 1 on study"):
            write(newcomer if what == "make the study" else held, study, wanted)
        assert _rows(storage.engine) == before, what


# SQLite has no such moment: a transaction that writes holds the lock of the whole file.
@pytest.mark.parametrize("backend", ["postgresql"], indirect=True)
def test_no_write_lands_when_the_freeze_was_in_the_middle_of_its_transaction(
    storage: Storage, held: Storage, wanted: StudyDefinition
) -> None:
    """It has written and not committed when the lease goes over."""
    before = _rows(storage.engine)
    for place, (what, write) in enumerate(WRITES.items()):
        name = "never-made" if what == "make the study" else "a"
        number = 2 + 2 * place
        raise_fence(storage, name, number=number, owner="frozen")
        mine = fenced(storage, name, number=number, owner="frozen")
        study = load_study(mine, "a")
        with _overtaken(storage, name, number + 1) as frozen, pytest.raises(LeaseLost):
            write(mine, study, wanted)
        mine.remove_session()
        assert frozen, what
        assert _rows(storage.engine) == before, what


def test_a_fence_is_not_raised_past_a_write_that_has_looked_at_it(storage: Storage, held: Storage) -> None:
    """So whoever raised it sees what the earlier holder has written."""
    study = load_study(held, "a")
    looked, raised = threading.Event(), threading.Event()

    def raise_it() -> None:
        raise_fence(storage, "a", number=2, owner="awake")
        raised.set()

    taker = threading.Thread(target=raise_it)
    was_raised_before_the_commit = []

    def pause(_connection: Any, _cursor: Any, statement: str, *_: Any) -> None:
        if "nightsweep_fences" in statement and not looked.is_set():
            looked.set()
            taker.start()
            was_raised_before_the_commit.append(raised.wait(0.3))

    event.listen(storage.engine, "after_cursor_execute", pause)
    try:
        report(study, 1, 200, 0.5)
    finally:
        event.remove(storage.engine, "after_cursor_execute", pause)
    taker.join()
    assert was_raised_before_the_commit == [False]
    assert (200, 0.5) in read_trials(storage, "a")[1].rungs
    with pytest.raises(LeaseLost):
        report(study, 1, 300, 0.5)


def test_the_holder_writes_and_everybody_reads(
    storage: Storage, held: Storage, wanted: StudyDefinition
) -> None:
    study = load_study(held, "a")
    assert raise_fence(storage, "another", number=9, owner="awake") is None
    assert ask(study, wanted)[0] == 4
    raise_fence(storage, "a", number=2, owner="awake")
    assert len(read_trials(held, "a")) == 5  # reading needs no lease
    successor = fenced(storage, "a", number=2, owner="awake")
    assert ask(load_study(successor, "a"), wanted)[0] == 5
    assert [t.state for t in study.trials].count(TrialState.RUNNING) == 5


@pytest.mark.parametrize(
    ("number", "owner", "higher"),
    [(2, "b", None), (3, "b", None), (1, "b", 2), (2, "c", 2)],
    ids=["again", "higher", "lower", "of another with the same number"],
)
def test_a_fence_only_goes_up(storage: Storage, number: int, owner: str, higher: int | None) -> None:
    raise_fence(storage, "a", number=2, owner="b")
    assert raise_fence(storage, "a", number=number, owner=owner) == higher
    holder = fenced(storage, "a", number=number, owner=owner)
    may_write = owner == "b" and number >= 2
    if may_write:
        optuna.create_study(storage=holder, study_name="a")
    else:
        with pytest.raises(LeaseLost):
            optuna.create_study(storage=holder, study_name="a")
    holder.remove_session()


def test_a_storage_that_was_restored_without_its_fence_takes_no_write(
    storage: Storage, held: Storage
) -> None:
    """Its holder lets go, and with the next lease looks at what is there now."""
    study = load_study(held, "a")
    with storage.engine.begin() as connection:
        connection.exec_driver_sql("DELETE FROM nightsweep_fences")
    with pytest.raises(LeaseLost):
        report(study, 1, 200, 0.5)
