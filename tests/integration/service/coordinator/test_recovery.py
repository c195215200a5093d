"""What a taken lease repairs: every row of its table, twice, and through deaths in the middle."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import optuna
import pytest
from optuna.trial import TrialState, create_trial
from sqlalchemy import Engine, MetaData, Table, event, select

from search_spaces.definition import StudyDefinition
from search_spaces.parsing.document import parse_definition
from search_spaces.sampling.history import DRAWN_FOR_KEY, SUGGESTION_KEY
from service import optuna_store
from service.coordinator import leases
from service.coordinator.study.leased_study import LeasedStudy
from service.coordinator.study.recovery import SENTENCES, TABLE, Repair, reconcile
from service.db.database import Database
from service.db.models import Attempt, EventRow, Study
from service.db.transitions import advance_attempt, advance_study, append_event
from service.errors import Inconsistent
from service.maintenance import integrity
from service.optuna_store.fences import raise_fence
from service.optuna_store.storage import Storage
from service.optuna_store.studies import ensure_study
from service.optuna_store.values import TrialCondition
from service.states import LIVE_ATTEMPT_STATES, AttemptState, LossCause, StudyState
from tests.support.checkout import ROOT

Make = Callable[..., dict[str, Any]]
Pair = tuple[TrialCondition, AttemptState | None]
PAGE = ROOT / "docs" / "reference" / "recovery.md"

TOLD_AS = {
    AttemptState.COMPLETED: "complete",
    AttemptState.PRUNED: "pruned",
    AttemptState.DIVERGED: "pruned",
    AttemptState.OUT_OF_MEMORY: "pruned",
    AttemptState.FAILED: "fail",
    AttemptState.CANCELLED: "fail",
}


class Killed(BaseException):
    """The process ends here. Nothing of ours catches it."""


class Ruins:
    """Makes studies that somebody left half done."""

    def __init__(self, database: Database, storage: Storage, definition: Make) -> None:
        self.database = database
        self.storage = storage
        self._definition = definition
        self._tables: list[tuple[str, Engine, list[Table]]] = []
        for place, engine in (("service", database.engine), ("optuna", storage.engine)):
            found = MetaData()
            found.reflect(engine)
            self._tables.append((place, engine, found.sorted_tables))

    def study(self, name: str, pairs: list[Pair], *, by_event: bool = False) -> LeasedStudy:
        """A study whose trial n is in the n-th condition, and its last attempt in the state beside it.

        Args:
            name: the study's.
            pairs: one for each trial.
            by_event: trials that are recorded as failed or cancelled were so without an attempt.
        """
        document = {**self._definition(), "name": name}
        document["search"] = {**document["search"], "trials": len(pairs)}
        wanted = parse_definition(document)
        with self.database.write() as session:
            row = Study(name=name, definition=wanted.model_dump(mode="json"))
            session.add(row)
            session.flush()
            advance_study(session, row, StudyState.RUNNING, "a coordinator has started it")
            for number, (_, state) in enumerate(pairs):
                self._record(session, row.id, number, state, by_event=by_event)
        study = ensure_study(self.storage, name, wanted, study_id=row.id)
        for number, (condition, state) in enumerate(pairs):
            _ask(study, wanted, number, condition, state)
        return self.take(row.id)

    def _record(
        self, session: Any, study_id: str, number: int, state: AttemptState | None, *, by_event: bool
    ) -> None:
        if state is None:
            return
        if by_event and state in (AttemptState.FAILED, AttemptState.CANCELLED):
            append_event(session, study_id, f"trial_{state}", f"it {state}", trial_number=number)
            return
        attempt = Attempt(study_id=study_id, trial_number=number, ordinal=1, worker_id="w", artifact_dir="/a")
        session.add(attempt)
        session.flush()
        append_event(session, study_id, "attempt_dispatched", "sent to w", trial_number=number)
        if state is AttemptState.COMPLETED:
            attempt.outcome = {"value": 1.0}
        if state is AttemptState.LOST:
            attempt.loss_cause = LossCause.NODE_DIED
        if state is not AttemptState.DISPATCHED:
            advance_attempt(session, attempt, AttemptState.RUNNING, "training")
        if state not in LIVE_ATTEMPT_STATES:
            advance_attempt(session, attempt, state, f"it {state}")

    def take(self, study_id: str) -> LeasedStudy:
        """Hold a study under a new lease."""
        with self.database.write() as session:
            session.get_one(Study, study_id).lease_owner = None
            session.flush()
            taken = leases.take(session, owner="me", seconds=600, limit=0)
        [lease] = [lease for lease in taken if lease.study_id == study_id]
        return LeasedStudy(lease=lease, database=self.database, storage=self.storage)

    def rows(self) -> dict[str, list[str]]:
        """Everything in both databases."""
        found = {}
        for place, engine, tables in self._tables:
            with engine.connect() as connection:
                for table in tables:
                    found[f"{place}.{table.name}"] = sorted(map(repr, connection.execute(select(table))))
        return found

    def trial(self, name: str, number: int = 0) -> optuna.trial.FrozenTrial | None:
        trials = optuna.load_study(study_name=name, storage=self.storage).trials
        return trials[number] if number < len(trials) else None

    def attempt_states(self, study_id: str) -> list[str]:
        with self.database.read() as session:
            found = select(Attempt.state).where(Attempt.study_id == study_id)
            return list(session.scalars(found.order_by(Attempt.trial_number)))

    def events(self, study_id: str) -> list[tuple[str, int | None, str]]:
        with self.database.read() as session:
            found = select(EventRow).where(EventRow.study_id == study_id).order_by(EventRow.id)
            return [(row.kind, row.trial_number, row.message) for row in session.scalars(found)]


def _ask(
    study: optuna.Study,
    wanted: StudyDefinition,
    number: int,
    condition: TrialCondition,
    state: AttemptState | None,
) -> None:
    """A trial in a condition, which fits the state as well as it can."""
    match condition:
        case TrialCondition.MISSING:
            return
        case TrialCondition.ORPHANED:
            stray = create_trial(state=TrialState.RUNNING, system_attrs={DRAWN_FOR_KEY: number + 1})
            study._storage.create_new_trial(study._study_id, template_trial=stray)
        case TrialCondition.INCOMPLETE:
            study.ask()  # its asker died before it drew anything
        case TrialCondition.RUNNING:
            optuna_store.ask(study, wanted)
        case TrialCondition.COMPLETE:
            optuna_store.ask(study, wanted)
            optuna_store.tell(study, number, AttemptState.COMPLETED, "it completed", value=1.0)
        case TrialCondition.PRUNED:
            optuna_store.ask(study, wanted)
            told = state if state is not None and TOLD_AS.get(state) == "pruned" else AttemptState.PRUNED
            optuna_store.tell(study, number, told, f"it {told}")
        case TrialCondition.FAILED:
            optuna_store.ask(study, wanted)
            told = state if state is not None and TOLD_AS.get(state) == "fail" else AttemptState.FAILED
            optuna_store.tell(study, number, told, f"it {told}")


@pytest.fixture
def ruins(service_database: Database, storage: Storage, definition: Make) -> Ruins:
    return Ruins(service_database, storage, definition)


def test_every_pair_has_its_row_and_every_repair_its_sentence() -> None:
    assert set(TABLE) == set(TrialCondition)
    assert all(set(row) == {None, *AttemptState} for row in TABLE.values())
    assert {repair for row in TABLE.values() for repair in row.values()} == set(Repair) == set(SENTENCES)


def test_the_table_in_the_docs_is_the_one_in_the_code() -> None:
    lines = PAGE.read_text().splitlines()
    rows = [[cell.strip(" `") for cell in line.strip("|").split("|")] for line in lines if line[:2] == "| "]
    written = {(row[0], row[1]): row[2] for row in rows if len(row) == 3 and row[0] in set(TrialCondition)}
    assert written == {
        (str(condition), "none" if state is None else str(state)): str(repair)
        for condition, row in TABLE.items()
        for state, repair in row.items()
    }
    said = {row[0]: row[1] for row in rows if len(row) == 2 and row[0] in set(Repair)}
    assert said == {str(repair): sentence for repair, sentence in SENTENCES.items()}


@pytest.mark.parametrize("condition", TrialCondition)
def test_each_pair_is_repaired_as_its_row_says_and_only_once(ruins: Ruins, condition: TrialCondition) -> None:
    for state, repair in TABLE[condition].items():
        what = f"{condition}-{state}"
        study = ruins.study(what, [(condition, state)])
        before = ruins.rows()
        if repair is Repair.HALT:
            with pytest.raises(Inconsistent, match=f"trial 0 is {condition} in Optuna's storage and {state}"):
                reconcile(study)
            assert ruins.rows() == before, what
            _forget(ruins, study)
            continue
        reconcile(study)
        after = ruins.rows()
        changed = {table for table in after if after[table] != before[table]} - {"service.trials"}
        _check(ruins, study, repair, state, changed)
        reconcile(study)
        assert ruins.rows() == after, f"{what}: a second time"
    found = integrity.read_violations(ruins.database.engine, ruins.storage.engine)
    kept = {f"{condition}-{state}" for state, repair in TABLE[condition].items() if repair is Repair.KEEP}
    assert {violation.study for violation in found} <= kept, found


def _forget(ruins: Ruins, study: LeasedStudy) -> None:
    """A study that was halted is torn, as the invariants would say."""
    with ruins.database.write() as session:
        session.delete(session.get_one(Study, study.study_id))
    optuna.delete_study(study_name=study.name, storage=ruins.storage)


def _check(
    ruins: Ruins,
    study: LeasedStudy,
    repair: Repair,
    state: AttemptState | None,
    changed: set[str],
) -> None:
    what, trial, events = study.name, ruins.trial(study.name), ruins.events(study.study_id)
    match repair:
        case Repair.NOTHING | Repair.WAIT | Repair.FOLLOW | Repair.KEEP:
            assert changed == set(), what
        case Repair.TELL:
            assert trial is not None
            assert state is not None
            assert (trial.state.name.lower(), trial.user_attrs["outcome"]) == (TOLD_AS[state], state), what
            assert trial.user_attrs["reason"] == f"it {state}"
            assert trial.value == (1.0 if state is AttemptState.COMPLETED else None)
            assert study.ends[0].outcome is state
            assert all(table.startswith("optuna.") for table in changed), what
        case Repair.COMPLETE:
            assert trial is not None
            assert trial.state is TrialState.RUNNING
            assert set(trial.params) == set(trial.system_attrs[SUGGESTION_KEY]) == set(study.asked[0].params)
            assert all(table.startswith("optuna.") for table in changed), what
        case Repair.DROP:
            assert trial is not None
            assert trial.state is TrialState.FAIL
            assert study.asked == study.ends == {}
        case Repair.RECORD | Repair.CLOSE:
            assert trial is not None
            told = trial.user_attrs["outcome"]
            assert events[-1][:2] == (f"trial_{told}", 0), what
            assert study.ends[0].outcome is AttemptState(told)
            assert all(table.startswith("service.") for table in changed), what
            expected = [AttemptState.LOST] if repair is Repair.CLOSE else [state] if state else []
            assert ruins.attempt_states(study.study_id) == expected
        case _:
            raise AssertionError(repair)


REPAIRED: list[Pair] = list(
    {
        (condition, repair): (condition, state)
        for condition, row in TABLE.items()
        for state, repair in row.items()
        if repair is not Repair.HALT and condition is not TrialCondition.MISSING
    }.values()
)
"""A pair for every repair of every condition."""


@pytest.mark.parametrize("by_event", [False, True], ids=["attempts", "events"])
def test_deaths_in_the_middle_change_nothing(ruins: Ruins, by_event: bool) -> None:
    """One study with a trial of every kind is repaired by coordinators that die, each a statement later."""
    completed = (TrialCondition.RUNNING, AttemptState.COMPLETED)
    calm = ruins.study("calm", [*REPAIRED, completed], by_event=by_event)
    reconcile(calm)
    stormy = ruins.study("stormy", [*REPAIRED, completed], by_event=by_event)
    deaths = 0
    while True:
        try:
            with _dying(ruins, at=deaths + 1):
                reconcile(stormy)
            break
        except Killed:
            deaths += 1
            stormy = ruins.take(stormy.study_id)
    assert deaths >= 5
    assert _outcome(ruins, stormy) == _outcome(ruins, calm)
    assert stormy.ends == calm.ends
    assert stormy.asked == calm.asked


@contextmanager
def _dying(ruins: Ruins, *, at: int) -> Iterator[None]:
    """The process ends before the n-th statement that changes something."""
    changes = 0

    def die(_connection: Any, _cursor: Any, statement: str, *_: Any) -> None:
        nonlocal changes
        if statement.startswith(("INSERT", "UPDATE", "DELETE")):
            changes += 1
            if changes == at:
                raise Killed

    engines = (ruins.database.writing, ruins.storage.engine)
    for engine in engines:
        event.listen(engine, "before_cursor_execute", die)
    try:
        yield
    finally:
        for engine in engines:
            event.remove(engine, "before_cursor_execute", die)


def _outcome(ruins: Ruins, study: LeasedStudy) -> tuple[Any, ...]:
    """What has become of a study, without times and ids."""
    trials = optuna.load_study(study_name=study.name, storage=ruins.storage).trials
    told = [(t.number, t.state, t.values, t.params, t.user_attrs, t.system_attrs) for t in trials]
    return told, ruins.attempt_states(study.study_id), sorted(map(repr, ruins.events(study.study_id)))


def test_an_end_without_an_attempt_is_told_with_its_reason(ruins: Ruins) -> None:
    """Its coordinator died between recording it and telling Optuna."""
    study = ruins.study("a", [(TrialCondition.RUNNING, AttemptState.CANCELLED)], by_event=True)
    reconcile(study)
    trial = ruins.trial("a")
    assert trial is not None
    assert (trial.state, trial.user_attrs) == (
        TrialState.FAIL,
        {"outcome": "cancelled", "reason": "it cancelled"},
    )


def test_an_ask_for_which_nothing_is_left_is_recorded_and_told_as_cancelled(ruins: Ruins) -> None:
    from search_spaces.errors import SearchSpaceExhausted

    study = ruins.study("a", [(TrialCondition.INCOMPLETE, None)])

    def refuse(*_: Any) -> None:
        raise SearchSpaceExhausted("all 4 configurations have had their trials")

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(optuna_store, "complete_ask", refuse)
        reconcile(study)
    reason = "it has no configuration: all 4 configurations have had their trials"
    assert ruins.events(study.study_id)[-1] == ("trial_cancelled", 0, reason)
    assert study.exhausted
    after = ruins.rows()
    reconcile(study)
    assert ruins.rows() == after


def test_somebody_elses_word_to_optuna_counts_as_an_end(ruins: Ruins) -> None:
    """The dashboard's or a script's: it says no outcome of ours."""
    study = ruins.study("a", [(TrialCondition.RUNNING, None)])
    study.optuna.tell(0, state=TrialState.FAIL)
    reconcile(study)
    assert study.ends[0].outcome is AttemptState.FAILED
    assert ruins.events(study.study_id)[-1][:2] == ("trial_failed", 0)


@pytest.mark.parametrize("behind", [0, 5])
def test_a_lease_number_from_a_backup_is_raised_above_the_fence(ruins: Ruins, behind: int) -> None:
    study = ruins.study("a", [(TrialCondition.RUNNING, None)])
    standing = study.lease.number + behind
    raise_fence(ruins.storage, "a", number=standing, owner="of the time before the restore")
    successor = ruins.take(study.study_id)
    assert successor.lease.number == standing + 1
    assert successor.ask() == 0
    with ruins.database.read() as session:
        assert session.get_one(Study, study.study_id).lease_number == standing + 1
