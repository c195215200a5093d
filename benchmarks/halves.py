"""The two halves of `versus_sequential`, each in processes of its own, timed from outside.

Times are seconds since the half's process was started. Both figures end with the last result: the plain
script's when its last adapter is saved, the service's when REST shows that the study has ended. How long
the processes then take to go is in neither.
"""

from __future__ import annotations

import json
import os
import sys
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from datetime import datetime
from pathlib import Path
from typing import Any

import httpx
import psutil

from service.embedded.child_process import ChildProcess
from service.embedded.ports import free_port

HALF_SECONDS = 3 * 3600.0
"""Neither half may take longer."""
STOP_SECONDS = 40.0
POLL_SECONDS = 0.25
"""How often the study is asked for; a person's `nightsweep watch` does it every second."""
CHOSEN_BY_USER = ("NIGHTSWEEP_", "OMP_", "MKL_", "OPENBLAS_", "KMP_", "GOMP_")
"""Environment variables that would change either half; neither sees them."""


@contextmanager
def same_environment() -> Iterator[None]:
    """What both halves are started with: the defaults of every library, no network, no GPU."""
    before = dict(os.environ)
    for name in before:
        if name.startswith(CHOSEN_BY_USER):
            del os.environ[name]
    os.environ.update(HF_HUB_OFFLINE="1", CUDA_VISIBLE_DEVICES="", TOKENIZERS_PARALLELISM="false")
    try:
        yield
    finally:
        os.environ.clear()
        os.environ.update(before)


class CoreWatch:
    """How many cores this program and all it started used on average, and how many everything else did.

    Looks once a second, because nobody else adds up a process that has ended: what one does after the last
    look at it counts as somebody else's.
    """

    def __init__(self) -> None:
        self._own: dict[tuple[int, float], float] = {}
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._watch, daemon=True)

    def __enter__(self) -> CoreWatch:
        self._look()
        self._before = sum(self._own.values())
        self._machine_before, self._started = _machine_seconds(), time.monotonic()
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        self._thread.join()
        self._look()
        seconds = time.monotonic() - self._started
        own = sum(self._own.values()) - self._before
        others = max(0.0, _machine_seconds() - self._machine_before - own)
        self.averages = {"own_cores": own / seconds, "other_cores": others / seconds}

    def _watch(self) -> None:
        while not self._stop.wait(1.0):
            self._look()

    def _look(self) -> None:
        this = psutil.Process()
        for process in (this, *this.children(recursive=True)):
            try:
                times, key = process.cpu_times(), (process.pid, process.create_time())
            except psutil.Error:
                continue
            self._own[key] = float(times.user + times.system)


def _machine_seconds() -> float:
    times = psutil.cpu_times()
    return float(times.user + times.nice + times.system)


def run_plain(work: Mapping[str, Any], folder: Path, *, threads: int | None) -> dict[str, Any]:
    """The plain script, from its start to its last result.

    Args:
        work: What it reads; see `plain_script.py`.
        folder: For its files.
        threads: Of torch; None: its default, which is one per core.

    Raises:
        RuntimeError: It failed; with the end of its output.
    """
    work_file, result_file = folder / "work.json", folder / "result.json"
    work_file.write_text(json.dumps(work))
    script = Path(__file__).with_name("plain_script.py")
    child = ChildProcess(
        "plain script",
        [sys.executable, str(script), str(work_file), str(result_file)],
        environment={**os.environ, **({} if threads is None else {"OMP_NUM_THREADS": str(threads)})},
        log_file=folder / "plain_script.log",
    )
    with CoreWatch() as cores:
        started = time.time()
        child.start()
        try:
            child.join(HALF_SECONDS)
        finally:
            child.terminate()
            child.join(STOP_SECONDS)
    gone = time.time()
    if child.exit_code != 0:
        raise RuntimeError(f"the plain script ended with code {child.exit_code}:\n{child.last_words(40)}")
    result: dict[str, Any] = json.loads(result_file.read_text())
    return {
        "imported": result["imported_at"] - started,
        "tokenized": result["tokenized_at"] - started,
        "ended": result["ended_at"] - started,
        "gone": gone - started,
        "threads": result["threads"],
        "best": result["best"],
        "trials": result["trials"],
        **cores.averages,
    }


