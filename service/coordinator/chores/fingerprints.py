"""What identifies the content of a study's data and model, so that a change is seen under the same name.

A local file is identified by the SHA-256 of its bytes, a local model by those of its files, and what comes
from the hub by its revision. A hub data set without a commit as its revision may change at any time, so
nobody can tell; a hub model is taken for the same as long as its id and revision are.
"""

from __future__ import annotations

import errno
import hashlib
import os
import re
import stat
import threading
from collections.abc import Container, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from search_spaces.definition import HubData, StudyDefinition

_COMMIT = re.compile(r"[0-9a-f]{40}")
_BLOCK = 1 << 20
_WHOLE_BLOCKS = 64
"""Files of a model that are larger, its weights, are identified by their size and so many blocks of a
megabyte, evenly spread: other weights differ everywhere, and a large base is not read whole every night."""
_WAIT_SECONDS = 1.0


@dataclass(frozen=True, kw_only=True)
class Fingerprints:
    """Of one study, as its files were when they were read."""

    known: Mapping[str, str] = field(default_factory=dict)
    """`model`, `data.train`, `data.eval` -> what identifies the content."""
    unknown: tuple[str, ...] = ()
    """Why that of others is not known, in words."""


class FingerprintReader:
    """Reads files in threads of their own, so that gigabytes do not hold up the coordinator's rounds."""

    def __init__(self) -> None:
        self._readings: dict[str, _Reading] = {}

    def of(self, study_id: str, definition: StudyDefinition) -> Fingerprints | None:
        """The fingerprints of a study that is about to start; None while its files are being read."""
        reading = self._readings.get(study_id)
        wait = 0.0
        if reading is None:
            # One large file holds up a round for a moment, and many such no longer than one.
            wait = 0.0 if any(other.is_alive() for other in self._readings.values()) else _WAIT_SECONDS
            reading = _Reading(definition)
            self._readings[study_id] = reading
            reading.start()
        reading.join(wait)
        if reading.is_alive():
            return None
        del self._readings[study_id]
        if reading.found is None:
            raise RuntimeError(f"the fingerprints of study {study_id} could not be read") from reading.error
        return reading.found

    def forget_all_but(self, study_ids: Container[str]) -> None:
        """Drop what was read for other studies: one that was paused meanwhile may find other files later."""
        self._readings = {key: reading for key, reading in self._readings.items() if key in study_ids}


class _Reading(threading.Thread):
    """Nobody waits for it when the process ends."""

    def __init__(self, definition: StudyDefinition) -> None:
        super().__init__(name="fingerprints", daemon=True)
        self._definition = definition
        self.found: Fingerprints | None = None
        self.error: Exception | None = None

    def run(self) -> None:
        try:
            self.found = read_fingerprints(self._definition)
        except Exception as error:  # noqa: BLE001 - raised where the result is asked for
            self.error = error


def read_fingerprints(definition: StudyDefinition) -> Fingerprints:
    """Read what a definition names, now."""
    known: dict[str, str] = {}
    unknown: list[str] = []
    model = definition.model
    try:
        local = os.path.isabs(model.id)
        known["model"] = _of_folder(Path(model.id)) if local else f"hub:{model.id}@{model.revision or ''}"
    except OSError as error:
        unknown.append(f"model cannot be read here ({error.strerror or error})")
    for part in ("train", "eval"):
        source, path = getattr(definition.data, part), f"data.{part}"
        try:
            if not isinstance(source, HubData):
                known[path] = _of_file(Path(source))
            elif source.revision is not None and _COMMIT.fullmatch(source.revision):
                known[path] = f"hub:{source.hub}/{source.config or ''}/{source.split}@{source.revision}"
            else:
                unknown.append(
                    f"{path} is a hub data set that may change at any time (give the commit as its revision)"
                )
        except OSError as error:
            unknown.append(f"{path} cannot be read here ({error.strerror or error})")
    return Fingerprints(known=known, unknown=tuple(unknown))


def _of_file(path: Path) -> str:
    # A pipe that was put in the file's place would keep this waiting, and a device may have no end.
    with open(path, "rb", opener=lambda name, flags: os.open(name, flags | os.O_NONBLOCK)) as file:
        if not stat.S_ISREG(os.fstat(file.fileno()).st_mode):
            raise OSError(errno.EINVAL, "not a regular file")
        return f"sha256:{hashlib.file_digest(file, 'sha256').hexdigest()}"


def _of_folder(folder: Path) -> str:
    digest = hashlib.sha256()
    for path in sorted(entry for entry in folder.iterdir() if entry.is_file()):
        size = path.stat().st_size
        digest.update(f"{path.name}/{size}/".encode())
        blocks = -(-size // _BLOCK)
        step = max(1.0, (blocks - 1) / (_WHOLE_BLOCKS - 1))
        with path.open("rb") as file:
            for number in range(min(blocks, _WHOLE_BLOCKS)):
                file.seek(int(number * step) * _BLOCK)
                digest.update(file.read(_BLOCK))
    return f"sha256:{digest.hexdigest()}"
