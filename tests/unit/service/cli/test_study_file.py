"""Reading study files."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest

from service.cli.errors import StudyFileError
from service.cli.study_file import read_study_file


def read(tmp_path: Path, text: str, name: str = "study.yaml") -> dict[str, Any]:
    file = tmp_path / name
    file.write_text(text)
    return read_study_file(file)


@pytest.mark.parametrize("name", ["study.yaml", "study.json"])
def test_json_is_read_from_either_kind_of_file(tmp_path: Path, name: str) -> None:
    assert read(tmp_path, '{"name": "tone", "n": 1e-4}', name) == {"name": "tone", "n": 1e-4}


@pytest.mark.parametrize(
    ("text", "value"),
    [("1e-4", 1e-4), ("1.0e-5", 1e-5), ("+2E3", 2000.0), (".5e1", 5.0), ("12", 12), ("1.5", 1.5)],
)
def test_a_number_is_a_number_however_it_is_written(tmp_path: Path, text: str, value: float) -> None:
    read_value = read(tmp_path, f"x: {text}")["x"]
    assert (value, type(value)) == (read_value, type(read_value))


@pytest.mark.parametrize("text", ["2026-07-01", "e5", "1e", "qwen-1e5"])
def test_what_is_no_number_stays_a_word(tmp_path: Path, text: str) -> None:
    assert read(tmp_path, f"x: {text}") == {"x": text}


def test_files_beside_the_study_file_become_absolute(tmp_path: Path) -> None:
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "train.jsonl").touch()
    (tmp_path / "base").mkdir()
    document = read(
        tmp_path,
        "model: {id: base}\ndata: {train: ./data/train.jsonl, eval: elsewhere/eval.jsonl, format: data}\n",
    )
    assert document == {
        "model": {"id": f"{tmp_path}/base"},
        "data": {
            "train": f"{tmp_path}/data/train.jsonl",
            "eval": "elsewhere/eval.jsonl",
            "format": "data",
        },
    }


def test_a_relative_study_path_still_gives_absolute_data_paths(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "study.yaml").write_text("data: {train: t.jsonl}")
    (tmp_path / "t.jsonl").touch()
    monkeypatch.chdir(tmp_path)
    assert read_study_file(Path("study.yaml")) == {"data": {"train": os.path.join(tmp_path, "t.jsonl")}}


@pytest.mark.parametrize(
    "text", ["model: base", "data: [train]", "data: {train: {hub: x}}", "model: {id: 3}"]
)
def test_sections_of_another_shape_are_left_for_the_service_to_judge(tmp_path: Path, text: str) -> None:
    (tmp_path / "base").mkdir()
    assert read(tmp_path, text)


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        ("s.yaml", "name: tone\nsearch: {trials: 3\n", r"s\.yaml: Invalid YAML: .* at line 3, column 1"),
        (
            "s.yaml",
            "name: tone\n\ttrials: 3\n",
            r"s\.yaml: Invalid YAML: .* at line 2, column 1",
        ),
        (
            "s.yaml",
            "a: 1\nb:\n  c: 1\n  c: 2\n",
            r"s\.yaml: Duplicate key 'c' .*line 4",
        ),
        ("s.yaml", "x: !!python/name:os.system a", r"s\.yaml: YAML tags are not supported; .*line 1"),
        ("s.yaml", "x: \x07", r"s\.yaml: The YAML cannot be read"),
        ("s.yaml", "a: &a [1]\nb: *a", r"s\.yaml: YAML anchors are not supported; .*line 1"),
        ("s.yaml", "", r"s\.yaml is empty"),
        ("s.yaml", "- a", r"s\.yaml holds a list; a study file is a mapping"),
        (
            "s.json",
            '{"name": "tone",\n "x": }',
            r"s\.json: Invalid JSON: Expecting value at line 2, column 7",
        ),
    ],
)
def test_a_file_that_is_no_document_is_named_with_the_place(
    tmp_path: Path, name: str, text: str, message: str
) -> None:
    with pytest.raises(StudyFileError, match=message):
        read(tmp_path, text, name)


def test_a_file_that_is_not_there_or_not_text_is_named(tmp_path: Path) -> None:
    with pytest.raises(StudyFileError, match="No such file or directory"):
        read_study_file(tmp_path / "none.yaml")
    (tmp_path / "model.yaml").write_bytes(b"name: \xff")
    with pytest.raises(StudyFileError, match="Invalid UTF-8: the byte at offset 6"):
        read_study_file(tmp_path / "model.yaml")
