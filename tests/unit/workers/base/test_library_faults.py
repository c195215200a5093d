"""What libraries raise over data is a fault of the data, with its place, and ends the study."""

from __future__ import annotations

import datetime
import json
from collections.abc import Iterator
from decimal import Decimal
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pyarrow
import pyarrow.parquet
import pytest
from transformers import PreTrainedTokenizerFast

import workers.data.data_files
from tests.support.workers.models import CHATML
from tests.support.workers.rows import TOOLS, TOOLS_AS_TEXT, read, write_jsonl, write_parquet
from workers.errors import DataError, RowError, faults_of_libraries
from workers.pack.endings import ending

ASK = {"role": "user", "content": "hi"}
DONE = {"role": "assistant", "content": "done"}
LONG = "5" * 5000
HALF = "\ud83d"


def call(arguments: Any, name: str = "switch") -> dict[str, Any]:
    return {"role": "assistant", "tool_calls": [{"function": {"name": name, "arguments": arguments}}]}


def refusal(path: Path, template: str = TOOLS, **fields: Any) -> str:
    with pytest.raises(DataError) as caught:
        read(path, template, **fields)
    assert ending(caught.value).fatal_to_study
    return str(caught.value)


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("d.jsonl", '{"text": "a b", "n": %s}\n'),
        ("d.jsonl", '{"text": "a b", "n": {"deep": [-%s]}}\n'),
        ("d.jsonl", '{"text": "a b", "label": %s}\n'),
        ("d.jsonl", '[{"text": "a b", "n": %s}]'),
        ("d.json", '[{"text": "a b", "n": %s}]'),
        ("d.json", '{"n": %s, "data": [{"text": "a b", "n": 1}]}'),
    ],
)
def test_an_integer_too_long_for_python_does_not_matter_where_it_is_not_used(
    name: str, text: str, tmp_path: Path
) -> None:
    """Python converts at most 4,300 digits."""
    (tmp_path / name).write_text(text % LONG)
    assert read(tmp_path / name)[0] == ["a b<|im_end|>"]


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        (
            '{"prompt": "a", "prompt": "b", "completion": "c"}',
            "d.jsonl:1: The column 'prompt' is written more",
        ),
        (
            '{"messages": [{"role": "user", "content": "a", "content": ""}]}',
            "d.jsonl:1: Message 1 of 'messages' (content) is written more than once, with different values.",
        ),
        (
            '{"prompt": "a", "completion": "c", "weight": 1, "weight": 0}',
            "d.jsonl:1: 'weight' of the row is 1 and 0; expected",
        ),
    ],
)
def test_a_member_that_is_written_twice_is_refused_where_it_is_used(
    text: str, expected: str, tmp_path: Path
) -> None:
    (tmp_path / "d.jsonl").write_text(text)
    assert expected in refusal(tmp_path / "d.jsonl")


def test_a_member_that_is_written_twice_does_not_matter_where_it_is_not_used(tmp_path: Path) -> None:
    """Nor where it says the same twice."""
    (tmp_path / "d.jsonl").write_text('{"text": "a b", "text": "a b", "n": 1, "n": 2}')
    assert read(tmp_path / "d.jsonl")[0] == ["a b<|im_end|>"]


def test_an_integer_too_long_in_a_key_of_a_message_that_nothing_reads(tmp_path: Path) -> None:
    """Messages have keys of their own."""
    text = json.dumps({"messages": [{**ASK, "id": 7}, DONE]}).replace("7", LONG)
    (tmp_path / "d.jsonl").write_text(text)
    assert read(tmp_path / "d.jsonl")[1] == ["done<|im_end|>"]


