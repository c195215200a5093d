"""What one owner may have at a time, on both databases, and exactly that however many ask at once."""

from __future__ import annotations

import threading
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor, wait
from datetime import UTC, datetime, timedelta
from typing import Any

import httpx
import pytest
from sqlalchemy import event, select, update
from sqlalchemy.orm import Session
from starlette.testclient import TestClient

from service.access.keys import commands as keys
from service.app import create_app
from service.coordinator import leases
from service.coordinator.chores.fingerprints import FingerprintReader
from service.coordinator.chores.preparation import advance_stages
from service.coordinator.chores.schedules import fire_schedules
from service.db.database import Database, database_now
from service.db.models import EventRow, Schedule, Study
from service.db.transitions import advance_study
from service.optuna_store.storage import Storage
from service.schedules.sweeps import fire
from service.settings import Settings
from service.states import AttemptState, StudyState
from service.studies.limits import Limits
from tests.support.service.api import LOCAL, Make, expect_problem
from tests.support.service.database_lab import Lab

Submit = Callable[..., httpx.Response]


def _client(settings: Settings, **limits: int) -> TestClient:
    return TestClient(create_app(settings.model_copy(update=limits)), base_url=LOCAL)


@pytest.fixture
def search(definition: Make) -> Make:
    """A definition of some trials."""

    def make(name: str, trials: int = 4, **sections: Any) -> dict[str, Any]:
        whole = definition(name=name, **sections)
        whole["search"]["trials"] = trials
        return whole

    return make


def _limit(answer: httpx.Response, setting: str) -> tuple[str, Any, str]:
    problem = expect_problem(answer, 429)
    assert "retry-after" not in answer.headers  # nobody knows when a study will end
    (fault,) = problem["faults"]
    assert fault["path"] == f"limits.{setting}"
    return problem["detail"], fault["value"], fault["allowed"]


# -- active studies ----------------------------------------------------------------------------------


def test_one_study_more_than_the_limit_is_refused_with_numbers(
    settings: Settings, search: Make, service_database: Database
) -> None:
    with _client(settings, max_active_studies_per_owner=2) as client:
        for name in ("a", "b"):
            assert client.post("/v1/studies", json=search(name)).status_code == 201
        for path in ("/v1/studies", "/v1/range-tests"):
            detail, wanted, allowed = _limit(
                client.post(path, json=search("c")), "max_active_studies_per_owner"
            )
            assert detail.startswith(
                "'default' has 2 studies queued, running or paused, and this server allows 2 "
                "(NIGHTSWEEP_MAX_ACTIVE_STUDIES_PER_OWNER). Wait for one to end or cancel one"
            )
            assert (wanted, allowed) == (3, "at most 2")
        # One that is paused counts, one that has ended does not.
        service_database.transact(lambda session: _advance(session, "a", StudyState.PAUSED))
        _limit(client.post("/v1/studies", json=search("c")), "max_active_studies_per_owner")
        service_database.transact(lambda session: _advance(session, "a", StudyState.CANCELLED))
        assert client.post("/v1/studies", json=search("c")).status_code == 201


def _advance(session: Session, name: str, to: StudyState) -> None:
    advance_study(session, session.scalars(select(Study).where(Study.name == name)).one(), to, f"now {to}")


def test_owners_are_counted_apart(settings: Settings, search: Make, service_database: Database) -> None:
    headers = [
        {"authorization": f"Bearer {service_database.transact(lambda s, o=owner: keys.add(s, o).key)}"}
        for owner in ("alice", "bob")
    ]
    with _client(settings, max_active_studies_per_owner=1) as client:
        for number, owner in enumerate(headers):
            assert client.post("/v1/studies", json=search(f"s{number}"), headers=owner).status_code == 201
        answer = client.post("/v1/studies", json=search("more"), headers=headers[1])
        assert "'bob' has 1 study queued" in _limit(answer, "max_active_studies_per_owner")[0]


def test_a_repeated_request_is_answered_at_the_limit(settings: Settings, search: Make) -> None:
    with _client(settings, max_active_studies_per_owner=1) as client:
        answers = [
            client.post("/v1/studies", json=search("a"), headers={"idempotency-key": "k"}) for _ in range(2)
        ]
    assert [answer.status_code for answer in answers] == [201, 201]


