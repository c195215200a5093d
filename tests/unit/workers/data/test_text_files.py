"""JSON and CSV files are read by what they hold: compressed, joined, indented, under the wrong name."""

from __future__ import annotations

import bz2
import gzip
import hashlib
import io
import json
import lzma
import zipfile
from pathlib import Path
from typing import Any

import pytest

from tests.support.workers.rows import read, write_parquet
from workers.errors import DataError

A, B = {"text": "a b"}, {"text": "c d", "more": {"list": [1, {"deep": 2}], "nothing": {}}}
BOTH = ["a b<|im_end|>", "c d<|im_end|>"]
BOM = "\ufeff"


def lines(*rows: Any, indent: int | None = None) -> str:
    return "".join(json.dumps(row, indent=indent) + "\n" for row in rows)


def refusal(path: Path, **fields: Any) -> str:
    with pytest.raises(DataError) as caught:
        read(path, **fields)
    return str(caught.value)


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("d.jsonl", json.dumps([A, B])),
        ("d.jsonl", "\n\n" + json.dumps([A, B], indent=2)),
        ("d.jsonl", BOM + json.dumps([A, B]) + "\n"),
        ("d.jsonl", lines(A, B, indent=2)),
        ("d.jsonl", lines(A) + lines(B, indent=4)),
        ("d.jsonl", lines(A, indent=4) + "\n" + lines(B)),
        ("d.jsonl", "{\n" + lines(A)[1:] + lines(B).replace("{", "{\n", 1)),
        ("d.jsonl", json.dumps(A) + json.dumps(B)),
        ("d.json", lines(A, B)),
        ("d.json", lines(A, B, indent=1)),
        ("d.json", lines(A, B).strip()),
        ("d.jsonl", BOM + lines(A) + BOM + lines(B) + BOM),
        ("d.jsonl", BOM + json.dumps(A) + BOM + json.dumps(B)),
        ("d.jsonl", lines(A) + "\n" + BOM + "\n" + BOM + lines(B, indent=2)),
        ("d.json", BOM + json.dumps([A]) + "\n" + BOM + json.dumps([B])),
        ("d.json", BOM + lines(A) + BOM + lines(B)),
        ("d.csv", f"{BOM}text,n\r\na b,1\r\n{BOM}text,n\r\nc d,2\r\n"),
        ("d.csv", f'{BOM}"text","n"\n"a b",1\n{BOM}"text","n"\n"c d",2\n'),
    ],
)
def test_the_same_rows_however_they_are_laid_out(name: str, text: str, tmp_path: Path) -> None:
    """Lists, indented objects and lines under either name; byte order marks wherever files were joined."""
    (tmp_path / name).write_bytes(text.encode())
    assert read(tmp_path / name)[0] == BOTH


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("d.jsonl.gz", lines(A, B)),
        ("d.json.gz", json.dumps([A, B])),
        ("d.csv.gz", "text\na b\nc d\n"),
        ("d.JSONL.GZ", lines(A, B)),
        ("d.jsonl", lines(A, B)),
        ("d.json", json.dumps([A, B])),
        ("d.csv", "text\na b\nc d\n"),
    ],
)
def test_gzip_is_told_by_its_content(name: str, text: str, tmp_path: Path) -> None:
    """Whatever the file is called; and a `.gz` that is not compressed is read as it is."""
    (tmp_path / name).write_bytes(gzip.compress(text.encode()))
    assert read(tmp_path / name)[0] == BOTH
    (tmp_path / name).write_bytes(text.encode())
    assert read(tmp_path / name)[0] == BOTH


