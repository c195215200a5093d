"""A deployment by one command: the real `nightsweep serve`, which supervises its Ray, API and coordinator.

Only the supervisor itself is started again from here. What it has started carries its environment, and is
named by what it runs and its process id (`injected/sitecustomize.py`).
"""

from __future__ import annotations

import contextlib
import os
import signal
from pathlib import Path
from typing import Any

from tests.soak.faults.deployment import DatabaseName, Deployment
from tests.soak.faults.processes import kill, pids_with, title, wait_until_gone

END_SECONDS = 60.0
RAYS_OWN = ("RAY_AUTH_MODE", "RAY_AUTH_TOKEN_PATH", "RAY_GRACEFUL_SHUTDOWN_DRAIN_TIMEOUT_S")
"""The supervisor sets these itself."""


class ServedDeployment(Deployment):
    """As `Deployment`, with one coordinator and a Ray head that the product starts."""

    def __init__(self, database: DatabaseName, folder: Path, data: Path, **settings: Any) -> None:
        super().__init__(database, folder, data, coordinators=0, ray_address=None, **settings)
        self.serve = self.another("serve", "serve")
        self.kept = (self.serve,)

    def kill_coordinator(self) -> int:
        """SIGKILL; the id of the process that died."""
        self.wait_for(lambda: len(self.coordinator_pids()) > 0, "a coordinator to kill")
        (pid, *_) = self.coordinator_pids()
        kill([pid])
        wait_until_gone([pid], END_SECONDS)
        return pid

    def ray_folders(self) -> list[Path]:
        """The temporary folders of the Ray heads that run, as their command lines name them."""
        module = "service.coordinator.cluster.ray_head"
        found = []
        for pid in self.pids(module):
            words = title(pid).split()
            if module in words:
                found.append(Path(words[words.index(module) + 2]))
        return found

    def kill_node(self) -> None:
        """SIGKILL for all of Ray and for every worker; the supervisor does the rest."""
        kill([pid for pid in self.pids("ray") if "service.cli" not in title(pid)])

    # -- processes -------------------------------------------------------------------------------

    def _environment(self, kind: str) -> dict[str, str]:
        environment = super()._environment(kind)
        for name in RAYS_OWN:
            del environment[name]
        return environment

    def _mark_of_workers(self) -> dict[str, str]:
        return self.mark

    def _start_all(self) -> None:
        self._start(self.serve)

    def _keep_ray(self) -> None:
        """That is the supervisor's."""

    def _close(self) -> None:
        for pid in pids_with(self.mark):
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGCONT)
        self.serve.end(END_SECONDS)
        super()._close()

    def _kill_ray(self) -> None:
        """Whatever is left of the command that was started here."""
        own = [pid for pid in pids_with(self.mark) if pid != os.getpid()]
        kill(own)
        wait_until_gone(own, END_SECONDS)
