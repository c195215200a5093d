"""The command line against the real API: uvicorn on a free port, SQLite, real files."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner, Result

from service import web_server
from service.app import create_app
from service.cli.root import app
from service.db import database
from service.db.database import database_now
from service.db.models import Study
from service.db.transitions import advance_study
from service.maintenance import schema
from service.settings import Settings
from service.states import StudyState
from tests.support.checkout import ROOT

DEADLINE_SECONDS = 30.0
STUDY = """\
name: tone
model: {id: base}
data: {train: train.jsonl, eval: eval.jsonl}
search:
  trials: 3
  space:
    learning_rate: {min: 1e-5, max: 1e-3, scale: log}
pruning: {algorithm: none}
"""


@contextlib.contextmanager
def serving(settings: Settings) -> Iterator[None]:
    """The API in a thread of its own, until the block ends."""
    app = create_app(settings)
    server = web_server.Server(web_server.configuration(app, port=settings.port, log_level="warning"))
    thread = threading.Thread(target=server.run)
    thread.start()
    try:
        deadline = time.monotonic() + DEADLINE_SECONDS
        while not server.started:
            assert thread.is_alive(), "the server ended while starting"
            assert time.monotonic() < deadline, "the server did not start"
            thread.join(0.02)
        yield
    finally:
        server.should_exit = True
        thread.join(DEADLINE_SECONDS)
        assert not thread.is_alive(), "the server did not stop"


@pytest.fixture
def settings(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Settings:
    for name in [name for name in os.environ if name.startswith("NIGHTSWEEP_")]:
        monkeypatch.delenv(name)
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    monkeypatch.setenv("NIGHTSWEEP_SERVER", f"http://127.0.0.1:{port}")
    settings = Settings(home=tmp_path / "home", port=port, data_roots=(tmp_path,), submission_check_seconds=0)
    schema.upgrade(settings)
    return settings


@pytest.fixture
def server(settings: Settings) -> Iterator[Settings]:
    with serving(settings):
        yield settings


@pytest.fixture
def study_file(tmp_path: Path) -> Path:
    """A study with its data and its model's folder beside it."""
    folder = tmp_path / "studies"
    (folder / "base").mkdir(parents=True)
    (folder / "base" / "config.json").write_text("{}")
    for name in ("train.jsonl", "eval.jsonl"):
        (folder / name).write_text('{"text": "a b c"}\n')
    (folder / "study.yaml").write_text(STUDY)
    return folder / "study.yaml"


def nightsweep(*arguments: object) -> Result:
    return CliRunner().invoke(app, [str(argument) for argument in arguments], catch_exceptions=False)


def read_json(*arguments: object) -> Any:
    result = nightsweep(*arguments, "--json")
    assert (result.exit_code, result.stderr) == (0, "")
    return json.loads(result.stdout)


def move(settings: Settings, to: StudyState, reason: str) -> None:
    """What the coordinator does to the study `tone`."""
    opened = database.open_database(settings)
    with opened.write() as session:
        study = session.query(Study).filter_by(name="tone").one()
        advance_study(session, study, to, reason)
        runs = to is StudyState.RUNNING
        study.lease_owner = "a coordinator" if runs else None
        study.lease_expires_at = database_now(session) + timedelta(hours=1) if runs else None
    opened.dispose()


class Command:
    """`nightsweep ...` as a process of its own, whose lines are waited for."""

    def __init__(self, *arguments: str) -> None:
        self.process = subprocess.Popen(
            [sys.executable, "-m", "service.cli", *arguments],
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            cwd=ROOT,
            # A shell lets its background jobs ignore Ctrl-C, which every process below them inherits.
            preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
        )
        self.lines: list[str] = []

    def __enter__(self) -> Command:
        self._watchdog = threading.Timer(DEADLINE_SECONDS, self.process.kill)
        self._watchdog.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._watchdog.cancel()
        self.process.kill()
        self.process.communicate()

    def wait_for_line(self, part: str) -> str:
        """The next line that holds `part`; fails when the process ends without one."""
        assert self.process.stdout is not None
        for line in self.process.stdout:
            self.lines.append(line)
            if part in line:
                return line
        raise AssertionError(f"{part!r} never came; the lines were {self.lines}")

    def wait(self) -> int:
        return self.process.wait(DEADLINE_SECONDS)


