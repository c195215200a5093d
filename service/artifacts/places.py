"""The places that artifacts may lie in, by the settings."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from datetime import datetime
from pathlib import Path
from typing import Any, BinaryIO

from service.artifacts.layout import STUDY, Entry, Folder, Place
from service.artifacts.local_place import LocalPlace
from service.errors import NotFound, Unavailable
from service.settings import Settings

_FILE = "file://"


class RemotePlace(Place):
    """A place behind a URL that fsspec understands.

    Raises:
        Unavailable: no installed package reaches such a URL.
    """

    def __init__(self, url: str) -> None:
        # What workers write with. Late: the API imports nothing of theirs unless artifacts are behind a URL.
        from workers.artifacts.folders import RemoteFolder

        with _unavailable():
            self._folder = RemoteFolder(url)
        self.shown = self._folder.shown

    def studies(self) -> list[str]:
        with _unavailable():
            return [name for name in self._folder.children() if STUDY.fullmatch(name)]

    def entries(self, study_id: str) -> Iterator[Entry]:
        with _unavailable():
            found = self._folder.entries(study_id)
        for path, entry in found.items():
            yield Entry(tuple(path.split("/")), entry.get("size") or 0, _changed(entry))

    def remove(self, study_id: str, folder: Folder) -> None:
        with _unavailable():
            self._folder.remove(f"{study_id}/{folder.trial}/{folder.ordinal}/{folder.name}")

    def remove_study(self, study_id: str) -> None:
        with _unavailable():
            self._folder.remove(study_id)

    def open(self, path: str) -> tuple[BinaryIO, int | None]:
        """A file, by its path from here, and its size.

        Raises:
            NotFound: it is not there.
            Unavailable: the storage does not answer.
        """
        try:
            with _unavailable():
                return self._folder.open(path)
        except FileNotFoundError:
            raise NotFound(f"{self.shown} has no {path}.") from None


def place_behind(url: str) -> LocalPlace | RemotePlace:
    """What a URL names. A `file://` one is a folder, and is as careful about links as one.

    Raises:
        Unavailable: no installed package reaches such a URL.
    """
    return LocalPlace(Path(url.removeprefix(_FILE))) if url.startswith(_FILE) else RemotePlace(url)


def open_places(settings: Settings) -> list[Place]:
    """The folder, and what `artifacts_url` names: studies from before it was set have theirs in the folder.

    Raises:
        Unavailable: no installed package reaches such a URL.
    """
    places: list[Place] = [LocalPlace(settings.artifacts_dir)]
    if settings.artifacts_url is not None:
        places.append(place_behind(settings.artifacts_url))
    return places


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
def _unavailable() -> Iterator[None]:
    from workers.errors import ArtifactError

    try:
        yield
    except ArtifactError as error:
        raise Unavailable(str(error)) from error
