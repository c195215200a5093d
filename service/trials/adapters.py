"""An adapter's folder as a zip, streamed."""

from __future__ import annotations

import io
import os
import stat
import zipfile
from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import BinaryIO, NamedTuple

from search_spaces.values.artifact_layout import ADAPTER_FILES, HEAD_FILES
from search_spaces.values.artifact_urls import is_url
from service.artifacts.local_place import LocalPlace
from service.artifacts.places import place_behind
from service.errors import NotFound
from service.settings import Settings

_FILES = sorted((*ADAPTER_FILES, *HEAD_FILES))
"""All that is given out, those of a head only where there are some."""

_CHUNK = 1 << 20
_ZIP64 = 0x7FFF_FFFF
"""Files as large as this need the zip's larger form."""
_ELSEWHERE = "The adapter is outside this server's artifacts, so it cannot be downloaded."


class _File(NamedTuple):
    name: str
    file: BinaryIO
    size: int | None
    """None: not known before it has been read."""


def stream_zip(folder: str, settings: Settings) -> Iterator[bytes]:
    """The files of an adapter's folder as an uncompressed zip (weights do not compress).

    The files are opened before this returns, so what is missing is said before any byte is sent.

    Args:
        folder: the path or URL of the adapter's folder; must lie in `artifacts_dir`, links followed, or in
            `artifacts_url`.
        settings: say where artifacts lie. Nothing is given out of any other place.

    Raises:
        NotFound: it lies elsewhere, or a file is missing or not a regular one.
        Unavailable: what lies behind the URL does not answer.
    """
    with ExitStack() as stack:
        if is_url(folder):
            files = _open_remote(folder, settings.artifacts_url, stack)
        else:
            files = _open_local(folder, settings.artifacts_dir, stack)
        return _zip(files, stack.pop_all())


def _open_local(folder: str, root: Path, stack: ExitStack) -> list[_File]:
    real = Path(os.path.realpath(folder))
    if not real.is_relative_to(os.path.realpath(root)):
        raise NotFound(_ELSEWHERE)
    names = [name for name in _FILES if name not in HEAD_FILES or os.path.lexists(real / name)]
    files = [stack.enter_context(_open_regular(real / name)) for name in names]
    return [
        _File(name, file, os.fstat(file.fileno()).st_size) for name, file in zip(names, files, strict=True)
    ]


def _open_remote(folder: str, root: str | None, stack: ExitStack) -> list[_File]:
    # As text, before anything is asked for it: `..` has a meaning in some storages and none in others.
    if root is None or not folder.startswith(f"{root}/"):
        raise NotFound(_ELSEWHERE)
    within = folder.removeprefix(f"{root}/").rstrip("/")
    if any(part in ("", ".", "..") for part in within.split("/")):
        raise NotFound(_ELSEWHERE)
    place = place_behind(root)
    if isinstance(place, LocalPlace):
        return _open_local(str(place.root / within), place.root, stack)
    files = []
    for name in _FILES:
        try:
            file, size = place.open(f"{within}/{name}")
        except NotFound:
            if name in HEAD_FILES:
                continue
            raise
        files.append(_File(name, stack.enter_context(file), size))
    return files


def _open_regular(path: Path) -> BinaryIO:
    # O_NOFOLLOW and O_NONBLOCK: a link is not followed, a pipe is not waited for.
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK)
    except OSError as error:
        raise NotFound(
            f"The adapter's {path.name} is not on this server: {error.strerror}. Workers on other machines"
            " must store their artifacts in a folder or at a URL that the server shares."
        ) from None
    file = os.fdopen(descriptor, "rb")
    if not stat.S_ISREG(os.fstat(descriptor).st_mode):
        file.close()
        raise NotFound(f"The adapter's {path.name} is not a regular file.")
    return file


class _Outbox(io.RawIOBase):
    """A file that only grows and is emptied from the front, so the zip is never held whole."""

    def __init__(self) -> None:
        self._chunks: list[bytes] = []

    def writable(self) -> bool:
        return True

    def write(self, data: bytes | bytearray | memoryview) -> int:  # type: ignore[override]
        self._chunks.append(bytes(data))
        return len(data)

    def take(self) -> bytes:
        taken = b"".join(self._chunks)
        self._chunks.clear()
        return taken


def _zip(files: Sequence[_File], stack: ExitStack) -> Iterator[bytes]:
    with stack, _Outbox() as outbox:
        with zipfile.ZipFile(outbox, "w", zipfile.ZIP_STORED) as archive:
            for name, file, size in files:
                # A fixed time stamp: the same adapter gives the same bytes.
                entry = zipfile.ZipInfo(name)
                entry.file_size = size or 0
                with archive.open(entry, "w", force_zip64=size is None or size >= _ZIP64) as target:
                    while chunk := file.read(_CHUNK):
                        target.write(chunk)
                        yield outbox.take()
        yield outbox.take()
