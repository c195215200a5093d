"""Upgrades that are killed, schemas that nobody knows, and what the commands say of them."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from alembic import command
from alembic.autogenerate import compare_metadata
from alembic.migration import MigrationContext
from click.testing import Result
from sqlalchemy import create_engine, inspect, text
from typer.testing import CliRunner

from service.cli.root import app
from service.db import database
from service.db.models import Base
from service.errors import SchemaOutOfDate
from service.maintenance import backup, integrity, schema
from service.settings import Settings
from tests.integration.service.maintenance.test_schema import migrate
from tests.support.checkout import ROOT
from tests.support.service.searches import rows_of

Make = Callable[..., Settings]
KILLS = 6
TO_UPGRADE = "Run `nightsweep db upgrade`."
TO_INSTALL = "a newer one upgraded"


def environment(settings: Settings) -> dict[str, str]:
    named = {name: value for name, value in os.environ.items() if not name.startswith("NIGHTSWEEP_")}
    return {
        **named,
        "NIGHTSWEEP_HOME": str(settings.home),
        "NIGHTSWEEP_DATABASE_URL": settings.database_url,
    }


def change(settings: Settings, statement: str, *, of_optuna: bool = False) -> None:
    """One statement on the service's database or on Optuna's."""
    engine = create_engine(settings.optuna_url if of_optuna else settings.database_url)
    with engine.begin() as connection:
        connection.execute(text(statement))
    engine.dispose()


# -- killed in the middle ----------------------------------------------------------------------------


class KilledUpgrades:
    """The process of `tests.scripts.killed_upgrades`."""

    def __init__(self) -> None:
        self._process = subprocess.Popen(
            [sys.executable, "-m", "tests.scripts.killed_upgrades"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            cwd=ROOT,
        )

    def upgrade(self, settings: Settings, kill_at: int | None) -> dict[str, Any]:
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        url = None if settings.database_url.startswith("sqlite") else settings.database_url
        order = {"home": str(settings.home), "database_url": url, "kill_at": kill_at}
        self._process.stdin.write(json.dumps(order) + "\n")
        self._process.stdin.flush()
        answer: dict[str, Any] = json.loads(self._process.stdout.readline())
        return answer

    def close(self) -> None:
        self._process.communicate(timeout=60)


@pytest.fixture(scope="module")
def killed_upgrades() -> Iterator[KilledUpgrades]:
    started = KilledUpgrades()
    yield started
    started.close()


def nothing(settings: Settings) -> None:
    """No table anywhere."""


def two_versions_behind(settings: Settings) -> None:
    """The service's tables at their first revision with a row each, Optuna's without the fences."""
    schema.upgrade(settings)
    migrate(settings, command.downgrade, "0001")
    change(settings, "DROP TABLE nightsweep_fences", of_optuna=True)
    at = (
        "'2026-01-01 00:00:00.000000+00:00'"
        if "postgres" in settings.database_url
        else "'2026-01-01 00:00:00'"
    )
    change(
        settings,
        "INSERT INTO studies (id, name, definition, state, reason, cancel_requested, created_at,"
        f" lease_number) VALUES ('a', 's', '{{}}', 'running', '', false, {at}, 1)",
    )
    change(
        settings,
        "INSERT INTO attempts (study_id, trial_number, ordinal, state, reason, worker_id, gpus,"
        " artifact_dir, dispatched_at, examples_seen, step, last_event_seq)"
        f" VALUES ('a', 0, 1, 'lost', 'gone', 'w', 0, '/', {at}, 0, 0, 0)",
    )
    change(settings, "INSERT INTO studies (study_name) VALUES ('s')", of_optuna=True)


def refusal(settings: Settings) -> str | None:
    """What a process would say in place of starting."""
    try:
        schema.check_schemas(settings)
    except SchemaOutOfDate as error:
        return error.detail
    return None


def assert_as_the_models_say(settings: Settings) -> None:
    engine = database.make_engine(settings)
    with engine.connect() as connection:
        context = MigrationContext.configure(connection, opts={"version_table": schema.VERSION_TABLE})
        assert compare_metadata(context, Base.metadata) == []
    engine.dispose()


@pytest.mark.parametrize("before", [nothing, two_versions_behind])
@pytest.mark.parametrize("kind", ["sqlite", "postgresql"])
def test_an_upgrade_killed_anywhere_is_finished_by_the_next(
    make_empty: Make, killed_upgrades: KilledUpgrades, kind: str, before: Callable[[Settings], None]
) -> None:
    start = make_empty(kind)
    start.home.mkdir(exist_ok=True)
    before(start)
    whole = make_empty(kind, of=start)
    steps = killed_upgrades.upgrade(whole, None)["steps"]
    expected = rows_of(whole)
    assert steps > KILLS
    for kill_at in {1, steps, *range(1, steps, steps // (KILLS - 1))}:
        settings = make_empty(kind, of=start)
        assert killed_upgrades.upgrade(settings, kill_at)["killed"]
        refused = refusal(settings)
        if refused is None:
            assert kill_at > steps / 2  # nothing was missing but the end of the process
        else:
            assert TO_UPGRADE in refused
            schema.upgrade(settings)
            assert refusal(settings) is None
        assert rows_of(settings) == expected
        assert_as_the_models_say(settings)


def test_a_downgrade_and_an_upgrade_keep_what_both_versions_know(searched: Settings) -> None:
    before = rows_of(searched)
    migrate(searched, command.downgrade, "0002")
    engine = database.make_engine(searched)
    known = {
        f"service/{table}": {column["name"] for column in inspect(engine).get_columns(table)}
        for table in inspect(engine).get_table_names()
    }
    engine.dispose()
    schema.upgrade(searched)
    after = rows_of(searched)

    def shared(rows: dict[str, list[dict[str, Any]]]) -> dict[str, list[dict[str, Any]]]:
        return {
            table: [{name: row[name] for name in row.keys() & columns} for row in rows[table]]
            for table, columns in known.items()
            if table in rows
        }

    assert shared(after) == shared(before)
    assert len(before["service/attempts"]) > 4
    assert after["optuna/trials"] == before["optuna/trials"]
    assert integrity.find_violations(searched) == []


# -- schemas that nobody knows -----------------------------------------------------------------------


def older(settings: Settings) -> None:
    migrate(settings, command.downgrade, "0002")


def newer(settings: Settings) -> None:
    change(settings, f"UPDATE {schema.VERSION_TABLE} SET version_num = '9999'")


def without_optunas_fences(settings: Settings) -> None:
    change(settings, "DROP TABLE nightsweep_fences", of_optuna=True)


def optunas_from_the_future(settings: Settings) -> None:
    change(settings, "UPDATE alembic_version SET version_num = 'v9.0.0.a'", of_optuna=True)


STRANGE = {
    older: [f"is at revision 0002; this version needs {schema.newest_revision()}", TO_UPGRADE],
    newer: ["is at revision 9999, which this version of Nightsweep does not know", TO_INSTALL],
    without_optunas_fences: ["Optuna's storage", TO_UPGRADE],
    optunas_from_the_future: ["Optuna's tables are at revision v9.0.0.a", TO_INSTALL],
}


def run(settings: Settings, *arguments: str) -> subprocess.CompletedProcess[str]:
    """`nightsweep ...` as a process of its own."""
    return subprocess.run(
        [sys.executable, "-m", "service.cli", *arguments],
        env=environment(settings),
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )


def assert_says(finished: subprocess.CompletedProcess[str], words: list[str]) -> None:
    assert finished.returncode == 1, finished
    assert finished.stderr.startswith("Error: "), finished.stderr
    assert "Traceback" not in finished.stderr
    assert [word for word in words if word not in finished.stderr] == []


@pytest.mark.parametrize("make_strange", STRANGE, ids=lambda make: make.__name__)
@pytest.mark.parametrize("kind", ["sqlite", "postgresql"])
def test_a_strange_schema_is_known_as_such(
    make_empty: Make, kind: str, make_strange: Callable[[Settings], None]
) -> None:
    settings = make_empty(kind)
    schema.upgrade(settings)
    make_strange(settings)
    said = refusal(settings) or ""
    assert [word for word in STRANGE[make_strange] if word not in said] == []
    if TO_INSTALL in STRANGE[make_strange]:
        with pytest.raises(SchemaOutOfDate, match=TO_INSTALL):
            schema.upgrade(settings)
    else:
        schema.upgrade(settings)
        assert refusal(settings) is None


@pytest.mark.parametrize(
    ("process", "kind", "make_strange"),
    [
        ("api", "sqlite", older),
        ("api", "postgresql", optunas_from_the_future),
        ("coordinator", "postgresql", newer),
        ("coordinator", "sqlite", without_optunas_fences),
    ],
)
def test_no_process_starts_on_a_strange_schema(
    make_empty: Make, process: str, kind: str, make_strange: Callable[[Settings], None]
) -> None:
    settings = make_empty(kind)
    schema.upgrade(settings)
    make_strange(settings)
    assert_says(run(settings, process), STRANGE[make_strange])


@pytest.mark.parametrize("process", ["api", "coordinator"])
def test_no_process_starts_without_tables(make_empty: Make, process: str) -> None:
    settings = make_empty("sqlite")
    assert_says(run(settings, process), ["has no Nightsweep tables", TO_UPGRADE])


# -- the commands ------------------------------------------------------------------------------------


@pytest.fixture
def nightsweep(monkeypatch: pytest.MonkeyPatch) -> Callable[..., Result]:
    """Runs `nightsweep ...` in this process."""

    def invoke(settings: Settings, *arguments: str) -> Result:
        for name, value in environment(settings).items():
            monkeypatch.setenv(name, value)
        return CliRunner().invoke(app, arguments, catch_exceptions=False)

    return invoke


def test_check_backup_and_restore_from_the_command_line(
    searched_sqlite: Path, make_empty: Make, tmp_path: Path, nightsweep: Callable[..., Result]
) -> None:
    source, target = Settings(home=searched_sqlite), make_empty("postgresql")
    file = str(tmp_path / "night.backup")
    checked = nightsweep(source, "db", "check")
    assert (checked.exit_code, checked.stderr) == (0, "")
    assert checked.stdout.endswith("rules were checked, 0 violations found.\n")
    assert nightsweep(source, "db", "backup", file).stdout.startswith(f"{file}: 2 studies, ")
    restored = nightsweep(target, "db", "restore", file)
    assert (restored.stderr, restored.stdout.startswith("Restored 2 studies, ")) == ("", True)
    change(target, "UPDATE studies SET ended_at = NULL WHERE name = 'grid'")
    broken = nightsweep(target, "db", "check")
    assert broken.exit_code == 1
    assert broken.stderr.startswith("Error: study grid: it is completed, ")
    assert broken.stdout.endswith(", 1 violation found.\n")
    as_json = nightsweep(target, "db", "check", "--json")
    assert (as_json.exit_code, json.loads(as_json.stdout)[0]["rule"]) == (1, "times-of-studies")


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("restore", "full"), "is not empty"),
        (("backup", "full"), "already exists"),
        (("restore", "missing"), "No such file"),
        (("restore", "."), "Is a directory"),
        (("backup", "missing/b"), "the folder missing does not exist"),
        (("restore", "text"), "is not a backup, or is damaged"),
    ],
)
def test_what_cannot_be_done_is_said_in_a_sentence(
    searched_sqlite: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    nightsweep: Callable[..., Result],
    arguments: tuple[str, str],
    words: str,
) -> None:
    monkeypatch.chdir(tmp_path)
    source = Settings(home=searched_sqlite)
    backup.save(source, tmp_path / "full")
    (tmp_path / "text").write_text("not a backup")
    refused = nightsweep(source, "db", *arguments)
    assert (refused.exit_code, refused.stdout) == (1, "")
    assert refused.stderr.startswith("Error: ")
    assert words in refused.stderr
