"""The Ray that `nightsweep serve` starts: what runs in it, and that nothing of it is left."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest

from service.embedded.ports import free_port
from service.embedded.supervisor import Supervisor
from service.settings import Settings
from tests.support.checkout import ROOT
from tests.support.waiting import wait_until

_CONNECT = """
import sys, ray
ray.init(address=sys.argv[1], configure_logging=False, log_to_driver=False)
print(ray.get(ray.remote(lambda: 6 * 7).remote()))
"""


@pytest.fixture
def settings(tmp_path: Path) -> Settings:
    (tmp_path / "home").mkdir(mode=0o700)
    return Settings(home=tmp_path / "home")


@pytest.fixture
def address() -> str:
    return f"127.0.0.1:{free_port()}"


@pytest.fixture
def environment(settings: Settings) -> dict[str, str]:
    return Supervisor(settings)._ray_environment()


@pytest.fixture
def head(settings: Settings, address: str, environment: dict[str, str]) -> Iterator[psutil.Process]:
    supervisor = Supervisor(settings)
    child = supervisor._ray_head(int(address.rpartition(":")[2]), environment)
    child.start()
    assert child.pid is not None
    try:
        yield psutil.Process(child.pid)
    finally:
        child.terminate()
        child.join(30)
        assert supervisor._ray_folder is not None
        supervisor._ray_folder.remove()


def connect(address: str, environment: dict[str, str]) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-c", _CONNECT, address],
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
        cwd=ROOT,
        env={"PATH": "/usr/bin:/bin", "RAY_gcs_rpc_server_connect_timeout_s": "60", **environment},
    )


def is_alive(process: psutil.Process) -> bool:
    return process.is_running() and process.status() != psutil.STATUS_ZOMBIE


def title(process: psutil.Process) -> str:
    return " ".join(process.cmdline())


def parts(head: psutil.Process) -> list[psutil.Process]:
    return [child for child in head.children(recursive=True) if is_alive(child)]


def test_it_runs_tasks_of_those_with_its_token_and_starts_nothing_that_nobody_asks_for(
    head: psutil.Process, address: str, environment: dict[str, str], tmp_path: Path
) -> None:
    connected = connect(address, environment)
    assert connected.stdout.strip() == "42", connected.stderr
    titles = [title(part) for part in parts(head)]
    for needed in ("gcs_server", "raylet"):
        assert any(needed in each for each in titles), titles
    for unused in ("dashboard/dashboard.py", "ray.util.client.server", "log_monitor", "autoscaler"):
        assert not any(unused in each for each in titles), titles
    stranger = tmp_path / "token"
    stranger.write_text("0" * 64)
    refused = connect(address, {**environment, "RAY_AUTH_TOKEN_PATH": str(stranger)})
    assert "42" not in refused.stdout


def test_nothing_is_left_of_it_when_it_is_told_to_end(
    head: psutil.Process, address: str, environment: dict[str, str]
) -> None:
    assert connect(address, environment).returncode == 0
    running = parts(head)
    assert running
    head.terminate()
    wait_until(lambda: not any(is_alive(process) for process in (head, *running)))


def test_it_ends_when_a_part_of_it_dies(
    head: psutil.Process, address: str, environment: dict[str, str]
) -> None:
    assert connect(address, environment).returncode == 0
    gcs, raylet = (
        next(p for p in parts(head) if f"/{name} " in title(p)) for name in ("gcs_server", "raylet")
    )
    gcs.kill()
    wait_until(lambda: not is_alive(head) and not is_alive(raylet))
