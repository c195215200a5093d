"""Everything on one machine: a Ray head, the coordinator and the REST process, as three child processes.

They are separate so that the death of one does not end the others: the coordinator attaches to Ray by its
address as it would on a cluster, and workers train on while it is started again.
"""

from __future__ import annotations

import logging
import os
import secrets
import signal
import sys
import threading
import time
from collections.abc import Callable
from types import TracebackType
from typing import Self

import httpx

from service.access.exposure import require_key
from service.coordinator.cluster.silence import RAY_IS_SILENT
from service.embedded.child_process import ChildProcess
from service.embedded.environment import is_ours, settings_environment
from service.embedded.home_lock import HomeLock
from service.embedded.ports import free_port, require_free_port
from service.embedded.ray_folder import RayFolder
from service.errors import Unavailable
from service.home_folder import make_home
from service.log_limit import LogLimit, short
from service.settings import Settings

log = logging.getLogger(__name__)

READY_SECONDS = 120.0
WATCH_SECONDS = 0.5
STOP_SECONDS = 15.0
_SILENT_ENDS = 3
"""Ray is ended after so many coordinators in a row: of the first it is known that Ray did not answer it."""
RAY_OBJECT_STORE_BYTES = 128 * 1024 * 1024
"""Orders and events are small; Ray's default takes 30 % of the machine's memory."""


