"""A place behind a URL that fails when it is told to: fsspec's file system in memory, with faults."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, ClassVar

import fsspec
from fsspec.implementations.memory import MemoryFileSystem


class FlakyFileSystem(MemoryFileSystem):  # type: ignore[misc]
    """`flaky://` URLs. One store for the whole process, as for `memory://`."""

    protocol = "flaky"
    store: ClassVar[dict[str, Any]] = {}
    pseudo_dirs: ClassVar[list[str]] = [""]
    root_marker = "/"
    fault: ClassVar[Callable[[str, str], None]] = staticmethod(lambda operation, path: None)
    """Called before each operation with its name and path; what it raises, the operation raises. Of a
    `pipe_file` that is torn, half of the file is there already."""

    @classmethod
    def _strip_protocol(cls, path: str) -> str:
        path = path.removeprefix("flaky://")
        return MemoryFileSystem._strip_protocol(path)  # type: ignore[no-any-return]

    def pipe_file(self, path: str, value: bytes, mode: str = "overwrite", **kwargs: Any) -> None:
        super().pipe_file(path, value[: len(value) // 2])
        type(self).fault("put", path)
        super().pipe_file(path, value)

    def cat_file(self, path: str, *args: Any, **kwargs: Any) -> bytes:
        type(self).fault("get", path)
        return super().cat_file(path, *args, **kwargs)  # type: ignore[no-any-return]

    def find(self, path: str, *args: Any, **kwargs: Any) -> Any:
        type(self).fault("list", path)
        return super().find(path, *args, **kwargs)

    def info(self, path: str, **kwargs: Any) -> Any:
        type(self).fault("info", path)
        return super().info(path, **kwargs)

    def rm(self, path: str, *args: Any, **kwargs: Any) -> Any:
        type(self).fault("remove", path)
        return super().rm(path, *args, **kwargs)


@contextmanager
def flaky_storage() -> Iterator[type[FlakyFileSystem]]:
    """An empty `flaky://` that has no fault yet."""
    fsspec.register_implementation("flaky", FlakyFileSystem, clobber=True)
    FlakyFileSystem.store.clear()
    FlakyFileSystem.pseudo_dirs[:] = [""]
    FlakyFileSystem.fault = staticmethod(lambda operation, path: None)
    yield FlakyFileSystem
    FlakyFileSystem.store.clear()
    FlakyFileSystem.fault = staticmethod(lambda operation, path: None)


class Cut(Exception):  # noqa: N818 - what botocore, azure and the like raise is no OSError either
    """The connection went away."""


def failing(
    operation: str, *, after: int = 0, error: BaseException | None = None
) -> Callable[[str, str], None]:
    """A fault of every operation of this kind but the first `after` ones."""
    seen = 0

    def fault(found: str, path: str) -> None:
        nonlocal seen
        if found == operation:
            seen += 1
            if seen > after:
                raise error or OSError(5, "Input/output error")

    return fault