@pytest.mark.parametrize(
    ("row", "expected"),
    [
        ({"text": 7}, "The column 'text' is an integer of 5,000 digits, too long to be read."),
        (
            {"messages": [{"role": "user", "content": 7}, DONE]},
            "Message 1 of 'messages' (content) is an integer",
        ),
        (
            {"messages": [ASK, call({"a": [7]})]},
            "Message 2 of 'messages' (tool_calls.1.function.arguments.a.1) is an integer of 5,000 digits",
        ),
        ({"messages": [ASK, call('{"a": 7}')]}, "(tool_calls.1.function.arguments.a) is an integer"),
    ],
)
def test_an_integer_too_long_where_it_is_used_names_its_place(
    row: dict[str, Any], expected: str, tmp_path: Path
) -> None:
    """File, line, and the way to it."""
    path = tmp_path / "d.jsonl"
    write_jsonl(path, [{"text": "a", "messages": [DONE]}, row])
    path.write_text(path.read_text().replace("7", LONG))
    message = refusal(path, format="text" if "text" in row else "messages")
    assert message.startswith(f"{path}:2: ")
    assert expected in message


@pytest.mark.parametrize("template", [TOOLS, TOOLS_AS_TEXT], ids=["objects", "text"])
@pytest.mark.parametrize(
    ("row", "expected"),
    [
        (
            {"messages": [ASK, call({"a": {"b": [HALF]}})]},
            "Message 2 of 'messages' (tool_calls.1.function.arguments.a.b.1) holds",
        ),
        (
            {"messages": [ASK, call({HALF: 1})]},
            "Message 2 of 'messages' (tool_calls.1.function.arguments) holds",
        ),
        ({"messages": [ASK, call(json.dumps({"a": HALF}))]}, "(tool_calls.1.function.arguments.a) holds"),
        ({"messages": [ASK, call({}, name=HALF)]}, "(tool_calls.1.function.name) holds"),
        ({"messages": [{**ASK, "role": HALF}, DONE]}, "Message 1 of 'messages' (role) holds"),
        ({"messages": [{**ASK, "name": HALF}, DONE]}, "Message 1 of 'messages' (name) holds"),
        ({"messages": [ASK, {**DONE, "reasoning_content": HALF}]}, "(reasoning_content) holds"),
        (
            {"messages": [ASK, DONE], "tools": [{"function": {"name": "f", "description": HALF}}]},
            "Tool 1 of 'tools' (function.description) holds",
        ),
        (
            {"conversations": [{"from": "human", "value": HALF}, {"from": "gpt", "value": "x"}]},
            "Message 1 of",
        ),
    ],
)
def test_half_a_surrogate_pair_names_its_place_wherever_it_is(
    row: dict[str, Any], expected: str, template: str, tmp_path: Path
) -> None:
    """A tokenizer says only that it is not a text."""
    path = write_jsonl(tmp_path / "d.jsonl", [row])
    message = refusal(path, template)
    assert message.startswith(f"{path}:1: ")
    assert expected in message
    assert r"'\ud83d', half of a surrogate pair" in message


@pytest.mark.parametrize(
    ("template", "expected"),
    [
        ("{{ messages[0].role.x.y }}", "has no attribute 'x'"),
        ("{{ messages[9].content }}", "has no element 9"),
        ("{{ 1 / 0 }}", "'messages' cannot be rendered or tokenised: ZeroDivisionError: division by zero."),
        ("{{ 'a' * 10 ** 30 }}", "'messages' cannot be rendered or tokenised: OverflowError: "),
        (
            "{% macro f() %}{{ f() }}{% endmacro %}{{ f() }}",
            "RecursionError: maximum recursion depth exceeded",
        ),
        ("{% for i in range(10 ** 9) %}{% endfor %}", "OverflowError: Range too big."),
        ("{{ messages.__class__.__mro__ }}", "access to attribute '__class__'"),
        ("{{ '%d' | format('x') }}", "a real number is required"),
        ("{% for m in %}", "Expected an expression"),
        (
            CHATML.replace("message['content']", "(message['id'] or '') + message['content']"),
            "'messages' cannot be rendered or tokenised: TypeError: TextEncodeInput",
        ),
    ],
)
def test_whatever_a_template_raises_names_the_row(template: str, expected: str, tmp_path: Path) -> None:
    """Templates are programs."""
    path = write_jsonl(tmp_path / "d.jsonl", [{"messages": [{**ASK, "id": HALF}, DONE]}])
    message = refusal(path, template)
    assert message.startswith(f"{path}:1: ")
    assert expected in message


