"""Transactions, clock, states and constraints, on both databases."""

from __future__ import annotations

import math
import threading
from datetime import UTC, datetime, timedelta

import pytest
from sqlalchemy import select, text
from sqlalchemy.exc import IntegrityError

from service.db.database import Database, database_now
from service.db.models import Attempt, Device, EventRow, Study
from service.db.transitions import advance_attempt, advance_study, append_event
from service.errors import IllegalTransition
from service.states import AttemptState, StudyState


def _study(name: str = "a") -> Study:
    return Study(id=name * 32, name=name, definition={})


def _attempt(study: Study, ordinal: int = 1, **columns: object) -> Attempt:
    return Attempt(
        study_id=study.id, trial_number=0, ordinal=ordinal, worker_id="w", artifact_dir="/a", **columns
    )


def test_the_databases_clock_is_utc_and_now(service_database: Database) -> None:
    with service_database.read() as session:
        told = database_now(session)
    assert told.utcoffset() == timedelta(0)
    assert abs(told - datetime.now(UTC)) < timedelta(seconds=5)


def test_the_databases_clock_moves_within_a_transaction(service_database: Database) -> None:
    with service_database.read() as session:
        first = database_now(session)
        deadline = datetime.now(UTC) + timedelta(seconds=5)
        while database_now(session) == first:
            assert datetime.now(UTC) < deadline


def test_times_come_back_aware_and_to_the_microsecond(service_database: Database) -> None:
    at = datetime(2026, 3, 29, 1, 30, 0, 123456, tzinfo=UTC)
    with service_database.write() as session:
        study = _study()
        study.started_at = at
        session.add(study)
    with service_database.read() as session:
        assert session.scalars(select(Study)).one().started_at == at


def test_writers_wait_for_each_other_and_lose_nothing(service_database: Database) -> None:
    """Each reads, then writes: the pattern that fails at once with SQLite's deferred transactions."""
    with service_database.write() as session:
        session.add(_study())

    def count_up() -> None:
        for _ in range(10):
            with service_database.write() as session:
                study = session.scalars(select(Study).with_for_update()).one()
                study.lease_number += 1

    threads = [threading.Thread(target=count_up) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(timeout=60)
    with service_database.read() as session:
        assert session.scalars(select(Study)).one().lease_number == 40


def test_an_error_rolls_the_transaction_back(service_database: Database) -> None:
    def fail() -> None:
        with service_database.write() as session:
            session.add(_study())
            session.flush()
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        fail()
    with service_database.read() as session:
        assert session.scalars(select(Study)).all() == []


def test_foreign_keys_are_enforced(service_database: Database) -> None:
    with pytest.raises(IntegrityError), service_database.write() as session:
        session.add(_attempt(_study()))


def test_an_unknown_state_cannot_be_stored(service_database: Database) -> None:
    study = _study()
    study.state = "sleeping"
    with pytest.raises(IntegrityError), service_database.write() as session:
        session.add(study)


def test_a_trial_has_at_most_one_live_attempt(service_database: Database) -> None:
    with service_database.write() as session:
        study = _study()
        session.add(study)
        session.flush()
        session.add(_attempt(study))
    with pytest.raises(IntegrityError), service_database.write() as session:
        session.add(_attempt(study, ordinal=2))
    with service_database.write() as session:
        advance_attempt(session, session.scalars(select(Attempt)).one(), AttemptState.LOST, "node gone")
        session.flush()
        session.add(_attempt(study, ordinal=2))


def test_a_study_moves_along_the_table_and_says_why(service_database: Database) -> None:
    with service_database.write() as session:
        study = _study()
        session.add(study)
        session.flush()
        advance_study(session, study, StudyState.RUNNING, "taken up")
        advance_study(session, study, StudyState.COMPLETED, "all 4 trials ended")
    with service_database.read() as session:
        study = session.scalars(select(Study)).one()
        kinds = [(e.kind, e.message) for e in session.scalars(select(EventRow).order_by(EventRow.id))]
    assert (study.state, study.reason) == ("completed", "all 4 trials ended")
    assert study.started_at is not None
    assert study.ended_at is not None
    assert kinds == [("study_running", "taken up"), ("study_completed", "all 4 trials ended")]


def test_a_move_that_the_table_lacks_is_refused(service_database: Database) -> None:
    with service_database.write() as session:
        study = _study()
        session.add(study)
        session.flush()
        with pytest.raises(IllegalTransition, match="is queued and cannot become completed"):
            advance_study(session, study, StudyState.COMPLETED, "no")


def test_an_infinite_metric_is_stored_as_null(service_database: Database) -> None:
    with service_database.write() as session:
        study = _study()
        session.add(study)
        session.flush()
        session.add(_attempt(study, outcome={"metrics": {"perplexity": math.inf, "loss": 1.5}}))
    with service_database.read() as session:
        stored = session.scalars(select(Attempt)).one().outcome
    assert stored == {"metrics": {"perplexity": None, "loss": 1.5}}


def test_a_reason_that_is_no_clean_text_is_still_recorded(service_database: Database) -> None:
    with service_database.write() as session:
        study = _study()
        session.add(study)
        session.flush()
        append_event(session, study.id, "note", "a\x00b \udcff")
    with service_database.read() as session:
        assert session.scalars(select(EventRow)).one().message == r"a\x00b \udcff"


@pytest.mark.parametrize("text", ["a" * 5_000_000, "\x1b[31m" * 1000, "line\n" * 1000])
def test_reasons_and_events_are_bounded_and_printable(service_database: Database, text: str) -> None:
    """Wherever they come from: a state's change, an event, or a reason that is set directly."""
    with service_database.write() as session:
        study = _study()
        session.add(study)
        session.flush()
        advance_study(session, study, StudyState.FAILED, text)
        answered = study.reason
        session.add(Device(id="gpu", reason=text))
        session.add(EventRow(study_id=study.id, kind="note", message=text))
    with service_database.read() as session:
        stored = [
            session.scalars(select(Study)).one().reason,
            session.scalars(select(Device)).one().reason,
            *session.scalars(select(EventRow.message)),
        ]
    assert set(stored) == {answered}
    assert len(answered) == 2000
    assert answered.isprintable()


def test_readers_do_not_wait_for_a_writer(service_database: Database) -> None:
    with service_database.write() as writing:
        writing.add(_study())
        writing.flush()
        with service_database.read() as reading:
            assert reading.scalar(text("SELECT count(*) FROM studies")) == 0
