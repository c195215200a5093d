"""What the service writes is for its owner alone, whatever the umask says."""

from __future__ import annotations

import errno
import os
import stat
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from service.embedded.child_process import ChildProcess
from service.embedded.supervisor import Supervisor
from service.home_folder import UnusableHome, make_home
from service.maintenance import schema
from service.settings import Settings


@pytest.fixture(autouse=True)
def open_handed() -> Iterator[None]:
    before = os.umask(0)
    yield
    os.umask(before)


def mode(path: Path) -> int:
    return stat.S_IMODE(path.stat().st_mode)


def test_home_and_databases(tmp_path: Path) -> None:
    settings = Settings(home=tmp_path / "home")
    schema.upgrade(settings)
    assert mode(settings.home) == 0o700
    files = sorted(settings.home.glob("*.db*"))
    assert {"nightsweep.db", "optuna.db"} <= {file.name for file in files}
    assert {file.name: oct(mode(file)) for file in files} == dict.fromkeys((f.name for f in files), "0o600")


def test_databases_in_a_home_that_was_there_before(tmp_path: Path) -> None:
    tmp_path.chmod(0o755)
    schema.upgrade(Settings(home=tmp_path))
    assert {mode(file) for file in tmp_path.glob("*.db")} == {0o600}


def test_a_home_that_was_open_is_closed_with_its_files_and_one_line(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    home = tmp_path / "home"
    (home / "logs").mkdir(parents=True, mode=0o755)
    home.chmod(0o755)
    for name in ("nightsweep.db", "optuna.db", "ray_token", "serve.json", "logs/api.log", "notes.txt"):
        (home / name).touch(mode=0o644)
    (home / "logs" / "link.log").symlink_to(home / "notes.txt")
    for _ in range(2):
        schema.upgrade(Settings(home=home))
    assert mode(home) == 0o700
    closed = ("nightsweep.db", "optuna.db", "ray_token", "serve.json", "logs/api.log")
    assert {name: mode(home / name) for name in closed} == dict.fromkeys(closed, 0o600)
    assert mode(home / "notes.txt") == 0o644  # not the service's
    lines = [record.message for record in caplog.records if "was open to other users" in record.message]
    assert len(lines) == 1
    assert lines[0].endswith("(mode 755); it now has mode 700, and 5 of its files mode 600")


def test_databases_elsewhere_are_closed(tmp_path: Path) -> None:
    elsewhere = tmp_path / "elsewhere.db"
    elsewhere.touch(mode=0o666)
    make_home(Settings(home=tmp_path / "home", database_url=f"sqlite:///{elsewhere}"))
    assert mode(elsewhere) == 0o600


def test_a_folder_that_users_share_is_no_home(tmp_path: Path) -> None:
    tmp_path.chmod(0o1777)
    with pytest.raises(UnusableHome, match="is one that users share"):
        make_home(Settings(home=tmp_path))
    assert stat.S_IMODE(tmp_path.stat().st_mode) == 0o1777


def test_a_home_of_another_user_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    owner = tmp_path.stat().st_uid
    if owner == 0:
        os.chown(tmp_path, 12345, -1)
        owner = 12345
    monkeypatch.setattr(os, "geteuid", lambda: owner + 1)
    with pytest.raises(UnusableHome, match=f"belongs to another user .id {owner}, "):
        make_home(Settings(home=tmp_path))
    assert not list(tmp_path.iterdir())


def test_root_may_use_the_home_of_anybody(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As in a container, where the home is a folder of the host's."""
    if os.geteuid() == 0:
        os.chown(tmp_path, 12345, -1)
    monkeypatch.setattr(os, "geteuid", lambda: 0)
    tmp_path.chmod(0o755)
    make_home(Settings(home=tmp_path))
    assert mode(tmp_path) == 0o700


def test_a_file_system_without_rights_is_told_of_and_used(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """As exFAT and some network shares are."""
    tmp_path.chmod(0o755)

    def refuse(*_: object, **__: object) -> None:
        raise PermissionError(errno.EPERM, os.strerror(errno.EPERM))

    (tmp_path / "nightsweep.db").touch(mode=0o644)
    monkeypatch.setattr(Path, "chmod", refuse)
    make_home(Settings(home=tmp_path))
    assert "cannot be closed: Operation not permitted" in caplog.text


def test_rays_token(tmp_path: Path) -> None:
    supervisor = Supervisor(Settings(home=tmp_path))
    (tmp_path / "ray_token").touch(mode=0o600)  # left by one who died over it
    environment = supervisor._ray_environment()
    token = Path(environment["RAY_AUTH_TOKEN_PATH"])
    assert environment["RAY_AUTH_MODE"] == "token"
    assert (mode(token), len(token.read_text())) == (0o600, 64)
    (tmp_path / "ray_token").unlink()
    supervisor._ray_environment()
    kept = token.read_text()
    assert (mode(token), len(kept)) == (0o600, 64)
    supervisor._ray_environment()
    assert token.read_text() == kept


def test_logs(tmp_path: Path) -> None:
    log = tmp_path / "logs" / "api.log"
    child = ChildProcess("api", [sys.executable, "-c", "print('secret')"], environment={}, log_file=log)
    child.start()
    child.join(30)
    assert log.read_text() == "secret\n"
    assert (mode(log.parent), mode(log)) == (0o700, 0o600)
