"""What is removed of studies that have ended, what stays, and where no sweep is led; on both databases."""

from __future__ import annotations

import io
import json
import os
import shutil
import time
import zipfile
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import select
from starlette.testclient import TestClient
from typer.testing import CliRunner

from service.artifacts import commands
from service.artifacts.local_place import LocalPlace
from service.artifacts.places import open_places
from service.cli.root import app
from service.coordinator.chores.artifact_sweeper import Sweeper, unswept
from service.db.database import Database
from service.db.models import Attempt, Study
from service.errors import Unavailable
from service.optuna_store.storage import Storage
from service.optuna_store.studies import read_trials
from service.optuna_store.telling import tell
from service.settings import Settings
from service.states import AttemptState, StudyState
from tests.support.fakes.storage import FlakyFileSystem, failing, flaky_storage
from tests.support.service.api import on_sqlite
from tests.support.service.database_lab import Lab

Make = Callable[..., dict[str, Any]]
FLAKY, FILE = "flaky://bucket/artifacts", "file://{home}/shared"
FILES = ("adapter_config.json", "adapter_model.safetensors")


class Store:
    """A study whose trials left artifacts, and where these lie."""

    def __init__(self, lab: Lab, root: Path) -> None:
        self.lab = lab
        self.root = root

    def put(self, trial: int, attempt: int, name: str, size: int = 10) -> Path:
        folder = self.root / self.lab.id / str(trial) / str(attempt) / name
        folder.mkdir(parents=True)
        for file in FILES:
            (folder / file).write_bytes(bytes(size))
        return folder

    def trial(self, value: float, **told: Any) -> int:
        """One with a checkpoint and both adapters, that ends."""
        number = len(read_trials(self.lab.optuna._storage, self.lab.optuna.study_name))
        self.put(number, 1, "checkpoint")
        places = {f"{which}_adapter_dir": str(self.put(number, 1, which)) for which in ("best", "last")}
        assert self.lab.complete(value, **told, **places) == number
        return number

    def left(self) -> list[str]:
        """The folders that are left, below the study's."""
        top = self.root / self.lab.id
        return sorted(str(file.parent.relative_to(top)) for file in top.rglob(FILES[0]))

    def end(self) -> None:
        self.lab.advance(StudyState.RUNNING, StudyState.COMPLETED)


@pytest.fixture
def url(request: pytest.FixtureRequest) -> str | None:
    """Where artifacts are; None: in a folder."""
    return getattr(request, "param", None)


@pytest.fixture
def settings(settings: Settings, url: str | None) -> Settings:
    if url is None:
        return settings
    return settings.model_copy(update={"artifacts_url": url.format(home=settings.home)})


def behind(*urls: str) -> pytest.MarkDecorator:
    """Runs the test with the artifacts behind each URL."""
    return pytest.mark.parametrize("url", urls, indirect=True)


@pytest.fixture
def lab(client: TestClient, definition: Make, service_database: Database, storage: Storage) -> Lab:
    return Lab(client.post("/v1/studies", json=definition()).json(), service_database, storage)


@pytest.fixture
def store(lab: Lab, settings: Settings) -> Store:
    return Store(lab, settings.artifacts_dir)


def sweep(store: Store, settings: Settings, storage: Storage, keep: int | None) -> list[str]:
    """The reasons, by folder."""
    planned = list(commands.plan(store.lab.database, storage, open_places(settings), keep=keep))
    done = list(commands.carry_out(store.lab.database, planned))
    assert [why for _, why in done] == [None] * len(planned)
    top = f"{store.root.resolve()}/{store.lab.id}/"
    return [f"{removal.place.removeprefix(top)}: {removal.reason}" for removal, _ in done]


def test_a_study_that_has_not_ended_is_never_touched(
    store: Store, settings: Settings, storage: Storage
) -> None:
    store.trial(1.0)
    before = store.left()
    for states in ((), (StudyState.RUNNING,), (StudyState.PAUSED,)):
        store.lab.advance(*states)
        assert sweep(store, settings, storage, 0) == []
    assert store.left() == before


