"""A checkpoint comes back bit by bit, or not at all, whatever happens to its writer and its files.

One file, since every test goes through the same fake disk and the same writer.
"""

from __future__ import annotations

import hashlib
import json
import logging
import os
import pickle
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.support.checkout import ROOT
from workers.artifacts.checkpoints import (
    Checkpoint,
    CheckpointError,
    newest_usable,
    read_checkpoint,
    write_checkpoint,
)
from workers.contract import UnusableCheckpoint

DTYPES = [
    *(torch.float64, torch.float32, torch.float16, torch.bfloat16),
    *(torch.int64, torch.int32, torch.int16, torch.int8, torch.uint8, torch.bool),
]


def write(folder: Path, step: int, key: str = "mine") -> None:
    write_checkpoint(folder, {"x": torch.full((50,), float(step))}, {"recipe_key": key, "step": step})


def step_of(checkpoint: Checkpoint) -> int:
    """The step, which tensors and state agree about."""
    step = checkpoint.state["step"]
    assert isinstance(step, int)
    assert torch.equal(checkpoint.tensors["x"], torch.full((50,), float(step)))
    return step


def read_step(folder: Path) -> int:
    return step_of(read_checkpoint(folder))


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def newest(folder: Path) -> Path:
    return max(path for path in folder.iterdir() if path.name.isdigit())


def rewrite_state(version: Path, edit: Callable[[dict[str, Any]], object]) -> None:
    """Changes `state.json` and gives it the SHA-256 of its new contents, as only a forger would."""
    document = json.loads((version / "state.json").read_text())
    edit(document)
    document.pop("sha256")
    text = json.dumps(document, sort_keys=True, separators=(",", ":"))
    document["sha256"] = hashlib.sha256(text.encode()).hexdigest()
    (version / "state.json").write_text(json.dumps(document))


def put_tensors(version: Path, data: bytes) -> None:
    """Replaces `tensors.safetensors` and lets `state.json` vouch for it."""
    (version / "tensors.safetensors").write_bytes(data)
    change = {"bytes": len(data), "sha256": hashlib.sha256(data).hexdigest()}
    rewrite_state(version, lambda document: document["tensors"].update(change))


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return tmp_path / "attempt-1" / "checkpoint"


# --- what comes back


@st.composite
def any_tensor(draw: st.DrawFn) -> torch.Tensor:
    """Any bits of any dtype and shape, so with NaNs, infinities and negative zeros; sometimes transposed."""
    dtype = draw(st.sampled_from(DTYPES))
    shape = draw(st.lists(st.integers(0, 4), max_size=3))
    size = torch.Size(shape).numel() * dtype.itemsize
    data = bytearray(draw(st.binary(min_size=size, max_size=size)))
    if dtype == torch.bool:
        data = bytearray(byte & 1 for byte in data)
    tensor = torch.frombuffer(data, dtype=dtype).reshape(shape) if data else torch.empty(shape, dtype=dtype)
    return tensor.mT if len(shape) > 1 and draw(st.booleans()) else tensor


numbers = st.integers() | st.floats(allow_nan=False, allow_infinity=False)
plain = st.recursive(
    st.none() | st.booleans() | numbers | st.text(),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(), inner, max_size=4),
    max_leaves=12,
)
tensor_names = st.text(st.characters(exclude_categories=["Cs"]), max_size=12).filter(
    lambda name: name != "__metadata__"
)


def bits(tensor: torch.Tensor) -> tuple[torch.dtype, torch.Size, bytes]:
    return (
        tensor.dtype,
        tensor.shape,
        tensor.contiguous().flatten().view(torch.uint8).numpy().tobytes() if tensor.numel() else b"",
    )


@settings(deadline=None, max_examples=60)
@given(
    tensors=st.dictionaries(tensor_names, any_tensor(), max_size=4),
    state=st.dictionaries(st.text(), plain, max_size=4),
)
def test_what_was_written_comes_back_bit_by_bit(
    tensors: dict[str, torch.Tensor], state: dict[str, object]
) -> None:
    state["recipe_key"] = "mine"
    with tempfile.TemporaryDirectory() as place:
        write_checkpoint(Path(place), tensors, state)
        checkpoint = read_checkpoint(Path(place))
    assert {name: bits(tensor) for name, tensor in checkpoint.tensors.items()} == {
        name: bits(tensor) for name, tensor in tensors.items()
    }
    assert repr(checkpoint.state) == repr(state)  # tells 1 from 1.0 and True, and 0.0 from -0.0


