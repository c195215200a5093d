"""The file of a backup: a zip with one member of JSON lines per table, and a manifest with checksums.

A reader extracts no file, takes only the members that the manifest lists and the tables that this version
has, and checks each member against its SHA-256 before the first row is used. It has no limits of
its own: whatever could be stored and written can be read.
"""

from __future__ import annotations

import hashlib
import json
import zipfile
import zlib
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager, nullcontext, suppress
from pathlib import Path
from typing import IO, Any, NoReturn, Self

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from service.errors import BackupError

FORMAT = 1
MANIFEST = "manifest.json"


class _Strict(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class Member(_Strict):
    """One table."""

    columns: list[str]
    rows: int = Field(ge=0)
    size: int = Field(ge=0)
    """Bytes, uncompressed."""
    sha256: str


class Manifest(_Strict):
    format: int
    made_by: str
    """Version of Nightsweep."""
    made_at: str
    revisions: dict[str, str]
    """`service` and `optuna` -> the revision of its schema."""
    members: dict[str, Member]
    """`<side>/<table>.jsonl` -> what it holds."""

    @property
    def rows(self) -> int:
        return sum(member.rows for member in self.members.values())


class Writer:
    """Writes the members one after the other, then the manifest. A context manager."""

    def __init__(self, file: IO[bytes]) -> None:
        self._zip = zipfile.ZipFile(file, "w", zipfile.ZIP_DEFLATED)
        self.members: dict[str, Member] = {}

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        # Of a file that could not be written nothing is kept, so its end may fail, too.
        with suppress(OSError) if kind is not None else nullcontext():
            self._zip.close()

    def add(self, name: str, columns: Sequence[str], rows: Iterable[Sequence[Any]]) -> None:
        digest, size, count = hashlib.sha256(), 0, 0
        with self._zip.open(name, "w", force_zip64=True) as member:
            for row in rows:
                line = json.dumps(row, separators=(",", ":"), allow_nan=False).encode() + b"\n"
                member.write(line)
                digest.update(line)
                size += len(line)
                count += 1
        self.members[name] = Member(columns=list(columns), rows=count, size=size, sha256=digest.hexdigest())

    def finish(self, *, made_by: str, made_at: str, revisions: dict[str, str]) -> Manifest:
        manifest = Manifest(
            format=FORMAT, made_by=made_by, made_at=made_at, revisions=revisions, members=self.members
        )
        self._zip.writestr(MANIFEST, manifest.model_dump_json(indent=1))
        return manifest


class Reader:
    """An archive whose manifest has been read and whose members are as it says.

    Raises:
        BackupError: it is not a backup, or is damaged.
    """

    def __init__(self, archive: zipfile.ZipFile, path: Path) -> None:
        self._zip = archive
        self._path = path
        self.manifest = self._read_manifest()
        self._check_members()

    def rows(self, name: str) -> Iterator[list[Any]]:
        """The rows of a member. Raises `BackupError` where one is not a list of the manifest's columns."""
        member = self.manifest.members[name]
        for number, line in enumerate(self._lines(name), 1):
            try:
                row = json.loads(line, parse_constant=_no_constant)
            except (ValueError, RecursionError):
                self._refuse(f"line {number} of {name} is not JSON")
            if not isinstance(row, list) or len(row) != len(member.columns):
                self._refuse(f"line {number} of {name} is not a row of {len(member.columns)} columns")
            yield row

    def _read_manifest(self) -> Manifest:
        names = self._zip.namelist()
        if MANIFEST not in names:
            self._refuse(f"it has no {MANIFEST}")
        if len(set(names)) != len(names):
            self._refuse(f"it has {len(names)} members, of which {len(set(names))} have different names")
        try:
            manifest = Manifest.model_validate_json(b"".join(self._chunks(MANIFEST)))
        except (ValidationError, RecursionError) as error:
            raise BackupError(
                f"{self._path} cannot be restored: its {MANIFEST} is not a valid manifest"
            ) from error
        if manifest.format != FORMAT:
            self._refuse(
                f"it has the format {manifest.format}, written by nightsweep {manifest.made_by}; "
                f"this version reads format {FORMAT}"
            )
        if set(names) != {*manifest.members, MANIFEST}:
            strange = sorted(set(names) ^ {*manifest.members, MANIFEST})
            self._refuse(f"its members differ from its {MANIFEST}: {', '.join(map(repr, strange[:5]))}")
        return manifest

    def _check_members(self) -> None:
        for name, member in self.manifest.members.items():
            digest, lines = hashlib.sha256(), 0
            for chunk in self._chunks(name):
                digest.update(chunk)
                lines += chunk.count(b"\n")
            if digest.hexdigest() != member.sha256 or lines != member.rows:
                self._refuse(f"{name} is damaged: its checksum is not the one in the {MANIFEST}")

    def _chunks(self, name: str) -> Iterator[bytes]:
        with self._reading(name) as member:
            while chunk := member.read(1 << 20):
                yield chunk

    def _lines(self, name: str) -> Iterator[bytes]:
        with self._reading(name) as member:
            for line in member:
                if not line.endswith(b"\n"):
                    self._refuse(f"{name} ends within a line")
                yield line

    @contextmanager
    def _reading(self, name: str) -> Iterator[IO[bytes]]:
        try:
            with self._zip.open(name) as member:
                yield member
        except (
            zipfile.BadZipFile,
            zlib.error,
            EOFError,
            NotImplementedError,
            RuntimeError,
            OSError,
        ) as error:
            raise BackupError(f"{self._path} cannot be restored: {name} is damaged: {error}") from error

    def _refuse(self, why: str) -> NoReturn:
        raise BackupError(f"{self._path} cannot be restored: {why}")


@contextmanager
def open_archive(path: Path) -> Iterator[Reader]:
    """A checked archive. Raises `BackupError`."""
    try:
        archive = zipfile.ZipFile(path)
    except OSError as error:
        raise BackupError(f"{path} cannot be read: {error.strerror}") from error
    except (zipfile.BadZipFile, ValueError, NotImplementedError) as error:
        raise BackupError(f"{path} is not a backup, or is damaged: {error}") from error
    with archive:
        yield Reader(archive, path)


def _no_constant(name: str) -> NoReturn:
    raise ValueError(f"{name} is not JSON")
