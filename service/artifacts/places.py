"""The places that artifacts may lie in, by the settings."""

from __future__ import annotations

from pathlib import Path

from service.artifacts.layout import Place
from service.artifacts.local_place import LocalPlace
from service.artifacts.remote_place import RemotePlace
from service.settings import Settings

_FILE = "file://"


def place_behind(url: str) -> LocalPlace | RemotePlace:
    """What a URL names. A `file://` one is a folder, and is as careful about links as one.

    Raises:
        Unavailable: nothing installed here reaches such a URL.
    """
    return LocalPlace(Path(url.removeprefix(_FILE))) if url.startswith(_FILE) else RemotePlace(url)


def open_places(settings: Settings) -> list[Place]:
    """The folder, and what `artifacts_url` names: studies from before it was set have theirs in the folder.

    Raises:
        Unavailable: nothing installed here reaches such a URL.
    """
    places: list[Place] = [LocalPlace(settings.artifacts_dir)]
    if settings.artifacts_url is not None:
        places.append(place_behind(settings.artifacts_url))
    return places
