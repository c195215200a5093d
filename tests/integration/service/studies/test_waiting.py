"""What the API says of studies that no coordinator works on, on both databases."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

from sqlalchemy import select, update
from starlette.testclient import TestClient

from service.db.database import Database, database_now
from service.db.kinds import StudyKind
from service.db.models import EventRow, Study
from service.db.transitions import advance_study
from service.devices import heartbeats
from service.states import READING, StudyState
from tests.support.service.api import Make

START = (
    "Start one with `nightsweep serve` or `nightsweep coordinator`"
    "; if one is running, /readyz says what is wrong"
)


def reason(client: TestClient) -> str:
    """The study's, which is the same in the list."""
    shown = client.get("/v1/studies/support-tone").json()["reason"]
    assert [item["reason"] for item in client.get("/v1/studies").json()["items"]] == [shown]
    return str(shown)


def grow_quiet(database: Database, how_long: timedelta = timedelta(minutes=5)) -> None:
    """Nothing has been written for a while."""
    long_ago = datetime.now(UTC) - how_long
    database.transact(lambda session: session.execute(update(EventRow).values(at=long_ago)))


def beat(database: Database) -> None:
    """A coordinator lives."""
    database.transact(lambda session: heartbeats.beat(session, "c1"))


def run(database: Database, *, lease_seconds: float | None, owner: str | None = "c1") -> None:
    """A coordinator has taken the study up."""
    with database.write() as session:
        study = session.scalars(select(Study)).one()
        advance_study(session, study, StudyState.RUNNING, "training")
        study.lease_owner = owner
        if lease_seconds is not None:
            study.lease_expires_at = database_now(session) + timedelta(seconds=lease_seconds)


def test_a_study_that_was_just_submitted_waits_for_a_coordinator(
    client: TestClient, definition: Make
) -> None:
    client.post("/v1/studies", json=definition())
    assert reason(client) == "waiting for a coordinator"


def test_a_study_that_nobody_takes_says_that_no_coordinator_is_running(
    client: TestClient, definition: Make, service_database: Database
) -> None:
    client.post("/v1/studies", json=definition())
    grow_quiet(service_database)
    assert reason(client) == f"waiting for a coordinator: none is running. {START}"


def test_a_limit_is_no_reason_any_more_once_the_coordinator_that_named_it_is_gone(
    client: TestClient, definition: Make, service_database: Database
) -> None:
    client.post("/v1/studies", json=definition())
    words = "waiting: 4 studies are running, which is the limit"
    service_database.transact(lambda session: session.execute(update(Study).values(reason=words)))
    assert reason(client) == words
    grow_quiet(service_database)
    assert reason(client) == f"waiting for a coordinator: none is running. {START}"


def test_while_a_coordinator_lives_what_it_wrote_stands_however_long_it_takes(
    client: TestClient, definition: Make, service_database: Database
) -> None:
    client.post("/v1/studies", json=definition())
    service_database.transact(lambda session: session.execute(update(Study).values(reason=READING)))
    beat(service_database)
    grow_quiet(service_database, timedelta(hours=1))
    assert reason(client) == READING
    service_database.transact(lambda session: heartbeats.end(session, "c1"))
    assert reason(client) == f"waiting for a coordinator: none is running. {START}"


def test_a_study_whose_range_test_is_paused_waits_for_that_and_not_for_a_coordinator(
    client: TestClient, definition: Make, service_database: Database
) -> None:
    client.post("/v1/studies", json=definition())
    with service_database.write() as session:
        test = Study(name="lr", definition={}, kind=StudyKind.RANGE_TEST, state="paused", reason="no GPU")
        session.add(test)
        session.flush()
        session.scalars(select(Study).where(Study.name == "support-tone")).one().range_test_id = test.id
    grow_quiet(service_database)
    shown = client.get("/v1/studies/support-tone").json()["reason"]
    assert shown == "waiting for its learning-rate range test lr, which is paused: no GPU"


def test_a_running_study_that_is_held_says_what_its_coordinator_wrote(
    client: TestClient, definition: Make, service_database: Database
) -> None:
    client.post("/v1/studies", json=definition())
    run(service_database, lease_seconds=60)
    beat(service_database)
    grow_quiet(service_database)
    assert reason(client) == "training"


def test_a_running_study_whose_coordinator_died_says_since_when(
    client: TestClient, definition: Make, service_database: Database
) -> None:
    client.post("/v1/studies", json=definition())
    run(service_database, lease_seconds=-90)
    with service_database.read() as session:
        since = session.scalars(select(Study.lease_expires_at)).one()
    assert since is not None
    silent = (
        f"waiting for a coordinator: the one that ran it has not answered since {since:%Y-%m-%d %H:%M:%S} UTC"
    )
    assert reason(client) == silent
    grow_quiet(service_database)
    assert reason(client) == f"{silent}; none is running. {START}"


def test_a_running_study_whose_coordinator_was_stopped_says_so(
    client: TestClient, definition: Make, service_database: Database
) -> None:
    client.post("/v1/studies", json=definition())
    run(service_database, lease_seconds=None, owner=None)
    grow_quiet(service_database)
    assert reason(client) == (
        f"waiting for a coordinator: the one that ran it has stopped; none is running. {START}"
    )


def test_studies_that_wait_for_nobody_keep_their_reason(
    client: TestClient, definition: Make, service_database: Database
) -> None:
    client.post("/v1/studies", json=definition())
    client.post("/v1/studies/support-tone/pause")
    grow_quiet(service_database)
    assert reason(client) == "paused on request"