class Supervisor:
    """Runs the three children while used as a context manager.

    Args:
        settings: `ray_address` set means that Ray is there already and none is started.

    Raises (on entering):
        Unavailable: another process serves in this home, the port is taken, the API would be open to others,
            or the cluster at `ray_address` cannot be used.
    """

    def __init__(self, settings: Settings) -> None:
        self.settings = settings
        self._logs = settings.home / "logs"
        self._home_lock = HomeLock(settings.home)
        self._ray_folder: RayFolder | None = None
        self._ray: ChildProcess | None = None
        self._api: ChildProcess | None = None
        self._coordinator: ChildProcess | None = None
        self._unanswered: set[int] = set()
        self._stop = threading.Event()
        self._log_limit = LogLimit()
        self.failure: BaseException | None = None
        """Why nothing is supervised any more; this process has been told to end with SIGTERM."""
        self._watcher = threading.Thread(target=self._watch, name="supervisor", daemon=True)

    @property
    def url(self) -> str:
        host = {"0.0.0.0": "127.0.0.1", "::": "::1"}.get(self.settings.host, self.settings.host)
        return f"http://{f'[{host}]' if ':' in host else host}:{self.settings.port}"

    @property
    def coordinator_pid(self) -> int | None:
        """Process id of the coordinator that runs now."""
        return None if self._coordinator is None else self._coordinator.pid

    def __enter__(self) -> Self:
        require_artifacts(self.settings)
        make_home(self.settings)
        self._home_lock.acquire(self.url)
        try:
            require_key(self.settings)
            self._start()
        except BaseException:
            self.stop()
            raise
        self._watcher.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.stop()

    def _start(self) -> None:
        require_free_port(self.settings.host, self.settings.port)
        if self.settings.ray_address is not None:
            # Imported late for its gRPC. Without this check the coordinator would fail on it again and again.
            from service.coordinator.cluster import ray_authentication

            ray_authentication.require(self.settings)
        environment = settings_environment(self.settings)
        connection: dict[str, str] = {}
        if self.settings.ray_address is None:  # first of all: what takes longest is that workers are there
            port = free_port()
            ray_environment = self._ray_environment()
            self._ray = self._ray_head(port, ray_environment)
            self._ray.start()
            # Its workers are Ray's, so trials write checkpoints before it ends.
            ends = {"NIGHTSWEEP_WORKERS_END_WITH_COORDINATOR": "true"}
            connection = {**ray_environment, **ends, "NIGHTSWEEP_RAY_ADDRESS": f"127.0.0.1:{port}"}
        from service.maintenance import schema  # with all of Alembic, while Ray starts

        schema.upgrade(self.settings)
        self._api = self._nightsweep("api", environment)
        self._api.start()
        self._coordinator = self._nightsweep("coordinator", {**environment, **connection})
        self._coordinator.start()
        self._wait_for_api()

    def _nightsweep(self, command: str, environment: dict[str, str]) -> ChildProcess:
        return ChildProcess(
            command,
            [sys.executable, "-m", "service.cli", command],
            environment={**os.environ, **environment},
            log_file=self._logs / f"{command}.log",
        )

    def _ray_environment(self) -> dict[str, str]:
        token = self.settings.home / "ray_token"
        if not token.exists() or token.stat().st_size == 0:  # empty: its maker was killed
            descriptor = os.open(token, os.O_WRONLY | os.O_CREAT, 0o600)
            with os.fdopen(descriptor, "w") as file:
                file.write(secrets.token_hex(32))
        return {
            "RAY_AUTH_MODE": "token",
            "RAY_AUTH_TOKEN_PATH": str(token),
            # Nobody else shares this Ray, so there is nothing to drain when it is told to end.
            "RAY_GRACEFUL_SHUTDOWN_DRAIN_TIMEOUT_S": "0",
            "RAY_USAGE_STATS_ENABLED": "0",
            # How many processes wait is the coordinator's to say; Ray would start one for each core.
            "RAY_prestart_worker_first_driver": "false",
            # Seconds of torch, transformers and peft, at low priority.
            "RAY_preload_python_modules": "workers.pack.preload",
        }

    def _ray_head(self, port: int, environment: dict[str, str]) -> ChildProcess:
        self._ray_folder = RayFolder()
        command = [
            *(sys.executable, "-m", "service.coordinator.cluster.ray_head"),
            *(str(port), str(self._ray_folder.ray), str(RAY_OBJECT_STORE_BYTES)),
        ]
        # Workers inherit this environment, and they hold no secrets of the service's.
        inherited = {name: value for name, value in os.environ.items() if not is_ours(name)}
        return ChildProcess(
            "ray", command, environment={**inherited, **environment}, log_file=self._logs / "ray.log"
        )

    def _wait_for_api(self) -> None:
        """Until studies can be submitted: they wait for the coordinator, which waits for Ray."""
        assert self._api is not None
        with httpx.Client(timeout=10) as client:  # one for all questions: making one reads all certificates

            def answers() -> bool:
                try:
                    return client.get(f"{self.url}/readyz?exclude=coordinator").status_code == 200
                except httpx.TransportError:
                    return False

            _wait_until(answers, self._api, *filter(None, [self._ray]))

    def _watch(self) -> None:
        """Look after the children until `stop`. If that ends otherwise, so does this process."""
        try:
            while not self._stop.wait(WATCH_SECONDS):
                self._look_after_children()
        except BaseException as error:
            self.failure = error
            raise
        finally:
            if not self._stop.is_set():
                log.critical("the child processes are no longer supervised; this process ends")
                os.kill(os.getpid(), signal.SIGTERM)

    def _look_after_children(self) -> None:
        """Start again whichever child died, and bound the logs. A step that fails prevents no other."""
        children = [child for child in (self._coordinator, self._api) if child is not None]
        steps = [*(child.keep_alive for child in children), *(child.limit_log for child in children)]
        if self._ray is not None:
            steps = [self._look_after_ray, *steps, self._ray.limit_log]
        for step in steps:
            try:
                step()
            except Exception as error:
                suffix = self._log_limit.suffix(short(error))
                if suffix is not None:
                    log.exception("a check of the child processes failed and will be repeated%s", suffix)

    def _look_after_ray(self) -> None:
        """Start Ray again when it has died, or lost its folder. That ends the coordinator's connection."""
        assert self._ray is not None
        why = None
        if self._ray_folder is not None and self._ray.is_alive and self._ray_folder.was_removed():
            why = f"Ray's folder {self._ray_folder.ray} was removed"
        elif self._ray.is_alive and self._ray_hangs():
            why = "Ray does not answer any more"
        if why is not None:
            log.warning("%s; Ray is started again", why)
            self._ray.terminate()
            self._ray.join(STOP_SECONDS)
        if self._ray.is_alive:
            return
        if self._ray_folder is not None:
            self._ray_folder.make()
        if self._ray.keep_alive() and self._coordinator is not None:
            self._coordinator.terminate()
            self._coordinator.interrupt()  # no trial is left that could write a checkpoint

    def _ray_hangs(self) -> bool:
        """Whether Ray did not answer a coordinator, and the next ones ended soon, too."""
        coordinator = self._coordinator
        if coordinator is None or coordinator.pid is None:
            return False
        if coordinator.is_stable:
            self._unanswered.clear()
        elif coordinator.exit_code == RAY_IS_SILENT or (self._unanswered and coordinator.exit_code):
            self._unanswered.add(coordinator.pid)
        hangs = len(self._unanswered) >= _SILENT_ENDS
        if hangs:
            self._unanswered.clear()
        return hangs

    def skip_checkpoints(self) -> None:
        """While it ends: do not wait for any further checkpoint."""
        if self._coordinator is not None:
            self._coordinator.interrupt()

    def stop(self) -> None:
        """End the children, the coordinator before its Ray.

        Takes up to `drain_seconds` and twice `STOP_SECONDS`: a Ray of our own ends with all its workers,
        whose trials write checkpoints before.
        """
        self._stop.set()
        if self._watcher.is_alive():
            self._watcher.join()
        began = time.monotonic()
        for child in (self._coordinator, self._api):
            if child is not None:
                child.terminate()
        if self._coordinator is not None:
            drain = 0.0 if self._ray is None else self.settings.drain_seconds
            self._coordinator.join(drain + STOP_SECONDS)
        if self._api is not None:
            self._api.join(max(0.0, began + STOP_SECONDS - time.monotonic()))
        if self._ray is not None:
            self._ray.terminate()
            self._ray.join(STOP_SECONDS)
        if self._ray_folder is not None:
            self._ray_folder.remove()
        self._home_lock.release()


