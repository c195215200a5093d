"""The schema: made by migrations, equal to the models, and refused when it is another one."""

from __future__ import annotations

import json
import sqlite3
import stat
import threading
from collections.abc import Callable
from contextlib import closing
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
from alembic import command
from alembic.autogenerate import compare_metadata
from alembic.config import Config
from alembic.migration import MigrationContext
from sqlalchemy import inspect, text
from starlette.testclient import TestClient

from service.app import create_app
from service.db import database
from service.db.connections import WRITES
from service.db.models import Base
from service.errors import SchemaOutOfDate
from service.maintenance import schema
from service.optuna_store.storage import Storage, open_storage
from service.settings import Settings
from tests.support.service.api import LOCAL
from tests.support.service.events import all_events, happen, happened


def test_migrations_make_exactly_what_the_models_say(service_database: database.Database) -> None:
    with service_database.engine.connect() as connection:
        context = MigrationContext.configure(
            connection,
            opts={
                "version_table": schema.VERSION_TABLE,
                "compare_type": True,
                "compare_server_default": True,
            },
        )
        assert compare_metadata(context, Base.metadata) == []


def test_the_check_constraints_are_there(service_database: database.Database) -> None:
    """Alembic does not compare these."""
    names = {
        constraint["name"]
        for table in ("studies", "attempts", "schedules", "api_keys")
        for constraint in inspect(service_database.engine).get_check_constraints(table)
    }
    assert names == {"ck_studies_state", "ck_attempts_state", "ck_schedules_overlap", "ck_api_keys_role"} | {
        "ck_schedules_catch_up",
        "ck_schedules_until_action",
    }


