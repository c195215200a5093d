"""`python -m tests.soak.tasks [TASK ...]`: a worker is killed in the middle of a study of each task.

Each example's study runs twice on one service, two trials at two rungs: undisturbed, and with SIGKILL for its
worker after the first rung. Prints the values at every rung, and exits with 1 unless they are the same. It
takes a minute or two for each task on two cores.
"""

from __future__ import annotations

import argparse
import os
import signal
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import httpx

from search_spaces.tasks import TASKS
from service.cli.study_file import read_study_file
from service.embedded.ports import free_port
from service.embedded.supervisor import Supervisor
from service.settings import Settings
from tests.acceptance.conftest import RunningService
from tests.acceptance.test_deaths import worker_pids
from tests.support.checkout import ROOT

EXAMPLES = ROOT / "examples"
TOLERANCE = 1e-5
"""Relative; the resumed trials share their passes with other rows than before."""

Rungs = dict[tuple[int, int], dict[str, float]]
"""The metrics by the trial's number and the rung."""


def study_of(task: str, suffix: str) -> dict[str, Any]:
    """An example's study with two trials, 160 train rows and two rungs."""
    definition = read_study_file(EXAMPLES / task / "study.yaml")
    definition["name"] = f"{definition['name']}-{suffix}"
    definition["search"]["trials"] = 2
    definition["recipe"] = {**definition["recipe"], "epochs": 2, "lora_dropout": 0.1}
    definition["data"] = {**definition["data"], "max_train_examples": 160, "max_eval_examples": 24}
    evaluation = definition.get("evaluation", {})
    definition["evaluation"] = {**evaluation, "every_examples": 160}
    definition["budget"] = {"max_parallel_trials": 2, "max_retries": 10}
    return definition


def kill_after_the_first_rung(service: RunningService, name: str) -> None:
    service.wait_for(
        lambda: service.study(name)["ended_at"] is not None or any(t["rungs"] for t in service.trials(name)),
        "a first rung",
    )
    for pid in worker_pids(service):
        os.kill(pid, signal.SIGKILL)


def values(service: RunningService, name: str) -> Rungs:
    return {
        (trial["number"], rung["rung"]): rung["metrics"]
        for trial in service.trials(name)
        for rung in trial["rungs"]
    }


def same(one: Rungs, other: Rungs) -> bool:
    """Whether both have the same rungs, and at each the same metrics up to rounding."""
    return one.keys() == other.keys() and all(
        one[rung].keys() == other[rung].keys()
        and all(
            abs(one[rung][metric] - other[rung][metric]) <= TOLERANCE * max(1.0, abs(one[rung][metric]))
            for metric in one[rung]
        )
        for rung in one
    )


def run_task(service: RunningService, task: str) -> bool:
    """Both studies of a task; whether a worker died and nothing was different."""
    started = time.monotonic()
    calm, disturbed = study_of(task, "calm"), study_of(task, "killed")
    service.submit(calm)
    service.wait(calm["name"])
    service.submit(disturbed)
    kill_after_the_first_rung(service, disturbed["name"])
    ended = service.wait(disturbed["name"])
    one, other = values(service, calm["name"]), values(service, disturbed["name"])
    attempts = [a["state"] for trial in service.trials(disturbed["name"]) for a in trial["attempts"]]
    passed = ended["state"] == "completed" and "lost" in attempts and bool(one) and same(one, other)
    print(f"{task}: {'same' if passed else 'DIFFERENT'}, {attempts.count('lost')} attempts lost,")
    print(f"  {time.monotonic() - started:.0f} s, {ended['state']}: {ended['reason']}")
    for rung in sorted(one.keys() | other.keys()):
        print(f"  trial {rung[0]} at {rung[1]}: {one.get(rung)} | {other.get(rung)}", flush=True)
    return passed


def main() -> int:
    parser = argparse.ArgumentParser(description="Kill a worker in the middle of a study of each task.")
    parser.add_argument("tasks", nargs="*", default=list(TASKS))
    tasks = parser.parse_args().tasks
    with tempfile.TemporaryDirectory(prefix="nsweep-tasks-") as folder:
        settings = Settings(home=Path(folder), data_roots=(EXAMPLES,), port=free_port(), poll_seconds=0.1)
        with Supervisor(settings) as server, httpx.Client(base_url=server.url, timeout=120) as client:
            service = RunningService(settings=settings, client=client, folder=EXAMPLES, supervisor=server)
            passed = [run_task(service, task) for task in tasks]  # all of them, whatever the first one says
            return 0 if all(passed) else 1


if __name__ == "__main__":
    sys.exit(main())
