"""Fills two empty databases from a backup."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from itertools import islice
from pathlib import Path
from typing import Any

from sqlalchemy import Column, Connection, Table, bindparam, func, insert, inspect, select, text, update
from sqlalchemy.exc import DBAPIError, StatementError

from search_spaces.wording import counted
from service.db.connections import WRITES
from service.db.errors import is_outage, is_transient
from service.db.models import EventCounter, Study
from service.errors import BackupError
from service.maintenance.backup.archive import Manifest, Reader, open_archive
from service.maintenance.backup.sides import Side, read_sides
from service.maintenance.backup.values import decode
from service.maintenance.integrity import open_engines
from service.maintenance.schema import VERSION_TABLE, check_schemas, upgrade
from service.settings import Settings

_ROWS_AT_A_TIME = 500

Row = dict[str, Any]


def restore(settings: Settings, path: Path) -> Manifest:
    """Fill the two databases of the settings from a backup. Leases are not restored.

    The tables are made where there are none. Nothing is committed unless every row could be taken.

    Raises:
        SchemaOutOfDate: there are tables, and they are not of this version.
        BackupError: the databases are not empty, or the backup is not there, damaged or of another version.
    """
    with open_archive(path) as archive, open_engines(settings) as engines:
        with engines[0].connect() as connection:
            made = inspect(connection).has_table(VERSION_TABLE)
        if not made:
            upgrade(settings)
        check_schemas(settings)
        sides = read_sides(*engines)
        _check_origin(archive.manifest, sides, path)
        with ExitStack() as stack:
            connections = [
                stack.enter_context(side.engine.execution_options(**{WRITES: True}).connect())
                for side in sides
            ]
            for side, connection in zip(sides, connections, strict=True):
                _lock_tables(side, connection)
            for side, connection in zip(sides, connections, strict=True):
                _fill(side, connection, archive, path)
            connections[0].execute(update(Study).values(lease_owner=None, lease_expires_at=None))
            # Optuna's first: without the service's rows nothing looks like a restored service.
            for connection in reversed(connections):
                connection.commit()
    return archive.manifest


def check_restorable(path: Path, sides: tuple[Side, Side]) -> Manifest:
    """Read a whole backup as `restore` does, without storing anything: checksums, tables, and every row.

    Raises:
        BackupError: `restore` would refuse it.
    """
    with open_archive(path) as archive:
        _check_origin(archive.manifest, sides, path)
        for side in sides:
            for table in side.tables:
                member = f"{side.name}/{table.name}.jsonl"
                with _refusing(path, side, table):
                    for _ in _table_rows(table, archive, member):
                        pass
    return archive.manifest


def _check_origin(manifest: Manifest, sides: tuple[Side, Side], path: Path) -> None:
    ours = {side.name: side.revision for side in sides}
    if manifest.revisions != ours:
        raise BackupError(
            f"{path} cannot be restored: nightsweep {manifest.made_by} made it at the revisions "
            f"{_revisions(manifest.revisions)}, this version has {_revisions(ours)}. Restore it with the "
            "version that made it, then install this one and run `nightsweep db upgrade`."
        )
    wanted = {
        f"{side.name}/{table.name}.jsonl": sorted(column.name for column in table.columns)
        for side in sides
        for table in side.tables
    }
    given = {name: sorted(member.columns) for name, member in manifest.members.items()}
    differ = sorted(name for name in {*given, *wanted} if given.get(name) != wanted.get(name))
    if differ:
        raise BackupError(f"{path} cannot be restored: its tables differ from this version's: {differ[:5]}")


def _revisions(revisions: dict[str, str]) -> str:
    return ", ".join(f"{name} {revision}" for name, revision in sorted(revisions.items()))


def _lock_tables(side: Side, connection: Connection) -> None:
    """Keep others from writing until the end, and make sure that there is nothing yet."""
    if side.postgresql:
        connection.execute(text("SET LOCAL idle_in_transaction_session_timeout = 0"))
        names = ", ".join(table.name for table in side.tables)
        connection.execute(text(f"LOCK TABLE {names} IN EXCLUSIVE MODE"))
    # The counter comes last: people know the other tables.
    for table in sorted(side.tables, key=lambda table: table.name == EventCounter.__tablename__):
        rows = connection.scalar(select(func.count()).select_from(table)) or 0
        if rows:
            where = side.engine.url.render_as_string(hide_password=True)
            raise BackupError(
                f"{where} is not empty: its table {table.name} has {counted(rows, 'row')}. A backup can only"
                " be restored into an empty database; name a new one with NIGHTSWEEP_DATABASE_URL or"
                " NIGHTSWEEP_HOME."
            )


def _fill(side: Side, connection: Connection, archive: Reader, path: Path) -> None:
    for table in side.tables:
        with _refusing(path, side, table):
            _fill_table(connection, table, archive, f"{side.name}/{table.name}.jsonl")
        if side.postgresql:
            _set_sequences(connection, table)


@contextmanager
def _refusing(path: Path, side: Side, table: Table) -> Iterator[None]:
    """Names the table whose rows cannot be restored."""
    try:
        yield
    except (ValueError, OverflowError, StatementError) as error:
        if isinstance(error, DBAPIError) and (is_outage(error) or is_transient(error)):
            raise
        cause = error.orig if isinstance(error, StatementError) and error.orig is not None else error
        raise BackupError(f"{path} cannot be restored: {side.name}/{table.name}: {cause}") from error


def _fill_table(connection: Connection, table: Table, archive: Reader, member: str) -> None:
    within = _references_to_itself(table)
    rows = _table_rows(table, archive, member)
    later: list[Row] = []
    while batch := list(islice(rows, _ROWS_AT_A_TIME)):
        for row in batch:
            # A row may point to one that comes after it.
            references = {column.name: row[column.name] for column in within if row[column.name] is not None}
            if references:
                row.update(dict.fromkeys(references))
                keys = {f"key_{key.name}": row[key.name] for key in table.primary_key}
                later += [{**keys, "column": name, "value": value} for name, value in references.items()]
        connection.execute(insert(table), batch)
    for column in within:
        of_column = [one for one in later if one["column"] == column.name]
        if of_column:
            matches = [key == bindparam(f"key_{key.name}") for key in table.primary_key]
            statement = update(table).where(*matches).values({column.name: bindparam("value")})
            connection.execute(
                statement, [{k: v for k, v in one.items() if k != "column"} for one in of_column]
            )


def _references_to_itself(table: Table) -> list[Column[Any]]:
    return [c for c in table.columns if any(key.column.table is table for key in c.foreign_keys)]


def _table_rows(table: Table, archive: Reader, member: str) -> Iterator[Row]:
    columns = [table.columns[name] for name in archive.manifest.members[member].columns]
    for row in archive.rows(member):
        yield {column.name: decode(column, value) for column, value in zip(columns, row, strict=True)}


def _set_sequences(connection: Connection, table: Table) -> None:
    """Let PostgreSQL go on counting after the highest number that was restored."""
    for column in table.primary_key:
        sequence = connection.scalar(select(func.pg_get_serial_sequence(table.name, column.name)))
        highest = connection.scalar(select(func.max(column))) if sequence is not None else None
        if highest is not None:
            connection.execute(
                text("SELECT setval(CAST(:sequence AS regclass), :highest)"),
                {"sequence": sequence, "highest": highest},
            )
