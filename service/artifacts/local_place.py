"""Artifacts in a folder. Whoever may write into it leads nobody out of it.

A worker's account may plant a symbolic link anywhere below, and swap a folder for one at any moment. So a
folder is opened step by step from the top, without following links, and what is in it is listed and removed
by its descriptor. fsspec opens by paths only, so this does not go through it.
"""

from __future__ import annotations

import errno
import os
import shutil
import stat
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path

from service.artifacts.layout import STUDY, Entry, Folder, Place

_OPEN = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
_ABSENT = frozenset({errno.ENOENT, errno.ENOTDIR, errno.ELOOP})  # a link is refused by the last two


class LocalPlace(Place):
    """A `Place` on this machine, or on a disk that the machines share.

    Args:
        root: the artifacts' folder; it may be a link itself, and need not exist.
    """

    def __init__(self, root: Path) -> None:
        self.root = Path(os.path.realpath(root))
        self.shown = str(self.root)

    def studies(self) -> list[str]:
        with _opened(self.root) as top:
            return [] if top is None else [name for name in _subfolders(top) if STUDY.fullmatch(name)]

    def entries(self, study_id: str) -> Iterator[Entry]:
        with _opened(self.root, study_id) as study:
            if study is None:
                return
            walk = os.fwalk(".", onerror=_raise_unless_absent, dir_fd=study, follow_symlinks=False)
            for below, folders, files, descriptor in walk:
                path = Path(below).parts
                yield Entry(path, 0, os.fstat(descriptor).st_mtime, is_folder=True)
                for name in (*folders, *files):
                    try:
                        found = os.stat(name, dir_fd=descriptor, follow_symlinks=False)
                    except FileNotFoundError:
                        continue  # gone meanwhile
                    size = found.st_size if stat.S_ISREG(found.st_mode) else 0
                    yield Entry((*path, name), size, found.st_mtime)

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

    def remove_study(self, study_id: str) -> None:
        with _opened(self.root) as top:
            if top is not None:
                _remove(study_id, top)


@contextmanager
def _opened(*names: str | Path) -> Iterator[int | None]:
    """The descriptor of a folder, reached without following a link; None when it is not there as a folder."""
    with ExitStack() as stack:
        yield _descend(names, stack)


def _descend(names: Sequence[str | Path], stack: ExitStack) -> int | None:
    within = None
    for name in names:
        try:
            within = os.open(name, _OPEN, dir_fd=within)
        except OSError as error:
            _raise_unless_absent(error)
            return None
        stack.callback(os.close, within)
    return within


def _raise_unless_absent(error: OSError) -> None:
    if error.errno not in _ABSENT:
        raise error


def _subfolders(folder: int) -> list[str]:
    with os.scandir(folder) as entries:
        return sorted(entry.name for entry in entries if entry.is_dir(follow_symlinks=False))


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
