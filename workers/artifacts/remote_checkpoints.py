"""A trial's checkpoint behind a URL: the versions of `workers.artifacts.checkpoints`, written as objects.

Nothing can be moved into place there, so `state.json` comes last: a version is whole when it has one that
vouches for its tensors. What a worker left half written when it died is passed over, and removed by the next
that writes.
"""

from __future__ import annotations

import logging
import re
from collections.abc import Iterable

from workers.artifacts.checkpoint_format import (
    STATE,
    TENSORS,
    Checkpoint,
    CheckpointError,
    NoCheckpointError,
    decode,
)
from workers.artifacts.folders import RemoteFolder
from workers.errors import ArtifactError

_log = logging.getLogger(__name__)

_FILE = re.compile(rf"([0-9]{{8,}})/({re.escape(STATE)}|{re.escape(TENSORS)})")
_KEPT = 2


def write(url: str, data: bytes, document: bytes) -> None:
    """Adds a version, and removes all but it and the newest whole one before.

    Args:
        url: Of the checkpoint's folder.
        data: The contents of `tensors.safetensors`.
        document: Those of `state.json`.

    Raises:
        ArtifactError: It could not be written; the version before remains.
    """
    folder = RemoteFolder(url)
    files = folder.names()
    version = f"{1 + max(map(int, _versions(files)), default=0):08d}"
    folder.put(f"{version}/{TENSORS}", data)
    folder.put(f"{version}/{STATE}", document)
    kept = [version, *_whole(files)][:_KEPT]
    for older in _versions(files):
        if older not in kept:
            _remove(folder, older)


def read(url: str) -> Checkpoint:
    """The newest version that is whole; newer ones that are not are logged.

    Raises:
        CheckpointError: There is none. Says of each version what is wrong with it.
        ArtifactError: What lies behind the URL does not answer, so nobody knows what is there.
    """
    folder = RemoteFolder(url)
    while True:
        files = folder.names()
        faults: list[str] = []
        for version in _versions(files):
            try:
                checkpoint = decode(
                    _get(folder, f"{version}/{STATE}"),
                    lambda _, version=version: _get(folder, f"{version}/{TENSORS}"),  # type: ignore[misc]
                )
            except CheckpointError as error:
                faults.append(f"version {version}: {error}")
                continue
            for fault in faults:
                _log.warning("skipped in checkpoint %s: %s", folder.shown, fault)
            return checkpoint
        # A writer that has replaced every version since they were listed has left newer ones.
        if folder.names() == files:
            if not faults:
                raise NoCheckpointError(f"The checkpoint {folder.shown} cannot be used: nothing is in it.")
            raise CheckpointError(f"The checkpoint {folder.shown} cannot be used: {'; '.join(faults)}.")


def remove(url: str) -> None:
    """Removes a whole checkpoint, as far as that can be done."""
    try:
        RemoteFolder(url).remove()
    except ArtifactError as error:
        _log.warning("a checkpoint that is no longer needed could not be removed: %s", error)


def _get(folder: RemoteFolder, name: str) -> bytes:
    try:
        return folder.get(name)
    except FileNotFoundError:
        raise CheckpointError(f"{name.rpartition('/')[2]} is missing") from None


def _remove(folder: RemoteFolder, version: str) -> None:
    try:
        folder.remove(version)
    except ArtifactError as error:
        _log.warning("an older version of a checkpoint could not be removed: %s", error)


def _versions(files: Iterable[str]) -> list[str]:
    """Those with a file of either name, newest first."""
    found = {match[1] for name in files if (match := _FILE.fullmatch(name))}
    return sorted(found, key=int, reverse=True)


def _whole(files: Iterable[str]) -> list[str]:
    """Those that were finished, newest first."""
    names = set(files)
    return [version for version in _versions(names) if f"{version}/{STATE}" in names]
