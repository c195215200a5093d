"""Where an attempt's adapters and checkpoints go: a folder on this machine, or a URL that fsspec understands.

Light to import: fsspec, and whatever reaches a URL, come with the first URL. Credentials are fsspec's own
matter (its configuration and the environment, on each machine); they are no part of a URL, and passwords
that got into one all the same are left out of what is said.
"""

from __future__ import annotations

import os
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from search_spaces.values.artifact_urls import is_url, join, without_password
from workers.errors import ArtifactError

ADAPTER_FILES = ("adapter_model.safetensors", "adapter_config.json")
"""What an adapter is made of, in the order in which it is sent: with the last of them it is whole."""


class ArtifactFolder:
    """An attempt's own folder.

    Args:
        place: Its path or URL. It is made with the first thing that is put into it.
    """

    def __init__(self, place: str) -> None:
        self.place = place
        self._made = False

    @property
    def checkpoint(self) -> str:
        """Where its checkpoints go."""
        return join(self.place, "checkpoint")

    @contextmanager
    def writing(self, what: str) -> Iterator[None]:
        """Around everything that is put into the folder.

        Raises:
            ArtifactError: It cannot be written: the disk is full or read-only, the folder is not allowed to
                be written to, or has vanished with what was in it; or what lies behind the URL refuses.
        """
        where = without_password(self.place)
        if self._made and not is_url(self.place) and not os.path.isdir(self.place):
            raise ArtifactError(
                f"The artifact folder {where} has disappeared, with everything written to it. Was its disk"
                " unmounted, or the folder removed?"
            )
        try:
            yield
        except OSError as error:
            reason = error.strerror or without_password(str(error))
            raise ArtifactError(f"The {what} cannot be written to {where}: {reason}.") from error
        self._made = True

    def save_adapter(self, which: str, save: Callable[[Path], None]) -> str:
        """Has an adapter saved into the folder `which`, in place of an older one there.

        Args:
            which: `best` or `last`.
            save: Writes PEFT's files into the folder it is given.

        Returns:
            Where the adapter is: a path or a URL.

        Raises:
            ArtifactError: It cannot be written.
        """
        place = join(self.place, which)
        with self.writing(f"{which} adapter"):
            if is_url(place):
                with tempfile.TemporaryDirectory(prefix="nightsweep-") as scratch:
                    local = Path(scratch) / which
                    save(local)
                    folder = RemoteFolder(place)
                    for name in ADAPTER_FILES:
                        folder.put(name, (local / name).read_bytes())
            else:
                save(Path(place))
        return place


def has_adapter(place: str) -> bool:
    """Whether a whole adapter is there.

    Raises:
        ArtifactError: What lies behind the URL does not answer.
    """
    if is_url(place):
        folder = RemoteFolder(place)
        return all(folder.size(name) is not None for name in ADAPTER_FILES)
    return all((Path(place) / name).is_file() for name in ADAPTER_FILES)


class RemoteFolder:
    """A folder behind a URL. Every fault but an absent file is an `ArtifactError`.

    Raises:
        ArtifactError: Nothing installed here reaches such a URL.
    """

    def __init__(self, url: str) -> None:
        import fsspec.core

        self.shown = without_password(url)
        """The URL, for people."""
        with self._explained("cannot be used for artifacts"):
            self._fs, path = fsspec.core.url_to_fs(url)
        self._path: str = path.rstrip("/")

    def put(self, name: str, content: bytes) -> None:
        """Writes a file, over an older one; a folder is made where there have to be folders."""
        path = self._of(name)
        with self._explained(f"does not accept {name}"):
            try:
                self._fs.pipe_file(path, content)
            except FileNotFoundError:
                top = path.partition("/")[0]
                if top and not self._fs.exists(top):
                    raise  # a bucket: some file systems would make one for a misspelt name
                self._fs.makedirs(path.rpartition("/")[0], exist_ok=True)
                self._fs.pipe_file(path, content)
        if (arrived := self.size(name)) != len(content):
            raise ArtifactError(
                f"{self.shown} did not store {name} completely: {len(content):,} bytes were sent, and"
                f" {'none' if arrived is None else f'{arrived:,}'} arrived."
            )

    def get(self, name: str) -> bytes:
        """A file's contents. Raises `FileNotFoundError` when there is none."""
        with self._explained(f"does not return {name}", absent=True):
            content: bytes = self._fs.cat_file(self._of(name))
            return content

    def size(self, name: str) -> int | None:
        """A file's bytes; None: there is none."""
        try:
            with self._explained(f"does not say whether it has {name}", absent=True):
                self._fs.invalidate_cache()
                found: dict[str, Any] = self._fs.info(self._of(name))
        except FileNotFoundError:
            return None
        return None if found["size"] is None else int(found["size"])

    def names(self) -> list[str]:
        """All files in it, by their paths from here, sorted."""
        try:
            with self._explained("cannot be listed", absent=True):
                self._fs.invalidate_cache()  # it remembers listings, and another machine may write here
                found: list[str] = self._fs.find(self._path)
        except FileNotFoundError:
            return []
        start = len(self._path) + 1
        return sorted(path[start:] for path in found)

    def remove(self, name: str = "") -> None:
        """Removes a file, a folder within, or all of it; nothing where there is nothing."""
        try:
            with self._explained(f"does not allow {name or 'itself'} to be removed", absent=True):
                self._fs.invalidate_cache()
                self._fs.rm(self._of(name) if name else self._path, recursive=True)
        except FileNotFoundError:
            return

    def _of(self, name: str) -> str:
        return f"{self._path}/{name}"

    @contextmanager
    def _explained(self, what: str, *, absent: bool = False) -> Iterator[None]:
        """Each of fsspec's file systems raises exceptions of its own kind, so all of them are meant.

        Args:
            what: Follows the URL in the sentence.
            absent: Whether `FileNotFoundError` is let through.
        """
        try:
            yield
        except FileNotFoundError as error:
            if absent:
                raise
            raise self._error(what, error) from error
        except Exception as error:
            raise self._error(what, error) from error

    def _error(self, what: str, error: Exception) -> ArtifactError:
        reason = without_password(str(error)).strip() or type(error).__name__
        return ArtifactError(f"{self.shown} {what}: {reason}")
