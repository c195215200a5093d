"""Rows out of files and hub data sets, each with the place it came from, for messages.

A place is `file:line` where the file has lines (for CSV, the line its record begins on), else
`file, row N`, counted from 1. Rows are read one by one, so taking the first n of a large file is cheap.
"""

from __future__ import annotations

import json
import socket
from collections.abc import Callable, Collection, Iterator
from pathlib import Path
from typing import Any, BinaryIO, Literal

import httpx
import pyarrow
import pyarrow.parquet

from search_spaces.definition import HubData
from search_spaces.values.hub_ids import is_hub_id, is_revision
from search_spaces.wording import shortened
from workers.data.row_structures import Unread
from workers.data.text_files import GZIP, LONGEST_ROW, PlacedRow, read_csv, read_json, read_json_lines
from workers.errors import DataError, faults_of_libraries, without_values
from workers.local_files import Roots, open_data

_HUB_READERS = frozenset({"arrow", "cache", "csv", "json", "parquet", "text"})
"""Readers of the `datasets` library that only read rows. Others decode images, unpickle tensors, open
databases."""

LONGEST_BATCH = 256 * 2**20
"""Bytes that the rows of a table which are read at once should stay below."""
_FEWEST_ROWS, _MOST_ROWS = 16, 1024
"""Rows of a table that are read at once."""
_NOT_NEEDED = Unread("was not read: nothing needs it")


def describe_source(source: str | HubData) -> str:
    """The data's name in messages."""
    if isinstance(source, str):
        return source
    config = f", config {source.config}" if source.config else ""
    return f"hub data set {source.hub} (split {source.split}{config})"


def read_rows(
    source: str | HubData,
    needed: Collection[str],
    roots: Roots = None,
    header: Literal["first_row", "none"] = "first_row",
) -> Iterator[PlacedRow]:
    """Yields (place, row) in the source's order.

    Args:
        source: What is read.
        needed: Columns whose values are used. Those of a table's other columns are `Unread`.
        roots: Folders that a local file must lie in when it is opened; None: anywhere.
        header: Of a CSV file. none: its columns are named by their positions, "0" and so on.

    Raises:
        DataError: while iterating, at the first thing that cannot be read, naming its place.
    """
    last = ""
    name = describe_source(source)
    with faults_of_libraries(
        lambda: f"{name} cannot be read {f'after {last}' if last else 'at its beginning'}"
    ):
        if isinstance(source, HubData):
            if header == "none":
                raise DataError(f"The {name} has {_A_HEADER}")
            rows = _read_hub(source, needed)
        else:
            rows = _read_file(Path(source), needed, roots, header)
        for last, row in rows:
            yield last, row


_A_HEADER = "names for its columns. Leave out data.header: none, which is for CSV files."


def _read_file(
    path: Path, needed: Collection[str], roots: Roots, header: Literal["first_row", "none"]
) -> Iterator[PlacedRow]:
    reader = next((reader for end, reader in _READERS.items() if path.name.lower().endswith(end)), None)
    if reader is None:
        raise DataError(f"The data file {path} is not one of {', '.join(_READERS)}, which Nightsweep reads.")
    if not path.is_file():
        what = "is a folder, not a file" if path.is_dir() else "does not exist"
        raise DataError(
            f"The data file {path} {what} on this worker ({socket.gethostname()}). Put it where every worker "
            "can read it."
        )
    if header == "none":
        if not path.name.lower().endswith((".csv", ".csv.gz")):
            raise DataError(f"The data file {path} has {_A_HEADER}")
        reader = _read_csv_without_header
    with open_data(path, roots) as opened:
        yield from reader(opened, path, needed)


def _read_csv_without_header(opened: BinaryIO, path: Path, _: Collection[str]) -> Iterator[PlacedRow]:
    return read_csv(opened, path, header=False)


def _read_parquet(opened: BinaryIO, path: Path, needed: Collection[str]) -> Iterator[PlacedRow]:
    if opened.read(len(GZIP)) == GZIP:
        raise DataError(f"The data file {path} is compressed with gzip. Decompress it.")
    opened.seek(0)
    try:
        with pyarrow.parquet.ParquetFile(opened) as file:
            names = file.schema_arrow.names
            used = [name for name in names if name in needed]
            if twice := sorted({name for name in used if used.count(name) > 1}):
                raise DataError(
                    f"{path}: the file has the column {shortened(twice[0])!r} more than once, so a "
                    "row has several values of it. Rename or remove the repeated columns."
                )
            number = 0
            for batch in file.iter_batches(batch_size=_rows_at_once(file.metadata), columns=used):
                if batch.nbytes > LONGEST_ROW * max(1, batch.num_rows):
                    raise DataError(
                        f"{path}, after row {number}: the rows have more than {LONGEST_ROW:,} bytes each. "
                        "Shorten or split them."
                    )
                # Of a column `a`, Parquet also gives a column `a.b`.
                columns = {name: _values(batch.column(name)) for name in used}
                for index in range(batch.num_rows):
                    number += 1
                    row = {name: columns[name][index] if name in columns else _NOT_NEEDED for name in names}
                    yield f"{path}, row {number}", row
    except MemoryError:  # Arrow's, too
        raise
    except pyarrow.ArrowException as error:
        raise DataError(
            f"The data file {path} is not a readable Parquet file: {without_values(str(error))}."
        ) from error


