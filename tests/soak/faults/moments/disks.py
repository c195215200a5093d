"""A folder that is a file system of its own, so that it alone can be full, or read-only, for a while.

In memory (tmpfs), where this process may mount; elsewhere it is a plain folder, and `refusal` says why.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

SIZE_BYTES = 1 << 30
"""Room on a disk that is well. Only what is written takes memory."""


class Disk:
    """One file system.

    Args:
        folder: Where; made if it is not there.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        options = f"size={SIZE_BYTES},mode=0700"
        self.refusal = _mount("-t", "tmpfs", "-o", options, "nightsweep-faults", str(folder))
        """Why it is only a folder; None: it is a disk."""

    def close(self, *, keep: bool) -> None:
        """Unmount it, with its files copied into the folder beneath if they are to be kept."""
        if self.refusal is not None:
            if not keep:
                shutil.rmtree(self.folder, ignore_errors=True)
            return
        copy = self.folder.with_name(f"{self.folder.name}-copy")
        if keep:
            shutil.copytree(self.folder, copy, ignore=shutil.ignore_patterns("artifacts"), symlinks=True)
        subprocess.run(["umount", "--lazy", str(self.folder)], check=True)
        self.folder.rmdir()
        if keep:
            copy.rename(self.folder)

    @contextmanager
    def full(self) -> Iterator[None]:
        """Nobody can write a byte more to it. What is deleted meanwhile leaves no room either."""
        assert self.refusal is None
        self._shrink()
        ended = threading.Event()

        def stay_full() -> None:
            while not ended.wait(0.2):
                self._shrink()

        keeper = threading.Thread(target=stay_full, name="full disk", daemon=True)
        keeper.start()
        try:
            yield
        finally:
            ended.set()
            keeper.join()
            _required("-o", f"remount,size={SIZE_BYTES}", str(self.folder))

    def _shrink(self) -> None:
        """Make it as small as what is on it; somebody may be writing at this moment."""
        for _ in range(50):
            found = os.statvfs(self.folder)
            used = (found.f_blocks - found.f_bfree) * found.f_frsize
            if _mount("-o", f"remount,size={max(used, found.f_frsize)}", str(self.folder)) is None:
                return
        raise AssertionError(f"{self.folder} could not be made full")

    @contextmanager
    def read_only(self) -> Iterator[None]:
        """Nobody can open a file in it for writing, or make one. Files that are open for writing stay so."""
        assert self.refusal is None
        _required("--bind", str(self.folder), str(self.folder))
        try:
            _required("-o", "remount,bind,ro", str(self.folder))
            yield
        finally:
            subprocess.run(["umount", "--lazy", str(self.folder)], check=True)


def _mount(*arguments: str) -> str | None:
    """What the system says against it; None: it is done."""
    program = shutil.which("mount")
    if program is None:
        return "there is no `mount` here"
    made = subprocess.run([program, *arguments], capture_output=True, text=True, check=False)
    return None if made.returncode == 0 else made.stderr.strip() or f"mount ended with {made.returncode}"


def _required(*arguments: str) -> None:
    refusal = _mount(*arguments)
    assert refusal is None, refusal
