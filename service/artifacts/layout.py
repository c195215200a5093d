"""What may lie where: `<study id>/<trial>/<attempt>/best|last|checkpoint`. Pure."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Protocol

STUDY = re.compile(r"[0-9a-f]{32}")
NUMBER = re.compile(r"[0-9]{1,9}")
CHECKPOINT = "checkpoint"
ADAPTERS = ("best", "last")
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


class Place(Protocol):
    """Where artifacts lie: a folder or a URL.

    Its methods raise `OSError` or `service.errors.Unavailable` when it does not answer or refuses.
    """

    @property
    def shown(self) -> str:
        """The path or URL, for people."""

    def studies(self) -> list[str]:
        """Ids of the studies that have a folder."""

    def folders(self, study_id: str) -> dict[Folder, int]:
        """A study's folders that workers made, with the bytes in each."""

    def remove(self, study_id: str, folder: Folder) -> None:
        """Removes one; nothing when it is gone."""

    def size_and_age(self, study_id: str) -> tuple[int, float | None]:
        """Bytes in all of a study's folder, and seconds since anything in it changed; None: not known."""

    def remove_study(self, study_id: str) -> None:
        """Removes all of a study's folder."""
