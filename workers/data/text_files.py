"""Rows out of JSON and CSV files: what is written in them, wherever it came from.

The content decides where a name says too little: gzip is unpacked, a `.jsonl` may hold one list or indented
objects, and a `.json` one object per line. Joined files may have byte order marks in their middle.
"""

from __future__ import annotations

import csv
import gzip
import io
import json
import re
from collections.abc import Iterable, Iterator
from itertools import chain
from pathlib import Path
from typing import Any, BinaryIO, Protocol, TypeVar, cast

from search_spaces.wording import shortened
from workers.data.row_structures import JSON
from workers.errors import DataError, RowError

PlacedRow = tuple[str, dict[str, Any]]
Text = TypeVar("Text", str, bytes, covariant=True)


class _Lines(Protocol[Text]):
    """A file of texts or of bytes."""

    def readline(self, size: int, /) -> Text: ...


GZIP = b"\x1f\x8b"
_OTHER_CONTENT = (
    (GZIP, "is compressed twice. Decompress it"),
    (b"\xff\xfe", "is UTF-16. Save it as UTF-8"),
    (b"\xfe\xff", "is UTF-16. Save it as UTF-8"),
    (b"PK\x03\x04", "is a zip archive or a spreadsheet. Unpack it, or save the sheet as CSV (UTF-8)"),
    (b"\x28\xb5\x2f\xfd", "is compressed with zstd. Decompress it, or compress it with gzip"),
    (b"\xfd7zXZ\x00", "is compressed with xz. Decompress it, or compress it with gzip"),
    (b"BZh", "is compressed with bzip2. Decompress it, or compress it with gzip"),
    (b"PAR1", "is a Parquet file. Give it a name that ends in .parquet"),
)
"""How files begin that are not text in UTF-8. Plain text that begins with such letters goes on with more."""
_BINARY = re.compile(rb"[\x00-\x08\x0e-\x1f\x80-\xff]")
LONGEST_ROW = 64 * 2**20
"""Bytes of a row, as it is in its file."""
LONGEST_DOCUMENT = 2**30
"""Bytes of a JSON document that is a list of all rows, unpacked."""
_SHORTEN = "Shorten or split the row."
_BLANK = re.compile("[\\s\ufeff]*")
_BOM = "\ufeff"


def read_json_lines(opened: BinaryIO, path: Path) -> Iterator[PlacedRow]:
    """Objects of a file that has one per line, or indented ones one after another, or all in one list."""
    with _unpacked(opened, path) as file:
        lines = (
            (number, _decoded(line, f"{path}:{number}"))
            for number, line in _lines(file, path, LONGEST_DOCUMENT)
        )
        first = next((line for line in lines if _end_of_blank(line[1], 0) < len(line[1])), None)
        if first is None:
            return
        number, text = first
        if text[_end_of_blank(text, 0) :].startswith("["):
            rest = _bounded((text for _, text in lines), path)
            yield from _read_document(path, "\n" * (number - 1) + "\n".join([text, *rest]))
            return
        yield from _read_values(path, chain([first], lines))


def read_json(opened: BinaryIO, path: Path) -> Iterator[PlacedRow]:
    """Objects of a file that holds a list of them, `{"data": [...]}`, or one object after another."""
    with _unpacked(opened, path) as file:
        lines = (_decoded(line, f"{path}:{number}") for number, line in _lines(file, path, LONGEST_DOCUMENT))
        text = "\n".join(_bounded(lines, path))
    yield from _read_document(path, text)


def _read_document(path: Path, text: str) -> Iterator[PlacedRow]:
    position = _end_of_blank(text, 0)
    while True:
        start = position
        try:
            document, end = JSON.raw_decode(text, start)
        except json.JSONDecodeError as error:
            raise DataError(
                f"{path}:{error.lineno}: the file is not valid JSON: {error.msg} (column {error.colno})."
            ) from error
        except RecursionError as error:
            raise DataError(f"{path}: the file's JSON is nested too deeply.") from error
        position = _end_of_blank(text, end)
        if isinstance(document, dict) and position < len(text):
            yield from _read_values(path, enumerate(text.split("\n"), start=1))
            return
        rows = document.get("data") if isinstance(document, dict) else document
        if not isinstance(rows, list):
            raise DataError(f'{path}: the file must hold a list of objects, or {{"data": [...]}} with one.')
        for line, row in zip(_lines_of_items(text, start), rows, strict=True):
            place = f"{path}:{line}"
            yield place, _object(row, place)
        if position == len(text):  # else lists were joined
            return


