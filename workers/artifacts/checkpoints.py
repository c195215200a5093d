"""One trial's checkpoint in a folder: versions, the newest of which may be damaged without being missed.

    checkpoint/
      00000006/                  the version before, kept until the next but one is whole
      00000007/                  the newest
        tensors.safetensors
        state.json               format, size, SHA-256, dtypes and shapes of the tensors, and the state

A version is written beside the others, flushed to the disk and moved into place, so a worker that dies at
any moment leaves one that can be read. A single byte that changed on the disk is found, and the version
before is read in its place.

One process writes a folder. Others may read it meanwhile: they get the newest version or the one before.

Behind a URL the same versions lie as objects: see `workers.artifacts.remote_checkpoints`.
"""

from __future__ import annotations

import logging
import os
import re
import shutil
import stat
import uuid
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path

import torch

from search_spaces.values.artifact_urls import is_url, without_password
from workers.artifacts import remote_checkpoints
from workers.artifacts.checkpoint_format import (
    STATE,
    TENSORS,
    Checkpoint,
    CheckpointError,
    NoCheckpointError,
    decode,
    encode,
    first_line,
)
from workers.contract import UnusableCheckpoint

_log = logging.getLogger(__name__)

_VERSION = re.compile(r"[0-9]{8,}")
_UNFINISHED = re.compile(r"\.[0-9]{8,}-[0-9a-f]{32}")
_KEPT = 2

__all__ = [
    "Checkpoint",
    "CheckpointError",
    "newest_usable",
    "read_checkpoint",
    "remove_checkpoints",
    "write_checkpoint",
]


def write_checkpoint(
    folder: str | Path, tensors: Mapping[str, torch.Tensor], state: Mapping[str, object]
) -> None:
    """Adds a version to `folder`, which is made if need be, and removes all but it and the one before.

    Args:
        folder: Holds this trial's checkpoint and nothing else; a path or a URL.
        tensors: On any device, of any layout; views of shared memory are written one by one.
        state: JSON values only, so that the same comes back: no tuples, no numbers that are not finite, and
            no keys but text. `recipe_key` is required: `newest_usable` tells by it whose checkpoint it is.

    Raises:
        CheckpointError: `tensors` or `state` holds something that would not come back as it is, or `folder`
            is a symbolic link. Nothing was written.
        OSError: It could not be written; the version before remains.
        ArtifactError: The same, behind a URL.
    """
    data, document = encode(tensors, state)
    if isinstance(folder, str) and is_url(folder):
        remote_checkpoints.write(folder, data, document)
        return
    folder = Path(folder)
    _make(folder)
    version = f"{1 + max(map(int, filter(_VERSION.fullmatch, os.listdir(folder))), default=0):08d}"
    fresh = folder / f".{version}-{uuid.uuid4().hex}"
    fresh.mkdir()
    try:
        _write(fresh / TENSORS, data)
        _write(fresh / STATE, document)
        _flush(fresh)
        fresh.rename(folder / version)
    except BaseException:
        _remove(fresh)
        raise
    _flush(folder)
    for older in _versions(folder)[_KEPT:] + _folders(folder, _UNFINISHED):
        _remove(older)


def read_checkpoint(folder: Path) -> Checkpoint:
    """The newest version in `folder` that is whole; newer ones that are not are logged.

    Raises:
        CheckpointError: There is none. Says of each version what is wrong with it.
    """
    while True:
        versions = _versions(folder)
        faults: list[str] = []
        for version in versions:
            try:
                checkpoint = _read_version(version)
            except CheckpointError as error:
                faults.append(f"version {version.name}: {error}")
                continue
            for fault in faults:
                _log.warning("skipped in checkpoint %s: %s", folder, fault)
            return checkpoint
        # A writer that has replaced every version since they were listed has left newer ones.
        if _versions(folder) == versions:
            if not versions:
                raise NoCheckpointError(f"The checkpoint {folder} cannot be used: nothing is in it yet.")
            raise CheckpointError(f"The checkpoint {folder} cannot be used: {'; '.join(faults)}.")