def serve(
    settings: Settings, *, on_ready: Callable[[str], None], on_end: Callable[[], None] = lambda: None
) -> None:
    """Run everything until SIGTERM or SIGINT. A second one ends it without waiting for checkpoints.

    Raises:
        Unavailable: it cannot start, or it ended because its processes could not be supervised.

    Args:
        settings: Of all three processes.
        on_ready: Called once with the server's URL when it answers.
        on_end: Called once when it has been told to end.
    """
    stop = threading.Event()
    server = Supervisor(settings)

    def end(*_: object) -> None:
        if stop.is_set():
            server.skip_checkpoints()
        stop.set()

    for signum in (signal.SIGTERM, signal.SIGINT):
        signal.signal(signum, end)
    with server:
        on_ready(server.url)
        stop.wait()
        on_end()
    if server.failure is not None:
        raise Unavailable(
            f"The service ended because its processes could not be supervised: {server.failure!r}"
        )


def run_api(settings: Settings) -> None:
    """Run the REST process until SIGTERM or SIGINT.

    Raises:
        Unavailable: nothing installed here reaches the artifacts' URL, the API would be open to others, or
            its port is taken.
    """
    require_artifacts(settings)
    require_key(settings)
    require_free_port(settings.host, settings.port)  # said in a sentence; the web server would only log it
    from service import web_server  # here, because the supervisor itself needs none of it

    web_server.run(settings)


def require_artifacts(settings: Settings) -> None:
    """Refuse to start with an artifacts URL that this machine cannot reach: a child would fail on it forever.

    Raises:
        Unavailable: its protocol is not known, or its package is not installed.
    """
    if settings.artifacts_url is not None:
        from service.artifacts.places import open_places  # imported late: it takes fsspec along

        open_places(settings)


def _wait_until(condition: Callable[[], bool], child: ChildProcess, *others: ChildProcess) -> None:
    """Wait for a child to be ready, while none of the others ends."""
    deadline = time.monotonic() + READY_SECONDS
    while not condition():
        for each in (child, *others):
            if not each.is_alive:
                raise Unavailable(
                    f"The {each.name} process ended with code {each.exit_code} while starting. "
                    f"The end of {each.log_file}:\n{each.last_words()}"
                )
        if time.monotonic() > deadline:
            raise Unavailable(
                f"The {child.name} process was not ready within {READY_SECONDS:g} s; see {child.log_file}."
            )
        time.sleep(0.05)
