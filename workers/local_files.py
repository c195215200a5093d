"""Local files are opened first and looked at then, so that none is exchanged between the two.

The definition holds the path that a file had when it was accepted, with every link followed. Whoever can
write to its folder may put a link in its place later.
"""

from __future__ import annotations

import os
import stat
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO

from workers.errors import DataError, ModelError, faults_of_libraries

Roots = Sequence[str] | None
"""Folders that local files must lie in; None: anywhere."""
_DELETED = " (deleted)"


def open_data(path: Path, roots: Roots) -> BinaryIO:
    """A data file, open for reading.

    Raises:
        DataError: It is not a regular file, or lies outside the roots.
        OSError: It cannot be opened.
    """
    # A pipe without a writer would block.
    file = open(path, "rb", opener=lambda name, flags: os.open(name, flags | os.O_NONBLOCK))  # noqa: SIM115
    try:
        if not stat.S_ISREG(os.fstat(file.fileno()).st_mode):
            raise DataError(f"The data file {path} is not a regular file.")
        if not is_inside(_path_of(file, path), path, roots):
            raise DataError(f"The data file {path} {_LEADS_OUT}")
    except BaseException:
        file.close()
        raise
    return file


@contextmanager
def unexchanged(folder: Path, name: str, roots: Roots) -> Iterator[None]:
    """Refuses what is loaded from a model's folder meanwhile, if a file of it is exchanged before the end.

    Libraries open a model's files by their names, so their descriptors cannot be looked at.

    Args:
        folder: Of the model, as the definition has it.
        name: Of the model, in messages.
        roots: Folders that it must lie in with all its files.

    Raises:
        ModelError: The folder or a file in it lies outside the roots, is neither a file nor a folder, or was
            exchanged.
    """
    with faults_of_libraries(lambda: f"The folder of the model {name} cannot be read", ModelError):
        before = _identities(folder, name, roots)
    yield
    with faults_of_libraries(lambda: f"The folder of the model {name} cannot be read", ModelError):
        after = _identities(folder, name, roots)
    if after != before:
        raise ModelError(
            f"The files of the model {name} changed while they were read. Submit the study again once nobody "
            "writes to its folder."
        )


def _identities(folder: Path, name: str, roots: Roots) -> list[tuple[object, ...]]:
    """What tells each file of a folder from another one in its place, even from itself put back there."""
    if not is_inside(os.path.realpath(folder), folder, roots):
        raise ModelError(f"The folder of the model {name} {_LEADS_OUT}")
    found: list[tuple[object, ...]] = []
    for entry in sorted(os.scandir(folder), key=lambda entry: entry.name):
        real = os.path.realpath(entry.path)
        if not is_inside(real, Path(entry.path), roots):
            raise ModelError(f"The file {entry.path} of the model {name} {_LEADS_OUT}")
        try:
            status = os.stat(entry.path)
        except FileNotFoundError:
            continue  # a link to nothing, which whoever needs it says
        if not (stat.S_ISREG(status.st_mode) or stat.S_ISDIR(status.st_mode)):
            raise ModelError(f"{entry.path} of the model {name} is neither a file nor a folder.")
        if stat.S_ISREG(status.st_mode):
            link = os.lstat(entry.path)
            marks = (status.st_dev, status.st_ino, status.st_size, status.st_mtime_ns, status.st_ctime_ns)
            found.append((entry.name, real, *marks, link.st_ino, link.st_ctime_ns))
    return found


def is_inside(real: str, path: Path, roots: Roots) -> bool:
    """Whether a file may be read: no link was followed to it, or it lies in a root.

    Args:
        real: Where it is.
        path: What was opened.
        roots: As in `LoadingLimits.data_roots`; links within them are followed on this machine.
    """
    if roots is None or real == os.path.abspath(path):
        return True
    return any(Path(real).is_relative_to(os.path.realpath(root)) for root in roots)


_LEADS_OUT = (
    "leads out of the data roots: it, or a folder above it, is a link. If the link is meant, set "
    "NIGHTSWEEP_DATA_ROOTS to folders that hold both, for the API and for the coordinator; else put the file "
    "itself there. Then submit the study again."
)


def _path_of(file: BinaryIO, path: Path) -> str:
    """Where an open file is; on Linux by its descriptor, whatever has become of its name."""
    try:
        return os.readlink(f"/proc/self/fd/{file.fileno()}").removesuffix(_DELETED)
    except OSError:
        return os.path.realpath(path)
