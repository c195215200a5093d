"""A checkpoint behind a URL comes back bit by bit, or the version before it does, or none."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import fsspec
import pytest
import torch

from tests.support.fakes.storage import Cut, FlakyFileSystem, failing, flaky_storage
from workers.artifacts.checkpoints import newest_usable, remove_checkpoints, write_checkpoint
from workers.artifacts.folders import RemoteFolder
from workers.contract import UnusableCheckpoint
from workers.errors import ArtifactError

URL = "flaky://bucket/attempt-1/checkpoint"


@pytest.fixture(autouse=True)
def storage() -> Iterator[type[FlakyFileSystem]]:
    with flaky_storage() as made:
        yield made


def write(step: int, url: str = URL) -> None:
    write_checkpoint(url, {"x": torch.full((50,), float(step))}, {"recipe_key": "mine", "step": step})


def read(*urls: str) -> int | None:
    """The step that tensors and state agree about; None: there is no checkpoint."""
    found = newest_usable(urls or (URL,), recipe_key="mine")
    if found is None:
        return None
    step = found[0].state["step"]
    assert isinstance(step, int)
    assert torch.equal(found[0].tensors["x"], torch.full((50,), float(step)))
    return step


def files(url: str = URL) -> list[str]:
    return RemoteFolder(url).names()


def spoil(name: str) -> None:
    folder = RemoteFolder(URL)
    data = bytearray(folder.get(name))
    data[-2] ^= 1
    folder.put(name, bytes(data))


WHOLE = ("state.json", "tensors.safetensors")


@pytest.mark.parametrize("scheme", ["flaky", "memory", "file"])
def test_the_newest_two_versions_are_kept_and_the_newest_is_read(scheme: str, tmp_path: Path) -> None:
    url = f"{scheme}://{tmp_path}/some/where/checkpoint"
    assert read(url) is None
    for step in (1, 2, 3):
        write(step, url)
    assert files(url) == [f"{version}/{name}" for version in ("00000002", "00000003") for name in WHOLE]
    assert read(url) == 3
    remove_checkpoints([url, url])
    assert (files(url), read(url)) == ([], None)


@pytest.mark.parametrize("name", WHOLE)
def test_with_a_damaged_version_the_one_before_is_read_and_that_is_logged(
    name: str, caplog: pytest.LogCaptureFixture
) -> None:
    write(1)
    write(2)
    spoil(f"00000002/{name}")
    assert read() == 1
    assert "version 00000002: " in caplog.text
    write(3)
    assert read() == 3


@pytest.mark.parametrize("error", [OSError(5, "Input/output error"), Cut("reset by peer")])
@pytest.mark.parametrize("after", [0, 1])
def test_an_upload_that_is_cut_off_leaves_the_version_before(
    storage: type[FlakyFileSystem], error: Exception, after: int
) -> None:
    write(1)
    storage.fault = staticmethod(failing("put", after=after, error=error))
    with pytest.raises(
        ArtifactError, match=r"^flaky://bucket/attempt-1/checkpoint does not accept 00000002/"
    ):
        write(2)
    storage.fault = staticmethod(failing("nothing"))
    assert read() == 1
    write(4)
    assert read() == 4
    assert {name.split("/")[0] for name in files()} >= {"00000003"}
    write(5)
    assert (read(), len(files())) == (5, 4)


def test_an_upload_that_arrives_shortened_is_found_at_once(
    storage: type[FlakyFileSystem], monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = fsspec.implementations.memory.MemoryFileSystem.pipe_file
    monkeypatch.setattr(storage, "pipe_file", lambda self, path, value: whole(self, path, value[:-1]))
    with pytest.raises(ArtifactError, match=r"did not store 00000001/tensors\.safetensors completely: "):
        write(1)


def test_a_bucket_is_never_made(storage: type[FlakyFileSystem], monkeypatch: pytest.MonkeyPatch) -> None:
    """As s3fs would, for a name that somebody misspelt."""
    buckets = {"bucket"}

    def put(self: FlakyFileSystem, path: str, content: bytes) -> None:
        if path.partition("/")[0] not in buckets:
            raise FileNotFoundError(2, "The specified bucket does not exist")

    monkeypatch.setattr(storage, "_strip_protocol", lambda url: url.removeprefix("flaky://"))
    monkeypatch.setattr(storage, "pipe_file", put)
    monkeypatch.setattr(storage, "exists", lambda self, path: path in buckets)
    monkeypatch.setattr(storage, "makedirs", lambda self, path, exist_ok: buckets.add(path.split("/")[0]))
    with pytest.raises(ArtifactError, match="The specified bucket does not exist"):
        RemoteFolder("flaky://buket/x").put("file", b"")
    assert buckets == {"bucket"}


def test_an_older_version_that_cannot_be_removed_does_not_fail_the_new_one(
    storage: type[FlakyFileSystem], caplog: pytest.LogCaptureFixture
) -> None:
    write(1)
    write(2)
    storage.fault = staticmethod(failing("remove"))
    write(3)
    assert read() == 3
    remove_checkpoints([URL])
    assert "version 00000001 could not be removed" in caplog.text
    assert "a checkpoint that is no longer needed could not be removed" in caplog.text


@pytest.mark.parametrize("operation", ["list", "get"])
def test_a_storage_that_does_not_answer_is_no_missing_checkpoint(
    storage: type[FlakyFileSystem], operation: str
) -> None:
    """Or the trial would begin anew for a moment without a network."""
    write(1)
    storage.fault = staticmethod(failing(operation, error=PermissionError(13, "Permission denied")))
    with pytest.raises(ArtifactError, match="Permission denied"):
        read("flaky://bucket/attempt-2/checkpoint", URL)


def test_a_reader_before_whose_eyes_the_first_version_is_finished_looks_again(
    storage: type[FlakyFileSystem], monkeypatch: pytest.MonkeyPatch
) -> None:
    write(1)
    folder = RemoteFolder(URL)
    state = folder.get("00000001/state.json")
    folder.remove("00000001/state.json")
    real = RemoteFolder.get

    def finished_after(self: RemoteFolder, name: str, most: int | None = None) -> bytes:
        try:
            return real(self, name, most)
        except FileNotFoundError:
            monkeypatch.setattr(RemoteFolder, "get", real)
            folder.put(name, state)
            raise

    monkeypatch.setattr(RemoteFolder, "get", finished_after)
    assert read() == 1


def test_of_several_places_the_first_usable_one_wins(tmp_path: Path) -> None:
    write(1)
    local = tmp_path / "checkpoint"
    write(2, str(local))
    missing = "flaky://bucket/attempt-7/checkpoint"
    assert read(missing, URL, str(local)) == 1
    assert read(missing, str(local), URL) == 2


@pytest.mark.parametrize(
    ("url", "says"),
    [
        ("nothing://key:secret@bucket/x", "nothing://***@bucket/x cannot be used for artifacts: "),
        (
            "flaky://key:secret@bucket/x",
            "flaky://***@bucket/x does not accept 00000001/tensors.safetensors: ",
        ),
    ],
)
def test_a_password_in_a_url_is_never_said(
    storage: type[FlakyFileSystem], url: str, says: str, caplog: pytest.LogCaptureFixture
) -> None:
    storage.fault = staticmethod(failing("put", error=Cut("cannot reach http://key:secret@host/")))
    with pytest.raises(ArtifactError) as caught:
        write(1, url)
    remove_checkpoints([url])
    assert str(caught.value).startswith(says)
    assert "secret" not in str(caught.value) + caplog.text


_WRITE = """
import sys, torch
from workers.artifacts.checkpoints import write_checkpoint
for step in (1, 2):
    write_checkpoint(sys.argv[1], {"x": torch.full((50,), float(step))}, {"recipe_key": "mine", "step": step})
"""


def test_another_process_reads_what_one_has_written(tmp_path: Path) -> None:
    url = f"file://{tmp_path}/shared/checkpoint"
    subprocess.run([sys.executable, "-c", _WRITE, url], check=True)
    assert read(url) == 2


@pytest.mark.parametrize("present", [False, True])
def test_what_is_passed_over_behind_a_url_is_missing_or_says_what_is_wrong(present: bool) -> None:
    if present:
        write(1)
        spoil(f"00000001/{WHOLE[1]}")
    heard: list[UnusableCheckpoint] = []
    assert newest_usable([URL], recipe_key="mine", pass_over=heard.append) is None
    assert [(passed.folder, passed.missing) for passed in heard] == [(URL, not present)]
    assert ("its SHA-256 differs" if present else "There is no checkpoint in") in heard[0].reason