def test_a_study_goes_from_its_file_to_the_service_and_can_be_read_back(
    server: Settings, study_file: Path
) -> None:
    submitted = read_json("submit", study_file)
    assert (submitted["name"], submitted["state"], submitted["trials_requested"]) == ("tone", "queued", 3)
    definition = submitted["definition"]
    folder = study_file.parent.resolve()
    assert definition["model"]["id"] == str(folder / "base")
    assert definition["data"]["train"] == str(folder / "train.jsonl")
    assert definition["search"]["space"]["learning_rate"]["min"] == 1e-5
    assert read_json("show", "tone") == submitted
    assert read_json("show", submitted["id"]) == submitted
    [listed] = read_json("studies", "--state", "queued")
    assert listed == {key: submitted[key] for key in listed}
    assert "definition" not in listed
    assert read_json("studies", "--state", "running") == []
    assert read_json("trials", "tone") == []
    assert [event["kind"] for event in read_json("events", "tone")] == ["study_queued"]


def test_a_clone_has_the_same_definition_under_another_name(server: Settings, study_file: Path) -> None:
    text = study_file.read_text()
    preset = text[: text.index("  space:")] + "  preset: qlora-quick\npruning: {algorithm: none}\n"
    study_file.write_text(preset)
    original = read_json("submit", study_file)["definition"]
    clone = read_json("clone", "tone", "--name", "tone-2")["definition"]
    assert original["search"]["preset"] == "qlora-quick"
    assert clone == original | {"name": "tone-2", "search": original["search"] | {"preset": None}}


def test_every_fault_of_a_definition_is_printed_in_one_go(server: Settings, study_file: Path) -> None:
    study_file.write_text(STUDY.replace("min: 1e-5", "min: .nan").replace("trials: 3", "trails: 3"))
    result = nightsweep("submit", study_file)
    assert (result.exit_code, result.stdout) == (1, "")
    assert "  search.space.learning_rate.min: " in result.stderr
    assert "  search.trails: " in result.stderr
    assert "did you mean trials?" in result.stderr
    assert read_json("studies") == []


@pytest.mark.parametrize(
    "arguments", [("show", "none"), ("best", "tone"), ("adapter", "tone", "0"), ("schedules", "show", "x")]
)
def test_what_is_not_there_exits_1_with_a_sentence(
    server: Settings, study_file: Path, tmp_path: Path, arguments: tuple[str, ...]
) -> None:
    read_json("submit", study_file)
    extra = ("-o", str(tmp_path / "out")) if arguments[0] == "adapter" else ()
    result = nightsweep(*arguments, *extra)
    assert (result.exit_code, result.stdout) == (1, "")
    assert result.stderr.startswith("Error: Not found (404)\n")
    assert not (tmp_path / "out").exists()


def test_a_taken_name_exits_1_and_another_name_does_not(server: Settings, study_file: Path) -> None:
    read_json("submit", study_file)
    taken = nightsweep("submit", study_file)
    assert (taken.exit_code, "(409)" in taken.stderr) == (1, True)
    assert read_json("submit", study_file, "--name", "tone-2")["name"] == "tone-2"


def test_watch_follows_a_study_over_a_restart_of_the_server(settings: Settings, study_file: Path) -> None:
    with contextlib.ExitStack() as stack:
        with serving(settings):
            read_json("submit", study_file)
            watching = stack.enter_context(Command("watch", "tone"))
            watching.wait_for_line("study tone queued")
        watching.wait_for_line("trying again: no answer")
        move(settings, StudyState.RUNNING, "it has begun")
        with serving(settings):
            watching.wait_for_line("the server answers again")
            assert watching.wait_for_line("study tone") == "study tone running (it has begun)\n"
            move(settings, StudyState.FAILED, "the model is gone")
            watching.wait_for_line("study tone failed: no trials yet (the model is gone)")
            assert watching.wait_for_line("Study tone failed in").endswith(": the model is gone\n")
            watching.wait_for_line("Dashboard   http://127.0.0.1:")
            assert watching.wait() == 1
    assert "\x1b" not in "".join(watching.lines)