def test_without_a_number_to_keep_only_checkpoints_and_rubbish_go(
    store: Store, settings: Settings, storage: Storage
) -> None:
    store.trial(1.0)
    store.put(0, 1, f".best-{'0' * 32}")
    store.end()
    assert sweep(store, settings, storage, None) == [
        f"0/1/.best-{'0' * 32}: it is incomplete",
        "0/1/checkpoint: its trial has ended",
    ]
    assert store.left() == ["0/1/best", "0/1/last"]
    assert sweep(store, settings, storage, None) == []


def test_the_best_adapters_are_kept_and_the_others_are_said_to_be_swept(
    store: Store, settings: Settings, storage: Storage, client: TestClient
) -> None:
    for value in (3.0, 1.0, 2.0, 4.0):
        store.trial(value)
    store.trial(0.5, violations={"peak_memory_gb": 1.0})
    store.trial(0.1, end=AttemptState.PRUNED)
    store.trial(0.2, repeat_of=1)
    store.end()
    reasons = sweep(store, settings, storage, 2)
    assert store.left() == ["1/1/best", "1/1/last", "2/1/best", "2/1/last"]
    assert {line.split(": ")[1] for line in reasons} == {
        "its trial has ended",
        "its trial is not among the best 2",
    }
    assert client.get("/v1/studies/support-tone/trials/1/adapter").status_code == 200
    for which in ("best", "last"):
        answer = client.get("/v1/studies/support-tone/trials/3/adapter", params={"which": which})
        assert answer.status_code == 404
        assert answer.json()["detail"].startswith(
            f"The {which} adapter of trial 3 of the study 'support-tone' was swept on 20"
        )
    trials = client.get("/v1/studies/support-tone/trials").json()["items"]
    assert [trial["adapter"] is not None for trial in trials] == [n in (1, 2) for n in range(7)]
    assert sweep(store, settings, storage, 2) == []


def test_keeping_none_keeps_none(store: Store, settings: Settings, storage: Storage) -> None:
    store.trial(1.0)
    store.end()
    sweep(store, settings, storage, 0)
    assert not (store.root / store.lab.id).exists()


def test_a_pareto_front_is_kept_whole(
    client: TestClient,
    definition: Make,
    settings: Settings,
    service_database: Database,
    storage: Storage,
) -> None:
    objective = {"metric": "eval_loss", "direction": "minimize", "costs": ["train_seconds"]}
    alone = {"pruning": {"algorithm": "none"}, "resources": {"trials_per_worker": 1}}
    made = client.post("/v1/studies", json=definition(objective=objective, **alone))
    store = Store(Lab(made.json(), service_database, storage), settings.artifacts_dir)
    for value, seconds in ((1.0, 30.0), (2.0, 20.0), (2.5, 25.0), (3.0, 10.0)):
        store.trial(value, costs=(seconds,))
    store.end()
    sweep(store, settings, storage, 1)
    assert {place.split("/")[0] for place in store.left()} == {"0", "1", "3"}


def test_the_winner_that_repeats_decided_is_the_first_to_be_kept(
    client: TestClient,
    definition: Make,
    settings: Settings,
    service_database: Database,
    storage: Storage,
) -> None:
    made = client.post("/v1/studies", json=definition(repeats={"top_k": 2, "seeds": 2}))
    store = Store(Lab(made.json(), service_database, storage), settings.artifacts_dir)
    store.trial(1.0)
    store.trial(1.1)
    for of, values in ((0, (3.0, 3.1)), (1, (1.2, 1.3))):
        for seed, value in enumerate(values, 1):
            store.trial(value, repeat_of=of, seed=seed)
    store.end()
    assert client.get("/v1/studies/support-tone/best").json()["number"] == 1
    sweep(store, settings, storage, 1)
    assert store.left() == ["1/1/best", "1/1/last"]


