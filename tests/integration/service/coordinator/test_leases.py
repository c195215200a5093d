"""Leases on both databases: who may take which study."""

from __future__ import annotations

from datetime import timedelta

import pytest
from sqlalchemy import select

from service.coordinator import leases
from service.coordinator.chores.schedules import cancel_unstarted
from service.db.database import Database, database_now
from service.db.lease_times import LONGEST_LEASE_SECONDS
from service.db.models import EventRow, Study
from service.errors import LeaseLost
from service.states import StudyState
from service.studies.pauses import request_pause


def _add(database: Database, name: str, state: StudyState, *, held_for_s: float | None) -> str:
    with database.write() as session:
        study = Study(id=name, name=name, definition={}, state=state)
        if held_for_s is not None:
            study.lease_owner = "somebody"
            study.lease_expires_at = database_now(session) + timedelta(seconds=held_for_s)
        session.add(study)
    return name


def _take(database: Database, limit: int) -> list[str]:
    with database.write() as session:
        return [lease.study_id for lease in leases.take(session, owner="me", seconds=30, limit=limit)]


def test_queued_studies_are_taken_up_to_the_limit_oldest_first(service_database: Database) -> None:
    for name in ("a", "b", "c"):
        _add(service_database, name, StudyState.QUEUED, held_for_s=None)
    assert _take(service_database, 2) == ["a", "b"]
    assert _take(service_database, 0) == []
    assert _take(service_database, 2) == ["c"]


def test_a_running_study_that_nobody_holds_is_taken_whatever_the_limit(service_database: Database) -> None:
    _add(service_database, "queued", StudyState.QUEUED, held_for_s=None)
    _add(service_database, "expired", StudyState.RUNNING, held_for_s=-1)
    _add(service_database, "released", StudyState.RUNNING, held_for_s=None)
    _add(service_database, "held", StudyState.RUNNING, held_for_s=60)
    _add(service_database, "over", StudyState.COMPLETED, held_for_s=None)
    assert _take(service_database, 0) == ["expired", "released"]
    assert _take(service_database, 1) == ["queued"]


def test_a_coordinator_takes_its_own_lease_again_only_for_studies_it_let_go_of(
    service_database: Database,
) -> None:
    for name in ("a", "b"):
        _add(service_database, name, StudyState.RUNNING, held_for_s=None)
    assert _take(service_database, 0) == ["a", "b"]
    assert _take(service_database, 0) == []
    with service_database.write() as session:
        [again] = leases.take(session, owner="me", seconds=30, limit=0, in_hand=["a"])
    assert (again.study_id, again.number) == ("b", 2)
    with service_database.write() as session:
        assert leases.take(session, owner="another", seconds=30, limit=0, in_hand=[]) == []


def test_a_lease_that_was_taken_by_another_is_neither_held_nor_renewed_nor_outrun(
    service_database: Database,
) -> None:
    _add(service_database, "a", StudyState.RUNNING, held_for_s=None)
    with service_database.write() as session:
        [lease] = leases.take(session, owner="me", seconds=-1, limit=0)
        leases.take(session, owner="another", seconds=30, limit=0)
    for work in (
        lambda session: leases.hold(session, lease),
        lambda session: leases.renew(session, lease, seconds=30),
        lambda session: leases.outrun(session, lease, 7),
    ):
        with pytest.raises(LeaseLost, match="lease 1 on study a"):
            service_database.transact(work)
    service_database.transact(lambda session: leases.release(session, lease))
    with service_database.read() as session:
        study = session.get_one(Study, "a")
        assert (study.lease_owner, study.lease_number) == ("another", 2)


AHEAD = 7200.0
"""Seconds by which a clock was wrong when it gave a lease."""


def test_a_lease_of_a_clock_that_was_ahead_is_taken_and_told(service_database: Database) -> None:
    for name, state in (("queued", StudyState.QUEUED), ("running", StudyState.RUNNING)):
        _add(service_database, name, state, held_for_s=AHEAD)
    _add(service_database, "held", StudyState.RUNNING, held_for_s=LONGEST_LEASE_SECONDS - 30)
    assert sorted(_take(service_database, 2)) == ["queued", "running"]
    with service_database.read() as session:
        rows = session.execute(select(EventRow.study_id, EventRow.message).order_by(EventRow.study_id)).all()
        ends = session.get_one(Study, "running").lease_expires_at
        assert ends is not None
        assert ends <= database_now(session) + timedelta(seconds=30)
    assert [row.study_id for row in rows] == ["queued", "running"]
    assert "a clock was wrong" in rows[0].message


def test_a_lease_of_a_clock_that_was_ahead_does_not_keep_a_study_from_its_cancel_or_pause(
    service_database: Database,
) -> None:
    _add(service_database, "cancelled", StudyState.QUEUED, held_for_s=AHEAD)
    _add(service_database, "paused", StudyState.QUEUED, held_for_s=AHEAD)
    with service_database.write() as session:
        session.get_one(Study, "cancelled").cancel_requested = True
        request_pause(session, "paused")
    cancel_unstarted(service_database)
    with service_database.read() as session:
        assert session.get_one(Study, "cancelled").state == StudyState.CANCELLED
        assert session.get_one(Study, "paused").state == StudyState.PAUSED


def test_a_lease_in_hand_is_set_right_by_its_renewal_and_not_taken_from_oneself(
    service_database: Database,
) -> None:
    _add(service_database, "mine", StudyState.RUNNING, held_for_s=None)
    [_] = _take(service_database, 0)
    with service_database.write() as session:
        study = session.get_one(Study, "mine")
        study.lease_expires_at = database_now(session) + timedelta(seconds=AHEAD)
        session.flush()
        assert leases.take(session, owner="me", seconds=30, limit=0, in_hand=["mine"]) == []
        leases.renew(session, leases.Lease(study_id="mine", owner="me", number=1), seconds=30)
        session.flush()
        assert study.lease_expires_at <= database_now(session) + timedelta(seconds=30)
        assert leases.take(session, owner="another", seconds=30, limit=0, in_hand=[]) == []


def test_whoever_held_a_lease_of_a_wrong_clock_writes_nothing_once_it_was_taken(
    service_database: Database,
) -> None:
    _add(service_database, "a", StudyState.RUNNING, held_for_s=AHEAD)
    before = leases.Lease(study_id="a", owner="somebody", number=0)
    with service_database.write() as session:
        leases.hold(session, before)
    assert _take(service_database, 0) == ["a"]
    with service_database.write() as session, pytest.raises(LeaseLost):
        leases.renew(session, before, seconds=30)
