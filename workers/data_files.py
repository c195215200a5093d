"""Rows out of files and hub data sets, each with the place it came from, for messages.

A place is `file:line` where the file has lines (for CSV, the line its record begins on), else
`file, row N`, counted from 1. Rows are read one by one, so taking the first n of a large file is cheap.
"""

from __future__ import annotations

import csv
import json
import socket
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import datasets as hub_datasets
import httpx
import pyarrow
import pyarrow.parquet
from datasets.packaged_modules import _PACKAGED_DATASETS_MODULES

from search_spaces.definition import HubData
from search_spaces.hub_names import is_hub_id, is_revision
from workers.errors import DataError

PlacedRow = tuple[str, dict[str, Any]]

_HUB_READERS = frozenset({"arrow", "cache", "csv", "json", "parquet", "text"})
"""Readers of the `datasets` library that only read rows. Others decode images, unpickle tensors, open
databases."""


def describe_source(source: str | HubData) -> str:
    """The data's name in messages."""
    if isinstance(source, str):
        return source
    config = f", config {source.config}" if source.config else ""
    return f"hub data set {source.hub} (split {source.split}{config})"


def read_rows(source: str | HubData) -> Iterator[PlacedRow]:
    """Yields (place, row) in the source's order.

    Raises:
        DataError: while iterating, at the first thing that cannot be read, naming its place.
    """
    if isinstance(source, HubData):
        yield from _read_hub(source)
        return
    path = Path(source)
    reader = _READERS.get(path.suffix.lower())
    if reader is None:
        raise DataError(f"The data file {path} is not one of {', '.join(_READERS)}, which Nightsweep reads.")
    if not path.is_file():
        what = "is a folder, not a file" if path.is_dir() else "does not exist"
        raise DataError(
            f"The data file {path} {what} on this worker ({socket.gethostname()}). Put it where every worker "
            "can read it."
        )
    try:
        yield from reader(path)
    except UnicodeDecodeError as error:
        raise DataError(f"The data file {path} is not UTF-8 ({error.reason}). Save it as UTF-8.") from error
    except OSError as error:
        raise DataError(f"The data file {path} cannot be read: {error.strerror or error}.") from error


def _read_jsonl(path: Path) -> Iterator[PlacedRow]:
    # Bytes split at \n alone: text mode would also split at characters that JSON allows within a string.
    with path.open("rb") as file:
        for number, line in enumerate(file, start=1):
            place = f"{path}:{number}"
            try:
                text = line.decode("utf-8-sig" if number == 1 else "utf-8").strip()
                if text:
                    yield place, _object(json.loads(text), place)
            except UnicodeDecodeError as error:
                raise DataError(
                    f"{place}: the line is not UTF-8 ({error.reason}). Save the file as UTF-8."
                ) from error
            except (json.JSONDecodeError, RecursionError) as error:
                raise DataError(f"{place}: the line is not valid JSON: {error}.") from error


def _read_json(path: Path) -> Iterator[PlacedRow]:
    text = path.read_text(encoding="utf-8-sig")
    try:
        document = json.loads(text)
    except json.JSONDecodeError as error:
        hint = " A file with one object per line must be called .jsonl." if error.msg == "Extra data" else ""
        raise DataError(
            f"{path}:{error.lineno}: the file is not valid JSON: {error.msg} (column {error.colno}).{hint}"
        ) from error
    except RecursionError as error:
        raise DataError(f"{path}: the file's JSON is nested too deeply.") from error
    rows = document.get("data") if isinstance(document, dict) else document
    if not isinstance(rows, list):
        raise DataError(f'{path}: the file must hold a list of objects, or {{"data": [...]}} with one.')
    for line, row in zip(_json_lines(text), rows, strict=True):
        place = f"{path}:{line}"
        yield place, _object(row, place)


def _json_lines(text: str) -> Iterator[int]:
    """The line each item of the (known to be valid) list begins on."""
    decoder = json.JSONDecoder()
    position = _skip(text, 0)
    if text[position] == "{":
        position = _start_of_data(text, position, decoder)
    position = _skip(text, position + 1)
    line, counted = 1, 0
    while text[position] != "]":
        line, counted = line + text.count("\n", counted, position), position
        yield line
        _, position = decoder.raw_decode(text, position)
        position = _skip(text, position, ",")


def _start_of_data(text: str, position: int, decoder: json.JSONDecoder) -> int:
    """Where the list under the top-level key "data" begins; the last one wins, as in json.loads."""
    found = position
    position = _skip(text, position + 1)
    while text[position] != "}":
        key, position = decoder.raw_decode(text, position)
        position = _skip(text, position, ":")
        if key == "data":
            found = position
        _, position = decoder.raw_decode(text, position)
        position = _skip(text, position, ",")
    return found


