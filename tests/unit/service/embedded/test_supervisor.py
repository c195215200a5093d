"""What is wrong from the start is said before anything is started, and ending has a limit."""

from __future__ import annotations

import os
import resource
import signal
import socket
import subprocess
import sys
from dataclasses import dataclass, field
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from service.coordinator.cluster import ray_authentication
from service.embedded import supervisor
from service.embedded.ports import free_port
from service.errors import Unavailable
from service.settings import Settings
from tests.support.checkout import ROOT
from tests.support.waiting import wait_until


class Clock:
    now = 100.0

    def monotonic(self) -> float:
        return self.now


@dataclass
class Hanging:
    """A child that ends only when it is killed."""

    clock: Clock
    waited: list[float] = field(default_factory=list)

    def terminate(self) -> None:
        """It does not listen."""

    def join(self, timeout_s: float) -> None:
        self.waited.append(timeout_s)
        self.clock.now += timeout_s


def test_a_url_that_nothing_here_reaches_is_said_before_anything_is_started(tmp_path: Path) -> None:
    settings = Settings(home=tmp_path / "home", artifacts_url="nothing://bucket/x")
    with pytest.raises(Unavailable, match="nothing://bucket/x cannot be used for artifacts"):
        supervisor.Supervisor(settings).__enter__()
    with pytest.raises(Unavailable, match="nothing://bucket/x cannot be used for artifacts"):
        supervisor.run_api(settings)
    assert not settings.home.exists()


