"""The archive, deleted studies, and what a coordinator removes of them, on both databases."""

from __future__ import annotations

from collections.abc import Callable
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import select
from starlette.testclient import TestClient

from service.artifacts.local_place import LocalPlace
from service.artifacts.places import open_places
from service.coordinator.chores import removal
from service.coordinator.chores.artifact_sweeper import Sweeper
from service.db.database import Database
from service.db.kinds import StudyKind
from service.db.models import Attempt, EventRow, RemovedStudy, Schedule, Study, StudyTag, Trial
from service.maintenance import integrity
from service.optuna_store import fences
from service.optuna_store.storage import Storage
from service.optuna_store.studies import find_study_number
from service.settings import Settings
from service.states import AttemptState, StudyState
from tests.support.service.api import Make, expect_problem
from tests.support.service.database_lab import Lab

STUDIES, STUDY = "/v1/studies", "/v1/studies/support-tone"


class Killed(BaseException):
    """The process ends here. Nothing of ours catches it."""


@pytest.fixture
def lab(client: TestClient, definition: Make, service_database: Database, storage: Storage) -> Lab:
    """A study with two trials, one with an adapter."""
    made = Lab(client.post(STUDIES, json=definition()).json(), service_database, storage)
    made.advance(StudyState.RUNNING)
    return made


@pytest.fixture
def over(lab: Lab, settings: Settings) -> Lab:
    """The same, which has ended."""
    folder = settings.artifacts_dir / lab.id / "0" / "1" / "best"
    folder.mkdir(parents=True)
    (folder / "adapter_model.safetensors").write_bytes(b"weights")
    lab.complete(1.5, best_adapter_dir=str(folder), rungs=[(1.5, 1.6)])
    lab.complete(2.5, end=AttemptState.FAILED)
    lab.advance(StudyState.COMPLETED)
    fences.raise_fence(lab.storage, "support-tone", number=1, owner="somebody")
    with lab.database.write() as session:
        session.get_one(Study, lab.id).lease_number = 1
    return lab


def names(client: TestClient, query: str = "") -> list[str]:
    return [study["name"] for study in client.get(f"{STUDIES}{query}").json()["items"]]


def let_grace_pass(database: Database) -> None:
    with database.write() as session:
        for study in session.scalars(select(Study).where(Study.removal_at.is_not(None))):
            assert study.removal_at is not None
            study.removal_at -= timedelta(days=8)


def remove_due(lab: Lab, settings: Settings) -> list[str | None]:
    with lab.database.read() as session:
        found = removal.due(session)
    return [removal.remove(lab.database, lab.storage, open_places(settings), each) for each in found]


def left(lab: Lab, settings: Settings) -> dict[str, int | bool]:
    """What there is of a study, in all places."""
    with lab.database.read() as session:
        rows = {
            table.__tablename__: len(session.scalars(select(table).where(table.study_id == lab.id)).all())
            for table in (Attempt, EventRow, Trial, StudyTag)
        }
        rows["studies"] = len(session.scalars(select(Study).where(Study.id == lab.id)).all())
        rows["removed"] = len(session.scalars(select(RemovedStudy)).all())
    with lab.storage.engine.connect() as connection:
        fenced = len(connection.execute(select(fences._fences)).all())
    return {
        **rows,
        "fences": fenced,
        "optuna": find_study_number(lab.storage, "support-tone") is not None,
        "artifacts": (settings.artifacts_dir / lab.id).exists(),
    }


def violations(settings: Settings) -> list[integrity.Violation]:
    """But for what follows from the lab's sending nothing to a worker."""
    return [found for found in integrity.find_violations(settings) if found.rule != "no-overlap"]


GONE = {
    "attempts": 0,
    "events": 0,
    "trials": 0,
    "study_tags": 0,
    "studies": 0,
    "removed": 1,
    "fences": 0,
    "optuna": False,
    "artifacts": False,
}


# -- the archive


def test_an_archived_study_is_only_left_out_of_lists(client: TestClient, lab: Lab) -> None:
    for _ in range(2):
        answer = client.post(f"{STUDY}/archive")
        assert (answer.status_code, answer.json()["state"]) == (202, "running")
    assert answer.json()["archived_at"] is not None
    assert (names(client), names(client, "?archived=true")) == ([], ["support-tone"])
    assert client.get(STUDY).json()["state"] == "running"
    for _ in range(2):
        assert client.post(f"{STUDY}/unarchive").json()["archived_at"] is None
    assert (names(client), names(client, "?archived=true")) == (["support-tone"], [])
    said = [event["kind"] for event in client.get(f"{STUDY}/events").json()["items"]]
    assert said[-2:] == ["archived", "unarchived"]