def test_views_of_one_buffer_come_back_with_memory_of_their_own(folder: Path) -> None:
    buffer = torch.arange(6.0, requires_grad=True)
    views = {"whole": buffer, "first": buffer[:2], "crossed": buffer.view(2, 3).T}
    write_checkpoint(folder, views, {"recipe_key": "mine"})
    read = read_checkpoint(folder).tensors
    read["whole"].zero_()
    assert [read["first"].tolist(), read["crossed"].tolist()] == [[0, 1], [[0, 3], [1, 4], [2, 5]]]
    assert [tensor.requires_grad for tensor in read.values()] == [False] * 3


@pytest.mark.parametrize(
    ("value", "message"),
    [
        ({"losses": [0.5, float("nan")]}, r"state\['losses'\]\[1\] is nan, a number that JSON does not have"),
        ({"best": float("inf")}, r"state\['best'\] is inf"),
        ({"best": -float("inf")}, r"state\['best'\] is -inf"),
        ({"at": (1, 2)}, r"state\['at'\] is a tuple, which would not come back"),
        ({"by_step": {1: 0.5}}, r"state\['by_step'\] has the key 1; JSON's keys are text"),
        ({"loss": torch.tensor(1.0)}, r"state\['loss'\] is a Tensor"),
        ({"seed": 10**5000}, "cannot be written as JSON"),
        ({"recipe_key": None}, "no text under 'recipe_key'"),
    ],
)
def test_a_state_that_would_not_come_back_is_refused_and_nothing_is_written(
    folder: Path, value: dict[str, object], message: str
) -> None:
    with pytest.raises(CheckpointError, match=message):
        write_checkpoint(folder, {}, {"recipe_key": "mine"} | value)
    assert not folder.exists()


def test_a_state_that_holds_itself_is_refused(folder: Path) -> None:
    circle: list[object] = []
    circle.append(circle)
    with pytest.raises(CheckpointError, match="cannot be written as JSON"):
        write_checkpoint(folder, {}, {"recipe_key": "mine", "circle": circle})


@pytest.mark.parametrize(
    ("tensors", "message"),
    [
        ({"z": torch.zeros(1, dtype=torch.complex64)}, "'z' is torch.complex64"),
        ({"__metadata__": torch.zeros(1)}, "'__metadata__'"),
        ({"\ud800": torch.zeros(1)}, "cannot be written"),
    ],
)
def test_tensors_that_would_not_come_back_are_refused_and_nothing_is_written(
    folder: Path, tensors: dict[str, torch.Tensor], message: str
) -> None:
    with pytest.raises(CheckpointError, match=message):
        write_checkpoint(folder, tensors, {"recipe_key": "mine"})
    assert not folder.exists()


# --- versions


def test_the_newest_two_versions_are_kept(folder: Path) -> None:
    for step in range(1, 6):
        write(folder, step)
    assert (names(folder), read_step(folder)) == (["00000004", "00000005"], 5)


def test_what_a_killed_writer_left_behind_is_removed_by_the_next(folder: Path) -> None:
    write(folder, 1)
    unfinished = folder / f".00000002-{'0' * 32}"
    unfinished.mkdir()
    (unfinished / "tensors.safetensors").write_bytes(b"half")
    write(folder, 2)
    assert (names(folder), read_step(folder)) == (["00000001", "00000002"], 2)