def _read_values(path: Path, lines: Iterable[tuple[int, str]]) -> Iterator[PlacedRow]:
    """Objects one after another. A place is the line that an object begins on."""
    lines = iter(lines)
    for number, text in lines:
        place = f"{path}:{number}"
        if len(text) > LONGEST_ROW:
            raise DataError(f"{place}: the line has more than {LONGEST_ROW:,} bytes. {_SHORTEN}")
        try:
            values = _values(text)
            if values is None:
                values = _values_over_lines(text, lines, place)
        except json.JSONDecodeError as error:
            # The line, unless it only begins an object over several ones: then the line within that.
            at, column = number + error.lineno - 1, error.colno
            if at > number and text.strip(f" \t{_BOM}") not in ("{", "["):
                at, column = number, len(text) + 1
            raise DataError(
                f"{path}:{at}: the line is not valid JSON: {error.msg} (column {column})."
            ) from error
        except RecursionError as error:
            raise DataError(f"{place}: the line is not valid JSON: it is nested too deeply.") from error
        for value in values:
            yield place, _object(value, place)


def _values(text: str) -> list[Any] | None:
    """The values of a line: none, one, or several where files were joined; None where the last goes on.

    Raises:
        json.JSONDecodeError: it is broken before its end.
    """
    values: list[Any] = []
    position = _end_of_blank(text, 0)
    while position < len(text):
        try:
            value, position = JSON.raw_decode(text, position)
        except json.JSONDecodeError as error:
            if error.pos < len(text) or values:
                raise
            return None
        values.append(value)
        position = _end_of_blank(text, position)
    return values


def _values_over_lines(first: str, lines: Iterator[tuple[int, str]], place: str) -> list[Any]:
    """The values of a line that goes on, with the lines up to their end."""
    whole, size = [first], len(first)
    for _, text in lines:
        whole.append(text)
        if (size := size + len(text)) > LONGEST_ROW:
            raise DataError(f"{place}: the object has more than {LONGEST_ROW:,} bytes. {_SHORTEN}")
        if text.endswith(("}", "]")):
            values = _values("\n".join(whole))
            if values is not None:
                return values
    return [JSON.decode("\n".join(whole))]  # it does not end, which this says


def _lines_of_items(text: str, position: int) -> Iterator[int]:
    """The line each item of the (known to be valid) list begins on."""
    if text[position] == "{":
        position = _start_of_data(text, position)
    position = _skip(text, position + 1)
    line, counted = 1, 0
    while text[position] != "]":
        line, counted = line + text.count("\n", counted, position), position
        yield line
        _, position = JSON.raw_decode(text, position)
        position = _skip(text, position, ",")


def _start_of_data(text: str, position: int) -> int:
    """Where the list under the top-level key "data" begins; the last one wins, as in json.loads."""
    found = position
    position = _skip(text, position + 1)
    while text[position] != "}":
        key, position = JSON.raw_decode(text, position)
        position = _skip(text, position, ":")
        if key == "data":
            found = position
        _, position = JSON.raw_decode(text, position)
        position = _skip(text, position, ",")
    return found


def _skip(text: str, position: int, mark: str = "") -> int:
    """The next position that is neither white space nor `mark`."""
    skipped = " \t\r\n" + mark
    while text[position] in skipped:
        position += 1
    return position


def read_csv(opened: BinaryIO, path: Path, *, header: bool = True) -> Iterator[PlacedRow]:
    """Records of a file. A place is the line that a record begins on.

    Args:
        opened: The file.
        path: Its name.
        header: Whether the first record names the columns; else their positions do, "0" and so on.
    """
    # The default limit of 128 KiB a cell is below what a document may be.
    csv.field_size_limit(LONGEST_ROW)
    marked: set[int] = set()
    with _unpacked(opened, path) as file, io.TextIOWrapper(file, encoding="utf-8", newline="") as text:
        lines = (line for _, line in _lines(text, path, LONGEST_ROW))
        reader = csv.DictReader(_without_marks(lines, marked), strict=True)
        end = 0
        try:
            if not header:
                yield from _first_record(reader, path)
            names = reader.fieldnames
            if names is None:
                return
            if twice := sorted({name for name in names if names.count(name) > 1}):
                raise DataError(
                    f"{path}:1: the header names the column {shortened(twice[0])!r} more than once, so a "
                    "record has several values of it. Rename or remove the repeated columns."
                )
            end = reader.line_num
            for row in reader:
                line, end = end + 1, reader.line_num
                place = f"{path}:{line}"
                # csv puts None where a record has fewer cells than the header, and what it has more
                # under the key None.
                if header and line in marked and list(row.values()) != list(names):
                    raise DataError(
                        f"{place}: another file was joined here (its byte order mark says so), and its "
                        "header differs from the first. Give the files the same columns in the same order."
                    )
                if header and line in marked:
                    continue
                if None in row or None in row.values():
                    cells = sum(value is not None for key, value in row.items() if key is not None)
                    cells += len(row.get(None) or ())
                    raise DataError(
                        f"{place}: the record has {cells} cells, the "
                        f"{'header' if header else 'first record'} {len(names)}. Quote cells that hold "
                        "commas or line breaks."
                    )
                yield place, row
        except csv.Error as error:
            raise DataError(f"{path}:{end + 1}: the record is not valid CSV: {error}.") from error
        except UnicodeDecodeError:
            opened.seek(0)
            _refuse_undecodable(opened, path)
            raise