# -- deleting and restoring


def test_a_deleted_study_is_hidden_and_can_be_restored(client: TestClient, over: Lab) -> None:
    before = client.get(STUDY)
    deleted = client.delete(STUDY, headers={"If-Match": before.headers["etag"]})
    assert deleted.status_code == 202
    shown = client.delete(STUDY).json()
    assert shown == deleted.json()
    assert (shown["state"], shown["deleted_by"]) == ("completed", "default")
    assert (names(client), names(client, "?archived=true")) == ([], [])
    assert names(client, "?deleted=true") == ["support-tone"]
    assert client.get(f"{STUDY}/trials/0").json()["value"] == 1.5
    expect_problem(client.post(f"{STUDY}/restore", headers={"If-Match": before.headers["etag"]}), 412)
    restored = client.post(f"{STUDY}/restore").json()
    assert (restored["deleted_at"], restored["deleted_by"], restored["removal_at"]) == (None, None, None)
    assert names(client) == ["support-tone"]
    messages = [event["message"] for event in client.get(f"{STUDY}/events").json()["items"]]
    assert messages[-2].startswith("deleted on request of 'default'; it can be restored until ")
    assert messages[-1] == "restored on request of 'default'"
    assert client.post(f"{STUDY}/restore").status_code == 202


def test_a_study_that_goes_on_is_not_deleted(client: TestClient, lab: Lab) -> None:
    refused = expect_problem(client.delete(STUDY), 409)
    assert refused["detail"] == (
        "The study 'support-tone' cannot be deleted: it is running; cancel it first."
    )
    assert refused["type"] == "urn:nightsweep:problem:still-needed"
    expect_problem(client.delete("/v1/studies/other"), 404)


def test_what_others_need_is_not_deleted(client: TestClient, over: Lab, definition: Make) -> None:
    warm = definition(name="next", warm_start={"from": "support-tone", "as": "enqueue"})
    assert client.post(STUDIES, json=warm).status_code == 201
    said = expect_problem(client.delete(STUDY), 409)["detail"]
    assert "the study 'next' has not begun and is to start from it" in said
    client.post("/v1/studies/next/cancel")
    with over.database.write() as session:
        session.scalars(select(Study).where(Study.name == "next")).one().preparation = {}
    client.post("/v1/schedules", json={"name": "nightly", "cron": "0 22 * * *", "definition": warm})
    said = expect_problem(client.delete(STUDY), 409)["detail"]
    assert "the sweeps of the schedule 'nightly' start from it; change its warm_start first" in said
    assert client.delete("/v1/schedules/nightly").status_code == 204
    assert client.delete(STUDY).status_code == 202
    late = expect_problem(client.post(STUDIES, json=warm | {"name": "late"}), 422)
    assert late["faults"][0]["message"].startswith("has been deleted and is about to be removed")


def test_a_range_test_goes_and_comes_back_with_its_study(
    client: TestClient, over: Lab, definition: Make
) -> None:
    with over.database.write() as session:
        row = session.get_one(Study, over.id)
        columns = {"definition": row.definition, "kind": StudyKind.RANGE_TEST, "ended_at": row.ended_at}
        test = Study(name="test", state=StudyState.COMPLETED, **columns)
        session.add(test)
        session.flush()
        row.range_test_id = test.id
    said = expect_problem(client.delete("/v1/studies/test"), 409)["detail"]
    assert "it is the first stage of the study 'support-tone'; delete that one" in said
    client.delete(STUDY)
    assert client.get("/v1/studies/test").json()["deleted_at"] is not None
    client.post(f"{STUDY}/restore")
    assert client.get("/v1/studies/test").json()["deleted_at"] is None


# -- removing


def test_nothing_is_removed_before_its_time(client: TestClient, over: Lab, settings: Settings) -> None:
    client.delete(STUDY)
    assert remove_due(over, settings) == []
    client.post(f"{STUDY}/restore")
    let_grace_pass(over.database)
    assert remove_due(over, settings) == []


def test_everything_goes_and_a_row_says_so(client: TestClient, over: Lab, settings: Settings) -> None:
    client.patch(STUDY, json={"tags": ["a"]})
    client.delete(STUDY)
    let_grace_pass(over.database)
    assert remove_due(over, settings) == [None]
    assert left(over, settings) == GONE
    assert violations(settings) == []
    for ref in ("support-tone", over.id):
        said = expect_problem(client.get(f"/v1/studies/{ref}"), 404)["detail"]
        assert said.startswith("The study 'support-tone' was removed on 20")
        assert ": 'default' had deleted it on 20" in said
    assert remove_due(over, settings) == []


