"""Folders that adapters and checkpoints are stored in: on a disk, or behind a URL that fsspec understands.

Both kinds have the same methods. Light to import: fsspec, and the packages of single protocols, come with the
first URL. Credentials are fsspec's own matter (its configuration and the environment, on each machine); they
are no part of a URL, and a password in one is left out of all messages.
"""

from __future__ import annotations

import errno
import os
import shutil
import stat
import uuid
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, BinaryIO

from search_spaces.values.artifact_layout import ADAPTER_CONFIG, ADAPTER_FILES, CHECKPOINT
from search_spaces.values.artifact_urls import is_url, join, without_password
from workers.errors import ArtifactError


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
        return join(self.place, CHECKPOINT)

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

    def save_adapter(self, which: str, files: Callable[[], Mapping[str, bytes]]) -> str:
        """Saves an adapter into the folder `which`, in place of an older one there.

        Args:
            which: One of `ADAPTERS`.
            files: Makes the contents of the adapter's files, by their names. PEFT's configuration is written
                last: with it the adapter is complete.

        Returns:
            Where the adapter is: a path or a URL.

        Raises:
            ArtifactError: It cannot be written.
        """
        place = join(self.place, which)
        with self.writing(f"{which} adapter"):
            made = files()
            ordered = {name: made[name] for name in sorted(made, key=lambda name: name == ADAPTER_CONFIG)}
            if is_url(place):
                RemoteFolder(place).put_files(ordered)
            else:
                LocalFolder(Path(self.place)).put_folder(which, ordered)
        return place


def has_adapter(place: str) -> bool:
    """Whether a whole adapter is there.

    Raises:
        ArtifactError: What lies behind the URL does not answer.
    """
    folder = folder_at(place)
    return all(folder.has(name) for name in ADAPTER_FILES)


def folder_at(place: str | Path) -> LocalFolder | RemoteFolder:
    """The folder with this path or URL.

    Raises:
        ArtifactError: No installed package reaches such a URL.
    """
    return RemoteFolder(place) if isinstance(place, str) and is_url(place) else LocalFolder(Path(place))