def test_a_cluster_that_does_not_answer_is_said_before_anything_is_started(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(_: Settings) -> None:
        raise Unavailable("no head there")

    monkeypatch.setattr(ray_authentication, "require", refuse)
    settings = Settings(home=tmp_path / "home", port=free_port(), ray_address="head-node:6379")
    with pytest.raises(Unavailable, match="no head there"):
        supervisor.Supervisor(settings).__enter__()
    assert not (settings.home / "logs").exists()


def test_the_api_says_in_a_sentence_that_its_port_is_taken(tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        settings = Settings(home=tmp_path / "home", port=taken.getsockname()[1])
        with pytest.raises(Unavailable, match="Choose another port with --port"):
            supervisor.run_api(settings)


@pytest.mark.parametrize(
    ("host", "url"),
    [
        ("127.0.0.1", "http://127.0.0.1:8787"),
        ("0.0.0.0", "http://127.0.0.1:8787"),
        ("::", "http://[::1]:8787"),
        ("::1", "http://[::1]:8787"),
        ("build-box", "http://build-box:8787"),
    ],
)
def test_the_url_is_one_that_reaches_the_server_from_here(tmp_path: Path, host: str, url: str) -> None:
    assert supervisor.Supervisor(Settings(home=tmp_path, host=host)).url == url


class Fragile:
    """A child that must not die, or whose watching fails."""

    def __init__(self, error: Exception | None = None) -> None:
        self.error, self.asked, self.is_alive = error, 0, True

    def keep_alive(self) -> bool:
        self.asked += 1
        if self.error is not None:
            raise self.error
        return False

    def limit_log(self) -> None:
        """Nothing to do."""


@pytest.mark.parametrize(
    "error", [OSError(24, "Too many open files"), MemoryError(), KeyError("a fault of the supervisor's own")]
)
def test_an_error_on_one_child_keeps_the_watcher_from_no_other(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, error: Exception
) -> None:
    watched: Any = supervisor.Supervisor(Settings(home=tmp_path))
    watched._coordinator, watched._api = Fragile(error), Fragile()
    for _ in range(5):
        watched._look_after_children()
    assert (watched._coordinator.asked, watched._api.asked) == (5, 5)
    failed = [record for record in caplog.records if "check of the child processes failed" in record.message]
    assert len(failed) == 1


def test_a_watcher_that_ends_ends_the_process_with_a_message(tmp_path: Path) -> None:
    script = f"""
import sys, threading
from pathlib import Path
from types import SimpleNamespace
from service.embedded import supervisor
from service.cli.in_process import service_errors_explained
from service.settings import Settings

def enter(self):
    def fail():
        raise SystemExit("broken beyond repair")  # which `except Exception` does not catch
    self._look_after_children = fail
    self._watcher.start()
    return self

supervisor.Supervisor.__enter__ = enter
supervisor.WATCH_SECONDS = 0.01
with service_errors_explained():
    supervisor.serve(Settings(home=Path({str(tmp_path)!r})), on_ready=print)
"""
    ended = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, timeout=60, check=False, cwd=ROOT
    )
    assert ended.returncode == 1, ended
    assert "the child processes are no longer supervised; this process ends" in ended.stderr
    assert "Error: The service ended because its processes could not be supervised" in ended.stderr


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux has prlimit for other processes")
def test_a_child_that_died_while_no_descriptor_was_left_is_started_again(tmp_path: Path) -> None:
    """The real error: a supervisor whose limit of descriptors is lowered from outside."""
    script = f"""
import sys, threading
from pathlib import Path
from types import SimpleNamespace
from service.embedded import child_process, supervisor
from service.embedded.child_process import ChildProcess
from service.settings import Settings

child_process.MAX_BACKOFF_SECONDS = 0.2
server = supervisor.Supervisor(Settings(home=Path({str(tmp_path)!r})))
command = [sys.executable, "-c", "import threading; threading.Event().wait()"]
log_file = Path({str(tmp_path)!r}, "c.log")
server._coordinator = ChildProcess("coordinator", command, environment={{}}, log_file=log_file)
server._coordinator.start()
server._watcher.start()
while True:
    input()
    print(server.coordinator_pid, flush=True)
"""
    with (
        (tmp_path / "errors").open("w") as errors,
        subprocess.Popen(
            [sys.executable, "-c", script],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=errors,
            text=True,
            cwd=ROOT,
        ) as parent,
    ):
        assert parent.stdin is not None
        assert parent.stdout is not None

        def coordinator() -> int:
            assert parent.stdin is not None
            assert parent.stdout is not None
            parent.stdin.write("\n")
            parent.stdin.flush()
            return int(parent.stdout.readline())

        def logged(words: str) -> bool:
            return words in (tmp_path / "errors").read_text()

        try:
            first = coordinator()
            before = resource.prlimit(parent.pid, resource.RLIMIT_NOFILE)
            resource.prlimit(parent.pid, resource.RLIMIT_NOFILE, (4, before[1]))
            os.kill(first, signal.SIGKILL)
            wait_until(
                lambda: logged("coordinator cannot be started: OSError: [Errno 24] Too many open files")
            )
            assert coordinator() == first
            resource.prlimit(parent.pid, resource.RLIMIT_NOFILE, before)
            wait_until(lambda: logged("coordinator was started again"))
            assert coordinator() != first
            assert (tmp_path / "errors").read_text().count("cannot be started") == 1
        finally:
            parent.kill()


def test_rays_environment_has_no_secret_of_the_services(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("NIGHTSWEEP_API_KEY", "secret-of-the-api")
    monkeypatch.setenv("NIGHTSWEEP_DATABASE_URL", "postgresql://me:secret-of-the-database@host/db")
    monkeypatch.setenv("nightsweep_optuna_url", "postgresql://me:secret-of-optuna@host/db")
    monkeypatch.setenv("PGPASSWORD", "secret-of-libpq")
    monkeypatch.setenv("HF_TOKEN", "what a worker needs")
    started = supervisor.Supervisor(Settings(home=tmp_path))
    ray = started._ray_head(1234, started._ray_environment())
    assert started._ray_folder is not None
    started._ray_folder.remove()
    assert "secret-of" not in repr(ray._environment)
    assert ray._environment["HF_TOKEN"] == "what a worker needs"
    assert ray._environment["RAY_AUTH_MODE"] == "token"
    coordinator = started._nightsweep("coordinator", {"NIGHTSWEEP_PORT": "1"})
    assert coordinator._environment["NIGHTSWEEP_API_KEY"] == "secret-of-the-api"


def test_what_does_not_end_is_given_the_time_that_is_promised_and_no_more(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    clock = Clock()
    monkeypatch.setattr(supervisor, "time", clock)
    everything: Any = supervisor.Supervisor(Settings(home=tmp_path, drain_seconds=30))
    everything._coordinator, everything._api, everything._ray = (Hanging(clock) for _ in range(3))
    everything.stop()
    assert everything._api.waited == [0.0]  # it was told to end when the coordinator was
    assert clock.now == 100.0 + 30 + 30


@pytest.mark.parametrize(
    ("ends", "hangs"),
    [
        ([75, 1, 1], True),
        ([75, 75, 75], True),
        ([1, 1, 1, 1, 1], False),  # whatever it is, Ray is not known to be silent
        ([75, 1], False),
        ([75, 1, None, 1, 1], False),  # None: one that lives
    ],
)
def test_a_ray_that_answers_no_coordinator_is_noticed(
    tmp_path: Path, ends: list[int | None], hangs: bool
) -> None:
    watched: Any = supervisor.Supervisor(Settings(home=tmp_path))
    found = []
    for pid, code in enumerate(ends):
        watched._coordinator = SimpleNamespace(pid=pid, exit_code=code, is_stable=code is None)
        found += [watched._ray_hangs(), watched._ray_hangs()]  # it is looked at more than once
    assert any(found) is hangs
