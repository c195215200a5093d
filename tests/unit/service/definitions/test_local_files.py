"""Which data files a definition may name."""

from __future__ import annotations

from pathlib import Path

import pytest

from service.definitions.local_files import resolve_paths


@pytest.mark.parametrize(
    ("name", "messages"),
    [
        *((f"d{suffix}", []) for suffix in (".jsonl", ".json", ".csv", ".parquet", ".JSONL")),
        *((f"d{suffix}.gz", []) for suffix in (".jsonl", ".json", ".csv", ".Csv")),
        ("d.parquet.gz", ["is not a supported type of file (.gz)"]),
        ("d.gz", ["is not a supported type of file (.gz)"]),
        ("d.txt", ["is not a supported type of file (.txt)"]),
        ("jsonl", ["is not a supported type of file (no suffix)"]),
    ],
)
def test_data_files_are_known_by_their_names(name: str, messages: list[str], tmp_path: Path) -> None:
    """Text may be compressed with gzip; Parquet is compressed within."""
    (tmp_path / name).touch()
    document = {"data": {"train": name, "eval": {"hub": "org/data", "split": "train"}}}
    resolved, faults = resolve_paths(document, [tmp_path.resolve()])
    assert [fault.message for fault in faults] == messages
    assert resolved["data"]["train"] == (name if messages else str(tmp_path.resolve() / name))


@pytest.mark.parametrize(("others", "nearest"), [(3, "train.jsonl"), (1_100, None)])
def test_a_nearest_file_is_named_in_a_small_folder_only(
    others: int, nearest: str | None, tmp_path: Path
) -> None:
    """Comparing a name with 100,000 others takes seconds."""
    (tmp_path / "train.jsonl").touch()
    for number in range(others):
        (tmp_path / f"{number}.jsonl").touch()
    _, [fault] = resolve_paths({"data": {"train": "trian.jsonl"}}, [tmp_path.resolve()])
    assert (fault.message, fault.nearest) == ("does not exist", nearest)
