"""The real processes on one machine: Ray, two coordinators, the API and a database, all of them mortal.

What is killed is started again at once, as `nightsweep serve` or a container platform would do it, only
sooner. Everything is started from here with the product's own commands and settings.
"""

from __future__ import annotations

import contextlib
import os
import secrets
import signal
import socket
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import Future
from datetime import datetime
from pathlib import Path
from types import TracebackType
from typing import Any, Literal, Self

from sqlalchemy import text

from service.embedded.environment import settings_environment
from service.embedded.ports import free_port
from service.settings import Settings
from tests.soak.faults import audit
from tests.soak.faults.arming import Arming
from tests.soak.faults.client import Client
from tests.soak.faults.moments.disks import Disk
from tests.soak.faults.postgres import Postgres
from tests.soak.faults.processes import Exit, Process, kill, pids_with, title, wait_until_gone

DatabaseName = Literal["sqlite", "postgresql"]

LEASE_SECONDS = 2.5
READY_SECONDS = 180.0
STOP_SECONDS = 10.0
CPUS = 3
"""Cores that Ray gives to workers. It starts as many processes before anybody asks for one."""
EXITS_IN_A_ROW = 8
"""Ends of one process that nobody asked for, each within seconds of its start, that are no accident."""
_INJECTED = Path(__file__).resolve().parent / "injected"
_CHECKOUT = Path(__file__).resolve().parents[3]


class BrokenDeploymentError(AssertionError):
    """The deployment itself cannot go on: a point that is no more, a process that does not start."""


