"""The service answers before Ray has started, and studies go from one to the next on the same workers."""

from __future__ import annotations

import os
import re
import signal
from pathlib import Path
from typing import Any

import httpx
import pytest

from service.embedded.child_process import ChildProcess
from service.embedded.ports import free_port
from service.embedded.supervisor import Supervisor
from service.settings import Settings
from tests.acceptance.conftest import RunningService

RANDOM = {
    "algorithm": "random",
    "trials": 3,
    "seed": 5,
    "space": {"learning_rate": {"min": 1e-4, "max": 1e-2, "scale": "log"}},
}


def workers_of(service: RunningService, name: str) -> set[str]:
    events = service.client.get(f"/v1/studies/{name}/events", params={"limit": 200}).json()["items"]
    found = (re.search(r"sent to (\S+)", e["message"]) for e in events if e["kind"] == "attempt_dispatched")
    return {match[1] for match in found if match}


def values(service: RunningService, name: str) -> list[tuple[Any, ...]]:
    return [(t["number"], t["state"], t["value"], t["params"]) for t in service.trials(name)]


def stages(service: RunningService, name: str) -> list[str]:
    events = service.client.get(f"/v1/studies/{name}/events", params={"limit": 200}).json()["items"]
    return [event["message"] for event in events if event["kind"] == "starting"]


def test_a_study_that_is_submitted_before_ray_has_started_loses_nothing(
    tmp_path: Path, study_folder: Path, tiny_base_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Ray is held back until the study is there and a coordinator has died over the wait.

    The next study, on the same worker, does not load the base again, and has the same values.
    """
    allowed = tmp_path / "ray may start"
    make = Supervisor._ray_head

    def held_back(server: Supervisor, port: int, environment: dict[str, str]) -> ChildProcess:
        child = make(server, port, environment)
        wait = 'while [ ! -e "$0" ]; do sleep 0.1; done; exec "$@"'
        child._command = ["bash", "-c", wait, str(allowed), *child._command]
        return child

    monkeypatch.setattr(Supervisor, "_ray_head", held_back)
    settings = Settings(
        home=tmp_path / "home",
        data_roots=(study_folder, tiny_base_dir),
        port=free_port(),
        submission_check_seconds=0,
        lease_seconds=5.0,
        warm_workers=1,
    )
    with Supervisor(settings) as server, httpx.Client(base_url=server.url, timeout=120) as client:
        service = RunningService(settings=settings, client=client, folder=study_folder, supervisor=server)
        assert client.get("/healthz").status_code == 200
        assert client.get("/readyz").status_code == 503
        changes = {"search": RANDOM, "resources": {"workers": 1, "trials_per_worker": 1}}
        service.submit(service.definition("early", **changes))
        assert service.study("early")["state"] == "queued"
        first = server.coordinator_pid
        assert first is not None
        os.kill(first, signal.SIGKILL)
        service.wait_for(lambda: server.coordinator_pid != first, "another coordinator")
        allowed.touch()
        study = service.wait("early")
        assert (study["state"], study["reason"]) == ("completed", "all 3 trials ended")
        assert client.get("/readyz").status_code == 200

        service.submit(service.definition("next", **changes))
        service.wait("next")
        assert values(service, "next") == values(service, "early")
        assert workers_of(service, "next") == workers_of(service, "early")
        assert any("loading the base" in stage for stage in stages(service, "early"))
        assert not any("loading the base" in stage for stage in stages(service, "next"))