def test_nothing_is_removed_that_no_checkpoint_made(
    folder: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    (elsewhere / "state.json").write_text("a person's")
    write(folder, 1)
    (folder / "00000001" / "notes.txt").write_text("a person's")
    (folder / "notes").mkdir()
    (folder / "00000000").symlink_to(elsewhere, target_is_directory=True)
    for step in range(2, 5):
        write(folder, step)
    assert names(folder) == ["00000000", "00000001", "00000003", "00000004", "notes"]
    assert names(folder / "00000001") == ["notes.txt", "state.json", "tensors.safetensors"]
    assert (elsewhere / "state.json").read_text() == "a person's"
    assert "it holds notes.txt, which belongs to something else" in caplog.text


def test_a_stray_file_with_a_versions_name_is_stepped_over(folder: Path) -> None:
    write(folder, 1)
    (folder / "00000002").write_text("not a folder")
    write(folder, 2)
    assert (names(folder), read_step(folder)) == (["00000001", "00000002", "00000003"], 2)


# --- a writer that dies or fails

_CALLS = ("mkdir", "open", "write", "fsync", "rename", "unlink", "rmdir")


class _KilledError(BaseException):
    """The process is gone: no handler and no clean-up gets anything done."""


class Disk:
    """Stands in for the calls of `os` that change a disk. Counts them, and lets one of them go wrong.

    `killed`: the call does half its work or none, and it and all later ones raise, as nothing happens
    after a kill. Otherwise it alone fails, as on a full disk.
    """

    def __init__(self, monkeypatch: pytest.MonkeyPatch, *, fail_at: int, killed: bool) -> None:
        self.calls: list[str] = []
        self._fail_at, self._killed = fail_at, killed
        self._opened: dict[int, str] = {}
        for name in _CALLS:
            monkeypatch.setattr(os, name, self._wrapped(name, getattr(os, name)))

    @property
    def failed(self) -> bool:
        return len(self.calls) > self._fail_at

    def _wrapped(self, name: str, real: Callable[..., Any]) -> Callable[..., Any]:
        def call(target: Any, *args: Any, **options: Any) -> Any:
            self.calls.append(f"{name} {self._describe(target)}")
            position = len(self.calls) - 1
            if position == self._fail_at or (self._killed and position > self._fail_at):
                if name == "write" and position == self._fail_at:
                    real(target, args[0][: len(args[0]) // 2])
                raise _KilledError if self._killed else OSError(28, "No space left on device")
            result = real(target, *args, **options)
            if name == "open":
                self._opened[result] = self._describe(target)
            return result

        return call

    def _describe(self, target: Any) -> str:
        if isinstance(target, int):
            return self._opened[target]
        name = Path(target).name
        return "unfinished" if name.startswith(".") else name


def test_everything_is_on_the_disk_before_the_name_that_makes_it_count(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write(folder, 1)
    write(folder, 2)
    with monkeypatch.context() as patch:
        disk = Disk(patch, fail_at=1_000, killed=True)
        write(folder, 3)
    assert [call for call in disk.calls if not call.startswith("open")] == [
        *("mkdir checkpoint", "mkdir unfinished"),
        *("write tensors.safetensors", "fsync tensors.safetensors", "write state.json", "fsync state.json"),
        *("fsync unfinished", "rename unfinished", "fsync checkpoint"),
        *("unlink state.json", "unlink tensors.safetensors", "rmdir 00000001"),
    ]


@pytest.mark.parametrize("before", [0, 1, 2, 3])
def test_a_writer_killed_at_any_call_leaves_a_whole_checkpoint(
    tmp_path: Path, before: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    survived, killed_at = False, 0
    while not survived:
        folder = tmp_path / str(killed_at)
        for step in range(1, before + 1):
            write(folder, step)
        with monkeypatch.context() as patch:
            disk = Disk(patch, fail_at=killed_at, killed=True)
            try:
                write(folder, before + 1)
            except _KilledError:
                pass
            else:
                survived = True
        moved = any(call.startswith("rename") for call in disk.calls[:killed_at])
        if before or moved:
            assert read_step(folder) == before + moved, disk.calls[killed_at]
        else:
            with pytest.raises(CheckpointError):
                read_checkpoint(folder)
        write(folder, before + 2)
        assert read_step(folder) == before + 2
        assert len(names(folder)) <= 2
        killed_at += 1
    assert killed_at > 10


def test_a_full_disk_is_reported_and_leaves_the_version_before_and_no_rubbish(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls = [
        "open tensors.safetensors",
        "write tensors.safetensors",
        "fsync tensors.safetensors",
        "open state.json",
        "write state.json",
        "fsync state.json",
        "open unfinished",
        "fsync unfinished",
        "rename unfinished",
    ]
    seen = []
    for fail_at in range(2, 2 + len(calls)):  # after the two folders are made
        folder = tmp_path / str(fail_at)
        write(folder, 1)
        with monkeypatch.context() as patch:
            disk = Disk(patch, fail_at=fail_at, killed=False)
            with pytest.raises(OSError, match="No space left"):
                write(folder, 2)
        seen.append(disk.calls[fail_at])
        assert (names(folder), read_step(folder)) == (["00000001"], 1)
    assert seen == calls


def test_an_old_version_that_cannot_be_removed_does_not_fail_the_new_one(
    folder: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    write(folder, 1)
    write(folder, 2)
    with monkeypatch.context() as patch:
        real = os.unlink

        def unlink(path: Path, **options: Any) -> None:
            if Path(path).parent.name == "00000001":
                raise PermissionError(1, "Operation not permitted")
            real(path, **options)

        patch.setattr(os, "unlink", unlink)
        write(folder, 3)
    assert read_step(folder) == 3
    assert "00000001 could not be removed (Operation not permitted)" in caplog.text


def test_a_version_whose_folder_cannot_be_read_hides_no_other_and_stops_no_writer(
    folder: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    write(folder, 1)
    write(folder, 2)
    damaged, listdir, open_file = newest(folder), os.listdir, os.open

    def refuse(real: Callable[..., Any]) -> Callable[..., Any]:
        def call(path: Path, *args: Any, **options: Any) -> Any:
            if damaged in (Path(path), Path(path).parent):
                raise OSError(5, "Input/output error")
            return real(path, *args, **options)

        return call

    with monkeypatch.context() as patch:
        patch.setattr(os, "listdir", refuse(listdir))
        patch.setattr(os, "open", refuse(open_file))
        assert read_step(folder) == 1
        write(folder, 3)
        assert read_step(folder) == 3
    assert "version 00000002 could not be removed (Input/output error)" in caplog.text


# --- a version that is not whole


def truncate(version: Path) -> None:
    os.truncate(version / "tensors.safetensors", 100)


def truncate_state(version: Path) -> None:
    os.truncate(version / "state.json", 100)


def flip(version: Path) -> None:
    data = bytearray((version / "tensors.safetensors").read_bytes())
    data[-1] ^= 1
    (version / "tensors.safetensors").write_bytes(data)


def lose_state(version: Path) -> None:
    (version / "state.json").unlink()


def lose_tensors(version: Path) -> None:
    (version / "tensors.safetensors").unlink()


def edit_state(version: Path) -> None:
    file = version / "state.json"
    file.write_text(file.read_text().replace('"step": 2', '"step": 3'))


def write_infinity(version: Path) -> None:
    file = version / "state.json"
    file.write_text(file.read_text().replace('"step": 2', '"step": 1e999'))


def write_a_list(version: Path) -> None:
    (version / "state.json").write_text("[]")


def nest_deeply(version: Path) -> None:
    (version / "state.json").write_text("[" * 100_000)


def raise_format(version: Path) -> None:
    rewrite_state(version, lambda document: document.update(format=2))


def claim_another_dtype(version: Path) -> None:
    rewrite_state(version, lambda document: document["tensors"]["entries"]["x"].update(dtype="float16"))


def claim_another_shape(version: Path) -> None:
    rewrite_state(version, lambda document: document["tensors"]["entries"]["x"].update(shape=[49]))


def drop_the_tensors_entry(version: Path) -> None:
    rewrite_state(version, lambda document: document.pop("tensors"))


def put_rubbish(version: Path) -> None:
    put_tensors(version, b"\xff" * 40)


def link_tensors(version: Path) -> None:
    file = version / "tensors.safetensors"
    file.rename(version.parent / "moved")
    file.symlink_to(version.parent / "moved")


def link_version(version: Path) -> None:
    version.rename(version.parent / "moved")
    version.symlink_to(version.parent / "moved", target_is_directory=True)


def put_a_pipe(version: Path) -> None:
    (version / "state.json").unlink()
    os.mkfifo(version / "state.json")


def put_a_folder(version: Path) -> None:
    (version / "state.json").unlink()
    (version / "state.json").mkdir()


DAMAGES: dict[Callable[[Path], None], str] = {
    truncate: r"tensors.safetensors has 100 bytes; 2\d\d were written",
    truncate_state: "state.json is not valid JSON",
    flip: "tensors.safetensors was changed or damaged",
    lose_state: "state.json cannot be read",
    lose_tensors: "tensors.safetensors cannot be read",
    edit_state: "state.json was changed or damaged",
    write_infinity: "state.json is not valid JSON",
    write_a_list: "state.json is not a checkpoint's",
    nest_deeply: "state.json is not valid JSON",
    raise_format: "state.json has format 2; this worker reads 1",
    claim_another_dtype: "holds other names, dtypes or shapes",
    claim_another_shape: "holds other names, dtypes or shapes",
    drop_the_tensors_entry: "is not what state.json says",
    put_rubbish: "is not what state.json says",
    link_tensors: "tensors.safetensors cannot be read",
    link_version: "There is no checkpoint in",
    put_a_pipe: r"state.json cannot be read \(not a file\)",
    put_a_folder: r"state.json cannot be read \(not a file\)",
}


@pytest.mark.parametrize(("damage", "message"), DAMAGES.items())
def test_the_version_before_is_read_in_place_of_one_that_is_not_whole(
    folder: Path, damage: Callable[[Path], None], message: str, caplog: pytest.LogCaptureFixture
) -> None:
    write(folder, 1)
    write(folder, 2)
    damage(newest(folder))
    assert read_step(folder) == 1
    expected = 0 if damage is link_version else 1  # a link is no version at all
    assert len(caplog.messages) == expected


@pytest.mark.parametrize(("damage", "message"), DAMAGES.items())
def test_with_no_other_version_the_error_says_what_is_wrong(
    folder: Path, damage: Callable[[Path], None], message: str
) -> None:
    write(folder, 2)
    damage(newest(folder))
    with pytest.raises(CheckpointError, match=message):
        read_checkpoint(folder)


@settings(deadline=None, max_examples=60)
@given(
    file=st.sampled_from(["tensors.safetensors", "state.json"]), place=st.floats(0, 1), bit=st.integers(0, 7)
)
def test_a_flipped_bit_anywhere_is_found_or_changes_nothing(file: str, place: float, bit: int) -> None:
    with tempfile.TemporaryDirectory() as root:
        write(Path(root), 2)
        path = newest(Path(root)) / file
        data = bytearray(path.read_bytes())
        data[round(place * (len(data) - 1))] ^= 1 << bit
        path.write_bytes(data)
        try:
            read = (file, read_step(Path(root)))
        except CheckpointError:
            return
        assert read == ("state.json", 2)  # white space between the values


class _Payload:
    def __init__(self, target: Path) -> None:
        self.target = target

    def __reduce__(self) -> tuple[Callable[..., object], tuple[str]]:
        return os.mkdir, (str(self.target),)


def test_a_pickle_is_refused_and_none_of_it_runs(folder: Path, tmp_path: Path) -> None:
    write(folder, 1)
    torch.save(_Payload(tmp_path / "zipped"), tmp_path / "zip")
    for data in (pickle.dumps(_Payload(tmp_path / "ran")), (tmp_path / "zip").read_bytes()):
        put_tensors(newest(folder), data)
        with pytest.raises(CheckpointError, match=r"tensors.safetensors is not what state.json says"):
            read_checkpoint(folder)
        (newest(folder) / "state.json").write_bytes(data)
        with pytest.raises(CheckpointError, match=r"state.json is not valid JSON"):
            read_checkpoint(folder)
        folder.rename(tmp_path / f"old-{len(names(tmp_path))}")
        write(folder, 1)
    assert not (tmp_path / "ran").exists()
    assert not (tmp_path / "zipped").exists()


def test_a_link_in_place_of_the_folder_is_neither_read_nor_written(folder: Path, tmp_path: Path) -> None:
    write(tmp_path / "real", 1)
    folder.parent.mkdir()
    folder.symlink_to(tmp_path / "real", target_is_directory=True)
    with pytest.raises(CheckpointError, match="symbolic link"):
        read_checkpoint(folder)
    with pytest.raises(CheckpointError, match="symbolic link"):
        write(folder, 2)
    assert read_step(tmp_path / "real") == 1


# --- readers beside a writer


def test_a_reader_whose_versions_were_all_replaced_looks_again(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write(folder, 1)
    write(folder, 2)
    real, pending = os.open, [3, 4]

    def open_late(path: Path, *args: Any) -> int:
        while pending and Path(path).name == "state.json":
            monkeypatch.setattr(os, "open", real)
            write(folder, pending.pop(0))
        return real(path, *args)

    monkeypatch.setattr(os, "open", open_late)
    assert (read_step(folder), pending) == (4, [])


_WRITER = """
import sys, torch
from pathlib import Path
from workers.artifacts.checkpoints import write_checkpoint
for step in range(1, int(sys.argv[2]) + 1):
    tensors = {"x": torch.full((50,), float(step))}
    write_checkpoint(Path(sys.argv[1]), tensors, {"recipe_key": "mine", "step": step})
"""


def test_a_reader_beside_a_writing_process_only_ever_sees_whole_versions_in_order(folder: Path) -> None:
    last, seen = 80, [0]
    root = ROOT
    with subprocess.Popen([sys.executable, "-c", _WRITER, folder, str(last)], cwd=root) as writer:
        deadline = time.monotonic() + 120
        while seen[-1] < last and time.monotonic() < deadline:
            try:
                seen.append(read_step(folder))
            except CheckpointError:
                assert seen == [0]  # before its first version only
                assert writer.poll() in (None, 0)
    assert seen[-1] == last
    assert seen == sorted(seen)


# --- which of several


def test_the_first_folder_that_can_be_used_wins(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    folders = {name: tmp_path / name for name in ("missing", "broken", "foreign", "mine", "older")}
    write(folders["broken"], 9)
    flip(newest(folders["broken"]))
    write(folders["foreign"], 8, key="another's")
    write(folders["mine"], 7)
    write(folders["older"], 6)
    found = newest_usable([str(path) for path in folders.values()], recipe_key="mine")
    assert found is not None
    assert (step_of(found[0]), found[1]) == (7, str(folders["mine"]))
    expected = [
        "There is no checkpoint",
        "changed or damaged",
        "changed since it was written: the recipe, the base or the data",
    ]
    assert [words in message for words, message in zip(expected, caplog.messages, strict=True)] == [True] * 3
    assert [record.levelno for record in caplog.records] == [logging.WARNING] * 3
    assert not any("\n" in message for message in caplog.messages)


def test_within_a_folder_the_version_before_is_used(tmp_path: Path) -> None:
    write(tmp_path / "a", 1)
    write(tmp_path / "a", 2)
    flip(newest(tmp_path / "a"))
    found = newest_usable([str(tmp_path / "a")], recipe_key="mine")
    assert found is not None
    assert step_of(found[0]) == 1


@pytest.mark.parametrize("folders", [[], ["nowhere"], ["with\0zero"]])
def test_with_nothing_usable_there_is_no_checkpoint(folders: list[str]) -> None:
    assert newest_usable(folders, recipe_key="mine") is None


def test_a_write_after_a_fallback_counts_on_from_the_newest(folder: Path) -> None:
    write(folder, 1)
    write(folder, 2)
    flip(newest(folder))
    write(folder, 3)
    assert (names(folder), read_step(folder)) == (["00000002", "00000003"], 3)


def test_whoever_asks_hears_why_each_is_passed_over(tmp_path: Path) -> None:
    folders = [tmp_path / name for name in ("missing", "empty", "broken", "foreign", "unwanted", "later")]
    folders[1].mkdir()
    for folder, key in zip(folders[2:], ("mine", "another's", "mine", "mine"), strict=True):
        write(folder, 1, key=key)
    flip(newest(folders[2]))
    answers = iter(["its best adapter is gone", "its weights are others"])
    heard: list[UnusableCheckpoint] = []
    found = newest_usable(
        [str(folder) for folder in folders],
        recipe_key="mine",
        objection=lambda _: next(answers),
        pass_over=heard.append,
    )
    assert found is None
    assert [passed.folder for passed in heard] == [str(folder) for folder in folders]
    assert [passed.missing for passed in heard] == [True, True, False, False, False, False]
    expected = [
        "There is no",
        "There is no",
        "damaged",
        "changed since it was written",
        "adapter is gone",
        "others",
    ]
    assert [words in p.reason for words, p in zip(expected, heard, strict=True)] == [True] * 6


def test_a_checkpoint_of_an_unknown_version_says_which_is_read(tmp_path: Path) -> None:
    write(tmp_path / "a", 1)
    rewrite_state(newest(tmp_path / "a"), lambda document: document.update(format=7))
    heard: list[UnusableCheckpoint] = []
    assert newest_usable([str(tmp_path / "a")], recipe_key="mine", pass_over=heard.append) is None
    assert "state.json has format 7; this worker reads 1" in heard[0].reason


def test_a_checkpoint_names_what_was_another_when_it_was_made(tmp_path: Path) -> None:
    then = {"recipe": "1", "base": "2", "train data": "3", "eval data": "4"}
    write_checkpoint(tmp_path / "a", {"x": torch.zeros(1)}, {"recipe_key": "then", "made_of": then})
    heard: list[UnusableCheckpoint] = []
    now = {**then, "train data": "5", "eval data": "6"}
    newest_usable([str(tmp_path / "a")], recipe_key="now", made_of=now, pass_over=heard.append)
    assert heard[0].reason.endswith("changed since it was written: train data, eval data")
