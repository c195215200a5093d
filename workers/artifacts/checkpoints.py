"""One trial's checkpoint in a folder: versions, the newest of which may be damaged without being missed.

    checkpoint/
      00000006/                  the version before, kept until the next but one is whole
      00000007/                  the newest
        tensors.safetensors
        state.json               format, size, SHA-256, dtypes and shapes of the tensors, and the state

A worker that dies at any moment leaves a version that can be read. On a disk a version is written beside the
others, flushed and moved into place. Behind a URL nothing can be moved, so `state.json`, which vouches for
the tensors, comes last; what is half written there is passed over, and removed by a later writer. A single
byte that changed is found, and the version before is read in its place.

One process writes a folder. Others may read it meanwhile: they get the newest version or the one before.
"""

from __future__ import annotations

import logging
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path

import torch

from search_spaces.values.artifact_urls import without_password
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
from workers.artifacts.folders import LocalFolder, RemoteFolder, folder_at
from workers.contract import UnusableCheckpoint
from workers.errors import ArtifactError

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
    place: str | Path, tensors: Mapping[str, torch.Tensor], state: Mapping[str, object]
) -> None:
    """Adds a version, and removes all but it and the newest whole one before.

    Args:
        place: Path or URL of a folder for this trial's checkpoint alone; it is made if need be.
        tensors: On any device, of any layout; views of shared memory are written one by one.
        state: JSON values only, so that the same comes back: no tuples, no numbers that are not finite, and
            no keys but text. `recipe_key` is required: `newest_usable` tells by it whose checkpoint it is.

    Raises:
        CheckpointError: `tensors` or `state` holds something that would not come back as it is, or `place`
            is a symbolic link. Nothing was written.
        OSError: It could not be written; the version before remains.
        ArtifactError: The same, behind a URL.
    """
    data, document = encode(tensors, state)
    folder = _open(place)
    names = folder.names()
    numbers = (name.partition("/")[0] for name in names)
    version = f"{1 + max(map(int, filter(_VERSION.fullmatch, numbers)), default=0):08d}"
    folder.put_folder(version, {TENSORS: data, STATE: document})
    whole = [older for older in _folders(names, _VERSION) if f"{older}/{STATE}" in names]
    kept = whole[: _KEPT - 1]
    for older in _folders(names, _VERSION) + _folders(names, _UNFINISHED):
        if older not in kept:
            _remove(folder, older)


def read_checkpoint(place: str | Path) -> Checkpoint:
    """The newest version in a folder that is whole; newer ones that are not are logged.

    Args:
        place: Path or URL of the folder.

    Raises:
        CheckpointError: There is none. Says of each version what is wrong with it.
        ArtifactError: The storage behind the URL does not answer, so nobody knows what is there.
    """
    folder = _open(place)
    while True:
        names = _names(folder)
        faults: list[str] = []
        for version in _folders(names, _VERSION):
            try:
                checkpoint = decode(
                    _get(folder, version, STATE),
                    lambda size, version=version: _get(folder, version, TENSORS, size + 1),  # type: ignore[misc]
                )
            except CheckpointError as error:
                faults.append(f"version {version}: {error}")
                continue
            for fault in faults:
                _log.warning("skipped in checkpoint %s: %s", folder.shown, fault)
            return checkpoint
        # A writer that has replaced or finished a version since they were listed has left a newer one.
        if _names(folder) == names:
            if not faults:
                raise NoCheckpointError(f"There is no checkpoint in {folder.shown}.")
            raise CheckpointError(f"The checkpoint {folder.shown} cannot be used: {'; '.join(faults)}.")


def newest_usable(
    places: Sequence[str],
    *,
    recipe_key: str,
    made_of: Mapping[str, str] | None = None,
    objection: Callable[[Checkpoint], str | None] = lambda _: None,
    pass_over: Callable[[UnusableCheckpoint], object] = lambda _: None,
) -> tuple[Checkpoint, str] | None:
    """The first checkpoint that can be read and is of this recipe, and its folder; None when there is none.

    Args:
        places: Paths or URLs, newest first. Why one is passed over is logged, in a line each.
        recipe_key: What the state must hold under `recipe_key`.
        made_of: What that key is made of, by name: names what differs, where the state holds it likewise.
        objection: Says what else is wrong with a checkpoint of this recipe; None: nothing.
        pass_over: Called with each that is passed over.

    Raises:
        ArtifactError: The storage behind a URL does not answer, so nobody knows what is there.
    """
    for place in places:
        missing = False
        try:
            checkpoint = read_checkpoint(place)
        except CheckpointError as error:
            missing, reason = isinstance(error, NoCheckpointError), str(error).rstrip(".")
        else:
            if checkpoint.state.get("recipe_key") != recipe_key:
                changed = _difference(checkpoint.state.get("made_of"), made_of or {})
                wrong = f"changed since it was written: {changed}"
            elif (objected := objection(checkpoint)) is not None:
                wrong = objected
            else:
                return checkpoint, place
            reason = f"The checkpoint {without_password(place)} cannot be used: {wrong}"
        _log.warning("%s. It is skipped.", reason)
        pass_over(UnusableCheckpoint(folder=place, reason=reason, missing=missing))
    return None


def _difference(then: object, now: Mapping[str, str]) -> str:
    """What has changed since a checkpoint was written, in words."""
    if isinstance(then, dict) and (changed := [name for name in now if then.get(name) != now[name]]):
        return ", ".join(changed)
    return "the recipe, the base or the data"


def remove_checkpoints(places: Iterable[str]) -> None:
    """Removes whole checkpoints, by path or URL, as far as that can be done."""
    for place in places:
        try:
            folder_at(place).remove_all()
        except ArtifactError as error:
            _log.warning("a checkpoint that is no longer needed could not be removed: %s", error)


def _open(place: str | Path) -> LocalFolder | RemoteFolder:
    folder = folder_at(place)
    if isinstance(folder, LocalFolder) and folder.path.is_symlink():
        raise CheckpointError(f"The checkpoint {folder.shown} is a symbolic link, which is not followed.")
    return folder


def _names(folder: LocalFolder | RemoteFolder) -> list[str]:
    """What is in a folder."""
    try:
        return folder.names()
    except (OSError, ValueError) as error:
        raise CheckpointError(
            f"The checkpoint {folder.shown} cannot be read ({first_line(error)})."
        ) from error


def _folders(names: Iterable[str], wanted: re.Pattern[str]) -> list[str]:
    """The folders among the names in a folder, newest first. Links and files are left alone."""
    found = {folder for name in names if "/" in name and wanted.fullmatch(folder := name.partition("/")[0])}
    return sorted(found, key=lambda name: (len(name), name), reverse=True)


def _get(folder: LocalFolder | RemoteFolder, version: str, name: str, most: int | None = None) -> bytes:
    try:
        return folder.get(f"{version}/{name}", most)
    except OSError as error:
        raise CheckpointError(f"{name} cannot be read ({error.strerror or 'it is missing'})") from error


def _remove(folder: LocalFolder | RemoteFolder, version: str) -> None:
    try:
        folder.remove(version, (STATE, TENSORS))
    except (OSError, ArtifactError) as error:
        reason = getattr(error, "strerror", None) or str(error)
        _log.warning("in checkpoint %s, version %s could not be removed (%s)", folder.shown, version, reason)