def _first_record(reader: csv.DictReader[str], path: Path) -> Iterator[PlacedRow]:
    """The first record of a file without a header, whose cells then give the reader its columns."""
    line = 1
    for cells in reader.reader:
        if cells:
            reader.fieldnames = [str(position) for position in range(len(cells))]
            yield f"{path}:{line}", dict(zip(reader.fieldnames, cells, strict=True))
            return
        line = reader.reader.line_num + 1
    reader.fieldnames = []


def _without_marks(lines: Iterable[str], marked: set[int]) -> Iterator[str]:
    """The lines without byte order marks. Numbers of lines that had one go to `marked`, but for the first."""
    for number, line in enumerate(lines, start=1):
        if line.startswith(_BOM):
            line = line.removeprefix(_BOM)
            if number > 1:
                marked.add(number)
        yield line


def _refuse_undecodable(opened: BinaryIO, path: Path) -> None:
    """Names the first line that is not UTF-8, which a decoder of blocks cannot tell."""
    with _unpacked(opened, path) as file:
        for number, line in _lines(file, path, LONGEST_ROW):
            _decoded(line, f"{path}:{number}")


def _lines(file: _Lines[Text], path: Path, longest: int) -> Iterator[tuple[int, Text]]:
    """Lines with their numbers.

    Raises:
        DataError: One is longer than a line may be: a file of terabytes may have no end of line at all.
    """
    number = 0
    while line := file.readline(longest + 1):
        number += 1
        if len(line) > longest:
            raise DataError(f"{path}:{number}: the line has more than {longest:,} bytes. {_SHORTEN}")
        yield number, line


def _bounded(texts: Iterable[str], path: Path) -> Iterator[str]:
    """The lines of one JSON document, as long as it is not too long for memory."""
    size = 0
    for text in texts:
        size += len(text)
        if size > LONGEST_DOCUMENT:
            raise DataError(
                f"{path}: the JSON document has more than {LONGEST_DOCUMENT:,} bytes. Write one object per "
                "line, which is read line by line."
            )
        yield text


def _unpacked(opened: BinaryIO, path: Path) -> BinaryIO:
    """The file's bytes, unpacked where it is gzip.

    Raises:
        DataError: it begins as something that is not read as text.
    """
    zipped = opened.read(len(GZIP)) == GZIP
    opened.seek(0)
    file = cast(BinaryIO, gzip.GzipFile(fileobj=opened)) if zipped else opened
    head = file.read(64)
    file.seek(0)
    for magic, what in _OTHER_CONTENT:
        if head.startswith(magic) and _BINARY.search(head):
            file.close()
            raise DataError(f"The data file {path} {what}.")
    if b"\x00" in head:
        file.close()
        raise DataError(
            f"The data file {path} is not UTF-8 (it holds zero bytes, as UTF-16). Save it as UTF-8."
        )
    return file


def _decoded(line: bytes, place: str) -> str:
    """A line without its end.

    Bytes are split at \\n alone: text mode would also split at characters that JSON allows within a string.
    """
    try:
        return line.decode().rstrip()
    except UnicodeDecodeError as error:
        raise RowError(f"{place}: the line is not UTF-8 ({error.reason}). Save the file as UTF-8.") from error


def _end_of_blank(text: str, position: int) -> int:
    found = _BLANK.match(text, position)
    return found.end() if found else position


def _object(row: object, place: str) -> dict[str, Any]:
    if not isinstance(row, dict):
        raise DataError(
            f"{place}: the row is of type {type(row).__name__}; expected an object with named fields."
        )
    return row