def test_of_several_attempts_the_adapters_that_the_outcome_leads_to_are_kept(
    store: Store, settings: Settings, storage: Storage
) -> None:
    number, _ = store.lab.ask()
    first = store.put(number, 1, "best")
    store.put(number, 1, "last")
    store.put(number, 2, "best")
    last = store.put(number, 2, "last")
    store.lab.attempt(number, 1, AttemptState.LOST)
    outcome = {"value": 1.0, "best_adapter_dir": str(first), "last_adapter_dir": str(last)}
    store.lab.attempt(number, 2, AttemptState.COMPLETED, outcome=outcome)
    tell(store.lab.optuna, number, AttemptState.COMPLETED, "it completed", value=1.0)
    store.end()
    superseded = "a later attempt of its trial saved another adapter"
    assert sweep(store, settings, storage, 1) == [f"0/1/last: {superseded}", f"0/2/best: {superseded}"]


@on_sqlite
def test_a_sweep_that_dies_anywhere_is_finished_by_the_next(
    store: Store,
    settings: Settings,
    storage: Storage,
    client: TestClient,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    for value in (1.0, 2.0, 3.0):
        store.trial(value)
    store.end()
    removed = 0
    real = os.unlink

    def dies(*args: Any, **kwargs: Any) -> None:
        nonlocal removed
        removed += 1
        if removed % 3 == 0:
            raise KeyboardInterrupt
        real(*args, **kwargs)

    deaths = 0
    with monkeypatch.context() as patch:
        patch.setattr(os, "unlink", dies)
        while True:
            try:
                sweep(store, settings, storage, 1)
            except KeyboardInterrupt:
                deaths += 1
                # Nobody is sent to half an adapter.
                for number in (1, 2):
                    answer = client.get(f"/v1/studies/support-tone/trials/{number}/adapter")
                    assert "was swept" in answer.json()["detail"]
            else:
                break
    assert deaths > 2
    assert store.left() == ["0/1/best", "0/1/last"]


@on_sqlite
@pytest.mark.parametrize("level", ["study", "trial", "attempt", "folder", "file"])
def test_links_lead_a_sweep_nowhere(
    store: Store, settings: Settings, storage: Storage, tmp_path: Path, level: str
) -> None:
    kept = store.trial(1.0)
    number = store.trial(2.0)
    store.end()
    precious = tmp_path / "precious"
    shutil.copytree(store.root / store.lab.id, precious)
    (precious / "best").mkdir()
    (precious / "best" / "mine").write_text("mine")
    before = sorted(str(path) for path in precious.rglob("*"))
    steps = {"study": [], "trial": [str(number)], "attempt": [str(number), "1"]}
    if level in steps:
        target = store.root.joinpath(store.lab.id, *steps[level])
        shutil.rmtree(target)
        target.symlink_to(precious.joinpath(*steps[level]))
    elif level == "folder":
        target = store.root / store.lab.id / str(number) / "1" / "best"
        shutil.rmtree(target)
        target.symlink_to(precious / "best")
    else:
        target = store.root / store.lab.id / str(number) / "1" / "best" / "elsewhere"
        target.symlink_to(precious)
    sweep(store, settings, storage, 1)
    assert sorted(str(path) for path in precious.rglob("*")) == before
    if level not in ("study", "file"):
        assert f"{kept}/1/best" in store.left()
        assert target.is_symlink()


@on_sqlite
def test_a_folder_that_becomes_a_link_after_it_was_planned_is_not_followed(
    store: Store, settings: Settings, storage: Storage, tmp_path: Path
) -> None:
    store.trial(1.0)
    store.end()
    planned = list(commands.plan(store.lab.database, storage, open_places(settings), keep=0))
    precious = tmp_path / "precious"
    attempt = store.root / store.lab.id / "0" / "1"
    shutil.copytree(attempt, precious)
    shutil.rmtree(attempt)
    attempt.symlink_to(precious)
    list(commands.carry_out(store.lab.database, planned))
    assert {path.name for path in precious.iterdir()} == {"best", "last", "checkpoint"}


@on_sqlite
def test_what_workers_do_not_make_stays(store: Store, settings: Settings, storage: Storage) -> None:
    store.trial(1.0)
    notes = store.root / store.lab.id / "0" / "1" / "notes"
    notes.mkdir()
    for stray in (store.root / "readme", store.root / store.lab.id / "0" / "1" / "file", notes / "file"):
        stray.write_text("mine")
    (store.root / store.lab.id / "00" / "1" / "best").mkdir(parents=True)
    (store.root / "not-a-study" / "0" / "1" / "best").mkdir(parents=True)
    store.end()
    sweep(store, settings, storage, 0)
    assert sorted(str(path.relative_to(store.root)) for path in store.root.rglob("*") if path.is_file()) == [
        f"{store.lab.id}/0/1/file",
        f"{store.lab.id}/0/1/notes/file",
        "readme",
    ]
    assert (store.root / store.lab.id / "00" / "1" / "best").is_dir()
    assert (store.root / "not-a-study" / "0" / "1" / "best").is_dir()


@on_sqlite
def test_unknown_studies_go_only_when_nothing_in_them_changed_for_a_day(store: Store) -> None:
    store.trial(1.0)
    old, young = ("a" * 32, "b" * 32)
    for study_id in (old, young):
        folder = store.root / study_id / "0" / "1" / "best"
        folder.mkdir(parents=True)
        (folder / FILES[0]).write_bytes(b"12345")
    long_ago = time.time() - 2 * commands.UNKNOWN_AFTER_SECONDS
    for path in [store.root / old, *(store.root / old).rglob("*"), store.root / young]:
        os.utime(path, (long_ago, long_ago))
    places = [LocalPlace(store.root)]
    planned = list(commands.plan_unknown(store.lab.database, places))
    assert [(p.removal.study_id, p.removal.bytes, p.removal.kind) for p in planned] == [(old, 5, "study")]
    list(commands.carry_out(store.lab.database, planned))
    assert sorted(path.name for path in store.root.iterdir()) == sorted([store.lab.id, young])


# -- the command


@pytest.fixture
def run(settings: Settings, monkeypatch: pytest.MonkeyPatch) -> Callable[..., Any]:
    monkeypatch.setenv("NIGHTSWEEP_HOME", str(settings.home))
    monkeypatch.setenv("NIGHTSWEEP_DATABASE_URL", settings.database_url)
    monkeypatch.setenv("NIGHTSWEEP_OPTUNA_URL", settings.optuna_url)
    monkeypatch.setenv("NIGHTSWEEP_ARTIFACTS_DIR", str(settings.artifacts_dir))
    return lambda *words: CliRunner().invoke(app, ["artifacts", "sweep", *words])


def test_a_dry_run_prints_the_same_list_and_changes_nothing(store: Store, run: Callable[..., Any]) -> None:
    store.trial(1.0)
    store.trial(2.0)
    store.end()
    before = store.left()
    dry = run("--keep-best", "1", "--dry-run", "--json")
    assert (dry.exit_code, store.left()) == (0, before)
    with store.lab.database.read() as session:
        assert list(session.scalars(select(Attempt.adapters_swept_at))) == [None, None]
    real = run("--keep-best", "1", "--json")
    said, done = json.loads(dry.stdout), json.loads(real.stdout)
    assert (said.pop("dry_run"), done.pop("dry_run")) == (True, False)
    assert said == done
    assert (done["bytes"], len(done["removed"]), done["refused"]) == (80, 4, [])
    assert done["removed"][1] == {
        "place": f"{store.root.resolve()}/{store.lab.id}/1/1/best",
        "study_id": store.lab.id,
        "study": "support-tone",
        "kind": "adapter",
        "trial": 1,
        "attempt": 1,
        "bytes": 20,
        "reason": "its trial is not the best",
    }
    assert store.left() == ["0/1/best", "0/1/last"]
    assert run("--keep-best", "1").stdout == "Nothing to remove.\n"


@on_sqlite
def test_the_command_says_what_it_did_in_words(store: Store, run: Callable[..., Any]) -> None:
    store.trial(1.0)
    store.end()
    (store.root / ("a" * 32)).mkdir()
    os.utime(store.root / ("a" * 32), (0, 0))
    words = ("--keep-best", "0", "--unknown-studies")
    assert run(*words, "--dry-run").stdout.splitlines()[-1] == "4 folders, 60 bytes would be removed."
    result = run(*words)
    assert result.stdout.splitlines()[-1] == "4 folders, 60 bytes removed."
    assert list(store.root.iterdir()) == []


@on_sqlite
def test_what_cannot_be_removed_is_named_and_the_rest_goes(
    store: Store, run: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    store.trial(1.0)
    store.end()
    real = LocalPlace.remove

    def refuse(self: LocalPlace, study_id: str, folder: Any) -> None:
        if folder.name == "best":
            raise PermissionError(13, "Permission denied")
        real(self, study_id, folder)

    monkeypatch.setattr(LocalPlace, "remove", refuse)
    result = run("--keep-best", "0")
    assert result.exit_code == 1
    assert "/0/1/best could not be removed: [Errno 13] Permission denied" in result.stderr
    assert store.left() == ["0/1/best"]


# -- the coordinator's own


def test_a_coordinator_sweeps_each_study_once_it_has_ended(
    store: Store, settings: Settings, storage: Storage
) -> None:
    keeping = settings.model_copy(update={"keep_best_adapters": 1})
    sweeper = Sweeper(keeping, store.lab.database, storage)
    store.trial(1.0)
    store.trial(2.0)
    number, _ = store.lab.ask()
    store.put(number, 1, "checkpoint")  # cancelled while it waited for another attempt
    store.lab.attempt(number, 1, AttemptState.LOST)
    store.end()
    with store.lab.database.read() as session:
        assert unswept(session) == [store.lab.id]
    sweeper._next = 0.0
    sweeper.look()
    assert sweeper._thread is not None
    sweeper._thread.join(30)
    assert store.left() == ["0/1/best", "0/1/last"]
    with store.lab.database.read() as session:
        assert unswept(session) == []
        assert session.get_one(Study, store.lab.id).swept_at is not None
    sweeper.close()


@on_sqlite
def test_a_study_whose_artifacts_cannot_be_removed_is_swept_later_and_that_is_said_once(
    store: Store,
    settings: Settings,
    storage: Storage,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    def refuse(*args: Any) -> None:
        raise OSError(5, "Input/output error")

    sweeper = Sweeper(settings, store.lab.database, storage)
    store.trial(1.0)
    store.end()
    with monkeypatch.context() as patch:
        patch.setattr(LocalPlace, "remove", refuse)
        for _ in range(3):
            sweeper.sweep_study(store.lab.id, open_places(settings))
    assert caplog.text.count("are swept later") == 1
    with store.lab.database.read() as session:
        assert unswept(session) == [store.lab.id]
    sweeper.sweep_study(store.lab.id, open_places(settings))
    assert store.left() == ["0/1/best", "0/1/last"]
    with store.lab.database.read() as session:
        assert unswept(session) == []


# -- behind a URL


def test_a_url_that_nothing_installed_reaches_is_said_with_what_to_install(tmp_path: Path) -> None:
    for url, says in (("nothing://bucket/x", "Protocol not known: nothing"), ("oss://bucket/x", "ossfs")):
        with pytest.raises(Unavailable, match=f"^{url} cannot be used for artifacts: .*{says}"):
            open_places(Settings(home=tmp_path, artifacts_url=url))


@pytest.fixture
def flaky() -> Iterator[type[FlakyFileSystem]]:
    with flaky_storage() as made:
        yield made


def upload(settings: Settings, lab: Lab, trial: int, name: str = "best", files: Sequence[str] = FILES) -> str:
    import fsspec.core

    place = f"{settings.artifacts_url}/{lab.id}/{trial}/1/{name}"
    fs, path = fsspec.core.url_to_fs(place)
    fs.makedirs(path, exist_ok=True)
    for file in files:
        fs.pipe_file(f"{path}/{file}", f"{trial} {file}".encode())
    return place


@on_sqlite
@behind(FLAKY, FILE)
def test_an_adapter_behind_a_url_is_given_out_and_swept(
    client: TestClient,
    lab: Lab,
    settings: Settings,
    storage: Storage,
    flaky: type[FlakyFileSystem],
) -> None:
    for number, value in enumerate((2.0, 1.0)):
        upload(settings, lab, number, "checkpoint")
        lab.complete(value, best_adapter_dir=upload(settings, lab, number))
    answer = client.get("/v1/studies/support-tone/trials/1/adapter")
    with zipfile.ZipFile(io.BytesIO(answer.content)) as archive:
        assert archive.testzip() is None
        assert {name: archive.read(name) for name in archive.namelist()} == {
            name: f"1 {name}".encode() for name in FILES
        }
    lab.advance(StudyState.RUNNING, StudyState.COMPLETED)
    planned = list(commands.plan(lab.database, storage, open_places(settings), keep=1))
    assert [
        (p.removal.folder.trial, p.removal.kind, p.removal.bytes) for p in planned if p.removal.folder
    ] == [
        (0, "adapter", 48),
        (0, "checkpoint", 48),
        (1, "checkpoint", 48),
    ]
    assert [why for _, why in commands.carry_out(lab.database, planned)] == [None] * 3
    assert list(commands.plan(lab.database, storage, open_places(settings), keep=1)) == []
    assert client.get("/v1/studies/support-tone/trials/1/adapter").status_code == 200
    assert "was swept" in client.get("/v1/studies/support-tone/trials/0/adapter").json()["detail"]


@on_sqlite
@behind(FLAKY, FILE)
def test_the_model_s_configuration_is_given_out_where_an_adapter_has_one(
    client: TestClient, lab: Lab, settings: Settings, flaky: type[FlakyFileSystem]
) -> None:
    lab.complete(1.0, best_adapter_dir=upload(settings, lab, 0, files=(*FILES, "config.json")))
    answer = client.get("/v1/studies/support-tone/trials/0/adapter")
    with zipfile.ZipFile(io.BytesIO(answer.content)) as archive:
        assert archive.namelist() == ["adapter_config.json", "adapter_model.safetensors", "config.json"]
        assert archive.read("config.json") == b"0 config.json"


@on_sqlite
@behind(FLAKY, FILE)
def test_nothing_outside_the_url_is_given_out(
    client: TestClient, lab: Lab, settings: Settings, flaky: type[FlakyFileSystem]
) -> None:
    flaky.fault = staticmethod(failing("info", error=AssertionError("it was looked for")))
    root = settings.artifacts_url
    places = [f"{root}{more}" for more in ("/../other/best", "/x/./best", "//best", "-other/best", "")]
    places += ["flaky://other/best", "file:///etc", "http://localhost:1/best"]
    for number, place in enumerate(places):
        assert lab.complete(1.0, best_adapter_dir=place) == number
        answer = client.get(f"/v1/studies/support-tone/trials/{number}/adapter")
        assert (answer.status_code, "outside" in answer.json()["detail"]) == (404, True), place


@on_sqlite
@behind(FILE)
def test_a_file_url_is_as_careful_about_links_as_a_folder(
    client: TestClient, lab: Lab, settings: Settings, tmp_path: Path
) -> None:
    place = Path(upload(settings, lab, 0).removeprefix("file://"))
    outside = shutil.copytree(place, tmp_path / "outside")
    shutil.rmtree(place)
    place.symlink_to(outside)
    lab.complete(1.0, best_adapter_dir=f"file://{place}")
    assert client.get("/v1/studies/support-tone/trials/0/adapter").status_code == 404


@on_sqlite
@behind(FLAKY)
def test_a_storage_that_does_not_answer_is_no_missing_adapter(
    client: TestClient, lab: Lab, settings: Settings, flaky: type[FlakyFileSystem]
) -> None:
    lab.complete(1.0, best_adapter_dir=upload(settings, lab, 0))
    flaky.fault = staticmethod(failing("info"))
    answer = client.get("/v1/studies/support-tone/trials/0/adapter")
    assert (answer.status_code, answer.json()["detail"]) == (
        503,
        "flaky://bucket/artifacts does not answer: [Errno 5] Input/output error",
    )
    flaky.fault = staticmethod(failing("nothing"))
    flaky.store.clear()
    assert client.get("/v1/studies/support-tone/trials/0/adapter").status_code == 404
