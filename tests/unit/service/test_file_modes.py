"""What the service writes is for its owner alone, whatever the umask says."""

from __future__ import annotations

import os
import stat
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from service import database
from service.child_process import ChildProcess
from service.settings import Settings
from service.supervisor import Supervisor


@pytest.fixture(autouse=True)
def open_handed() -> Iterator[None]:
    before = os.umask(0)
    yield
    os.umask(before)


def mode(path: Path) -> int:
    return stat.S_IMODE(path.stat().st_mode)


def test_home_and_databases(tmp_path: Path) -> None:
    settings = Settings(home=tmp_path / "home")
    database.upgrade(settings)
    assert mode(settings.home) == 0o700
    files = sorted(settings.home.glob("*.db*"))
    assert {"nightsweep.db", "optuna.db"} <= {file.name for file in files}
    assert {file.name: oct(mode(file)) for file in files} == dict.fromkeys((f.name for f in files), "0o600")


def test_databases_in_a_home_that_was_there_before(tmp_path: Path) -> None:
    tmp_path.chmod(0o755)
    database.upgrade(Settings(home=tmp_path))
    assert {mode(file) for file in tmp_path.glob("*.db")} == {0o600}


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
