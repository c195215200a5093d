"""Folders that services have left are removed by the next; those of the living are not."""

from __future__ import annotations

import subprocess
import sys
import tempfile
from pathlib import Path

import pytest

from service.ray_folder import RayFolder

HOLD = """
import sys
from service.ray_folder import RayFolder
folder = RayFolder()
(folder.path / "session").mkdir()
print(folder.path, flush=True)
sys.stdin.read()
"""


@pytest.fixture(autouse=True)
def temporary(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    return tmp_path


def test_the_folder_of_a_service_that_was_killed_is_removed_by_the_next(temporary: Path) -> None:
    (temporary / "nightsweep-of-something-else").mkdir()
    with subprocess.Popen(
        [sys.executable, "-c", HOLD], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as other:
        assert other.stdout is not None
        theirs = Path(other.stdout.readline().strip())
        mine = RayFolder()
        assert theirs.is_dir()  # it lives
        other.kill()
    assert (theirs / "session").is_dir()
    again = RayFolder()
    assert not theirs.exists()
    assert mine.path.is_dir()
    for folder in (mine, again):
        folder.remove()
    assert [path.name for path in temporary.iterdir()] == ["nightsweep-of-something-else"]
