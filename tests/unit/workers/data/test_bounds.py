"""Files that unpack to more than any memory, and configurations made to break whoever reads them."""

from __future__ import annotations

import gzip
import json
import shutil
from contextlib import suppress
from pathlib import Path
from typing import Any

import pyarrow
import pyarrow.parquet
import pytest
import torch

from search_spaces.data_report import LoadingLimits, ReportRequest
from search_spaces.definition import ModelSpec
from tests.support.workers.rows import read
from workers.base.base_model import load_base
from workers.data import text_files
from workers.device.memory import limited_memory
from workers.errors import DataError, ModelError
from workers.report.data_report import make_report


def refusal(path: Path, **fields: Any) -> str:
    with pytest.raises(DataError) as caught, limited_memory(1, f"{path} cannot be read"):
        read(path, **fields)
    return str(caught.value)


def report_of(base: Path, data: Path) -> list[Any]:
    request = {
        "model": {"id": str(base)},
        "data": {"train": str(data), "eval": str(data), "max_length": 64},
        "max_lengths": [64],
        "quantizations": ["nf4"],
        "compute_dtypes": ["float32"],
        "adapters": [],
        "max_rows": 10,
        "max_counted": 10,
        "limits": LoadingLimits(memory_gib=1),
    }
    return list(make_report(ReportRequest.model_validate(request)).problems)


@pytest.fixture
def bomb(tmp_path: Path) -> Path:
    """A value of 100 MB that is each of 1,000 rows: 100 GB out of a few kilobytes."""
    text = pyarrow.array(["a" * 100_000_000])
    column = pyarrow.DictionaryArray.from_arrays(pyarrow.array([0] * 1_000, pyarrow.int32()), text)
    path = tmp_path / "bomb.parquet"
    table = pyarrow.table({"text": column}).cast(
        pyarrow.schema([("text", pyarrow.dictionary("int32", "string"))])
    )
    pyarrow.parquet.write_table(table, path, compression="zstd", store_schema=False, write_statistics=False)
    return path


def test_a_small_parquet_file_that_unpacks_to_100_gb_is_refused(bomb: Path, tiny_base_dir: Path) -> None:
    """In a worker and in a report, in which it is a fault that every trial has."""
    assert bomb.stat().st_size < 100_000
    message = refusal(bomb)
    assert message.startswith(f"{bomb} cannot be read at its beginning: this needs more than 1 GiB of memory")
    [problem] = report_of(tiny_base_dir, bomb)
    assert "needs more than 1 GiB of memory" in problem.message
    assert problem.every_trial


def test_rows_of_a_table_that_are_longer_than_a_row_may_be(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Memory would do."""
    monkeypatch.setattr("workers.data.data_files.LONGEST_ROW", 1_000)
    pyarrow.parquet.write_table(pyarrow.table({"text": ["a" * 5_000]}), tmp_path / "d.parquet")
    assert "after row 0: the rows have more than 1,000 bytes each" in refusal(tmp_path / "d.parquet")


@pytest.mark.parametrize(
    ("name", "content", "expected"),
    [
        (
            "d.jsonl",
            '{"text": "a"}\n{"text": "' + "b" * 5_000 + '"}\n',
            ":2: the line has more than 1,000 bytes",
        ),
        ("d.jsonl", '{"text":\n' + '"b"\n' * 5_000, ":1: the object has more than 1,000 bytes"),
        ("d.jsonl", "b" * 50_000, ":1: the line has more than 10,000 bytes"),
        ("d.jsonl", "[\n" + '{"text": "b"},\n' * 5_000, ": the JSON document has more than 10,000 bytes"),
        ("d.json", "[\n" + '{"text": "b"},\n' * 5_000, ": the JSON document has more than 10,000 bytes"),
        ("d.json", "[" + '{"text": "b"},' * 5_000, ":1: the line has more than 10,000 bytes"),
        ("d.csv", "text\na\n" + "b" * 5_000 + "\n", ":3: the line has more than 1,000 bytes"),
        ("d.csv", "text\na\n" + '"' + "b\n" * 5_000 + '"', "field larger than field limit (1000)"),
    ],
)
@pytest.mark.parametrize("pack", [False, True], ids=["plain", "gzip"])
def test_lines_rows_and_documents_are_bounded(
    name: str, content: str, expected: str, pack: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A small file unpacks to any size."""
    monkeypatch.setattr(text_files, "LONGEST_ROW", 1_000)
    monkeypatch.setattr(text_files, "LONGEST_DOCUMENT", 10_000)
    path = tmp_path / (f"{name}.gz" if pack else name)
    path.write_bytes(gzip.compress(content.encode()) if pack else content.encode())
    message = refusal(path)
    assert expected in message
    assert "bbbb" not in message


def test_a_sparse_file_of_terabytes_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """One that begins with zeros, and one that begins as JSON."""
    monkeypatch.setattr(text_files, "LONGEST_DOCUMENT", 10_000)
    for head, expected in (
        (b"", "is not UTF-8 (it holds zero bytes"),
        (b'{"text": "' + b"a" * 60, "more than 10,000"),
    ):
        path = tmp_path / "sparse.jsonl"
        with path.open("wb") as file:
            file.write(head)
            file.truncate(2**42)
        assert expected in refusal(path)


CONFIGS: list[tuple[str, Any]] = [
    ("num_attention_heads", 0),
    ("dtype", "os.system"),
    ("num_hidden_layers", -1),
    ("hidden_size", "LONG"),
    ("vocab_size", 2**70),
    ("rope_theta", "LONG"),
    ("hidden_act", "os.system"),
    ("max_position_embeddings", {"a": 1}),
    ("deep", "DEEP"),
    ("quantization_config", "fp8"),
    ("architectures", 7),
]


@pytest.mark.parametrize(("key", "value"), CONFIGS, ids=[key for key, _ in CONFIGS])
def test_a_configuration_that_breaks_what_reads_it_is_the_models_fault(
    key: str, value: Any, tiny_base_dir: Path, tmp_path: Path
) -> None:
    """A worker refuses the model or loads it; a report says it or makes its numbers. Nothing else escapes."""
    base = Path(shutil.copytree(tiny_base_dir, tmp_path / "base"))
    config = json.loads((base / "config.json").read_text())
    text = json.dumps({**config, key: value})
    text = text.replace('"LONG"', "9" * 5_000).replace('"DEEP"', "[" * 100_000 + "]" * 100_000)
    (base / "config.json").write_text(text)
    (tmp_path / "d.jsonl").write_text('{"text": "a b"}\n')
    messages = []
    with suppress(ModelError):
        try:
            load_base(ModelSpec(id=str(base), quantization="none"), torch.device("cpu"))
        except ModelError as error:
            messages.append(str(error))
            raise
    for problem in report_of(base, tmp_path / "d.jsonl"):
        assert problem.about == "model"
        messages.append(problem.message)
    assert all(len(message) < 1_500 and "999999" not in message for message in messages)


@pytest.mark.parametrize("key", ["num_hidden_layers", "num_labels"])
def test_a_model_that_needs_any_memory_without_its_weights_is_refused(
    key: str, tiny_base_dir: Path, tmp_path: Path
) -> None:
    """A worker would take its machine's memory. Libraries do not always say that it is memory they lack."""
    base = Path(shutil.copytree(tiny_base_dir, tmp_path / "base"))
    config = json.loads((base / "config.json").read_text())
    (base / "config.json").write_text(json.dumps({**config, key: 10**8}))
    with pytest.raises((DataError, ModelError), match="be loaded"):
        load_base(ModelSpec(id=str(base), quantization="none"), torch.device("cpu"), memory_gib=0.03)