class PanicException(BaseException):
    """Stands in for what a panic in Rust becomes, which is no Exception."""


@pytest.mark.parametrize(
    ("error", "expected"),
    [
        (
            Exception("Unk token `<unk>` not found in the vocabulary"),
            "Exception: Unk token `<unk>` not found in the vocabulary.",
        ),
        (PanicException("index out of bounds"), "PanicException: index out of bounds."),
        (AssertionError(), "AssertionError: no reason given."),
        (KeyError("x" * 10_000), "KeyError: '…'."),
        (ValueError("bad hash: 'root:$6$x:0'" + "y" * 10_000), "ValueError: bad hash: '…'yyy"),
    ],
)
@pytest.mark.parametrize("name", ["text", "messages"])
def test_whatever_a_tokenizer_raises_names_the_row_and_the_fields(
    name: str, error: BaseException, expected: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Tokenizers raise plain exceptions and panics."""

    def broken(*args: object, **options: object) -> None:
        raise error

    monkeypatch.setattr(PreTrainedTokenizerFast, "__call__", broken)
    path = write_jsonl(tmp_path / "d.jsonl", [{"text": "a", "messages": [ASK, DONE]}])
    message = refusal(path, format=name)
    assert message.startswith(f"{path}:1: {name!r} cannot be rendered or tokenised: {expected}")
    assert len(message) < 700 + len(str(path))


@pytest.mark.parametrize("kind", [MemoryError, KeyboardInterrupt, SystemExit])
def test_what_is_not_the_datas_fault_passes(kind: type[BaseException]) -> None:
    """A machine without memory, and whoever ends the process."""
    with pytest.raises(kind), faults_of_libraries(lambda: "d.jsonl:1"):
        raise kind


def test_only_the_columns_that_are_needed_are_read_of_parquet(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Others are named in faults, and counted where they say of which task a row is."""
    asked: list[list[str]] = []
    inner = pyarrow.parquet.ParquetFile.iter_batches

    def iter_batches(file: Any, *args: Any, columns: list[str], **options: Any) -> Any:
        asked.append(columns)
        return inner(file, *args, columns=columns, **options)

    monkeypatch.setattr(pyarrow.parquet.ParquetFile, "iter_batches", iter_batches)
    path = write_parquet(
        tmp_path / "d.parquet",
        [{"question": "a", "text": "x", "answer": "b", "source": "s", "image": b"\xff"}],
    )
    assert read(path, columns={"prompt": "question", "completion": "answer"}, format="prompt_completion")[
        0
    ] == ["ab<|im_end|>"]
    assert asked[0] == ["question", "text", "answer", "source"]
    other = write_parquet(tmp_path / "e.parquet", [{"question": "a", "image": b"\xff"}])
    assert "The data has the columns image, question, which fit no format" in refusal(other)


FAR = pyarrow.array([2**60], pyarrow.timestamp("ms"))
NOT_UTF8 = pyarrow.Array.from_buffers(
    pyarrow.string(), 1, [None, pyarrow.py_buffer(b"\0\0\0\0\2\0\0\0"), pyarrow.py_buffer(b"\xff\xfe")]
)


@pytest.mark.parametrize("column", [FAR, NOT_UTF8], ids=["a time", "bytes"])
@pytest.mark.parametrize("name", ["when", "label"])
def test_a_column_that_python_has_no_value_for_does_not_matter_unless_it_is_used(
    column: pyarrow.Array, name: str, tmp_path: Path
) -> None:
    """A time in the year 36 million, and text that is not UTF-8."""
    path = tmp_path / "d.parquet"
    pyarrow.parquet.write_table(pyarrow.table({"text": ["a b"], name: column}), path)
    assert read(path)[0] == ["a b<|im_end|>"]
    message = refusal(path, columns={"text": name})
    assert message.startswith(f"{path}, row 1: The column {name!r} cannot be read: ")


def test_a_value_within_a_column_does_not_matter_unless_it_is_used(tmp_path: Path) -> None:
    """Nor within messages."""
    message = pyarrow.struct(
        [("role", pyarrow.string()), ("content", pyarrow.string()), ("at", pyarrow.timestamp("ms"))]
    )
    rows = pyarrow.array([[{**ASK, "at": 2**60}, {**DONE, "at": 0}]], pyarrow.list_(message))
    pyarrow.parquet.write_table(pyarrow.table({"messages": rows}), tmp_path / "d.parquet")
    assert read(tmp_path / "d.parquet")[1] == ["done<|im_end|>"]


@pytest.mark.parametrize(
    ("value", "kind"),
    [
        (datetime.date(2020, 1, 1), "date"),
        (Decimal("1.5"), "Decimal"),
        (b"x", "bytes"),
    ],
)
def test_values_that_json_has_no_form_for_are_named_in_arguments(
    value: Any, kind: str, tmp_path: Path
) -> None:
    """A template could not write them."""
    path = write_parquet(tmp_path / "d.parquet", [{"messages": [ASK, call({"a": value})]}])
    assert refusal(path) == (
        f"{path}, row 1: Message 2 of 'messages' (tool_calls.1.function.arguments.a) is of type {kind}, "
        "which JSON cannot represent. Store it as text."
    )


def test_a_parquet_file_with_two_columns_of_one_name(tmp_path: Path) -> None:
    """It matters where the name is used."""
    path = tmp_path / "d.parquet"
    twice = [pyarrow.array(["a"]), pyarrow.array(["b"])]
    pyarrow.parquet.write_table(pyarrow.Table.from_arrays(twice, names=["text", "text"]), path)
    assert "has the column 'text' more than once" in refusal(path)
    table = pyarrow.Table.from_arrays([*twice, pyarrow.array(["a b"])], names=["x", "x", "text"])
    pyarrow.parquet.write_table(table, path)
    assert read(path)[0] == ["a b<|im_end|>"]


def test_a_damaged_parquet_page_names_the_file(tmp_path: Path) -> None:
    """pyarrow raises an OSError in the middle."""
    path = tmp_path / "d.parquet"
    table = pyarrow.table({"text": [f"a b {number}" for number in range(5000)]})
    pyarrow.parquet.write_table(table, path, compression="none")
    content = path.read_bytes()
    path.write_bytes(content[:1000] + b"\xff" * 500 + content[1500:])
    assert refusal(path).startswith(f"{path} cannot be read at its beginning: ")


class HubRows:
    """Stands in for a hub data set whose columns are decoded when they are read."""

    column_names = ("text", "image", "label")

    def __init__(self, columns: tuple[str, ...] = column_names) -> None:
        self.columns = columns

    def select_columns(self, columns: list[str]) -> HubRows:
        return HubRows(tuple(columns))

    def __iter__(self) -> Iterator[dict[str, str]]:
        if "image" in self.columns:
            raise ImportError("To support decoding images, please install 'Pillow'.")
        yield dict.fromkeys(self.columns, "a b")
        if "label" not in self.columns:
            raise AssertionError("the label says of which task a row is")


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch) -> dict[str, str]:
    builder = SimpleNamespace(download_and_prepare=lambda: None, as_dataset=lambda split: HubRows())
    monkeypatch.setattr(workers.data.data_files, "_check_builder", lambda *args: None)
    monkeypatch.setattr("datasets.load_dataset_builder", lambda *args, **options: builder)
    return {"hub": "org/data", "split": "train"}


def test_only_the_columns_that_are_needed_are_read_of_the_hub(hub: dict[str, str]) -> None:
    """A picture that cannot be decoded is none of the tokens."""
    assert read(hub)[0] == ["a b<|im_end|>"]


def test_what_decoding_a_hub_data_set_raises_is_a_fault_of_the_data(hub: dict[str, str]) -> None:
    """Where the column is used."""
    with pytest.raises(RowError) as caught:
        read(hub, columns={"text": "image"})
    assert str(caught.value) == (
        "hub data set org/data (split train) cannot be read at its beginning: ImportError: To support "
        "decoding images, please install 'Pillow'."
    )