def test_upgrading_twice_at_once_gives_one_schema(empty_settings: Settings) -> None:
    errors: list[BaseException] = []

    def upgrade() -> None:
        try:
            schema.upgrade(empty_settings)
        except BaseException as error:  # a thread's error must reach the test
            errors.append(error)
            raise

    threads = [threading.Thread(target=upgrade) for _ in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(timeout=60)
    assert errors == []
    engine = database.make_engine(empty_settings)
    schema.check_schema(engine)
    engine.dispose()


def migrate(settings: Settings, move: Callable[[Config, str], None], revision: str) -> None:
    """Move the service's tables to a revision."""
    engine = database.make_engine(settings)
    with schema._upgrade_lock(engine) as connection:
        config = schema._alembic_config()
        config.attributes["connection"] = connection
        move(config, revision)
    engine.dispose()


def test_an_upgrade_and_a_downgrade_keep_every_row(empty_settings: Settings) -> None:
    """SQLite's tables are changed by way of a copy: dropping the old one must not take other rows along."""
    empty_settings.home.mkdir(exist_ok=True)
    migrate(empty_settings, command.upgrade, "0001")
    engine = database.make_engine(empty_settings)
    now = datetime.now(UTC).isoformat()
    with engine.execution_options(**{WRITES: True}).begin() as connection:
        definition = json.dumps({"name": "s", "pruning": {"algorithm": "asha", "min_examples": 25}})
        connection.execute(
            text(
                "INSERT INTO studies (id, name, definition, state, reason, cancel_requested, created_at,"
                " lease_number) VALUES ('a', 's', :definition, 'running', '', false, :now, 1)"
            ),
            {"definition": definition, "now": now},
        )
        connection.execute(
            text(
                "INSERT INTO attempts (study_id, trial_number, ordinal, state, reason, worker_id, gpus,"
                " artifact_dir, dispatched_at, examples_seen, step, last_event_seq)"
                " VALUES ('a', 0, 1, 'running', '', 'w', 0, '/x', :now, 0, 0, 0)"
            ),
            {"now": now},
        )
        connection.execute(
            text("INSERT INTO events (at, study_id, kind, message) VALUES (:now, 'a', 'k', 'm')"),
            {"now": now},
        )

    def rows() -> list[int]:
        with engine.connect() as connection:
            counts = [
                connection.scalar(text(f"SELECT count(*) FROM {table}"))
                for table in ("studies", "attempts", "events")
            ]
        return [int(count or 0) for count in counts]

    schema.upgrade(empty_settings)
    assert rows() == [1, 1, 1]
    with engine.connect() as connection:
        stored = connection.scalar(text("SELECT definition FROM studies"))
    kept = stored if isinstance(stored, dict) else json.loads(str(stored))
    assert kept["pruning"] == {"algorithm": "asha", "min_examples": 25, "n_min_trials": 1}  # not today's 8
    migrate(empty_settings, command.downgrade, "0001")
    assert rows() == [1, 1, 1]
    engine.dispose()


def test_schedules_of_earlier_versions_do_what_they_did(empty_settings: Settings) -> None:
    """And a brace in a path of their data is a brace."""
    empty_settings.home.mkdir(exist_ok=True)
    migrate(empty_settings, command.upgrade, "0008")
    engine = database.make_engine(empty_settings)
    now = datetime.now(UTC).isoformat()
    data = '{"data": {"train": "/a{b}.jsonl", "eval": {"hub": "a/b"}, "format": "auto"}}'
    with engine.execution_options(**{WRITES: True}).begin() as connection:
        connection.execute(
            text(
                "INSERT INTO schedules (id, name, cron, timezone, definition, enabled, created_at) "
                "VALUES ('1', 'nightly', '* * * * *', 'UTC', :data, true, :now)"
            ),
            {"now": now, "data": data},
        )
        for name in ("a", "b"):
            connection.execute(
                text(
                    "INSERT INTO studies (id, name, definition, state, reason, cancel_requested, created_at,"
                    " lease_number, schedule_id)"
                    " VALUES (:name, :name, '{}', 'failed', '', false, :now, 1, '1')"
                ),
                {"name": name, "now": now},
            )

    def stored(*columns: str) -> list[Any]:
        with engine.connect() as connection:
            row = connection.execute(text(f"SELECT {', '.join(columns)}, definition FROM schedules")).one()
        *values, kept = row
        return [*values, (kept if isinstance(kept, dict) else json.loads(kept))["data"]["train"]]

    schema.upgrade(empty_settings)
    columns = ("catch_up", "until", "until_action", "sweeps_made", "queued_for", "starts", "ends")
    assert stored(*columns) == ["latest", None, "end", 2, None, None, None, "/a{{b}}.jsonl"]
    with engine.execution_options(**{WRITES: True}).begin() as connection:
        connection.execute(text("UPDATE schedules SET overlap = 'queue'"))
    migrate(empty_settings, command.downgrade, "0008")
    assert stored("overlap") == ["skip", "/a{b}.jsonl"]
    engine.dispose()


def test_sweeps_of_earlier_versions_learn_their_schedules_names(empty_settings: Settings) -> None:
    """Those of a schedule that was removed meanwhile, too: their first events have said it."""
    empty_settings.home.mkdir(exist_ok=True)
    migrate(empty_settings, command.upgrade, "0003")
    engine = database.make_engine(empty_settings)
    now = datetime.now(UTC).isoformat()
    with engine.execution_options(**{WRITES: True}).begin() as connection:
        connection.execute(
            text(
                "INSERT INTO schedules (id, name, cron, timezone, definition, enabled, created_at) "
                "VALUES ('1', 'nightly', '* * * * *', 'UTC', '{}', true, :now)"
            ),
            {"now": now},
        )
        for name, schedule, fired in (("a", "1", now), ("b", None, now), ("c", None, None)):
            connection.execute(
                text(
                    "INSERT INTO studies (id, name, definition, state, reason, cancel_requested, created_at,"
                    " lease_number, schedule_id, fired_for)"
                    " VALUES (:name, :name, '{}', 'failed', '', false, :now, 1, :schedule, :fired)"
                ),
                {"name": name, "now": now, "schedule": schedule, "fired": fired},
            )
        connection.execute(
            text(
                "INSERT INTO events (at, study_id, kind, message) VALUES (:now, 'b', 'study_queued', :said)"
            ),
            {"now": now, "said": "fired by the schedule 'gone.by'"},
        )
    schema.upgrade(empty_settings)

    def known() -> list[tuple[str, str | None, str | None]]:
        query = text("SELECT name, schedule_id, schedule_name FROM studies ORDER BY name")
        with engine.connect() as connection:
            return [(row.name, row.schedule_id, row.schedule_name) for row in connection.execute(query)]

    assert known() == [("a", "1", "nightly"), ("b", None, "gone.by"), ("c", None, None)]
    with engine.connect() as connection:
        options = connection.execute(text("SELECT overlap, repeat_configurations FROM schedules")).one()
    assert tuple(options) == ("skip", False)
    with engine.execution_options(**{WRITES: True}).begin() as connection:
        connection.execute(text("DELETE FROM schedules"))
    assert known()[0] == ("a", "1", "nightly")  # for ever
    migrate(empty_settings, command.downgrade, "0003")
    with engine.connect() as connection:
        assert connection.scalar(text("SELECT schedule_id FROM studies WHERE name = 'a'")) is None
    engine.dispose()


def test_the_api_refuses_to_start_without_the_schema(empty_settings: Settings) -> None:
    with (
        pytest.raises(SchemaOutOfDate, match="Run `nightsweep db upgrade`"),
        TestClient(create_app(empty_settings), base_url=LOCAL),
    ):
        pass


def test_the_api_refuses_to_start_on_a_newer_schema(empty_settings: Settings) -> None:
    schema.upgrade(empty_settings)
    opened = database.open_database(empty_settings)
    with opened.write() as session:
        session.execute(text(f"UPDATE {schema.VERSION_TABLE} SET version_num = '9999'"))
    opened.dispose()
    with (
        pytest.raises(SchemaOutOfDate, match="a newer one upgraded it"),
        TestClient(create_app(empty_settings), base_url=LOCAL),
    ):
        pass


def test_optuna_storage_is_refused_without_its_tables(empty_settings: Settings) -> None:
    with pytest.raises(SchemaOutOfDate, match="Run `nightsweep db upgrade`"):
        open_storage(empty_settings)


def test_optuna_tables_live_apart_from_the_services(
    settings: Settings, service_database: database.Database, storage: Storage
) -> None:
    ours = set(inspect(service_database.engine).get_table_names())
    theirs = set(inspect(storage.engine).get_table_names())
    assert ours == {*Base.metadata.tables, schema.VERSION_TABLE}
    assert {"studies", "trials", "alembic_version", "version_info"} <= theirs


def test_the_home_folder_is_the_owners_alone(empty_settings: Settings) -> None:
    schema.upgrade(empty_settings)
    assert stat.S_IMODE(empty_settings.home.stat().st_mode) == 0o700


def test_both_sqlite_files_use_a_write_ahead_log(tmp_path: Path) -> None:
    """So that readers never wait for the coordinator; the mode stays with the file."""
    settings = Settings(home=tmp_path)
    schema.upgrade(settings)
    for name in ("nightsweep.db", "optuna.db"):
        with closing(sqlite3.connect(tmp_path / name)) as connection:
            assert connection.execute("PRAGMA journal_mode").fetchone() == ("wal",)


def test_events_of_earlier_versions_keep_their_ids_in_the_one_order(empty_settings: Settings) -> None:
    """What schedules did comes behind them, and what happens from now on behind all."""
    empty_settings.home.mkdir(exist_ok=True)
    migrate(empty_settings, command.upgrade, "0008")
    engine = database.make_engine(empty_settings)
    now = datetime.now(UTC).isoformat()
    with engine.execution_options(**{WRITES: True}).begin() as connection:
        connection.execute(
            text(
                "INSERT INTO schedules (id, name, cron, timezone, definition, enabled, created_at, owner)"
                " VALUES ('1', 'nightly', '* * * * *', 'UTC', '{}', true, :now, 'ann')"
            ),
            {"now": now},
        )
        for schedule in ("1", "gone"):
            connection.execute(
                text(
                    "INSERT INTO schedule_events (at, schedule_id, schedule_name, kind, message)"
                    " VALUES (:now, :schedule, 'nightly', 'skipped', :message)"
                ),
                {"now": now, "schedule": schedule, "message": schedule},
            )
        for message in ("a", "b", "c"):
            connection.execute(
                text("INSERT INTO events (at, kind, message) VALUES (:now, 'cluster_seen', :message)"),
                {"now": now, "message": message},
            )
        connection.execute(text("DELETE FROM events WHERE message = 'b'"))
    schema.upgrade(empty_settings)
    opened = database.open_database(empty_settings)
    happen(opened, happened(None, "new", "cluster_seen"))
    found = all_events(opened)
    assert [(event.id, event.message, event.owner) for event in found[:4]] == [
        (1, "a", None),
        (3, "c", None),
        (4, "1", "ann"),
        (5, "gone", None),
    ]
    assert [event.message for event in found[4:]] == ["new"]
    assert found[4].id > 5
    opened.dispose()
    migrate(empty_settings, command.downgrade, "0008")
    with engine.connect() as connection:
        assert connection.scalar(text("SELECT count(*) FROM events")) == 3
    engine.dispose()
