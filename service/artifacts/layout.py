"""What lies where among artifacts: `<study id>/<trial>/<attempt>/best|last|checkpoint`."""

from __future__ import annotations

import re
import time
from abc import ABC, abstractmethod
from collections.abc import Iterator
from dataclasses import dataclass

from search_spaces.values.artifact_layout import ADAPTERS, CHECKPOINT

STUDY = re.compile(r"[0-9a-f]{32}")
NUMBER = re.compile(r"0|[1-9][0-9]{0,8}")
UNFINISHED = re.compile(r"\.(best|last)-[0-9a-f]{32}")
"""What a worker was writing, or putting aside, when it died."""


def is_ours(name: str) -> bool:
    """Whether a folder in an attempt's is one that workers make. Others are nobody's to remove."""
    return name == CHECKPOINT or name in ADAPTERS or UNFINISHED.fullmatch(name) is not None


@dataclass(frozen=True, order=True)
class Folder:
    """One folder in an attempt's."""

    trial: int
    ordinal: int
    """The attempt's, within its trial."""
    name: str


def folder_of(place: str, study_id: str) -> Folder | None:
    """The folder that an outcome names by its path or URL; None: it is not like one of this study."""
    study, trial, ordinal, name = [*["", "", ""], *re.split(r"[/\\]", place.rstrip("/\\"))][-4:]
    if study != study_id or not (NUMBER.fullmatch(trial) and NUMBER.fullmatch(ordinal)):
        return None
    return Folder(int(trial), int(ordinal), name)


@dataclass(frozen=True)
class Entry:
    """A file or folder somewhere in a study's folder."""

    path: tuple[str, ...]
    """The names that lead to it from there; none: the study's folder itself."""
    bytes: int
    changed: float | None
    """Seconds since 1970; None: the storage does not say."""
    is_folder: bool = False


class Place(ABC):
    """Where artifacts lie: a folder or a URL.

    Its methods raise `OSError` or `service.errors.Unavailable` when it does not answer or refuses.
    """

    shown: str
    """The path or URL, for people."""

    @abstractmethod
    def studies(self) -> list[str]:
        """Ids of the studies that have a folder."""

    @abstractmethod
    def entries(self, study_id: str) -> Iterator[Entry]:
        """All that is in a study's folder."""

    @abstractmethod
    def remove(self, study_id: str, folder: Folder) -> None:
        """Removes one folder; does nothing when it is gone."""

    @abstractmethod
    def remove_study(self, study_id: str) -> None:
        """Removes all of a study's folder."""

    def folders(self, study_id: str) -> dict[Folder, int]:
        """A study's folders that workers made, with the bytes in each."""
        found: dict[Folder, int] = {}
        for entry in self.entries(study_id):
            trial, ordinal, name, *_ = (*entry.path, "", "", "")
            is_in_folder = entry.is_folder or len(entry.path) > 3
            if is_in_folder and NUMBER.fullmatch(trial) and NUMBER.fullmatch(ordinal) and is_ours(name):
                folder = Folder(int(trial), int(ordinal), name)
                found[folder] = found.get(folder, 0) + entry.bytes
        return found

    def size_and_age(self, study_id: str) -> tuple[int, float | None]:
        """Bytes in all of a study's folder, and seconds since anything in it changed; None: not known."""
        entries = list(self.entries(study_id))
        known = [entry.changed for entry in entries if entry.changed is not None]
        age = time.time() - max(known) if known and len(known) == len(entries) else None
        return sum(entry.bytes for entry in entries), age
