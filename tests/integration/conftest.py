"""A real SQLite and a real PostgreSQL, each with the migrated schema, and the real application on them."""

from __future__ import annotations

import shutil
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from optuna.storages._rdb.models import BaseModel
from starlette.testclient import TestClient

from service.app import create_app
from service.db import database
from service.db.models import Base
from service.maintenance import schema
from service.optuna_store.storage import Storage, close_storage, open_storage
from service.settings import Settings
from tests.support.databases import execute, named
from tests.support.service.api import LOCAL

UNCHECKED: dict[str, Any] = {"submission_check_seconds": 0}
"""Definitions name a model that is not there. What comes of a check is tested where it is the subject."""

_TABLES = [
    f"{table.schema or schema}.{table.name}"
    for schema, tables in (("public", Base.metadata), ("optuna", BaseModel.metadata))
    for table in tables.sorted_tables
    if table.name != "version_info"
]
_EMPTY = "; ".join(
    [
        "SET session_replication_role = replica",  # foreign keys are not looked at, so any order will do
        *(f"DELETE FROM {table}" for table in [*_TABLES, "optuna.nightsweep_fences"]),
        "SELECT setval(format('%I.%I', schemaname, sequencename), 1, false) FROM pg_sequences"
        " WHERE last_value IS NOT NULL",
    ]
)


@pytest.fixture(scope="session")
def migrated_postgres(postgres: str, tmp_path_factory: pytest.TempPathFactory) -> str:
    """The URL of a database with the schema, which tests share one after the other."""
    url = named(postgres, "shared")
    execute(postgres, "CREATE DATABASE shared")
    schema.upgrade(Settings(home=tmp_path_factory.mktemp("home"), database_url=url))
    return url


@pytest.fixture(scope="session")
def migrated_sqlite(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A home folder with the schema, to make others from."""
    home = tmp_path_factory.mktemp("template") / "home"
    schema.upgrade(Settings(home=home))
    return home


@pytest.fixture(params=["sqlite", "postgresql"])
def backend(request: pytest.FixtureRequest) -> str:
    """Runs the test on both databases."""
    return str(request.param)


@pytest.fixture
def empty_settings(backend: str, request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Settings]:
    """Settings of a database that nobody has migrated."""
    options: dict[str, Any] = {"home": tmp_path / "home", "data_roots": (_data(tmp_path),)} | UNCHECKED
    if backend == "sqlite":
        yield Settings(**options)
        return
    server: str = request.getfixturevalue("postgres")
    name = f"test_{uuid.uuid4().hex[:12]}"
    execute(server, f"CREATE DATABASE {name}")
    yield Settings(**options, database_url=named(server, name))
    execute(server, f"DROP DATABASE {name} WITH (FORCE)")


@pytest.fixture
def settings(backend: str, request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Settings]:
    """Settings of an empty, migrated database, and of a data root with two data files."""
    home = tmp_path / "home"
    options: dict[str, Any] = {"home": home, "data_roots": (_data(tmp_path),)} | UNCHECKED
    if backend == "sqlite":
        shutil.copytree(request.getfixturevalue("migrated_sqlite"), home)
        yield Settings(**options)
        return
    url: str = request.getfixturevalue("migrated_postgres")
    yield Settings(**options, database_url=url)
    # Emptied, not dropped: making a database takes a hundred times as long as emptying one. And by DELETE:
    # TRUNCATE makes new files for each table and each index.
    execute(url, _EMPTY)


def _data(tmp_path: Path) -> Path:
    folder = tmp_path / "data"
    folder.mkdir()
    for name in ("train.jsonl", "eval.jsonl"):
        (folder / name).write_text('{"text": "one"}\n')
    return folder


@pytest.fixture
def service_database(settings: Settings) -> Iterator[database.Database]:
    """The service's database, as an entry point opens it."""
    opened = database.open_database(settings)
    yield opened
    opened.dispose()


@pytest.fixture
def storage(settings: Settings) -> Iterator[Storage]:
    """Optuna's storage, as an entry point opens it."""
    opened = open_storage(settings)
    yield opened
    close_storage(opened)


@pytest.fixture
def client(settings: Settings) -> Iterator[TestClient]:
    """A client of the real application."""
    with TestClient(create_app(settings), base_url=LOCAL, raise_server_exceptions=True) as opened:
        yield opened


@pytest.fixture
def definition() -> Callable[..., dict[str, Any]]:
    """Makes a right definition, with sections replaced at will."""

    def make(**sections: Any) -> dict[str, Any]:
        return {
            "name": "support-tone",
            "model": {"id": "Qwen/Qwen2.5-0.5B-Instruct"},
            "data": {"train": "train.jsonl", "eval": "eval.jsonl"},
            "search": {
                "algorithm": "random",
                "trials": 4,
                "seed": 7,
                "space": {
                    "learning_rate": {"min": 1e-5, "max": 1e-3, "scale": "log"},
                    "batch_size": {"choices": [4, 8]},
                },
            },
            **sections,
        }

    return make
