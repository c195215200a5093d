"""Leases on both databases: who may take which study."""

from __future__ import annotations

from datetime import timedelta

from service.coordinator import leases
from service.database import Database, database_now
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
