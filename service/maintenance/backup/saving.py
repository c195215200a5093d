"""Writes a backup: everything in both databases at one moment."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterator
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from typing import Any

from sqlalchemy import Connection, Table, select

from service.errors import BackupError
from service.maintenance.backup.archive import Manifest, Writer
from service.maintenance.backup.restoring import check_restorable
from service.maintenance.backup.sides import Side, one_moment, read_sides
from service.maintenance.backup.values import encode
from service.maintenance.integrity import open_engines
from service.maintenance.schema import check_schemas
from service.settings import Settings

_ROWS_AT_A_TIME = 500


def save(settings: Settings, path: Path) -> Manifest:
    """Write both databases to a new file, for its owner alone. The service may run meanwhile.

    The file appears under its name when it is whole and has been read back as `restore` reads it, or not at
    all.

    Raises:
        SchemaOutOfDate: a database is not of this version.
        BackupError: the file is there already, its folder is not, or what was written cannot be restored.
    """
    if path.exists():
        raise BackupError(f"{path} already exists; a backup never replaces a file")
    if not path.parent.is_dir():
        raise BackupError(f"{path} cannot be written: the folder {path.parent} does not exist")
    check_schemas(settings)
    handle, draft = tempfile.mkstemp(prefix=f".{path.name}.", dir=path.parent)  # mode 600
    try:
        with os.fdopen(handle, "wb") as file, open_engines(settings) as engines:
            sides = read_sides(*engines)
            with Writer(file) as writer:
                manifest = _write(sides, writer)
            file.flush()
            os.fsync(file.fileno())
        _read_back(Path(draft), sides, manifest, path)
        os.replace(draft, path)
    except BaseException:
        os.unlink(draft)
        raise
    return manifest


def _write(sides: tuple[Side, Side], writer: Writer) -> Manifest:
    with one_moment(sides) as connections:
        at = datetime.now(UTC)
        for side, connection in zip(sides, connections, strict=True):
            for table in side.tables:
                columns = [column.name for column in table.columns]
                writer.add(f"{side.name}/{table.name}.jsonl", columns, _rows(connection, table))
    return writer.finish(
        made_by=version("nightsweep"),
        made_at=at.isoformat(timespec="seconds"),
        revisions={side.name: side.revision for side in sides},
    )


def _read_back(draft: Path, sides: tuple[Side, Side], written: Manifest, path: Path) -> None:
    try:
        found = check_restorable(draft, sides)
    except BackupError as error:
        cause = str(error).replace(str(draft), "it")
        raise BackupError(f"{path} was not written: the backup was read back, and {cause}") from error
    if found != written:
        raise BackupError(f"{path} was not written: the backup was read back, and has other contents")


def _rows(connection: Connection, table: Table) -> Iterator[list[Any]]:
    ordered = select(table).order_by(*table.primary_key.columns)
    options = {"stream_results": True, "yield_per": _ROWS_AT_A_TIME}
    for row in connection.execute(ordered, execution_options=options):
        yield [encode(value) for value in row]