class LocalFolder:
    """A folder on a disk. What was put into it survives a crash of the machine, whole or not at all.

    fsspec offers neither fsync nor opening a file without following a link or waiting for a pipe, so local
    folders do not go through it. All methods raise `OSError`.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.shown = str(path)

    def has(self, name: str) -> bool:
        """Whether there is such a file."""
        return (self.path / name).is_file()

    def names(self) -> list[str]:
        """What is in the folder, sorted: a file or link by its name, a folder as `name/`, its files as
        `name/file`. Of a folder that does not exist: nothing; of one within that cannot be read: its name."""
        found: list[str] = []
        try:
            with os.scandir(self.path) as entries:
                for entry in entries:
                    is_folder = entry.is_dir(follow_symlinks=False)
                    found += [f"{entry.name}/"] if is_folder else [entry.name]
                    found += [f"{entry.name}/{name}" for name in _listed(entry.path)] if is_folder else []
        except FileNotFoundError:
            return []
        return sorted(found)

    def get(self, name: str, most: int | None = None) -> bytes:
        """The contents of a regular file, up to `most` bytes of it."""
        # O_NONBLOCK: a pipe in its place has no writer, and must not be waited for.
        descriptor = os.open(self.path / name, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK)
        try:
            if not stat.S_ISREG(os.fstat(descriptor).st_mode):
                raise OSError(errno.EINVAL, "not a file")
            with os.fdopen(descriptor, "rb", closefd=False) as file:
                return file.read(most)
        finally:
            os.close(descriptor)

    def put_folder(self, name: str, files: Mapping[str, bytes]) -> None:
        """Puts a whole folder in, in place of an older one of this name.

        It is written beside its place, flushed to the disk, then moved: a reader never finds half of it.
        An older folder of this name is moved aside first. Between the two moves there is neither, and a
        crash then leaves both as `.name-<32 hex digits>`. At other moments it leaves one at most.
        """
        _make(self.path)
        fresh = self.path / f".{name}-{uuid.uuid4().hex}"
        fresh.mkdir()
        try:
            for file, content in files.items():
                _write(fresh / file, content)
            _flush(fresh)
            _move(fresh, self.path / name)
        except BaseException:
            shutil.rmtree(fresh, ignore_errors=True)
            raise
        _flush(self.path)

    def remove(self, name: str, files: Sequence[str]) -> None:
        """Removes a folder that holds no more than these files; they go in this order."""
        folder = self.path / name
        if foreign := sorted(set(os.listdir(folder)) - set(files)):
            raise OSError(errno.ENOTEMPTY, f"it holds {', '.join(foreign)}, which belongs to something else")
        for file in files:
            (folder / file).unlink(missing_ok=True)
        folder.rmdir()

    def remove_all(self) -> None:
        """Removes the folder itself, with everything in it, as far as that can be done."""
        shutil.rmtree(self.path, ignore_errors=True)


class RemoteFolder:
    """A folder behind a URL. Every fault but an absent file is an `ArtifactError`.

    A storage has no folders that could be moved, so the files of one come in the order given: with the last
    of them it is whole.

    Raises:
        ArtifactError: No installed package reaches such a URL.
    """

    def __init__(self, url: str) -> None:
        import fsspec.core

        self.shown = without_password(url)
        """The URL, for people."""
        with self._explained("cannot be used for artifacts"):
            self._fs, path = fsspec.core.url_to_fs(url)
        self._path: str = path.rstrip("/")

    def put_folder(self, name: str, files: Mapping[str, bytes]) -> None:
        """Puts a whole folder in."""
        self.put_files({f"{name}/{file}": content for file, content in files.items()})

    def put_files(self, files: Mapping[str, bytes]) -> None:
        """Writes some files, one after the other."""
        for name, content in files.items():
            self.put(name, content)

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
        if (arrived := self._size(name)) != len(content):
            raise ArtifactError(
                f"{self.shown} did not store {name} completely: {len(content):,} bytes were sent, and"
                f" {'none' if arrived is None else f'{arrived:,}'} arrived."
            )

    def get(self, name: str, most: int | None = None) -> bytes:
        """The contents of a file. Raises `FileNotFoundError` when there is none.

        All of it, whatever `most` says: some storages refuse a range that ends beyond the file.
        """
        with self._explained(f"does not return {name}", absent=True):
            content: bytes = self._fs.cat_file(self._of(name))
            return content

    def open(self, name: str) -> tuple[BinaryIO, int | None]:
        """A file, open for reading, and its size, if known. Raises `FileNotFoundError` if there is none."""
        with self._explained("does not answer", absent=True):
            self._fs.invalidate_cache()
            size: int | None = self._fs.info(self._of(name))["size"]
            return self._fs.open(self._of(name), "rb"), size

    def has(self, name: str) -> bool:
        """Whether there is such a file."""
        return self._size(name) is not None

    def _size(self, name: str) -> int | None:
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
        return sorted(self.entries())

    def entries(self, name: str = "") -> dict[str, dict[str, Any]]:
        """All files in the folder `name` within, by their paths from there, with what the storage says."""
        top = self._of(name)
        try:
            with self._explained("cannot be listed", absent=True):
                self._fs.invalidate_cache()  # it remembers listings, and other machines may write here
                found: dict[str, dict[str, Any]] = self._fs.find(top, detail=True)
        except FileNotFoundError:
            return {}
        return {path[len(top) + 1 :]: entry for path, entry in found.items()}

    def children(self) -> list[str]:
        """The names of the files and folders directly in it, sorted."""
        try:
            with self._explained("cannot be listed", absent=True):
                self._fs.invalidate_cache()
                found: list[str] = self._fs.ls(self._path, detail=False)
        except FileNotFoundError:
            return []
        return sorted(path.rstrip("/").rpartition("/")[2] for path in found)

    def remove(self, name: str, files: Sequence[str] = ()) -> None:
        """Removes a folder within, whatever is in it; does nothing when there is none."""
        try:
            with self._explained(f"does not allow {name or 'itself'} to be removed", absent=True):
                self._fs.invalidate_cache()
                self._fs.rm(self._of(name), recursive=True)
        except FileNotFoundError:
            return

    def remove_all(self) -> None:
        """Removes the folder itself, with everything in it."""
        self.remove("")

    def _of(self, name: str) -> str:
        return f"{self._path}/{name}" if name else self._path

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


def _listed(folder: str) -> list[str]:
    try:
        return os.listdir(folder)
    except OSError:  # gone meanwhile, or damaged: one folder must not hide the others
        return []


def _make(folder: Path) -> None:
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


def _flush(folder: Path) -> None:
    """Puts the names in a folder onto the disk: a file's own flush does not."""
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _move(fresh: Path, folder: Path) -> None:
    """Moves `fresh` to `folder`. A folder cannot be renamed over another, so an older one steps aside."""
    if not folder.exists():
        fresh.rename(folder)
        return
    older = folder.with_name(f".{folder.name}-{uuid.uuid4().hex}")
    folder.rename(older)
    try:
        fresh.rename(folder)
    except OSError:
        older.rename(folder)
        raise
    shutil.rmtree(older)
