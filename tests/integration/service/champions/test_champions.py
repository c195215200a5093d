"""Champions over HTTP: shown, promoted and rolled back, downloaded, and never swept; on both databases."""

from __future__ import annotations

import io
import json
import threading
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import select
from sqlalchemy.exc import IntegrityError
from starlette.testclient import TestClient

from service.artifacts import commands as artifacts
from service.artifacts.places import open_places
from service.champions import commands
from service.db.database import Database
from service.db.models import Attempt, Reign, Schedule
from service.optuna_store.storage import Storage
from service.rest.idempotency import HEADER
from service.settings import Settings
from service.states import AttemptState, StudyState
from tests.support.service.api import expect_problem
from tests.support.service.database_lab import Lab

Make = Callable[..., dict[str, Any]]
CHAMPION = "/v1/schedules/nightly/champion"


class Sweeps:
    """A schedule, and a study whose trials left adapters."""

    def __init__(self, client: TestClient, lab: Lab, settings: Settings, storage: Storage) -> None:
        self.client, self.lab, self.settings, self.storage = client, lab, settings, storage

    def trial(self, value: float, **options: Any) -> int:
        number = len(self.lab.optuna.trials)
        folder = self.settings.artifacts_dir / self.lab.id / str(number) / "1" / "best"
        folder.mkdir(parents=True)
        (folder / "adapter_config.json").write_text(json.dumps({"trial": number}))
        (folder / "adapter_model.safetensors").write_bytes(b"w")
        assert self.lab.complete(value, best_adapter_dir=str(folder), **options) == number
        return number

    def promote(self, trial: int, **headers: str) -> dict[str, Any]:
        body = {"study": "support-tone", "trial": trial}
        answer = self.client.post(CHAMPION, json=body, headers=headers)
        assert answer.status_code == 200, answer.text
        found: dict[str, Any] = answer.json()
        return found

    def refused(self, trial: int, status: int = 409) -> str:
        body = {"study": "support-tone", "trial": trial}
        return str(expect_problem(self.client.post(CHAMPION, json=body), status)["detail"])

    def roll_back(self) -> int:
        answer = self.client.post(f"{CHAMPION}/rollback")
        assert answer.status_code == 200, answer.text
        return int(answer.json()["trial"])

    def swept(self, keep: int) -> set[int]:
        """The trials whose adapters go."""
        database, places = self.lab.database, open_places(self.settings)
        planned = list(artifacts.plan(database, self.storage, places, keep=keep))
        done = list(artifacts.carry_out(database, planned))
        return {r.folder.trial for r, why in done if r.folder is not None and why is None}

    def reigns(self) -> list[Reign]:
        with self.lab.database.read() as session:
            return list(session.scalars(select(Reign).order_by(Reign.id)))


@pytest.fixture
def sweeps(
    client: TestClient,
    definition: Make,
    service_database: Database,
    storage: Storage,
    settings: Settings,
) -> Sweeps:
    body = {"name": "nightly", "cron": "30 2 * * *", "definition": definition()}
    assert client.post("/v1/schedules", json=body).status_code == 201
    lab = Lab(client.post("/v1/studies", json=definition()).json(), service_database, storage)
    return Sweeps(client, lab, settings, storage)


def test_a_schedule_without_a_champion_says_so(client: TestClient, sweeps: Sweeps) -> None:
    detail = expect_problem(client.get(CHAMPION), 404)["detail"]
    assert detail == (
        "The schedule 'nightly' has no champion yet: the winner of its first sweep that completes will be the"
        " first."
    )
    client.patch("/v1/schedules/nightly", json={"champion": False})
    assert "its option champion is false" in expect_problem(client.get(CHAMPION), 404)["detail"]
    assert client.get(f"{CHAMPION}/history").json() == {"contests": [], "reigns": []}
    expect_problem(client.get(f"{CHAMPION}/adapter"), 404)
    expect_problem(client.post(f"{CHAMPION}/rollback"), 404)
    expect_problem(client.get("/v1/schedules/other/champion/history"), 404)


def test_a_trial_is_promoted_shown_and_downloaded(client: TestClient, sweeps: Sweeps) -> None:
    number = sweeps.trial(1.0)
    made = sweeps.promote(number)
    assert client.get(CHAMPION).json() == made
    assert (made["trial"], made["study"], made["until"]) == (number, "support-tone", None)
    assert (made["promoted_by"], made["why"]) == ("default", "promoted by 'default'")
    assert made["lineage"]["recipe"]["quantization"] == "nf4"
    assert made["lineage"]["versions"] is None
    answer = client.get(made["url"])
    assert answer.headers["Content-Disposition"].startswith('attachment; filename="nightly-champion-')
    with zipfile.ZipFile(io.BytesIO(answer.content)) as files:
        assert json.loads(files.read("adapter_config.json")) == {"trial": number}


def test_rollbacks_go_back_one_by_one_and_not_forth_again(sweeps: Sweeps) -> None:
    trials = [sweeps.trial(float(n)) for n in range(5)]
    for number in trials:
        sweeps.promote(number)
    assert [r["trial"] for r in sweeps.client.get(CHAMPION).json()["rollbacks"]] == [3, 2, 1]
    assert [sweeps.roll_back() for _ in range(4)] == [3, 2, 1, 0]
    detail = expect_problem(sweeps.client.post(f"{CHAMPION}/rollback"), 409)["detail"]
    assert detail == "The schedule 'nightly' has had no champion before the present one."
    history = sweeps.client.get(f"{CHAMPION}/history").json()["reigns"]
    assert [r["trial"] for r in history] == [0, 1, 2, 3, 4, 3, 2, 1, 0]
    assert [r["until"] is None for r in history] == [True] + [False] * 8
    assert history[1]["ended_why"] == "rolled back by 'default' to trial 0 of support-tone"
    sweeps.promote(4)  # and what was rolled back from is where a rollback leads again
    assert sweeps.roll_back() == 0


