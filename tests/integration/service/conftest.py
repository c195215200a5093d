"""Databases with studies in them, made once and copied for each test."""

from __future__ import annotations

import shutil
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from sqlalchemy.engine import make_url

from service.maintenance import schema
from service.settings import Settings
from tests.support.databases import execute, fresh_postgres_database, named
from tests.support.service.searches import search


@pytest.fixture(scope="session")
def searched_sqlite(migrated_sqlite: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A home folder whose databases hold two studies that have ended."""
    home = tmp_path_factory.mktemp("searched") / "home"
    shutil.copytree(migrated_sqlite, home)
    search(Settings(home=home))
    return home


@pytest.fixture(scope="session")
def searched_postgres(postgres: str, tmp_path_factory: pytest.TempPathFactory) -> str:
    """The URL of a database likewise."""
    execute(postgres, "CREATE DATABASE searched")
    settings = Settings(home=tmp_path_factory.mktemp("home"), database_url=named(postgres, "searched"))
    schema.upgrade(settings)
    search(settings)
    return settings.database_url


@pytest.fixture
def searched(backend: str, request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Settings]:
    """A copy of one of these, on both databases."""
    home = tmp_path / "home"
    if backend == "sqlite":
        shutil.copytree(request.getfixturevalue("searched_sqlite"), home)
        yield Settings(home=home)
        return
    source: str = request.getfixturevalue("searched_postgres")
    execute(request.getfixturevalue("postgres"), "CREATE DATABASE searched_copy TEMPLATE searched")
    yield Settings(home=home, database_url=named(source, "searched_copy"))
    execute(request.getfixturevalue("postgres"), "DROP DATABASE searched_copy WITH (FORCE)")


@pytest.fixture
def make_empty(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Callable[..., Settings]]:
    """Makes settings of databases of the given kind: without a table, or copies of what others hold."""
    made: list[str] = []

    def make(kind: str, *, of: Settings | None = None) -> Settings:
        home = tmp_path / uuid.uuid4().hex
        if kind == "sqlite":
            if of is not None:
                shutil.copytree(of.home, home)
            return Settings(home=home)
        template = None if of is None else make_url(of.database_url).database
        made.append(fresh_postgres_database(request.getfixturevalue("postgres"), template))
        return Settings(home=home, database_url=made[-1])

    yield make
    for url in made:
        execute(request.getfixturevalue("postgres"), f"DROP DATABASE {make_url(url).database} WITH (FORCE)")
