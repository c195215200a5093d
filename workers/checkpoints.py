"""One trial's checkpoint on disk: tensors as safetensors, the rest as JSON. Nothing is ever unpickled.

    checkpoint/
      00000006/                  the version before, kept until the next but one is whole
      00000007/                  the newest
        tensors.safetensors
        state.json               format, size, SHA-256, dtypes and shapes of the tensors, and the state

A version is written beside the others, flushed to the disk and moved into place, so a worker that dies at
any moment leaves one that can be read. `state.json` carries a SHA-256 of itself too: a single byte that
changed on the disk is found, and the version before is read in its place.

One process writes a folder. Others may read it meanwhile: they get the newest version or the one before.
"""

from __future__ import annotations

import hashlib
import json
import logging
import math
import os
import re
import stat
import uuid
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeAlias

import torch
from safetensors import SafetensorError
from safetensors.torch import load, save

from workers.errors import WorkerError

_log = logging.getLogger(__name__)

JSON: TypeAlias = "bool | int | float | str | list[JSON] | dict[str, JSON] | None"

FORMAT = 1
"""Of `state.json`. To be raised when an older worker would misread what is written."""

_TENSORS, _STATE = "tensors.safetensors", "state.json"
_VERSION = re.compile(r"[0-9]{8,}")
_UNFINISHED = re.compile(r"\.[0-9]{8,}-[0-9a-f]{32}")
_KEPT = 2

_FLOATS = frozenset({torch.float64, torch.float32, torch.float16, torch.bfloat16})
_WHOLE = frozenset({torch.int64, torch.int32, torch.int16, torch.int8, torch.uint8, torch.bool})
_DTYPES = _FLOATS | _WHOLE
"""What a checkpoint may hold. safetensors writes a few dtypes more, some of which it cannot read back."""


class CheckpointError(WorkerError):
    """A checkpoint is missing, corrupt or of another format, or its contents cannot be written exactly."""


@dataclass(frozen=True)
class Checkpoint:
    """What `write_checkpoint` was given, bit by bit."""

    tensors: Mapping[str, torch.Tensor]
    """On the CPU, each with memory of its own."""
    state: Mapping[str, JSON]
    """Plain values, with the recipe's key under `recipe_key`."""


def write_checkpoint(folder: Path, tensors: Mapping[str, torch.Tensor], state: Mapping[str, object]) -> None:
    """Adds a version to `folder`, which is made if need be, and removes all but it and the one before.

    Args:
        folder: Holds this trial's checkpoint and nothing else.
        tensors: On any device, of any layout; views of shared memory are written one by one.
        state: JSON values only, so that the same comes back: no tuples, no numbers that are not finite, and
            no keys but text. `recipe_key` is required: `newest_usable` tells by it whose checkpoint it is.

    Raises:
        CheckpointError: `tensors` or `state` holds something that would not come back as it is, or `folder`
            is a symbolic link. Nothing was written.
        OSError: It could not be written; the version before remains.
    """
    data, entries = _serialized(tensors)
    document = _document(data, entries, state)
    _make(folder)
    version = f"{1 + max(map(int, filter(_VERSION.fullmatch, os.listdir(folder))), default=0):08d}"
    fresh = folder / f".{version}-{uuid.uuid4().hex}"
    fresh.mkdir()
    try:
        _write(fresh / _TENSORS, data)
        _write(fresh / _STATE, document)
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
                _log.warning("passed over in checkpoint %s: %s", folder, fault)
            return checkpoint
        # A writer that has replaced every version since they were listed has left newer ones.
        if _versions(folder) == versions:
            raise CheckpointError(
                f"The checkpoint {folder} cannot be used: {'; '.join(faults) or 'nothing is in it yet'}."
            )


def newest_usable(folders: Sequence[str], *, recipe_key: str) -> tuple[Checkpoint, Path] | None:
    """The first checkpoint that can be read and is of this recipe, and its folder; None when there is none.

    Args:
        folders: Newest first. Why one is passed over is logged, in a line each.
        recipe_key: What the state must hold under `recipe_key`.
    """
    for folder in map(Path, folders):
        try:
            checkpoint = read_checkpoint(folder)
        except CheckpointError as error:
            _log.warning("%s It is passed over.", error)
            continue
        found = checkpoint.state.get("recipe_key")
        if found == recipe_key:
            return checkpoint, folder
        _log.warning(
            "The checkpoint %s is passed over: it is of recipe %r, not %r.", folder, found, recipe_key
        )
    return None