def test_what_cannot_be_champion_is_refused(client: TestClient, sweeps: Sweeps) -> None:
    pruned = sweeps.trial(1.0, end=AttemptState.PRUNED)
    assert "it is pruned, not completed" in sweeps.refused(pruned)
    bare = sweeps.lab.complete(1.0)
    assert "it left no adapter" in sweeps.refused(bare)
    assert "does not exist" in sweeps.refused(99, 404)
    number = sweeps.trial(2.0)
    sweeps.promote(number)
    assert "is the champion of 'nightly' already" in sweeps.refused(number)
    with sweeps.lab.database.write() as session:
        row = session.scalars(select(Schedule)).one()
        row.definition = {**row.definition, "model": {**row.definition["model"], "id": "org/other"}}
    other = sweeps.trial(3.0)
    assert "and the schedule's is org/other now" in sweeps.refused(other)


@pytest.mark.parametrize(
    ("body", "paths"),
    [
        ({}, {"study", "trial"}),
        ({"study": "", "trial": -1}, {"study", "trial"}),
        ({"study": "x" * 201, "trial": True}, {"study", "trial"}),
        ({"study": "s", "trail": 1}, {"trail", "trial"}),
        ([], {""}),
    ],
)
@pytest.mark.parametrize("backend", ["sqlite"], indirect=True)
def test_a_wrong_body_is_refused_with_every_fault(
    client: TestClient, sweeps: Sweeps, body: Any, paths: set[str]
) -> None:
    problem = expect_problem(client.post(CHAMPION, json=body), 422)
    assert {fault["path"] for fault in problem["faults"]} == paths


def test_the_same_request_again_promotes_once(sweeps: Sweeps) -> None:
    number = sweeps.trial(1.0)
    headers = {HEADER: "once"}
    assert sweeps.promote(number, **headers) == sweeps.promote(number, **headers)
    assert len(sweeps.reigns()) == 1


def test_two_promotions_at_once_leave_one_champion(sweeps: Sweeps) -> None:
    trials = [sweeps.trial(float(n)) for n in range(4)]
    threads = [threading.Thread(target=sweeps.promote, args=(number,)) for number in trials]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    reigns = sweeps.reigns()
    assert {r.trial_number for r in reigns} == set(trials)
    assert [r.until is None for r in reigns] == [False, False, False, True]


def test_the_database_holds_one_open_reign_for_a_schedule(sweeps: Sweeps) -> None:
    sweeps.promote(sweeps.trial(1.0))
    [reign] = sweeps.reigns()
    again = Reign(
        schedule_id=reign.schedule_id,
        study_id="s",
        study_name="s",
        trial_number=1,
        adapter="/a",
        lineage={},
        why="",
    )
    with pytest.raises(IntegrityError), sweeps.lab.database.write() as session:
        session.add(again)


def test_the_adapters_of_champions_and_of_rollbacks_are_never_swept(sweeps: Sweeps) -> None:
    trials = [sweeps.trial(float(n)) for n in range(6)]
    for number in trials[1:]:
        sweeps.promote(number)
    sweeps.lab.advance(StudyState.RUNNING, StudyState.COMPLETED)
    assert sweeps.swept(keep=0) == {0, 1}  # 5 reigns, 4 to 2 may be brought back
    assert sweeps.client.get(f"{CHAMPION}/adapter").status_code == 200
    assert "its adapter was removed on" in sweeps.refused(1)


def test_a_trial_that_is_promoted_while_it_is_to_be_swept_stays(sweeps: Sweeps) -> None:
    number = sweeps.trial(1.0)
    sweeps.lab.advance(StudyState.RUNNING, StudyState.COMPLETED)
    database = sweeps.lab.database
    planned = list(artifacts.plan(database, sweeps.storage, open_places(sweeps.settings), keep=0))
    assert [each.removal.folder.trial for each in planned if each.removal.folder] == [number]
    champion = sweeps.promote(number)
    assert list(artifacts.carry_out(database, planned)) == []
    assert Path(champion["adapter"], "adapter_model.safetensors").exists()
    with database.read() as session:
        assert session.scalars(select(Attempt.adapters_swept_at)).all() == [None]


def test_a_schedule_that_is_renamed_keeps_its_champion_and_one_that_is_removed_does_not(
    client: TestClient, sweeps: Sweeps
) -> None:
    number = sweeps.trial(1.0)
    sweeps.promote(number)
    sweeps.lab.advance(StudyState.RUNNING, StudyState.COMPLETED)
    client.patch("/v1/schedules/nightly", json={"name": "daily"})
    assert client.get("/v1/schedules/daily/champion").json()["trial"] == number
    assert sweeps.swept(keep=0) == set()
    client.delete("/v1/schedules/daily")
    expect_problem(client.get("/v1/schedules/daily/champion"), 404)
    [reign] = sweeps.reigns()
    assert reign.ended_why == "the schedule was removed by 'default'"
    assert sweeps.swept(keep=0) == {number}


def test_a_number_may_be_written_as_json_writes_numbers() -> None:
    assert commands.read_promotion({"study": "tone", "trial": 3.0}).trial == 3