def test_a_studys_own_range_test_is_no_study_more(
    settings: Settings, search: Make, service_database: Database, storage: Storage
) -> None:
    body = search("a")
    body["search"]["learning_rate_range_test"] = True
    with _client(settings, max_active_studies_per_owner=2) as client:
        assert client.post("/v1/studies", json=body).status_code == 201
        advance_stages(service_database, storage, FingerprintReader())
        assert len(client.get("/v1/range-tests").json()["items"]) == 1
        assert client.post("/v1/studies", json=search("b")).status_code == 201
        _limit(client.post("/v1/studies", json=search("c")), "max_active_studies_per_owner")


def test_of_many_at_once_as_many_as_allowed_get_in(settings: Settings, search: Make) -> None:
    together = threading.Barrier(6)

    def submit(number: int) -> int:
        together.wait(timeout=30)
        return client.post("/v1/studies", json=search(f"s{number}")).status_code

    with _client(settings, max_active_studies_per_owner=2) as client, ThreadPoolExecutor(6) as pool:
        assert sorted(pool.map(submit, range(6))) == [201] * 2 + [429] * 4


# -- trials ------------------------------------------------------------------------------------------


def test_trials_that_have_not_ended_are_counted(
    settings: Settings, search: Make, service_database: Database, storage: Storage
) -> None:
    with _client(settings, max_queued_trials_per_owner=10) as client:
        study = client.post("/v1/studies", json=search("a", 8)).json()
        detail, wanted, allowed = _limit(
            client.post("/v1/studies", json=search("b", 4)), "max_queued_trials_per_owner"
        )
        assert "has 8 trials that have not ended, this study needs 4 more" in detail
        assert (wanted, allowed) == (12, "at most 10")
        lab = Lab(study, service_database, storage)
        lab.complete(0.5)
        number, _ = lab.ask()
        lab.attempt(number, 1, AttemptState.LOST)  # goes on
        number, _ = lab.ask()
        lab.attempt(number)  # runs
        assert (
            "has 7 trials"
            in _limit(client.post("/v1/studies", json=search("b", 4)), "max_queued_trials_per_owner")[0]
        )
        lab.complete(0.4, end=AttemptState.DIVERGED)
        assert client.post("/v1/studies", json=search("b", 4)).status_code == 201


def test_repeats_are_trials_and_a_study_too_large_alone_is_told_so(settings: Settings, search: Make) -> None:
    with _client(settings, max_queued_trials_per_owner=10) as client:
        body = search("a", 6, repeats={"top_k": 2, "seeds": 3})
        detail, wanted, _ = _limit(client.post("/v1/studies", json=body), "max_queued_trials_per_owner")
        assert wanted == 12
        assert "Ask for fewer" in detail
        assert "Wait" not in detail


# -- sweeps ------------------------------------------------------------------------------------------


def test_a_sweep_over_the_limit_is_a_failed_study_that_says_so(
    settings: Settings, search: Make, service_database: Database
) -> None:
    at = datetime(2026, 7, 1, 2, 30, tzinfo=UTC)
    token = service_database.transact(lambda session: keys.add(session, "alice").key)
    headers = {"authorization": f"Bearer {token}"}
    with _client(settings) as client:
        body = {"name": "nightly", "cron": "30 2 * * *", "definition": search("sweep")}
        assert client.post("/v1/schedules", json=body, headers=headers).status_code == 201
        assert client.post("/v1/studies", json=search("a"), headers=headers).status_code == 201
        _due_at(service_database, at)
        fire_schedules(service_database, Limits(active_studies=1))
        fire_schedules(service_database, Limits(active_studies=1))
        schedule = client.get("/v1/schedules/nightly", headers=headers).json()
        study = client.get(f"/v1/studies/{schedule['last_sweep']['name']}", headers=headers).json()
        assert (schedule["studies"], study["state"], study["owner"]) == (1, "failed", "alice")
        assert "'alice' has 1 study queued, running or paused, and this server allows 1" in study["reason"]
        assert schedule["last_sweep"] == {key: study[key] for key in ("name", "state", "reason")}
        assert datetime.fromisoformat(schedule["next_fire_at"]) > datetime.now(UTC)
        with service_database.read() as session:
            kinds = session.scalars(select(EventRow.kind).where(EventRow.study_id == study["id"])).all()
        assert kinds == ["study_queued", "study_failed"]
        # With room again the next one runs; the one that failed does not count.
        client.post("/v1/studies/a/cancel", headers=headers)
        service_database.transact(lambda session: _advance(session, "a", StudyState.CANCELLED))
        tomorrow = datetime.now(UTC) + timedelta(days=1)
        _due_at(service_database, tomorrow)
        service_database.transact(
            lambda session: fire(session, schedule["id"], tomorrow, Limits(active_studies=1))
        )
        last = client.get("/v1/schedules/nightly", headers=headers).json()["last_sweep"]
        assert last["state"] == "queued"


