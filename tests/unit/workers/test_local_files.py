"""Files exchanged after a study was accepted: none outside the data roots is read, and none is quoted."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from search_spaces.data_report import LoadingLimits, ReportRequest
from search_spaces.definition import DataSpec, ModelSpec
from tests.support.workers.packs import Recorder
from tests.support.workers.trials import data_spec, trial_order
from workers.base import base_model
from workers.contract import TrialOutcome
from workers.errors import DataError, ModelError
from workers.local_files import open_data
from workers.report.data_report import make_report

pytestmark = pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing` is deprecated:FutureWarning")

SECRET = "root:x:0:0:root:/root:/bin/bash\n"


@pytest.fixture
def root(tmp_path: Path) -> Path:
    folder = tmp_path / "root"
    folder.mkdir()
    return folder


@pytest.fixture
def outside(tmp_path: Path) -> Path:
    file = tmp_path / "passwd"
    file.write_text(SECRET)
    return file


def limits(root: Path) -> LoadingLimits:
    return LoadingLimits(data_roots=(str(root),))


def outcome_of(root: Path, base: Path, data: DataSpec) -> TrialOutcome:
    return Recorder().outcome(replace(trial_order(root, base, data=data), limits=limits(root)))


def reported(root: Path, base: Path, data: DataSpec) -> list[str]:
    request = {
        "model": ModelSpec(id=str(base)),
        "data": data,
        "max_lengths": [data.max_length],
        "quantizations": ["nf4"],
        "compute_dtypes": ["float32"],
        "adapters": [],
        "max_rows": 10,
        "max_counted": 10,
        "limits": limits(root),
    }
    return [problem.message for problem in make_report(ReportRequest.model_validate(request)).problems]


def link_to(outside: Path) -> Callable[[Path], None]:
    def exchange(file: Path) -> None:
        file.unlink()
        file.symlink_to(outside)

    return exchange


def a_folder_above(file: Path) -> None:
    """A folder that leads out, with a file of that name in it."""
    there = file.parents[2] / "elsewhere"
    there.mkdir()
    (there / file.name).write_text(SECRET)
    shutil.rmtree(file.parent)
    file.parent.symlink_to(there)


@pytest.mark.parametrize("name", ["d.jsonl", "d.json", "d.csv", "d.parquet", "d.jsonl.gz"])
@pytest.mark.parametrize("part", ["train", "eval"])
def test_a_data_file_that_became_a_link_out_of_the_roots_is_not_read(
    name: str, part: str, root: Path, outside: Path, tiny_base_dir: Path
) -> None:
    """In a worker and in a report; its first line stands nowhere."""
    base = Path(shutil.copytree(tiny_base_dir, root / "base"))
    file = root / "data" / name
    file.parent.mkdir()
    file.write_text("text\n")
    spec = data_spec(root).model_copy(update={part: str(file)})
    link_to(outside)(file)
    outcome = outcome_of(root, base, spec)
    assert outcome.fatal_to_study
    for message in (outcome.reason, *reported(root, base, spec)):
        assert message.startswith(f"The data file {file} leads out of the data roots: ")
        assert "root:x" not in message
        assert str(outside) not in message


def test_a_folder_above_that_became_a_link_is_not_followed(root: Path, tiny_base_dir: Path) -> None:
    """Whatever the way out is."""
    file = root / "data" / "d.csv"
    file.parent.mkdir()
    file.write_text("text\n")
    a_folder_above(file)
    with pytest.raises(DataError, match="leads out of the data roots"):
        open_data(file, [str(root)])


def test_links_within_the_roots_are_followed(root: Path, tmp_path: Path) -> None:
    """Also where a root is itself a link on this machine."""
    (root / "a.jsonl").write_text("a")
    (root / "b.jsonl").symlink_to(root / "a.jsonl")
    (tmp_path / "mount").symlink_to(root)
    for path, roots in (
        (root / "b.jsonl", [str(root)]),
        (tmp_path / "mount" / "a.jsonl", [str(tmp_path / "mount")]),
    ):
        with open_data(path, roots) as file:
            assert file.read() == b"a"


def test_what_no_link_was_followed_to_is_read_whatever_the_roots(root: Path) -> None:
    """API and coordinator may have been started in different folders: the path was accepted as it is."""
    (root / "a.jsonl").write_text("a")
    with open_data(root / "a.jsonl", ["/nowhere"]) as file:
        assert file.read() == b"a"


def test_a_pipe_in_place_of_a_file_does_not_block(root: Path) -> None:
    """Nor is a device read."""
    os.mkfifo(root / "a.jsonl")
    with pytest.raises(DataError, match="is not a regular file"):
        open_data(root / "a.jsonl", [str(root)])
    with pytest.raises(DataError, match="is not a regular file"):
        open_data(Path("/dev/zero"), ["/dev"])


@pytest.mark.parametrize(
    "name", ["config.json", "tokenizer.json", "model.safetensors", "tokenizer_config.json"]
)
def test_a_models_file_that_became_a_link_out_of_the_roots_is_not_read(
    name: str, root: Path, outside: Path, tiny_base_dir: Path
) -> None:
    """In a worker and in a report."""
    base = Path(shutil.copytree(tiny_base_dir, root / "base"))
    link_to(outside)(base / name)
    spec = data_spec(root)
    outcome = outcome_of(root, base, spec)
    assert outcome.fatal_to_study
    for message in (outcome.reason, *reported(root, base, spec)):
        assert "leads out of the data roots" in message
        assert "root:x" not in message


def test_a_models_folder_that_became_a_link_is_not_followed(
    root: Path, tmp_path: Path, tiny_base_dir: Path
) -> None:
    """Though all its files are there."""
    base = root / "base"
    base.symlink_to(shutil.copytree(tiny_base_dir, tmp_path / "other"))
    with pytest.raises(ModelError, match=r"The folder of the model .* leads out of the data roots"):
        base_model.load_base(ModelSpec(id=str(base)), roots=(str(root),))


def test_a_models_file_exchanged_while_it_is_read_and_put_back_is_noticed(
    root: Path, tmp_path: Path, tiny_base_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Libraries open files by their names."""
    base = Path(shutil.copytree(tiny_base_dir, root / "base"))
    inner = base_model.load_tokenizer

    def exchanged(*args: Any) -> Any:
        (base / "tokenizer.json").rename(tmp_path / "own.json")
        (base / "tokenizer.json").symlink_to(tiny_base_dir / "tokenizer.json")
        tokenizer = inner(*args)
        (tmp_path / "own.json").rename(base / "tokenizer.json")
        return tokenizer

    monkeypatch.setattr(base_model, "load_tokenizer", exchanged)
    with pytest.raises(ModelError, match="changed while they were read"):
        base_model.load_base(ModelSpec(id=str(base)), roots=(str(root),))
