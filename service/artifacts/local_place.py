"""Artifacts in a folder. Whoever may write into it leads nobody out of it.

A worker's account may plant a symbolic link anywhere below, and swap a folder for one at any moment. So a
folder is opened step by step from the top, without following links, and what is in it is listed and removed
by its descriptor.
"""

from __future__ import annotations

import errno
import os
import shutil
import stat
import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path

from service.artifacts.layout import NUMBER, STUDY, Folder, is_ours

_OPEN = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
_ABSENT = frozenset({errno.ENOENT, errno.ENOTDIR, errno.ELOOP})  # a link is refused by the last two


class LocalPlace:
    """A `Place` on this machine, or on a disk that the machines share.

    Args:
        root: the artifacts' folder; it may be a link itself, and need not exist.
    """

    def __init__(self, root: Path) -> None:
        self.root = Path(os.path.realpath(root))

    @property
    def shown(self) -> str:
        return str(self.root)

    def studies(self) -> list[str]:
        with _opened(self.root) as top:
            return [] if top is None else [name for name in _subfolders(top) if STUDY.fullmatch(name)]

    def folders(self, study_id: str) -> dict[Folder, int]:
        found = {}
        with _opened(self.root, study_id) as study:
            for trial in _numbers(study):
                with _opened(str(trial), within=study) as attempts:
                    for ordinal in _numbers(attempts):
                        with _opened(str(ordinal), within=attempts) as attempt:
                            for name in filter(is_ours, [] if attempt is None else _subfolders(attempt)):
                                found[Folder(trial, ordinal, name)] = _measure(name, attempt)[0]
        return found

    def remove(self, study_id: str, folder: Folder) -> None:
        trial, ordinal = str(folder.trial), str(folder.ordinal)
        with _opened(self.root, study_id, trial, ordinal) as attempt:
            if attempt is None:
                return
            _remove(folder.name, attempt)
        for above in ((study_id, trial, ordinal), (study_id, trial), (study_id,)):
            with _opened(self.root, *above[:-1]) as parent:
                if parent is None or not _remove_if_empty(above[-1], parent):
                    return

    def size_and_age(self, study_id: str) -> tuple[int, float | None]:
        with _opened(self.root) as top:
            if top is None:
                return 0, None
            size, changed = _measure(study_id, top)
        return size, None if changed is None else time.time() - changed

    def remove_study(self, study_id: str) -> None:
        with _opened(self.root) as top:
            if top is not None:
                _remove(study_id, top)


@contextmanager
def _opened(first: str | Path, *more: str, within: int | None = None) -> Iterator[int | None]:
    """The descriptor of a folder, reached without following a link; None when it is not there as a folder."""
    held: list[int] = []
    try:
        yield _descend((first, *more), within, held)
    finally:
        for descriptor in held:
            os.close(descriptor)


def _descend(names: Iterable[str | Path], within: int | None, held: list[int]) -> int | None:
    for name in names:
        try:
            within = os.open(name, _OPEN, dir_fd=within)
        except OSError as error:
            if error.errno not in _ABSENT:
                raise
            return None
        held.append(within)
    return within


def _subfolders(folder: int) -> list[str]:
    with os.scandir(folder) as entries:
        return sorted(entry.name for entry in entries if entry.is_dir(follow_symlinks=False))


def _numbers(folder: int | None) -> list[int]:
    names = [] if folder is None else _subfolders(folder)
    # As `str` writes them, so that the number leads back to the folder.
    return sorted(int(name) for name in names if NUMBER.fullmatch(name) and str(int(name)) == name)


def _measure(name: str, within: int | None) -> tuple[int, float | None]:
    """Bytes of the files below a folder, and when anything there changed last."""
    size, changed = 0, None
    for _, folders, files, descriptor in os.fwalk(name, dir_fd=within, follow_symlinks=False):
        moments = [os.fstat(descriptor).st_mtime]
        for entry in (*folders, *files):
            try:
                found = os.stat(entry, dir_fd=descriptor, follow_symlinks=False)
            except FileNotFoundError:
                continue  # gone meanwhile
            moments.append(found.st_mtime)
            size += found.st_size if stat.S_ISREG(found.st_mode) else 0
        changed = max(*moments, changed or 0.0)
    return size, changed


def _remove(name: str, within: int) -> None:
    try:
        shutil.rmtree(name, dir_fd=within)
    except FileNotFoundError:
        return


def _remove_if_empty(name: str, within: int) -> bool:
    try:
        os.rmdir(name, dir_fd=within)
    except OSError:
        return False
    return True
