"""Folders that services have left are removed by the next; those of the living are not."""

from __future__ import annotations

import errno
import fcntl
import shutil
import stat
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest

from service.embedded.ray_folder import RayFolder

HOLD = """
import sys
from service.embedded.ray_folder import RayFolder
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


def test_a_removal_that_did_not_end_is_done_again(temporary: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    left = temporary / "nsweep-ray-left"
    (left / "session").mkdir(parents=True)
    with monkeypatch.context() as disturbed:
        disturbed.setattr(shutil, "rmtree", lambda folder, **_: (folder / "session").rmdir())
        RayFolder().path.rmdir()
    assert left.is_dir()
    RayFolder().remove()
    assert not left.exists()


def test_no_other_user_gets_into_what_ray_opens_to_everybody(temporary: Path) -> None:
    folder = RayFolder()
    folder.ray.mkdir()
    folder.ray.chmod(0o777)  # as Ray does
    assert stat.S_IMODE(folder.path.stat().st_mode) == 0o700
    assert folder.ray.parent == folder.path
    folder.remove()


def test_the_paths_of_rays_sockets_are_short_enough(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tempfile, "tempdir", "/tmp")
    folder = RayFolder()
    folder.remove()
    session = "session_2026-11-29_21-15-13_123456_4194304"  # the largest process id
    assert len(f"{folder.ray}/{session}/sockets/plasma_store.1") < 107


def test_a_folder_that_was_removed_is_made_again_for_its_owner_alone(temporary: Path) -> None:
    folder = RayFolder()
    shutil.rmtree(folder.path)
    folder.make()
    assert stat.S_IMODE(folder.path.stat().st_mode) == 0o700
    RayFolder().remove()  # another service, which removes what nobody has locked
    assert folder.path.is_dir()
    folder.make()
    folder.remove()
    assert not list(temporary.iterdir())


def test_a_folder_that_somebody_put_in_its_place_is_refused(temporary: Path) -> None:
    folder = RayFolder()
    folder.path.rmdir()
    folder.path.mkdir()
    folder.path.chmod(0o777)
    with pytest.raises(OSError, match="open to others"):
        folder.make()
    folder.remove()


def test_a_link_is_not_followed(temporary: Path) -> None:
    (temporary / "precious").mkdir()
    (temporary / "nsweep-ray-link").symlink_to(temporary / "precious")
    RayFolder().remove()
    assert (temporary / "precious").is_dir()


def test_where_there_are_no_locks_nothing_is_removed(
    temporary: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def no_locks(*_: object) -> None:
        raise OSError(errno.ENOSYS, "no locks here")

    monkeypatch.setattr(fcntl, "flock", no_locks)
    first, second = RayFolder(), RayFolder()
    assert first.path.is_dir()
    for folder in (first, second):
        folder.remove()
    assert not list(temporary.iterdir())


@pytest.mark.parametrize("what", ["path", "ray", "session"])
def test_a_folder_that_is_removed_while_ray_runs_is_noticed_once(what: str) -> None:
    folder = RayFolder()
    session = folder.ray / "session_2026-11-29"
    assert not folder.was_removed()  # Ray has not made it yet
    session.mkdir(parents=True)
    assert not folder.was_removed()
    shutil.rmtree({"path": folder.path, "ray": folder.ray, "session": session}[what])
    assert [folder.was_removed(), folder.was_removed()] == [True, False]
    folder.remove()


@pytest.mark.usefixtures("temporary")
def test_a_folder_that_cannot_be_looked_at_counts_as_there(monkeypatch: pytest.MonkeyPatch) -> None:
    folder = RayFolder()
    (folder.ray / "session_1").mkdir(parents=True)
    assert not folder.was_removed()

    def refuse(path: Path) -> list[str]:
        raise OSError(errno.EMFILE, "Too many open files", str(path))

    with monkeypatch.context() as patch:
        patch.setattr("service.embedded.ray_folder.os.listdir", refuse)
        assert not folder.was_removed()
    assert not folder.was_removed()
    shutil.rmtree(folder.path)
    assert folder.was_removed()
    folder.remove()
