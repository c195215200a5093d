"""What the version before has written: see tests/fixtures/2026-11-30/README.md."""

from __future__ import annotations

import json
import tarfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from typer.testing import CliRunner, Result

from service.cli.root import app
from tests.support.checkout import ROOT

WRITTEN_AT = "/srv/nightsweep"
"""The folder that everything was written under, as the paths in it say."""
_ARCHIVE = ROOT / "tests" / "fixtures" / "2026-11-30" / "written.tar.xz"


def read_json(name: str) -> Any:
    """The content of a JSON file in the archive."""
    with tarfile.open(_ARCHIVE) as archive:
        file = archive.extractfile(name)
        assert file is not None
        return json.load(file)


@dataclass(frozen=True)
class VersionBefore:
    """A copy of all of it.

    Attributes:
        folder: holds `home`, `base`, `train.jsonl` and `eval.jsonl`.
    """

    folder: Path

    @classmethod
    def unpacked(cls, folder: Path) -> VersionBefore:
        with tarfile.open(_ARCHIVE) as archive:
            archive.extractall(folder, filter="data")
        return cls(folder)

    @property
    def home(self) -> Path:
        return self.folder / "home"

    @property
    def headers(self) -> dict[str, str]:
        """The API key of `alice`, whose studies these are."""
        return {"authorization": f"Bearer {(self.folder / 'key').read_text()}"}

    def nightsweep(self, *arguments: str) -> Result:
        """Runs `nightsweep ...` on its home in this process."""
        environment = {"NIGHTSWEEP_HOME": str(self.home), "NIGHTSWEEP_DATABASE_URL": None}
        return CliRunner().invoke(app, arguments, env=environment, catch_exceptions=False)
