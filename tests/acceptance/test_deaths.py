"""What dies comes back, and the study ends as it would have."""

from __future__ import annotations

import os
import re
import signal
import stat
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import pytest

from tests.acceptance.conftest import RunningService

RANDOM = {
    "algorithm": "random",
    "trials": 4,
    "seed": 5,
    "space": {"learning_rate": {"min": 1e-4, "max": 1e-2, "scale": "log"}},
}


def results(running_service: RunningService, name: str) -> list[tuple[Any, ...]]:
    keys = ("number", "state", "value", "params")
    return [
        (*(trial[key] for key in keys), untimed(trial["rungs"])) for trial in running_service.trials(name)
    ]


def untimed(rungs: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Everything that was reported but the seconds it took."""
    return [{key: value for key, value in rung.items() if key != "train_seconds"} for rung in rungs]


def worker_pids(running_service: RunningService) -> list[int]:
    """Processes of this service's workers: Ray titles them, and they inherit the service's environment."""
    found = []
    for entry in Path("/proc").glob("[0-9]*"):
        try:
            title, environment = (entry / "cmdline").read_bytes(), (entry / "environ").read_bytes()
        except OSError:
            continue
        if (
            title.startswith(b"ray::")
            and b"GpuWorker" in title
            and bytes(running_service.settings.home) in environment
        ):
            found.append(int(entry.name))
    return found


def busy_pids(running_service: RunningService) -> list[int]:
    """Those of the workers that have a trial; the coordinator logs which process each worker is."""
    log = (running_service.settings.home / "logs" / "coordinator.log").read_text()
    by_id = dict(re.findall(r"worker (\S+) is ready on .*, process (\d+)\)", log))
    busy = running_service.client.get("/v1/workers").json()["workers"]
    return [int(by_id[worker["id"]]) for worker in busy]


def early(trials: list[dict[str, Any]]) -> int:
    """How many running trials have seen less than half of their examples."""
    running = [trial["progress"] for trial in trials if trial["state"] == "running"]
    return sum(2 * seen["examples_seen"] < seen["total_examples"] for seen in running)


@contextmanager
def stopped(pids: list[int]) -> Iterator[None]:
    """Processes stand still meanwhile."""
    for pid in pids:
        os.kill(pid, signal.SIGSTOP)
    try:
        yield
    finally:
        for pid in pids:
            with suppress(ProcessLookupError):  # it was killed
                os.kill(pid, signal.SIGCONT)


def kill_one_of_two(running_service: RunningService, name: str) -> bool:
    """Kills a worker if both are in the first half of a trial, so that whichever dies takes one along.

    They stand still while it is found out: no trial ends in between.
    """
    pids = busy_pids(running_service)
    with stopped(pids):
        if early(running_service.trials(name)) < 2:
            return False
        os.kill(pids[0], signal.SIGKILL)
        return True


def test_neither_ray_nor_its_workers_know_a_setting_of_the_services(running_service: RunningService) -> None:
    """Among them are the API key and the database's password. No other user gets into Ray's folder."""
    running_service.submit(running_service.definition("secrets", recipe={"batch_size": 2, "epochs": 20}))
    running_service.wait_for(lambda: bool(worker_pids(running_service)), "a worker")
    folder = running_service.supervisor._ray_folder
    assert folder is not None
    checked = set()
    for entry in Path("/proc").glob("[0-9]*"):
        try:
            title, environment = (entry / "cmdline").read_bytes(), (entry / "environ").read_bytes()
        except OSError:
            continue
        if bytes(folder.ray) in title or (
            title.startswith(b"ray::") and bytes(running_service.settings.home) in environment
        ):
            assert b"NIGHTSWEEP_" not in environment.upper(), title
            checked.add(title.partition(b" ")[0])
    assert any(b"GpuWorker" in title for title in checked)
    assert len(checked) >= 3  # also the raylet and others of Ray's own
    assert folder.ray.is_dir()
    assert stat.S_IMODE(folder.path.stat().st_mode) == 0o700
    running_service.client.post("/v1/studies/secrets/cancel")
    running_service.wait("secrets")


def test_a_study_survives_the_death_of_its_coordinator_and_of_a_worker(
    running_service: RunningService,
) -> None:
    """Same trials, same values and same rungs as the undisturbed study; nothing told twice."""
    changes = {
        "resources": {"trials_per_worker": 1},
        "search": RANDOM,
        "recipe": {"batch_size": 2, "epochs": 20},
        "evaluation": {"every_examples": 160},
    }
    running_service.submit(running_service.definition("calm", **changes))
    running_service.wait("calm")

    running_service.submit(running_service.definition("stormy", **changes))
    running_service.wait_for(
        lambda: any(t["rungs"] for t in running_service.trials("stormy")), "a first rung"
    )
    coordinator = running_service.supervisor.coordinator_pid
    assert coordinator is not None
    with stopped(worker_pids(running_service)):  # so that it finds them training, however short their trials
        os.kill(coordinator, signal.SIGKILL)
        running_service.wait_for(
            lambda: running_service.supervisor.coordinator_pid != coordinator, "another coordinator"
        )
    events = running_service.client.get("/v1/studies/stormy/events").json()["items"]
    running_service.wait_for(
        lambda: (
            any(t["state"] == "running" for t in running_service.trials("stormy"))
            and running_service.client.get("/v1/studies/stormy/events").json()["items"] != events
        ),
        "the new coordinator's first write",
    )
    running_service.wait_for(lambda: kill_one_of_two(running_service, "stormy"), "two trials to kill one of")

    study = running_service.wait("stormy")
    assert (study["state"], study["reason"]) == ("completed", "all 4 trials ended")
    assert results(running_service, "stormy") == results(running_service, "calm")
    lost = [a for t in running_service.trials("stormy") for a in t["attempts"] if a["state"] == "lost"]
    assert len(lost) == 1


def test_the_trials_of_a_dead_workers_pack_go_on_from_their_checkpoints(
    running_service: RunningService,
) -> None:
    """They end as in the undisturbed study, to rounding: their mates are others than before."""
    changes = {
        "resources": {"workers": 1},
        "search": RANDOM,
        "recipe": {"batch_size": 2, "epochs": 10, "lora_dropout": 0.1},
        "evaluation": {"every_examples": 120},
        "budget": {"max_parallel_trials": 4},
    }
    running_service.submit(running_service.definition("calm-pack", **changes))
    running_service.wait("calm-pack")

    running_service.submit(running_service.definition("stormy-pack", **changes))
    running_service.wait_for(
        lambda: sum(bool(t["rungs"]) for t in running_service.trials("stormy-pack")) >= 2,
        "rungs of two trials",
    )
    os.kill(busy_pids(running_service)[0], signal.SIGKILL)

    study = running_service.wait("stormy-pack")
    assert (study["state"], study["reason"]) == ("completed", "all 4 trials ended")
    for (*ours, value, rungs), (*theirs, expected, expected_rungs) in zip(
        by_value(running_service, "stormy-pack"), by_value(running_service, "calm-pack"), strict=True
    ):
        assert ours == theirs
        assert value == pytest.approx(expected, rel=1e-4)
        assert [r["rung"] for r in rungs] == [r["rung"] for r in expected_rungs]
        assert [r["value"] for r in rungs] == pytest.approx([r["value"] for r in expected_rungs], rel=1e-4)
    events = running_service.client.get("/v1/studies/stormy-pack/events").json()["items"]
    resumed = [e for e in events if e["kind"] == "attempt_running" and "checkpoint" in e["message"]]
    assert len(resumed) >= 2


def by_value(running_service: RunningService, name: str) -> list[tuple[Any, ...]]:
    keys = ("number", "state", "params", "value", "rungs")
    return [tuple(trial[key] for key in keys) for trial in running_service.trials(name)]