def test_another_study_may_have_the_name_of_a_removed_one(
    client: TestClient, over: Lab, settings: Settings, definition: Make
) -> None:
    client.delete(STUDY)
    taken = expect_problem(client.post(STUDIES, json=definition()), 409)
    assert "already exists" in taken["detail"]
    let_grace_pass(over.database)
    remove_due(over, settings)
    again = Lab(client.post(STUDIES, json=definition()).json(), over.database, over.storage)
    again.advance(StudyState.RUNNING)
    assert again.complete(3.0) == 0
    assert client.get(STUDY).json()["best"]["value"] == 3.0
    assert violations(settings) == []


STEPS: list[tuple[Any, str]] = [
    (LocalPlace, "remove_study"),
    (removal, "remove_study"),
    (fences, "remove"),
    (removal, "_finish"),
]


@pytest.mark.parametrize("late", [False, True], ids=["before", "after"])
@pytest.mark.parametrize(("where", "step"), STEPS, ids=["artifacts", "optuna", "fence", "rows"])
def test_a_kill_at_any_step_is_finished_later_and_said_meanwhile(
    client: TestClient,
    over: Lab,
    settings: Settings,
    monkeypatch: pytest.MonkeyPatch,
    where: Any,
    step: str,
    late: bool,
) -> None:
    client.delete(STUDY)
    let_grace_pass(over.database)
    done: Callable[..., Any] = getattr(where, step)

    def die(*args: Any, **kwargs: Any) -> None:
        if late:
            done(*args, **kwargs)
        raise Killed

    with monkeypatch.context() as deadly:
        deadly.setattr(where, step, die)
        with pytest.raises(Killed):
            remove_due(over, settings)
    assert violations(settings) == []
    if left(over, settings)["studies"]:
        assert "adapters with it" in expect_problem(client.get(f"{STUDY}/trials/0/adapter"), 404)["detail"]
        assert "cannot be restored" in expect_problem(client.post(f"{STUDY}/restore"), 409)["detail"]
        assert client.get(STUDY).json()["deleted_by"] == "default"
    assert set(remove_due(over, settings)) <= {None}
    assert left(over, settings) == GONE
    assert violations(settings) == []


def test_artifacts_that_cannot_be_removed_keep_their_rows(
    client: TestClient,
    over: Lab,
    settings: Settings,
    storage: Storage,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    client.delete(STUDY)
    let_grace_pass(over.database)
    sweeper = Sweeper(settings, over.database, storage)

    def refuse(*_: Any) -> None:
        raise OSError(13, "Permission denied")

    with monkeypatch.context() as refusing:
        refusing.setattr(LocalPlace, "remove_study", refuse)
        for _ in range(2):
            sweeper.remove_study(over.id, open_places(settings))
    assert caplog.text.count("is removed later: [Errno 13] Permission denied") == 1
    assert left(over, settings)["studies"] == 1
    sweeper._next = 0.0
    sweeper.look()
    assert sweeper._thread is not None
    sweeper._thread.join(30)
    sweeper.close()
    assert left(over, settings) == GONE


def test_artifacts_go_from_where_they_were_before_the_settings_changed(
    client: TestClient, over: Lab, settings: Settings, tmp_path: Path
) -> None:
    old = [tmp_path / "old", tmp_path / "older"]
    for root in old:
        (root / over.id / "0" / "1" / "last").mkdir(parents=True)
    with over.database.write() as session:
        for attempt, root in zip(
            session.scalars(select(Attempt)), (f"{old[0]}", f"file://{old[1]}"), strict=True
        ):
            attempt.artifact_dir = f"{root}/{over.id}/{attempt.trial_number}/{attempt.ordinal}"
    client.delete(STUDY)
    let_grace_pass(over.database)
    assert remove_due(over, settings) == [None]
    assert [list(root.iterdir()) for root in old] == [[], []]


def test_what_is_needed_again_stays(
    client: TestClient, over: Lab, settings: Settings, definition: Make
) -> None:
    client.delete(STUDY)
    let_grace_pass(over.database)
    warm = definition(name="late", warm_start={"from": "support-tone", "as": "enqueue"})
    with over.database.write() as session:
        session.add(Schedule(name="late", cron="0 22 * * *", timezone="UTC", definition=warm))
    [why] = remove_due(over, settings)
    assert why is not None
    assert "the sweeps of the schedule 'late' start from it" in why
    assert left(over, settings)["removed"] == 0
