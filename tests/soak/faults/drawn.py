"""The faults of a soak: drawn at random, by seed, among those that can be had at the moment."""

from __future__ import annotations

import os
import random
import resource
import shutil
import signal
import time
from collections import Counter
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, suppress
from pathlib import Path

from sqlalchemy import text

from tests.soak.faults import scenarios
from tests.soak.faults.deployment import Deployment
from tests.soak.faults.kill_points import HANG_POINTS, Point
from tests.soak.faults.moments import clocks
from tests.soak.faults.moments.machine import NO_DESCRIPTORS
from tests.soak.faults.processes import kill
from tests.soak.faults.served import ServedDeployment

Fault = Callable[[], str | None]
"""Does it, and says what it did; None: it cannot be done now."""


class DrawnFaults:
    """What happens to a deployment.

    Args:
        deployment: Of either kind. Some faults are of one kind alone.
        draws: Where the choices come from.
    """

    def __init__(self, deployment: Deployment, draws: random.Random) -> None:
        self._deployment = deployment
        self._draws = draws
        self._later: list[tuple[float, str, Callable[[], None]]] = []
        """What ends a fault that lasts: when, of which kind, and how."""
        self._hanging: Point | None = None
        self.answers: Counter[int | None] = Counter()
        """Of the API, while the database was away."""
        self.violations: list[str] = []

    def draw(self) -> tuple[str, str]:
        """Something happens: its kind, and what it was."""
        kinds = self._kinds()
        while True:
            (inject,) = self._draws.choices([k for _, k in kinds], weights=[w for w, _ in kinds])
            detail = inject()
            if detail is not None:
                return inject.__name__.removeprefix("_").replace("_", " "), detail
            # It cannot be done now: no worker trains, or another coordinator is frozen already.
            kinds = [(weight, other) for weight, other in kinds if other != inject]

    def end_due(self, *, everything: bool = False) -> None:
        """End what has lasted long enough."""
        for entry in list(self._later):
            at, _, end = entry
            if everything or time.monotonic() >= at:
                self._later.remove(entry)
                end()
        if everything and self._hanging is not None:
            self._deployment.disarm(self._hanging)

    def _kinds(self) -> list[tuple[int, Fault]]:
        kinds: list[tuple[int, Fault]] = [
            (3, self._kill_worker),
            (3, self._kill_coordinator),
            (2, self._freeze_coordinator),
            (2, self._kill_api),
            (1, self._kill_node),
            (2, self._truncate_checkpoint),
            (2, self._stop_worker),
            (2, self._hang_training_thread),
            (1, self._stop_ray),
        ]
        if self._deployment.postgres is not None:
            kinds += [(2, self._kill_database), (1, self._stop_database)]
        if self._deployment.home_disk.refusal is None:
            kinds += [(1, self._fill_home), (1, self._make_home_read_only)]
        if self._deployment.temp_disk.refusal is None:
            kinds.append((1, self._fill_temporary_folder))
        if isinstance(self._deployment, ServedDeployment):
            kinds += [(1, self._remove_ray_folder), (2, self._take_descriptors)]
        else:
            kinds.append((2, self._shift_clock))
        return kinds

    # -- processes -------------------------------------------------------------------------------

    def _kill_api(self) -> str | None:
        return self._kill_one_of(self._deployment.pids("service.cli api"))

    def _kill_coordinator(self) -> str | None:
        return self._kill_one_of(self._deployment.coordinator_pids())

    def _kill_one_of(self, pids: Sequence[int]) -> str | None:
        if not pids:
            return None
        pid = self._draws.choice(sorted(pids))
        kill([pid])
        return f"pid {pid}"

    def _freeze_coordinator(self) -> str | None:
        pids = self._deployment.coordinator_pids()
        if not pids or self._lasts("coordinator"):
            return None
        pid = self._draws.choice(sorted(pids))
        return self._stop(
            "coordinator", pid, self._draws.uniform(0.5, 4.0) * self._deployment.settings.lease_seconds
        )

    def _kill_worker(self) -> str | None:
        workers = self._safe_to_kill()
        if not workers:
            return None
        pid = self._draws.choice(sorted(workers))
        self._deployment.kill_worker(pid)
        return f"{workers[pid]} (pid {pid})"

    def _stop_worker(self) -> str | None:
        """For less than the limit or for more; then it is killed, and does not wake."""
        workers = self._safe_to_kill()
        if not workers or self._lasts("worker"):
            return None
        pid = self._draws.choice(sorted(workers))
        return self._stop("worker", pid, self._draws.choice([0.2, 4.0]) * self._limit)

    def _stop_ray(self) -> str | None:
        program = self._draws.choice(["raylet", "gcs_server"])
        pids = self._deployment.pids(f"/{program} ")
        if not pids or self._lasts("Ray"):
            return None
        return f"{program}, {self._stop('Ray', pids[0], self._draws.choice([2.0, 20.0]))}"

    def _stop(self, what: str, pid: int, seconds: float) -> str:
        def wake() -> None:
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGCONT)

        with suppress(ProcessLookupError):
            os.kill(pid, signal.SIGSTOP)
        self._later.append((time.monotonic() + seconds, what, wake))
        return f"pid {pid} for {seconds:.1f} s"

    def _hang_training_thread(self) -> str | None:
        """Whichever worker passes next."""
        if self._hanging is not None and not self._deployment.is_spent(self._hanging):
            return None
        self._hanging = self._draws.choice(HANG_POINTS)
        self._deployment.arm(self._hanging, 1, action="hang")
        return self._hanging.name

    def _kill_node(self) -> str:
        self._deployment.kill_node()
        return "all of Ray"

    # -- databases and clocks --------------------------------------------------------------------

    def _kill_database(self) -> str:
        seconds = self._draws.choice([0.0, 0.0, 1.0, 3.0, 8.0])
        with self._deployment.without_database(kill=True):
            self._ask_for(seconds)
        return f"SIGKILL, away for {seconds:.0f} s"

    def _stop_database(self) -> str:
        seconds = self._draws.uniform(2.0, 15.0)
        with self._deployment.without_database(kill=False):
            self._ask_for(seconds)
        return f"stopped for {seconds:.1f} s"

    def _ask_for(self, seconds: float) -> None:
        """Ask the API while the database is away: it says so, or is starting and does not answer."""
        until = time.monotonic() + seconds
        while time.monotonic() < until:
            answer = self._deployment.client.status("/v1/studies")
            self.answers[answer] += 1
            if answer not in (503, None):
                self.violations.append(f"the API answered {answer} while the database was away")
            time.sleep(0.5)

    def _shift_clock(self) -> str | None:
        """A lease becomes what a clock would have made of it that was wrong."""
        if self._lasts("coordinator"):
            return None
        query = text("SELECT id FROM studies WHERE state = 'running' AND lease_owner IS NOT NULL ORDER BY id")
        with self._deployment.service_engine.connect() as connection:
            studies = list(connection.scalars(query))
        study = self._draws.choice(studies or [""])
        holder = self._deployment.holder(study)
        if holder is None:
            return None
        if self._draws.random() < 0.5:
            clocks.shift_lease(self._deployment, study, -clocks.AHEAD)
            return f"the lease of {study} ended two hours ago"
        clocks.leave_lease_behind(self._deployment, study, holder)
        return f"the lease of {study} ends in two hours, and its holder is dead"

    # -- the machine -----------------------------------------------------------------------------

    def _fill_home(self) -> str:
        return self._last(self._deployment.home_disk.full())

    def _make_home_read_only(self) -> str:
        return self._last(self._deployment.home_disk.read_only())

    def _fill_temporary_folder(self) -> str:
        return self._last(self._deployment.temp_disk.full())

    def _last(self, state: AbstractContextManager[None]) -> str:
        """Nothing else happens meanwhile, but for the death of a coordinator, half of the time."""
        seconds = self._draws.uniform(3.0, 15.0)
        dies = self._draws.random() < 0.5
        with state:
            killed = self._kill_coordinator() if dies else None
            time.sleep(seconds)
        return f"for {seconds:.1f} s" + (f", and a coordinator killed ({killed})" if killed else "")

    def _remove_ray_folder(self) -> str | None:
        assert isinstance(self._deployment, ServedDeployment)
        temp = self._deployment.temp_disk.folder
        folders = self._deployment.ray_folders()
        for folder in folders:
            shutil.rmtree(temp / folder.relative_to(temp).parts[0], ignore_errors=True)
        return f"{folders[0]}" if folders else None

    def _take_descriptors(self) -> str:
        """From the supervisor, while a coordinator or the API dies."""
        assert isinstance(self._deployment, ServedDeployment)
        supervisor, seconds = self._deployment.serve.pid, self._draws.uniform(2.0, 10.0)
        die = self._draws.choice([self._kill_coordinator, self._kill_api])
        before = resource.prlimit(supervisor, resource.RLIMIT_NOFILE)
        resource.prlimit(supervisor, resource.RLIMIT_NOFILE, (NO_DESCRIPTORS, before[1]))
        try:
            killed = die()
            time.sleep(seconds)
        finally:
            resource.prlimit(supervisor, resource.RLIMIT_NOFILE, before)
        return f"from the supervisor for {seconds:.1f} s, and {killed} killed"

    def _truncate_checkpoint(self) -> str | None:
        """Half of a file of the newest version is gone, and so is the worker that wrote it."""
        workers = self._safe_to_kill()
        for pid in sorted(workers):
            query = text(
                "SELECT artifact_dir FROM attempts WHERE worker_id = :w AND state = 'running' ORDER BY id"
            )
            with self._deployment.service_engine.connect() as connection:
                folders = list(connection.scalars(query, {"w": workers[pid]}))
            for folder in folders:
                versions = sorted((Path(folder) / "checkpoint").glob("[0-9]*"))
                if not versions:
                    continue
                self._deployment.kill_worker(pid)
                file = versions[-1] / self._draws.choice(["tensors.safetensors", "state.json"])
                try:
                    os.truncate(file, file.stat().st_size // 2)
                except FileNotFoundError:  # the trial ended a moment ago
                    continue
                return f"{file.relative_to(self._deployment.settings.artifacts_dir)} of {workers[pid]}"
        return None

    # -- what can be done now --------------------------------------------------------------------

    @property
    def _limit(self) -> float:
        return self._deployment.settings.worker_silence_seconds

    def _lasts(self, what: str) -> bool:
        return any(kind == what for _, kind, _ in self._later)

    def _safe_to_kill(self) -> dict[int, str]:
        """Workers whose trials are all beyond where they lost an attempt; else they would be poisonous."""
        query = text(
            "SELECT study_id, trial_number FROM attempts"
            " WHERE worker_id = :w AND state IN ('dispatched', 'running')"
        )
        found = {}
        for pid, worker in self._deployment.workers().items():
            with self._deployment.service_engine.connect() as connection:
                trials = connection.execute(query, {"w": worker}).all()
            if trials and not any(number in scenarios.behind(self._deployment, s) for s, number in trials):
                found[pid] = worker
        return found