@pytest.mark.parametrize(
    ("name", "text", "place", "expected"),
    [
        ("d.jsonl", lines(A, {"text": ""}, indent=2), ":4", "The field 'text' is empty"),
        ("d.jsonl", json.dumps([A, {"text": ""}], indent=2), ":5", "The field 'text' is empty"),
        (
            "d.jsonl",
            lines(A, indent=2) + '{\n  "text": "a",\n  "b": x\n}\n',
            ":6",
            "Expecting value (column 8)",
        ),
        ("d.jsonl", lines(A, indent=2) + '{\n  "text": "a",\n', ":5", "not valid JSON"),
        (
            "d.jsonl",
            lines(A) + '{"text": "b"\n' + lines(A),
            ":2",
            "not valid JSON: Expecting ',' delimiter (column 13)",
        ),
        ("d.jsonl", lines(A) + json.dumps(A) + ",\n", ":2", "not valid JSON"),
        ("d.json", "[" + json.dumps(A) + "\n" + json.dumps(B) + "]", ":2", "not valid JSON"),
        ("d.json", lines(A) + "{'text': 'b'}", ":2", "not valid JSON"),
        ("d.json", lines(A) + '["b"]', ":2", "the row is of type list; expected an object"),
        ("d.json", "[1]", ":1", "the row is of type int"),
        ("d.csv", f"{BOM}text,n\na,1\n{BOM}n,text\n2,b\n", ":3", "another file was joined here"),
        ("d.csv", "text\na\ncaf\udce9\n", ":3", "the line is not UTF-8"),
    ],
)
def test_faults_name_the_line_in_every_layout(
    name: str, text: str, place: str, expected: str, tmp_path: Path
) -> None:
    """An object's place is the line that it begins on."""
    path = tmp_path / name
    path.write_bytes(text.encode(errors="surrogateescape"))
    message = refusal(path)
    assert message.startswith(f"{path}{place}: ")
    assert expected in message


def zipped(text: str) -> bytes:
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w") as archive:
        archive.writestr("d.jsonl", text)
    return file.getvalue()


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        (lines(A).encode("utf-16"), "is UTF-16. Save it as UTF-8"),
        (lines(A).encode("utf-16-be"), "holds zero bytes, as UTF-16). Save it as UTF-8"),
        (
            bz2.compress(lines(A).encode()),
            "is compressed with bzip2. Decompress it, or compress it with gzip",
        ),
        (lzma.compress(lines(A).encode()), "is compressed with xz"),
        (b"\x28\xb5\x2f\xfd\x04\x00", "is compressed with zstd"),
        (zipped(lines(A)), "is a zip archive or a spreadsheet"),
        (gzip.compress(gzip.compress(lines(A).encode(), mtime=0), mtime=0), "is compressed twice"),
    ],
)
@pytest.mark.parametrize("name", ["d.jsonl", "d.json", "d.csv"])
def test_other_content_is_told_by_name(name: str, content: bytes, expected: str, tmp_path: Path) -> None:
    """With what to do, in place of a fault of decoding."""
    (tmp_path / name).write_bytes(content)
    message = refusal(tmp_path / name)
    assert message.startswith(f"The data file {tmp_path / name} ")
    assert expected in message


def test_text_that_begins_like_another_kind_of_file_is_text(tmp_path: Path) -> None:
    """Letters alone tell nothing."""
    (tmp_path / "d.csv").write_text("BZh,text\n1,a b\n")
    assert read(tmp_path / "d.csv")[0] == ["a b<|im_end|>"]


def test_parquet_under_another_name_and_compressed(tmp_path: Path) -> None:
    """Parquet is compressed within, and known by its name."""
    content = write_parquet(tmp_path / "d.parquet", [A]).read_bytes()
    (tmp_path / "d.jsonl").write_bytes(content)
    assert "is a Parquet file. Give it a name that ends in .parquet" in refusal(tmp_path / "d.jsonl")
    (tmp_path / "d.parquet").write_bytes(gzip.compress(content))
    assert "is compressed with gzip. Decompress it." in refusal(tmp_path / "d.parquet")
    (tmp_path / "d.parquet.gz").write_bytes(gzip.compress(content))
    assert "is not one of .jsonl, .json, .csv, .parquet, .jsonl.gz" in refusal(tmp_path / "d.parquet.gz")


@pytest.mark.parametrize("keep", [slice(0, 9000), slice(0, -6)], ids=["cut in the middle", "without its end"])
def test_a_gzip_file_that_was_cut_names_the_last_row(keep: slice, tmp_path: Path) -> None:
    """Rows before the cut are no reason to train on half a file."""
    path = tmp_path / "d.jsonl"
    rows = [{"text": hashlib.sha256(bytes([number])).hexdigest()} for number in range(250)]
    path.write_bytes(gzip.compress(lines(*rows).encode())[keep])
    assert f"{path} cannot be read after {path}:" in refusal(path)


def test_a_gzip_file_of_other_bytes_is_a_fault_of_the_data(tmp_path: Path) -> None:
    """zlib's own error has a name of its own."""
    path = tmp_path / "d.jsonl"
    path.write_bytes(gzip.compress(lines(*[A] * 1000).encode())[:12] + b"\xff" * 20)
    assert refusal(path).startswith(f"{path} cannot be read at its beginning: zlib.error: ")
