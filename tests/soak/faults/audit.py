"""Every write to both databases, written down by the database itself: what, when, and by which process.

Triggers beside the product's tables. A process says who it is: to PostgreSQL by its application name, to
SQLite by a function that its connections have (see `injected/sitecustomize.py`).
"""

from __future__ import annotations

import sqlite3
from contextlib import closing
from dataclasses import dataclass
from typing import Any

import psycopg
from sqlalchemy import Engine, create_engine, event, text
from sqlalchemy.engine import make_url

from service.settings import OPTUNA_SCHEMA, Settings

_SERVICE = (
    # table, key, what is kept of the row
    ("studies", "id", "state || ' ' || {row}.lease_number || ' ' || COALESCE({row}.lease_owner, '-')"),
    ("attempts", "id", "state"),
    ("events", "study_id", "kind"),
    ("rung_reports", "study_id", "trial_number || ' ' || {row}.rung"),
)
_OPTUNA = (
    ("trials", "trial_id", "state"),
    ("trial_values", "trial_id", "value"),
    ("trial_params", "trial_id", "param_name"),
    ("trial_intermediate_values", "trial_id", "step"),
    ("trial_user_attributes", "trial_id", "key"),
    ("trial_system_attributes", "trial_id", "key"),
    ("nightsweep_fences", "study_name", "number || ' ' || {row}.owner"),
)


@dataclass(frozen=True)
class Write:
    """One row that was inserted or changed."""

    id: int
    at: float
    """Seconds since 1970, by the database's clock."""
    writer: str
    """The process's name, for example `coordinator-1.3`."""
    relation: str
    operation: str
    key: str
    """A study's id; of attempts theirs; of Optuna's tables a trial's id, of fences a study's name."""
    old: str | None
    new: str


def install(settings: Settings) -> None:
    """Start writing down. The tables are there already."""
    for url, tables, schema in (
        (settings.database_url, _SERVICE, "public"),
        (settings.optuna_url, _OPTUNA, OPTUNA_SCHEMA),
    ):
        made = make_url(url)
        if made.get_backend_name() == "sqlite":
            with closing(sqlite3.connect(str(made.database), timeout=30)) as connection:
                connection.executescript(_sqlite(tables))
        else:
            plain = made.set(drivername="postgresql").render_as_string(hide_password=False)
            with psycopg.connect(plain) as connection:
                connection.execute(_postgresql(tables, schema))


def open_engine(url: str) -> Engine:
    """To look at a database, and to write to it, past the product's own code."""
    is_sqlite = url.startswith("sqlite")
    arguments: dict[str, Any] = {"timeout": 60} if is_sqlite else {"connect_timeout": 5}
    engine = create_engine(url, pool_pre_ping=True, connect_args=arguments)
    if is_sqlite:
        event.listen(engine, "connect", _be_the_tests)
    return engine


def _be_the_tests(connection: Any, _record: object) -> None:
    connection.create_function("fault_writer", 0, lambda: "tests")


def read(engine: Engine, *, after: int = 0) -> list[Write]:
    """What was written to one of the two databases, in order."""
    columns = "id, at, writer, relation, operation, key, old, new"
    with engine.connect() as connection:
        rows = connection.execute(
            text(f"SELECT {columns} FROM fault_audit WHERE id > :after ORDER BY id"), {"after": after}
        )
        return [Write(*row) for row in rows]


def _sqlite(tables: tuple[tuple[str, str, str], ...]) -> str:
    parts = [
        "CREATE TABLE fault_audit (id INTEGER PRIMARY KEY AUTOINCREMENT, at REAL, writer TEXT,"
        " relation TEXT, operation TEXT, key TEXT, old TEXT, new TEXT);"
    ]
    for table, key, kept in tables:
        for operation in ("INSERT", "UPDATE"):
            old = f"CAST(OLD.{kept.format(row='OLD')} AS TEXT)" if operation == "UPDATE" else "NULL"
            parts.append(
                f"CREATE TRIGGER fault_{table}_{operation} AFTER {operation} ON {table} BEGIN"
                " INSERT INTO fault_audit (at, writer, relation, operation, key, old, new) VALUES"
                f" ((julianday('now') - 2440587.5) * 86400.0, fault_writer(), '{table}', '{operation}',"
                f" NEW.{key}, {old}, CAST(NEW.{kept.format(row='NEW')} AS TEXT)); END;"
            )
    return "\n".join(parts)


def _postgresql(tables: tuple[tuple[str, str, str], ...], schema: str) -> str:
    audit = f"{schema}.fault_audit"
    parts = [
        f"CREATE TABLE {audit} (id BIGSERIAL PRIMARY KEY, at DOUBLE PRECISION, writer TEXT,"
        " relation TEXT, operation TEXT, key TEXT, old TEXT, new TEXT);"
    ]
    for table, key, kept in tables:
        for operation in ("INSERT", "UPDATE"):
            name = f"{schema}.fault_{table}_{operation}"
            old = f"(OLD.{kept.format(row='OLD')})::TEXT" if operation == "UPDATE" else "NULL"
            parts.append(
                f"CREATE FUNCTION {name}() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN"
                f" INSERT INTO {audit} (at, writer, relation, operation, key, old, new) VALUES"
                " (extract(epoch FROM clock_timestamp()), current_setting('application_name'),"
                f" '{table}', '{operation}', NEW.{key}, {old}, (NEW.{kept.format(row='NEW')})::TEXT);"
                " RETURN NULL; END $$;"
                f"CREATE TRIGGER fault_{operation.lower()} AFTER {operation} ON {schema}.{table}"
                f" FOR EACH ROW EXECUTE FUNCTION {name}();"
            )
    return "\n".join(parts)