def _due_at(database: Database, at: datetime) -> None:
    database.transact(lambda session: session.execute(update(Schedule).values(next_fire_at=at)))


# -- running studies ---------------------------------------------------------------------------------


def _add(database: Database, name: str, owner: str, state: StudyState = StudyState.QUEUED) -> None:
    def add(session: Session) -> None:
        study = Study(id=name, name=name, definition={}, state=state, owner=owner)
        if state is StudyState.RUNNING:
            study.lease_owner, study.lease_expires_at = "x", database_now(session) + timedelta(seconds=60)
        session.add(study)

    database.transact(add)


def _take(database: Database, who: str, *, limit: int = 10, per_owner: int | None = 2) -> list[str]:
    taken = database.transact(
        lambda session: leases.take(session, owner=who, seconds=60, limit=limit, per_owner=per_owner)
    )
    return [lease.study_id for lease in taken]


def test_an_owner_at_the_limit_waits_and_others_do_not(service_database: Database) -> None:
    for name in ("a1", "a2", "a3", "b1", "a4", "b2", "b3", "c1"):
        _add(service_database, name, name[0])
    assert _take(service_database, "x", limit=4) == ["a1", "a2", "b1", "b2"]
    # From the moment they are taken they count, though none of them runs yet; for another coordinator, too.
    assert _take(service_database, "y", limit=4) == ["c1"]
    service_database.transact(lambda session: _advance(session, "a1", StudyState.RUNNING))
    assert _take(service_database, "y") == []
    service_database.transact(lambda session: _advance(session, "a1", StudyState.COMPLETED))
    assert _take(service_database, "y") == ["a3"]
    assert _take(service_database, "y", per_owner=None) == ["a4", "b3"]


def test_a_paused_study_gives_its_place_to_another(service_database: Database) -> None:
    _add(service_database, "a1", "a", StudyState.RUNNING)
    _add(service_database, "a2", "a")
    assert _take(service_database, "y", per_owner=1) == []
    service_database.transact(lambda session: _advance(session, "a1", StudyState.PAUSED))
    assert _take(service_database, "y", per_owner=1) == ["a2"]


def test_a_running_study_that_nobody_holds_is_taken_beyond_the_limit(service_database: Database) -> None:
    for name in ("a1", "a2", "a3"):
        _add(service_database, name, "a", StudyState.RUNNING)
    _add(service_database, "a4", "a")
    service_database.transact(lambda session: session.execute(update(Study).values(lease_owner=None)))
    assert _take(service_database, "y", per_owner=1) == ["a1", "a2", "a3"]


def test_a_place_of_a_coordinator_that_died_before_it_began_is_free_again(service_database: Database) -> None:
    for name in ("a1", "a2"):
        _add(service_database, name, "a")
    assert _take(service_database, "x", per_owner=1) == ["a1"]
    old = datetime(2026, 7, 1, tzinfo=UTC)
    service_database.transact(
        lambda session: session.execute(update(Study).where(Study.id == "a1").values(lease_expires_at=old))
    )
    assert _take(service_database, "y", per_owner=1) == ["a1"]


def test_a_coordinator_takes_its_own_leases_again_at_the_limit(service_database: Database) -> None:
    for name in ("a1", "a2"):
        _add(service_database, name, "a")
    assert _take(service_database, "x", per_owner=1) == ["a1"]
    taken = service_database.transact(
        lambda session: leases.take(session, owner="x", seconds=60, limit=5, per_owner=1, in_hand=())
    )
    assert [lease.study_id for lease in taken] == ["a1"]


def test_two_coordinators_at_once_run_no_more_than_the_limit(service_database: Database) -> None:
    """The second comes in between what the first counts and what it takes, and has to wait."""
    for number in range(6):
        _add(service_database, f"a{number}", "a")
    with ThreadPoolExecutor(1) as pool:
        once, seconds = iter([True]), list[Future[list[str]]]()

        def come_in_between(_c: object, _u: object, statement: str, *_: object) -> None:
            if "row_number" in statement and next(once, False):
                seconds.append(pool.submit(_take, service_database, "second"))
                wait(seconds, timeout=0.5)

        event.listen(service_database.writing, "before_cursor_execute", come_in_between)
        first = _take(service_database, "first")
        assert first + seconds[0].result(timeout=30) == ["a0", "a1"]