def run_service(definition: Mapping[str, Any], home: Path, data_roots: Sequence[str]) -> dict[str, Any]:
    """`nightsweep serve` and one study over REST, from the service's start to the study's end.

    Raises:
        RuntimeError: The service did not start, or the study did not complete.
    """
    port = free_port()
    child = ChildProcess(
        "nightsweep serve",
        [sys.executable, "-m", "service.cli", "serve", "--port", str(port), "--home", str(home)],
        environment={**os.environ, "NIGHTSWEEP_DATA_ROOTS": os.pathsep.join(data_roots)},
        log_file=home / "logs" / "serve.log",
    )
    started = time.time()
    child.start()
    try:
        with httpx.Client(base_url=f"http://127.0.0.1:{port}", timeout=60) as client, CoreWatch() as cores:
            _wait_for_readiness(client, child)
            ready = time.time()
            answer = client.post("/v1/studies", json=definition)
            if answer.status_code != 201:
                raise RuntimeError(f"the service refused the study: {answer.text}")
            study = _wait_for_end(client, child, answer.json()["id"])
            ended = time.time()
            if study["state"] != "completed":
                raise RuntimeError(f"the study ended as {study['state']}: {study['reason']}")
            trials = client.get(f"/v1/studies/{study['id']}/trials").raise_for_status().json()["items"]
    finally:
        child.terminate()
        child.join(STOP_SECONDS)
    return {
        "ready": ready - started,
        "ended": ended - started,
        **_milestones(trials, started),
        "gone": time.time() - started,
        "trials": [{**trial, "seconds_in_service": _elapsed(trial)} for trial in trials],
        **cores.averages,
    }


def _wait_for_readiness(client: httpx.Client, child: ChildProcess) -> None:
    while True:
        _require_alive(child)
        try:
            if client.get("/readyz?exclude=coordinator").status_code == 200:
                return
        except httpx.TransportError:
            time.sleep(0.05)


def _wait_for_end(client: httpx.Client, child: ChildProcess, study_id: str) -> dict[str, Any]:
    deadline = time.monotonic() + HALF_SECONDS
    while time.monotonic() < deadline:
        study: dict[str, Any] = client.get(f"/v1/studies/{study_id}").raise_for_status().json()
        if study["ended_at"] is not None:
            return study
        _require_alive(child)
        time.sleep(POLL_SECONDS)
    raise RuntimeError(f"the study did not end within {HALF_SECONDS:g} s; its trials: {study['counts']}")


def _require_alive(child: ChildProcess) -> None:
    if not child.is_alive:
        raise RuntimeError(f"{child.name} ended with code {child.exit_code}:\n{child.last_words(40)}")


def _milestones(trials: list[dict[str, Any]], started: float) -> dict[str, float]:
    """When the trials began and ended, by the service's own clock, which is this machine's."""
    attempts = [attempt for trial in trials for attempt in trial["attempts"]]
    last_of_worker: dict[str, float] = {}
    for attempt in attempts:
        end, worker = _seconds(attempt["ended_at"]), attempt["worker_id"]
        last_of_worker[worker] = max(end, last_of_worker.get(worker, end))
    return {
        "first_dispatched": min(_seconds(a["dispatched_at"]) for a in attempts) - started,
        "first_started": min(_seconds(a["started_at"]) for a in attempts) - started,
        "last_started": max(_seconds(a["started_at"]) for a in attempts) - started,
        "first_worker_idle": min(last_of_worker.values()) - started,
        "last_trial_ended": max(last_of_worker.values()) - started,
        "workers": len(last_of_worker),
    }


def _elapsed(trial: Mapping[str, Any]) -> float:
    """From the trial's first step to its end, whatever else its worker did in between."""
    return _seconds(trial["ended_at"]) - _seconds(trial["started_at"])


def _seconds(moment: str) -> float:
    return datetime.fromisoformat(moment).timestamp()