class Deployment(Arming):
    """Use it as a context manager.

    Args:
        database: Which.
        folder: For the home folder, the logs and what arms the points. Kept.
        data: With `base`, `train.jsonl` and `eval.jsonl`; see `tests.soak.faults.studies`.
        coordinators: How many.
        settings: In place of the deployment's own.
    """

    def __init__(
        self, database: DatabaseName, folder: Path, data: Path, *, coordinators: int = 2, **settings: Any
    ) -> None:
        self.database: DatabaseName = database
        self.data = data
        self.folder = folder
        self.logs = folder / "logs"
        for made in (self.logs, folder / "workers"):
            made.mkdir(parents=True)
        super().__init__(folder)
        self.mark = {"FAULTS_FOLDER": str(folder)}
        """In the environment of each of its processes."""
        self._open = contextlib.ExitStack()
        self.home_disk = Disk(folder / "home")
        self._open.callback(self.home_disk.close, keep=True)
        # The processes' /tmp. Ray's Unix sockets live in it, and their paths must be short.
        self.temp_disk = Disk(Path(tempfile.mkdtemp(prefix="f-")))
        self._open.callback(self.temp_disk.close, keep=False)
        self.postgres = self._open.enter_context(Postgres()) if database == "postgresql" else None
        options: dict[str, Any] = {
            "home": self.home_disk.folder,
            "data_roots": (data, (data / "base").resolve()),
            "port": free_port(),
            "poll_seconds": 0.4,
            "lease_seconds": LEASE_SECONDS,
            "max_running_studies": 4,
            "submission_check_seconds": 0,
            "ray_address": f"127.0.0.1:{free_port()}",
            **settings,
        }
        if self.postgres is not None:
            options["database_url"] = self.postgres.new_database()
        self.settings = Settings(**options)
        self.ray = Process(
            "ray", self._ray_command(), environment=self._environment("ray"), log_file=self.logs / "ray.log"
        )
        self.api = self.another("api", "api")
        self.coordinators = [
            self.another(f"coordinator-{number}", "coordinator") for number in range(1, coordinators + 1)
        ]
        self.kept: tuple[Process, ...] = (self.api, *self.coordinators)
        """What the keeper starts again, beside Ray."""
        self.client = Client(f"http://127.0.0.1:{self.settings.port}", self.raise_if_broken)
        self.exits: list[Exit] = []
        """Ends that nobody asked for: neither the harness nor a point."""
        self.calm: dict[str, Future[Any]] = {}
        """What undisturbed studies come to, by kind. Deployments on the same data may share it."""
        self._killed: set[tuple[str, int]] = set()
        self._held_down: set[str] = set()
        self._born: dict[str, float] = {}
        self._quick: dict[str, int] = {}
        self._broken: str | None = None
        self._lock = threading.RLock()
        self._stop = threading.Event()
        self._keeper = threading.Thread(target=self._keep, name="keeper", daemon=True)
        self.service_engine = audit.open_engine(self.settings.database_url)
        self.optuna_engine = audit.open_engine(self.settings.optuna_url)

    # -- beginning and end -----------------------------------------------------------------------

    def __enter__(self) -> Self:
        try:
            self.upgrade()
            audit.install(self.settings)
            self._start_all()
            self._keeper.start()
            self.client.wait_until_ready(READY_SECONDS)
        except BaseException:
            self._close()
            raise
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._close()

    def _close(self) -> None:
        self._stop.set()
        if self._keeper.is_alive():
            self._keeper.join()
        for process in reversed(self.kept):
            process.signal(signal.SIGCONT)
            process.signal(signal.SIGTERM)
        for process in reversed(self.kept):
            process.end(STOP_SECONDS)
        self.ray.kill_group()
        self._kill_ray()
        self.client.close()
        for engine in (self.service_engine, self.optuna_engine):
            engine.dispose()
        self._open.close()

    def upgrade(self) -> None:
        """`nightsweep db upgrade`, which must succeed."""
        process = self.another("upgrade", "db", "upgrade")
        process.start()
        if process.wait(READY_SECONDS) != 0:
            raise BrokenDeploymentError(f"the upgrade failed:\n{process.last_words()}")

    # -- faults ----------------------------------------------------------------------------------

    def kill(self, process: Process) -> None:
        """SIGKILL; the keeper starts it again."""
        with self._lock:
            self._killed.add((process.kind, process.runs))
            process.signal(signal.SIGKILL)

    def freeze(self, process: Process) -> None:
        process.signal(signal.SIGSTOP)

    def wake(self, process: Process) -> None:
        process.signal(signal.SIGCONT)

    def kill_worker(self, pid: int) -> None:
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)

    def kill_node(self) -> None:
        """SIGKILL for all of Ray and for every worker; Ray is started again, and the coordinators with it."""
        with self._lock:
            self._held_down.add("ray")
            self._kill_ray()
            self._start_ray()
            self._held_down.discard("ray")
            # As the supervisor does it: their connection to the old one is gone.
            for process in self.coordinators:
                self.kill(process)

    @contextlib.contextmanager
    def without_database(self, *, kill: bool) -> Iterator[None]:
        """PostgreSQL is not there meanwhile."""
        assert self.postgres is not None
        if kill:
            self.postgres.kill()
        else:
            self.postgres.stop()
        try:
            yield
        finally:
            self.postgres.start()

    # -- what is there ---------------------------------------------------------------------------

    def workers(self) -> dict[int, str]:
        """Process ids of the workers that live, and their names."""
        found = {}
        for pid in pids_with(self._mark_of_workers()):
            if title(pid).startswith("ray::") and "GpuWorker" in title(pid):
                with contextlib.suppress(FileNotFoundError):
                    found[pid] = (self.folder / "workers" / str(pid)).read_text()
        return found

    def coordinator_pids(self) -> list[int]:
        """Of the coordinators that live."""
        return self.pids("service.cli coordinator")

    def _mark_of_workers(self) -> dict[str, str]:
        return {**self.mark, "FAULTS_PROCESS": self.ray.name}

    def pids(self, program: str) -> list[int]:
        """Processes of it that live, by a part of their command lines."""
        return [pid for pid in pids_with(self.mark) if program in title(pid)]

    def live_on(self, pid: int) -> int:
        """Attempts that the service takes for alive on a worker, which may have died."""
        worker = (self.folder / "workers" / str(pid)).read_text()
        query = "SELECT count(*) FROM attempts WHERE worker_id = :w AND state IN ('dispatched', 'running')"
        with self.service_engine.connect() as connection:
            return int(connection.scalar(text(query), {"w": worker}) or 0)

    def db_check(self) -> list[str]:
        """What `nightsweep db check` finds wrong."""
        process = self.another("check", "db", "check")
        process.start()
        code = process.wait(READY_SECONDS)
        return [] if code == 0 else [f"`nightsweep db check` ended with {code}: {process.last_words(60)}"]

    def instant(self, at: datetime) -> object:
        """A time as this database stores it."""
        return f"{at:%Y-%m-%d %H:%M:%S.%f}" if self.database == "sqlite" else at

    def holder(self, study_id: str) -> Process | None:
        """The coordinator that holds a study's lease now."""
        with self.service_engine.connect() as connection:
            owner = connection.scalar(
                text("SELECT lease_owner FROM studies WHERE id = :id"), {"id": study_id}
            )
        return next((p for p in self.coordinators if owner and f"-{p.pid}-" in owner), None)

    def wait_for(self, condition: Callable[[], bool], what: str, *, seconds: float = 240.0) -> None:
        """Poll until something is true."""
        deadline = time.monotonic() + seconds
        while not condition():
            self.raise_if_broken()
            if time.monotonic() > deadline:
                raise AssertionError(f"{what} did not come true within {seconds:g} s; logs in {self.logs}")
            time.sleep(0.2)

    def raise_if_broken(self) -> None:
        broken = self.folder / "broken"
        if broken.exists():
            raise BrokenDeploymentError(f"{broken.read_text().strip()}; see tests/soak/faults/kill_points.py")
        if self._broken is not None:
            raise BrokenDeploymentError(self._broken)

    # -- processes -------------------------------------------------------------------------------

    def _environment(self, kind: str) -> dict[str, str]:
        token = self.settings.home / "ray_token" if hasattr(self, "settings") else None
        if token is not None and not token.exists():
            token.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
            token.touch(mode=0o600)
            token.write_text(secrets.token_hex(32))
        others = {name: value for name, value in os.environ.items() if not name.startswith("NIGHTSWEEP_")}
        settings = settings_environment(self.settings)
        if self.postgres is not None:
            # So that the audit says who wrote.
            for name in ("NIGHTSWEEP_DATABASE_URL", "NIGHTSWEEP_OPTUNA_URL"):
                joint = "&" if "?" in settings[name] else "?"
                settings[name] += f"{joint}application_name={{process}}"
        return {
            **others,
            **settings,
            **self.mark,
            "FAULTS_PROCESS": "{process}",
            "TMPDIR": str(self.temp_disk.folder),
            "PYTHONPATH": os.pathsep.join([str(_INJECTED), str(_CHECKOUT)]),
            "PYTHONUNBUFFERED": "1",
            "HF_HUB_OFFLINE": "1",
            "OMP_NUM_THREADS": "1",
            # As the supervisor's (service/embedded/supervisor.py).
            "RAY_AUTH_MODE": "token",
            "RAY_AUTH_TOKEN_PATH": str(token),
            "RAY_GRACEFUL_SHUTDOWN_DRAIN_TIMEOUT_S": "0",
            "RAY_USAGE_STATS_ENABLED": "0",
            "RAY_preload_python_modules": "workers.pack.preload",
        }

    def another(self, kind: str, *command: str, **environment: str) -> Process:
        """One more process of the service, not looked after: `another("upgrade-2", "db", "upgrade")`."""
        return Process(
            kind,
            [sys.executable, "-m", "service.cli", *command],
            environment={**self._environment(kind), **environment},
            log_file=self.logs / f"{kind}.log",
        )

    def _ray_command(self) -> list[str]:
        port = str(self.settings.ray_address).rpartition(":")[2]
        # fmt: off
        return [
            sys.executable, "-m", "ray.scripts.scripts", "start", "--head", "--block",
            "--node-ip-address", "127.0.0.1", "--port", port,
            "--ray-client-server-port", str(free_port()),
            "--temp-dir", str(self.temp_disk.folder),
            "--object-store-memory", str(128 * 1024 * 1024),
            "--num-cpus", str(CPUS), "--num-gpus", "0",
            "--include-dashboard", "false", "--disable-usage-stats",
            "--no-monitor", "--include-log-monitor", "false",
        ]
        # fmt: on

    def _start_all(self) -> None:
        self._start_ray()
        for process in self.kept:
            self._start(process)

    def _start(self, process: Process) -> None:
        process.start()
        self._born[process.kind] = time.monotonic()

    def _start_ray(self) -> None:
        self._start(self.ray)
        port = int(str(self.settings.ray_address).rpartition(":")[2])
        deadline = time.monotonic() + READY_SECONDS
        while True:
            try:
                socket.create_connection(("127.0.0.1", port), timeout=1).close()
                return
            except OSError:
                if not self.ray.is_alive or time.monotonic() > deadline:
                    raise BrokenDeploymentError(f"Ray does not start:\n{self.ray.last_words()}") from None
                time.sleep(0.1)

    def _kill_ray(self) -> None:
        """Processes of every run of it: its group, and what has made a group of its own."""
        own = [pid for pid in pids_with(self.mark) if _is_rays(pid)]
        kill(own)
        if self.ray.exit_code is None and self.ray.runs:
            self.ray.kill_group()
        wait_until_gone(own, STOP_SECONDS)

    def _keep(self) -> None:
        """Start again whatever has died."""
        while not self._stop.wait(0.05):
            with self._lock:
                for process in self.kept:
                    if process.kind in self._held_down or process.exit_code is None:
                        continue
                    self._note_exit(process)
                    self._start(process)
                self._keep_ray()

    def _keep_ray(self) -> None:
        if "ray" not in self._held_down and self.ray.exit_code is not None:
            self._note_exit(self.ray)
            with contextlib.suppress(BrokenDeploymentError):
                self.kill_node()

    def _note_exit(self, process: Process) -> None:
        code = process.exit_code
        assert code is not None
        expected = (process.kind, process.runs) in self._killed or code == -signal.SIGKILL
        if expected:
            self._quick[process.kind] = 0
            return
        self.exits.append(Exit(process.name, code, process.last_words()))
        soon = time.monotonic() - self._born[process.kind] < 15
        self._quick[process.kind] = self._quick.get(process.kind, 0) + 1 if soon else 0
        if self._quick[process.kind] >= EXITS_IN_A_ROW:
            self._broken = f"{process.name} does not stay alive (code {code}):\n{process.last_words()}"
            self._held_down.add(process.kind)


def _is_rays(pid: int) -> bool:
    try:
        environment = Path(f"/proc/{pid}/environ").read_bytes().split(b"\0")
    except OSError:
        return False
    return any(entry.startswith(b"FAULTS_PROCESS=ray.") for entry in environment)