def _serialized(tensors: Mapping[str, torch.Tensor]) -> tuple[bytes, dict[str, Any]]:
    """The safetensors file, and the dtype and shape of each tensor."""
    for name, tensor in tensors.items():
        if tensor.dtype not in _DTYPES:
            raise CheckpointError(f"The tensor {name!r} is {tensor.dtype}, which a checkpoint cannot hold.")
    # Cloned, because views of one buffer keep all of it alive and safetensors takes contiguous ones only.
    copies = {
        name: tensor.detach().cpu().clone(memory_format=torch.contiguous_format)
        for name, tensor in tensors.items()
    }
    if "__metadata__" in copies:
        raise CheckpointError("No tensor can be called '__metadata__': safetensors uses that name itself.")
    try:
        return save(copies), _entries(copies)
    except (SafetensorError, ValueError) as error:
        raise CheckpointError(f"The tensors cannot be written ({_first_line(error)}).") from error


def _entries(tensors: Mapping[str, torch.Tensor]) -> dict[str, Any]:
    return {
        name: {"dtype": str(tensor.dtype).removeprefix("torch."), "shape": list(tensor.shape)}
        for name, tensor in tensors.items()
    }


def _document(data: bytes, entries: dict[str, Any], state: Mapping[str, object]) -> bytes:
    """The contents of `state.json`."""
    if not isinstance(state.get("recipe_key"), str):
        raise CheckpointError("The state has no text under 'recipe_key' to say whose checkpoint it is.")
    document = {
        "format": FORMAT,
        "tensors": {"bytes": len(data), "sha256": hashlib.sha256(data).hexdigest(), "entries": entries},
        "state": dict(state),
    }
    try:
        _refuse_inexact(document["state"], "state")
        document["sha256"] = _digest(document)
        return json.dumps(document, indent=1, allow_nan=False).encode()
    except (ValueError, RecursionError) as error:
        raise CheckpointError(f"The state cannot be written as JSON ({_first_line(error)}).") from error


def _refuse_inexact(value: object, where: str) -> None:
    """Refuses what JSON would change on the way there and back, such as a tuple, or has no word for."""
    if isinstance(value, dict):
        for key, item in value.items():
            if not isinstance(key, str):
                raise CheckpointError(f"{where} has the key {key!r}; JSON's keys are text.")
            _refuse_inexact(item, f"{where}[{key!r}]")
    elif isinstance(value, list):
        for index, item in enumerate(value):
            _refuse_inexact(item, f"{where}[{index}]")
    elif isinstance(value, float):
        if not math.isfinite(value):
            raise CheckpointError(f"{where} is {value}, a number that JSON does not have.")
    elif value is not None and not isinstance(value, bool | int | str):
        raise CheckpointError(f"{where} is a {type(value).__name__}, which would not come back from JSON.")


def _digest(document: Mapping[str, Any]) -> str:
    """SHA-256 of everything in `state.json` but this digest, however it is laid out in the file."""
    rest = {key: value for key, value in document.items() if key != "sha256"}
    text = json.dumps(rest, sort_keys=True, separators=(",", ":"), allow_nan=False)
    return hashlib.sha256(text.encode()).hexdigest()


def _read_version(version: Path) -> Checkpoint:
    document = _read_document(version / _STATE)
    try:
        written = document["tensors"]
        data = _read(version / _TENSORS, size=written["bytes"])
        if hashlib.sha256(data).hexdigest() != written["sha256"]:
            raise CheckpointError(f"{_TENSORS} was changed or damaged: its SHA-256 is another")
        tensors = load(data)
        if _entries(tensors) != written["entries"]:
            raise CheckpointError(f"{_TENSORS} holds other names, dtypes or shapes than {_STATE} says")
        return Checkpoint(tensors, dict(document["state"]))
    except (SafetensorError, LookupError, TypeError, ValueError, RuntimeError, AssertionError) as error:
        raise CheckpointError(f"{_TENSORS} is not what {_STATE} says ({_first_line(error)})") from error


def _read_document(path: Path) -> dict[str, Any]:
    """The contents of `state.json`, which are those that were written."""
    try:
        document = json.loads(_read(path))
        if not isinstance(document, dict) or "format" not in document:
            raise CheckpointError(f"{path.name} is not a checkpoint's")
        if document["format"] != FORMAT:
            raise CheckpointError(
                f"{path.name} has format {document['format']!r}; this worker reads {FORMAT}"
            )
        if document.get("sha256") != _digest(document):
            raise CheckpointError(f"{path.name} was changed or damaged: its SHA-256 is another")
    except (ValueError, RecursionError) as error:
        raise CheckpointError(f"{path.name} is not valid JSON ({_first_line(error)})") from error
    return document


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
        raise CheckpointError(f"There is no checkpoint {folder} ({_first_line(error)}).") from error


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
        if strays := sorted(set(os.listdir(version)) - {_TENSORS, _STATE}):
            _log.warning("%s is kept: it holds %s, which no checkpoint does", version, ", ".join(strays))
            return
        for name in (_STATE, _TENSORS):
            (version / name).unlink(missing_ok=True)
        version.rmdir()
    except OSError as error:
        _log.warning("%s could not be removed (%s)", version, error.strerror)


def _first_line(error: BaseException) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0]
