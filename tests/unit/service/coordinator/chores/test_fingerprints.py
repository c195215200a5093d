"""What identifies the content of a study's data and model."""

from __future__ import annotations

import hashlib
import os
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from search_spaces.definition import StudyDefinition
from search_spaces.parsing.document import parse_definition
from service.coordinator.chores import fingerprints
from service.coordinator.chores.fingerprints import FingerprintReader, Fingerprints, read_fingerprints
from tests.support.service.coordinator import DEFINITION

Define = Callable[..., StudyDefinition]
COMMIT = "0123456789abcdef0123456789abcdef01234567"


@pytest.fixture
def define(tmp_path: Path) -> Define:
    def make(**sections: Any) -> StudyDefinition:
        data = {}
        for name in ("train", "eval"):
            path = tmp_path / f"{name}.jsonl"
            path.write_bytes(name.encode())
            data[name] = str(path)
        return parse_definition({**DEFINITION, "data": data, **sections})

    return make


def test_a_file_is_identified_by_its_bytes_and_a_hub_model_by_its_revision(define: Define) -> None:
    model = {"id": "org/model", "revision": "v1"}
    assert read_fingerprints(define(model=model)) == Fingerprints(
        known={
            "model": "hub:org/model@v1",
            "data.train": f"sha256:{hashlib.sha256(b'train').hexdigest()}",
            "data.eval": f"sha256:{hashlib.sha256(b'eval').hexdigest()}",
        }
    )


@pytest.mark.parametrize(
    ("revision", "known"),
    [(COMMIT, True), (None, False), ("main", False), ("v1.0", False), (COMMIT[:39], False)],
)
def test_a_hub_data_set_is_identified_by_a_commit_alone(
    define: Define, revision: str | None, known: bool
) -> None:
    hub = {"hub": "org/data", "split": "train", "revision": revision}
    found = read_fingerprints(define(data={"train": hub, "eval": {**hub, "split": "test"}}))
    assert ("data.train" in found.known, len(found.unknown)) == (known, 0 if known else 2)
    if known:
        assert found.known["data.train"] == f"hub:org/data//train@{COMMIT}"
        assert found.known["data.eval"] != found.known["data.train"]


def test_a_model_is_identified_by_the_names_and_the_content_of_its_files(
    define: Define, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(fingerprints, "_BLOCK", 4)
    monkeypatch.setattr(fingerprints, "_WHOLE_BLOCKS", 8)
    folder = tmp_path / "model"
    folder.mkdir()
    (folder / "config.json").write_text("{}")
    weights = folder / "model.safetensors"

    def found(content: bytes) -> str:
        weights.write_bytes(content)
        return read_fingerprints(define(model={"id": str(folder)})).known["model"]

    plain = found(bytes(1000))
    assert found(bytes(1000)) == plain
    assert (
        len({plain, found(bytes(999)), found(b"1" + bytes(999)), found(bytes(999) + b"1"), found(b"")}) == 5
    )
    weights.rename(folder / "other.safetensors")
    assert found(bytes(1000)) != plain


def test_what_cannot_be_read_is_named_with_the_reason(define: Define, tmp_path: Path) -> None:
    definition = define(model={"id": str(tmp_path / "gone")})
    (tmp_path / "train.jsonl").unlink()
    (tmp_path / "eval.jsonl").unlink()
    (tmp_path / "eval.jsonl").mkdir()
    assert read_fingerprints(definition).unknown == (
        "model cannot be read here (No such file or directory)",
        "data.train cannot be read here (No such file or directory)",
        "data.eval cannot be read here (Is a directory)",
    )


def test_large_files_are_read_beside_the_coordinators_rounds(
    define: Define, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(fingerprints, "_WAIT_SECONDS", 0.0)
    go_on = threading.Event()

    def slowly(_: StudyDefinition) -> Fingerprints:
        assert go_on.wait(60)
        return Fingerprints(known={"model": "m"})

    monkeypatch.setattr(fingerprints, "read_fingerprints", slowly)
    reader = FingerprintReader()
    assert [reader.of("s", define()) for _ in range(3)] == [None] * 3
    go_on.set()
    reader._readings["s"].join(60)
    assert reader.of("s", define()) == Fingerprints(known={"model": "m"})


def test_a_fault_of_the_reader_is_raised_where_its_word_is_asked_for(
    define: Define, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(_: StudyDefinition) -> Fingerprints:
        raise ZeroDivisionError

    monkeypatch.setattr(fingerprints, "read_fingerprints", fail)
    with pytest.raises(RuntimeError, match="fingerprints of study s could not be read"):
        FingerprintReader().of("s", define())


def test_what_is_no_file_any_more_is_neither_waited_for_nor_read_without_end(
    define: Define, tmp_path: Path
) -> None:
    """A pipe and a device that were put in the places of the files."""
    definition = define()
    for name in ("train.jsonl", "eval.jsonl"):
        (tmp_path / name).unlink()
    os.mkfifo(tmp_path / "train.jsonl")
    (tmp_path / "eval.jsonl").symlink_to("/dev/zero")
    assert read_fingerprints(definition).unknown == (
        "data.train cannot be read here (not a regular file)",
        "data.eval cannot be read here (not a regular file)",
    )
