"""Leases on both databases: who may take which study."""

from __future__ import annotations

from datetime import timedelta

import pytest

from service.coordinator import leases
from service.database import Database, database_now
from service.errors import LeaseLost
from service.models import Study
from service.states import StudyState


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
