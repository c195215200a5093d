"""The real processes: a study that is paused, resumed, and lives through an orderly end of the service."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import httpx
import pytest
from sqlalchemy import select

from service.db.database import open_database
from service.db.models import Attempt
from service.embedded.ports import free_port
from service.embedded.supervisor import Supervisor
from service.settings import Settings
from tests.acceptance.conftest import RunningService

pytestmark = pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing` is deprecated:FutureWarning")


def _attempts(settings: Settings) -> list[tuple[int, int, str, int]]:
    """Trial, ordinal, state and where it went on from, in the order in which they were made."""
    database = open_database(settings)
    try:
        with database.read() as session:
            rows = session.scalars(select(Attempt).order_by(Attempt.id)).all()
            return [(a.trial_number, a.ordinal, a.state, a.resumed_at_examples) for a in rows]
    finally:
        database.dispose()


def test_a_paused_study_and_an_ended_service_lose_nothing(
    tmp_path: Path, study_folder: Path, tiny_base_dir: Path
) -> None:
    settings = Settings(
        home=tmp_path / "home",
        data_roots=(study_folder, tiny_base_dir),
        port=free_port(),
        poll_seconds=0.25,
        submission_check_seconds=0,  # on a busy machine it takes longer than the client waits
    )
    grid: dict[str, Any] = {
        "algorithm": "grid",
        "space": {"learning_rate": {"choices": [1e-3, 1e-2]}, "lora_r": {"choices": [2, 4]}},
    }

    def trained(running_service: RunningService) -> Callable[[], bool]:
        """Whether a trial is under way."""
        return lambda: any(
            t["state"] == "running" and (t["progress"] or {}).get("examples_seen", 0) >= 32
            for t in running_service.trials("night")
        )

    with Supervisor(settings) as server, httpx.Client(base_url=server.url, timeout=120) as client:
        running_service = RunningService(
            settings=settings, client=client, folder=study_folder, supervisor=server
        )
        running_service.submit(
            running_service.definition("night", search=grid, recipe={"batch_size": 8, "epochs": 20})
        )
        running_service.wait_for(trained(running_service), "a trial under way")
        assert client.post("/v1/studies/night/pause").status_code == 202
        running_service.wait_for(lambda: running_service.study("night")["state"] == "paused", "the pause")
        assert running_service.study("night")["counts"]["running"] == 0
        client.post("/v1/studies/night/resume")
        running_service.wait_for(trained(running_service), "a trial that goes on")
    # Whoever takes longer than `drain_seconds` is killed, and leaves attempts that run.
    states = {state for _, _, state, _ in _attempts(settings)}
    assert "paused" in states
    assert not states & {"running", "dispatched", "lost"}

    with Supervisor(settings) as server, httpx.Client(base_url=server.url, timeout=120) as client:
        running_service = RunningService(
            settings=settings, client=client, folder=study_folder, supervisor=server
        )
        assert running_service.wait("night")["state"] == "completed"
        assert {t["state"] for t in running_service.trials("night")} == {"completed"}
    attempts = _attempts(settings)
    assert "lost" not in {state for _, _, state, _ in attempts}
    assert max(resumed for _, ordinal, _, resumed in attempts if ordinal > 1) >= 32
