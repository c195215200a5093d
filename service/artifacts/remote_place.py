"""Artifacts behind a URL that fsspec understands.

Credentials are fsspec's own matter: its configuration files and the environment of this process. Passwords
that got into a URL all the same are left out of what is said.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import datetime
from typing import Any, BinaryIO

import fsspec.core

from search_spaces.values.artifact_urls import without_password
from service.artifacts.layout import NUMBER, STUDY, Folder, is_ours
from service.errors import NotFound, Unavailable


class RemotePlace:
    """A `Place` behind a URL.

    Raises:
        Unavailable: nothing installed here reaches such a URL.
    """

    def __init__(self, url: str) -> None:
        self.shown = without_password(url)
        with _explained(f"{self.shown} cannot be used for artifacts"):
            self._fs, path = fsspec.core.url_to_fs(url)
        self._root: str = path.rstrip("/")

    def studies(self) -> list[str]:
        self._fs.invalidate_cache()  # it remembers listings, and workers write here
        with _explained(f"{self.shown} cannot be listed"):
            try:
                found = self._fs.ls(self._root, detail=False)
            except FileNotFoundError:
                return []
        return sorted(name for path in found if STUDY.fullmatch(name := path.rstrip("/").rpartition("/")[2]))

    def folders(self, study_id: str) -> dict[Folder, int]:
        found: dict[Folder, int] = {}
        for path, entry in self._files(study_id).items():
            parts = path.split("/")
            if len(parts) < 4 or not (NUMBER.fullmatch(parts[0]) and NUMBER.fullmatch(parts[1])):
                continue
            if not is_ours(parts[2]):
                continue
            folder = Folder(int(parts[0]), int(parts[1]), parts[2])
            found[folder] = found.get(folder, 0) + (entry.get("size") or 0)
        return found

    def remove(self, study_id: str, folder: Folder) -> None:
        self._remove(f"{self._root}/{study_id}/{folder.trial}/{folder.ordinal}/{folder.name}")

    def size_and_age(self, study_id: str) -> tuple[int, float | None]:
        files = self._files(study_id).values()
        moments = [_changed(entry) for entry in files]
        known = [moment for moment in moments if moment is not None]
        age = time.time() - max(known) if known and len(known) == len(moments) else None
        return sum(entry.get("size") or 0 for entry in files), age

    def remove_study(self, study_id: str) -> None:
        self._remove(f"{self._root}/{study_id}")

    def open(self, path: str) -> tuple[BinaryIO, int | None]:
        """A file, by its path from here, and its size.

        Raises:
            NotFound: it is not there.
            Unavailable: the storage does not answer.
        """
        full = f"{self._root}/{path}"
        self._fs.invalidate_cache()
        with _explained(f"{self.shown} does not answer"):
            try:
                size = self._fs.info(full)["size"]
                return self._fs.open(full, "rb"), size
            except FileNotFoundError:
                raise NotFound(f"{self.shown} has no {path}.") from None

    def _files(self, study_id: str) -> dict[str, dict[str, Any]]:
        """All files of a study with what is known of each, by their paths within its folder."""
        top = f"{self._root}/{study_id}"
        self._fs.invalidate_cache()
        with _explained(f"{self.shown} cannot be listed"):
            try:
                found = self._fs.find(top, detail=True)
            except FileNotFoundError:
                return {}
        return {path[len(top) + 1 :]: entry for path, entry in found.items()}

    def _remove(self, path: str) -> None:
        with _explained(f"{self.shown} does not allow files to be removed"):
            try:
                self._fs.rm(path, recursive=True)
            except FileNotFoundError:
                return


def _changed(entry: dict[str, Any]) -> float | None:
    """Seconds since 1970, under whichever name a file system has it."""
    for name in ("LastModified", "mtime", "last_modified", "updated", "created"):
        moment = entry.get(name)
        if isinstance(moment, str):
            try:
                moment = datetime.fromisoformat(moment)
            except ValueError:
                continue
        if isinstance(moment, datetime):
            return moment.timestamp()
        if isinstance(moment, int | float):
            return float(moment)
    return None


@contextmanager
def _explained(what: str) -> Iterator[None]:
    """Each of fsspec's file systems raises exceptions of its own kind, so all of them are meant."""
    try:
        yield
    except NotFound:
        raise
    except Exception as error:
        reason = without_password(str(error)).strip() or type(error).__name__
        raise Unavailable(f"{what}: {reason}") from error