def test_submit_watch_exits_0_when_the_study_completed(server: Settings, study_file: Path) -> None:
    with Command("submit", str(study_file), "--watch") as submitting:
        submitting.wait_for_line("study tone queued")
        move(server, StudyState.RUNNING, "")
        move(server, StudyState.COMPLETED, "nothing to do")
        submitting.wait_for_line("Best trial  no trial has completed")
        assert submitting.wait() == 0


def test_ctrl_c_ends_the_watch_and_not_the_study(server: Settings, study_file: Path) -> None:
    read_json("submit", study_file)
    with Command("watch", "tone") as watching:
        watching.wait_for_line("study tone queued")
        watching.process.send_signal(signal.SIGINT)
        watching.wait_for_line("the study goes on")
        assert watching.wait() == 130
    assert read_json("show", "tone")["state"] == "queued"


def test_a_cancelled_study_is_asked_to_end(server: Settings, study_file: Path) -> None:
    read_json("submit", study_file)
    assert nightsweep("cancel", "tone").exit_code == 0
    move(server, StudyState.CANCELLED, "cancelled")
    again = nightsweep("cancel", "tone")
    assert (again.exit_code, "(409)" in again.stderr) == (1, True)


def test_a_schedule_lives_from_add_to_remove(server: Settings, study_file: Path) -> None:
    when = ("--cron", "0 22 * * *", "--timezone", "Europe/Berlin", "--name", "nightly", "--cold")
    added = read_json("schedules", "add", study_file, *when)
    assert (added["name"], added["enabled"], added["studies"]) == ("nightly", True, 0)
    listed = {key: value for key, value in added.items() if key != "definition"}
    assert read_json("schedules", "list") == [listed]
    assert read_json("schedules", "disable", "nightly")["next_fire_at"] is None
    assert read_json("schedules", "enable", "nightly")["next_fire_at"] == added["next_fire_at"]
    assert nightsweep("schedules", "remove", "nightly").exit_code == 0
    assert read_json("schedules", "list") == []


def test_the_catalog_is_listed_with_its_sources(server: Settings) -> None:
    names = [space["name"] for space in read_json("search-spaces")]
    assert {"qlora-quick", "qlora-default", "qlora-thorough"} <= set(names)
    assert "arXiv 2305.14314" in nightsweep("search-spaces", "qlora-quick").stdout


def test_a_key_opens_the_service_and_its_absence_is_explained(
    settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    with serving(Settings(**(settings.model_dump() | {"api_key": "s3cret"}))):
        refused = nightsweep("studies")
        assert refused.exit_code == 1
        assert "NIGHTSWEEP_API_KEY" in refused.stderr
        monkeypatch.setenv("NIGHTSWEEP_API_KEY", "s3cret")
        assert read_json("studies") == []


def test_without_a_server_the_exit_code_is_3(settings: Settings) -> None:
    result = nightsweep("studies")
    assert (result.exit_code, result.stdout) == (3, "")
    assert "`nightsweep serve`" in result.stderr


def test_db_upgrade_makes_what_db_check_wants(tmp_path: Path, settings: Settings) -> None:
    home = tmp_path / "elsewhere"
    missing = nightsweep("db", "check", "--home", home)
    assert (missing.exit_code, "nightsweep db upgrade" in missing.stderr) == (1, True)
    assert nightsweep("db", "upgrade", "--home", home).exit_code == 0
    assert nightsweep("db", "check", "--home", home).exit_code == 0


def test_api_without_its_tables_says_so_in_a_sentence(tmp_path: Path, settings: Settings) -> None:
    result = nightsweep("api", "--home", tmp_path / "elsewhere")
    assert result.exit_code == 1
    assert "nightsweep db upgrade" in result.stderr
    assert "Traceback" not in result.output
