"""An adapter's folder as a zip, streamed."""

from __future__ import annotations

import io
import os
import stat
import zipfile
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import BinaryIO

from service.errors import NotFound

PEFT_FILES = ("adapter_config.json", "adapter_model.safetensors")
"""What `PeftModel.from_pretrained` reads, and all that is given out."""

_CHUNK = 1 << 20


def stream_zip(folder: str, artifacts_dir: Path) -> Iterator[bytes]:
    """The PEFT files of an adapter's folder as an uncompressed zip (weights do not compress).

    The files are opened before this returns, so what is missing is said before any byte is sent.

    Args:
        folder: the adapter's folder; must lie in `artifacts_dir`, links followed.
        artifacts_dir: the only folder that anything is given out of.

    Raises:
        NotFound: it lies elsewhere, or a file is missing or not a regular one.
    """
    real = Path(os.path.realpath(folder))
    if not real.is_relative_to(os.path.realpath(artifacts_dir)):
        raise NotFound("The adapter lies outside this server's artifacts folder, so it is not given out.")
    with ExitStack() as stack:
        files = {name: stack.enter_context(_open_regular(real / name)) for name in PEFT_FILES}
        return _zip(files, stack.pop_all())


def _open_regular(path: Path) -> BinaryIO:
    # O_NOFOLLOW and O_NONBLOCK: a link is not followed, a pipe is not waited for.
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK)
    except OSError as error:
        raise NotFound(
            f"The adapter's {path.name} is not on this server: {error.strerror}. Artifacts of workers on "
            "other machines are found only in a folder that all share."
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


def _zip(files: dict[str, BinaryIO], stack: ExitStack) -> Iterator[bytes]:
    with stack, _Outbox() as outbox:
        with zipfile.ZipFile(outbox, "w", zipfile.ZIP_STORED) as archive:
            for name, file in files.items():
                # A fixed time stamp: the same adapter gives the same bytes.
                entry = zipfile.ZipInfo(name)
                entry.file_size = os.fstat(file.fileno()).st_size
                with archive.open(entry, "w", force_zip64=entry.file_size >= zipfile.ZIP64_LIMIT) as target:
                    while chunk := file.read(_CHUNK):
                        target.write(chunk)
                        yield outbox.take()
        yield outbox.take()