def newest_usable(
    folders: Sequence[str],
    *,
    recipe_key: str,
    made_of: Mapping[str, str] | None = None,
    objection: Callable[[Checkpoint], str | None] = lambda _: None,
    pass_over: Callable[[UnusableCheckpoint], object] = lambda _: None,
) -> tuple[Checkpoint, str] | None:
    """The first checkpoint that can be read and is of this recipe, and its folder; None when there is none.

    Args:
        folders: Paths or URLs, newest first. Why one is passed over is logged, in a line each.
        recipe_key: What the state must hold under `recipe_key`.
        made_of: What that key is made of, by name: names what differs, where the state holds it likewise.
        objection: Says what else is wrong with a checkpoint of this recipe; None: nothing.
        pass_over: Is told of each that is passed over.

    Raises:
        ArtifactError: What lies behind a URL does not answer, so nobody knows what is there.
    """
    for folder in folders:
        missing = False
        try:
            checkpoint = remote_checkpoints.read(folder) if is_url(folder) else read_checkpoint(Path(folder))
        except CheckpointError as error:
            missing, reason = isinstance(error, NoCheckpointError), str(error).rstrip(".")
        else:
            if checkpoint.state.get("recipe_key") != recipe_key:
                changed = _difference(checkpoint.state.get("made_of"), made_of or {})
                wrong = f"changed since it was written: {changed}"
            elif (objected := objection(checkpoint)) is not None:
                wrong = objected
            else:
                return checkpoint, folder
            reason = f"The checkpoint {without_password(folder)} cannot be used: {wrong}"
        _log.warning("%s. It is skipped.", reason)
        pass_over(UnusableCheckpoint(folder=folder, reason=reason, missing=missing))
    return None


def _difference(then: object, now: Mapping[str, str]) -> str:
    """What has changed since a checkpoint was written, in words."""
    if isinstance(then, dict) and (changed := [name for name in now if then.get(name) != now[name]]):
        return ", ".join(changed)
    return "the recipe, the base or the data"


def remove_checkpoints(folders: Iterable[str]) -> None:
    """Removes whole checkpoints, by path or URL, as far as that can be done."""
    for folder in folders:
        if is_url(folder):
            remote_checkpoints.remove(folder)
        else:
            shutil.rmtree(folder, ignore_errors=True)


def _read_version(version: Path) -> Checkpoint:
    return decode(_read(version / STATE), lambda size: _read(version / TENSORS, size=size))


def _versions(folder: Path) -> list[Path]:
    """The versions in `folder`, newest first."""
    return sorted(_folders(folder, _VERSION), key=lambda path: int(path.name), reverse=True)


def _folders(folder: Path, name: re.Pattern[str]) -> list[Path]:
    """Real folders with such a name; a symbolic link to one is not ours."""
    _refuse_link(folder)
    try:
        with os.scandir(folder) as entries:
            return [
                folder / entry.name
                for entry in entries
                if name.fullmatch(entry.name) and entry.is_dir(follow_symlinks=False)
            ]
    except (OSError, ValueError) as error:
        absent = isinstance(error, FileNotFoundError)
        kind = NoCheckpointError if absent else CheckpointError
        raise kind(f"There is no checkpoint {folder} ({first_line(error)}).") from error


def _refuse_link(folder: Path) -> None:
    if folder.is_symlink():
        raise CheckpointError(f"The checkpoint {folder} is a symbolic link, which is not followed.")


def _make(folder: Path) -> None:
    _refuse_link(folder)
    missing = [path for path in (folder, *folder.parents) if not path.exists()]
    folder.mkdir(parents=True, exist_ok=True)
    for path in missing:
        _flush(path.parent)


def _write(path: Path, data: bytes) -> None:
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW, 0o666)
    try:
        rest = memoryview(data)
        while rest:
            rest = rest[os.write(descriptor, rest) :]
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _read(path: Path, size: int | None = None) -> bytes:
    """A regular file's bytes. Opened without waiting, so that a pipe in its place holds nobody up."""
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK)
        try:
            status = os.fstat(descriptor)
            if not stat.S_ISREG(status.st_mode):
                raise CheckpointError(f"{path.name} is not a file")
            if size is not None and status.st_size != size:
                raise CheckpointError(f"{path.name} has {status.st_size:,} bytes; {size:,} were written")
            with os.fdopen(descriptor, "rb", closefd=False) as file:
                return file.read()
        finally:
            os.close(descriptor)
    except OSError as error:
        raise CheckpointError(f"{path.name} cannot be read ({error.strerror})") from error


def _flush(folder: Path) -> None:
    """Puts the names in a folder onto the disk: a file's own flush does not."""
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _remove(version: Path) -> None:
    """Removes a version, unless somebody has put something into its folder."""
    try:
        if strays := sorted(set(os.listdir(version)) - {TENSORS, STATE}):
            _log.warning("%s is kept: it holds %s, which no checkpoint does", version, ", ".join(strays))
            return
        for name in (STATE, TENSORS):
            (version / name).unlink(missing_ok=True)
        version.rmdir()
    except OSError as error:
        _log.warning("%s could not be removed (%s)", version, error.strerror)