def _skip(text: str, position: int, mark: str = "") -> int:
    """The next position that is neither white space nor `mark`."""
    skipped = " \t\r\n" + mark
    while text[position] in skipped:
        position += 1
    return position


def _read_csv(path: Path) -> Iterator[PlacedRow]:
    # The default limit of 128 KiB a cell is below what a document may be; C's long is 32 bits on Windows.
    csv.field_size_limit(min(sys.maxsize, 2**31 - 1))
    with path.open(encoding="utf-8-sig", newline="") as file:
        reader = csv.DictReader(file, strict=True)
        end = 0
        try:
            header = reader.fieldnames
            if header is None:
                return
            if twice := sorted({name for name in header if header.count(name) > 1}):
                raise DataError(
                    f"{path}:1: the header names the column {twice[0]!r} more than once, so a record's value "
                    "of it cannot be told. Rename or remove the repeated columns."
                )
            end = reader.line_num
            for row in reader:
                place, end = f"{path}:{end + 1}", reader.line_num
                # csv puts None where a record has fewer cells than the header, and what it has more
                # under the key None.
                if None in row or None in row.values():
                    cells = sum(value is not None for key, value in row.items() if key is not None)
                    cells += len(row.get(None) or ())
                    raise DataError(
                        f"{place}: the record has {cells} cells, the header {len(header)}. Quote cells that "
                        "hold commas or line breaks."
                    )
                yield place, row
        except csv.Error as error:
            raise DataError(f"{path}:{end + 1}: the record is not valid CSV: {error}.") from error


def _read_parquet(path: Path) -> Iterator[PlacedRow]:
    try:
        with pyarrow.parquet.ParquetFile(path) as file:
            number = 0
            for batch in file.iter_batches(batch_size=1024):
                for row in batch.to_pylist():
                    number += 1
                    yield f"{path}, row {number}", row
    except pyarrow.ArrowException as error:
        raise DataError(f"The data file {path} is not a readable Parquet file: {error}.") from error


def _read_hub(source: HubData) -> Iterator[PlacedRow]:
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
            f"{source.revision!r} is no revision of the {name}. Give a branch, tag or commit it has."
        )
    try:
        # By its parts rather than `load_dataset`: what a data set's own description tells the library to
        # read is checked before anything of it is fetched.
        builder = hub_datasets.load_dataset_builder(source.hub, source.config, revision=source.revision)
        _check_builder(builder, source.hub, name)
        builder.download_and_prepare()
        rows = builder.as_dataset(split=source.split)
    except (OSError, ValueError, hub_datasets.exceptions.DatasetsError, httpx.HTTPError) as error:
        first = (str(error).strip().splitlines() or [type(error).__name__])[0]
        raise DataError(
            f"The {name} could not be loaded: {first.rstrip('.')}. Check its id, config, split and revision, "
            "and that this worker reaches the Hugging Face hub or has the data in its cache."
        ) from error
    for number, row in enumerate(rows, start=1):
        yield f"{name}, row {number}", dict(row)


def _check_builder(builder: Any, hub: str, name: str) -> None:
    """Refuses a data set that is read by more than a table reader, or that names files not its own.

    The description of a hub data set (the head of its README) may name any path or URL as its data: a file
    of this worker's, or an address that only this worker reaches.
    """
    reader = type(builder).__module__.rpartition(".")[2]
    if reader not in _HUB_READERS:
        raise DataError(
            f"The {name} is of a kind that is not read ({reader}). Give one of "
            f"{', '.join(sorted(_HUB_READERS - {'cache'}))} files."
        )
    files = getattr(builder.config, "data_files", None) or {}
    strays = sorted(
        str(path)
        for paths in files.values()
        for path in paths
        if not str(path).startswith(f"hf://datasets/{hub}@") or "::" in str(path)
    )
    if strays:
        raise DataError(f"The {name} names {strays[0]!r} as its data, which is not a file of its own.")


def _object(row: object, place: str) -> dict[str, Any]:
    if not isinstance(row, dict):
        raise DataError(
            f"{place}: the row is of type {type(row).__name__}; expected an object with named fields."
        )
    return row


_READERS: dict[str, Callable[[Path], Iterator[PlacedRow]]] = {
    ".jsonl": _read_jsonl,
    ".json": _read_json,
    ".csv": _read_csv,
    ".parquet": _read_parquet,
}