def _rows_at_once(metadata: Any) -> int:
    """Rows of a batch, so that it stays small however long they are.

    No value is longer than what its column takes in a row group before compression, but one that is stored
    once may be that of each row.
    """
    groups = [metadata.row_group(n) for n in range(metadata.num_row_groups)]
    longest = max((group.total_byte_size for group in groups), default=0)
    return max(_FEWEST_ROWS, min(_MOST_ROWS, LONGEST_BATCH // max(1, longest)))


def _values(column: pyarrow.Array) -> list[Any]:
    """A column's values in Python; `Unread` where Python has none, as for a time in the year 200,000."""
    try:
        values = column.to_pylist(maps_as_pydicts="strict")
    except Exception:  # noqa: BLE001 - whatever it is, the fault is stored with the value
        values = [_value(scalar) for scalar in column]
    return [_with_json(value, column.type) for value in values] if _holds_json(column.type) else values


def _value(scalar: pyarrow.Scalar) -> Any:
    try:
        return scalar.as_py(maps_as_pydicts="strict")
    except MemoryError:
        raise
    except Exception as error:  # noqa: BLE001 - raised where the value is used
        if isinstance(scalar, pyarrow.StructScalar):
            return {name: _value(part) for name, part in scalar.items()}
        if isinstance(scalar, pyarrow.ListScalar):
            return [_value(part) for part in scalar.values]
        return Unread(f"cannot be read: {type(error).__name__}: {without_values(str(error))}")


def _holds_json(kind: pyarrow.DataType) -> bool:
    """Whether values of a type have parts that are kept as JSON text (the type `Json` of `datasets`)."""
    if isinstance(kind, pyarrow.JsonType):
        return True
    return any(_holds_json(kind.field(n).type) for n in range(kind.num_fields))


def _with_json(value: Any, kind: pyarrow.DataType) -> Any:
    """A value with those parts decoded."""
    if isinstance(kind, pyarrow.JsonType):
        return json.loads(value) if isinstance(value, str) else value
    if isinstance(value, list) and kind.num_fields == 1:
        return [_with_json(each, kind.field(0).type) for each in value]
    if isinstance(value, dict) and pyarrow.types.is_struct(kind):
        return {key: _with_json(each, kind.field(key).type) for key, each in value.items()}
    return value


def _read_hub(source: HubData, needed: Collection[str]) -> Iterator[PlacedRow]:
    # Imported late: it takes pandas along, and only data sets of the hub need it.
    import datasets as hub_datasets
    from datasets.packaged_modules import _PACKAGED_DATASETS_MODULES

    name = describe_source(source)
    if not is_hub_id(source.hub) or Path(source.hub).exists():
        raise DataError(
            f"{source.hub!r} is not a hub data set's id (`organisation/name`). Give a local file by its "
            "path, not under `hub`."
        )
    if source.hub in _PACKAGED_DATASETS_MODULES:
        raise DataError(
            f"{source.hub!r} is a reader of the `datasets` library, not a hub data set: it would read what "
            "lies in this worker's current folder. Give the id as `organisation/name`."
        )
    if source.revision is not None and not is_revision(source.revision):
        raise DataError(
            f"{source.revision!r} is not a revision of the {name}. Give a branch, tag or commit it has."
        )
    try:
        # By its parts rather than `load_dataset`: what a data set's own description tells the library to
        # read is checked before anything of it is fetched.
        builder = hub_datasets.load_dataset_builder(source.hub, source.config, revision=source.revision)
        _check_builder(builder, source.hub, name)
        builder.download_and_prepare()
        rows = builder.as_dataset(split=source.split)
    except (OSError, ValueError, hub_datasets.exceptions.DatasetsError, httpx.HTTPError) as error:
        first = without_values((str(error).strip().splitlines() or [type(error).__name__])[0])
        raise DataError(
            f"The {name} could not be loaded: {first.rstrip('.')}. Check its id, config, split and revision, "
            "and that this worker reaches the Hugging Face hub or has the data in its cache."
        ) from error
    names = rows.column_names
    used = rows.select_columns([column for column in names if column in needed])
    for number, row in enumerate(used, start=1):
        yield f"{name}, row {number}", {column: row.get(column, _NOT_NEEDED) for column in names}


def _check_builder(builder: Any, hub: str, name: str) -> None:
    """Refuses a data set that is read by more than a table reader, or that names files not its own.

    The description of a hub data set (the head of its README) may name any path or URL as its data: a file
    of this worker's, or an address that only this worker reaches.
    """
    reader = type(builder).__module__.rpartition(".")[2]
    if reader not in _HUB_READERS:
        raise DataError(
            f"The {name} is in a format that cannot be read ({reader}). Give one of "
            f"{', '.join(sorted(_HUB_READERS - {'cache'}))} files."
        )
    files = getattr(builder.config, "data_files", None) or {}
    foreign = sorted(
        str(path)
        for paths in files.values()
        for path in paths
        if not str(path).startswith(f"hf://datasets/{hub}@") or "::" in str(path)
    )
    if foreign:
        raise DataError(
            f"The {name} names {shortened(foreign[0])!r} as its data, which is not a file of its own."
        )


_READERS: dict[str, Callable[[BinaryIO, Path, Collection[str]], Iterator[PlacedRow]]] = {
    ".jsonl": lambda file, path, _: read_json_lines(file, path),
    ".json": lambda file, path, _: read_json(file, path),
    ".csv": lambda file, path, _: read_csv(file, path),
    ".parquet": _read_parquet,
    ".jsonl.gz": lambda file, path, _: read_json_lines(file, path),
    ".json.gz": lambda file, path, _: read_json(file, path),
    ".csv.gz": lambda file, path, _: read_csv(file, path),
}
