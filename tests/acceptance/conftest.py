"""The real processes: a Ray head, the coordinator and the API, on a tiny base and a little data."""

from __future__ import annotations

import re
import uuid
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import pytest
from xdist.scheduler import LoadFileScheduling

from service.embedded.ports import free_port
from service.embedded.supervisor import Supervisor
from service.settings import Settings
from tests.support.data import rows
from tests.support.databases import fresh_postgres_database
from tests.support.waiting import wait_until

DEADLINE_SECONDS = 480.0


class _ByService(LoadFileScheduling):
    """Gives all tests of one `running_service` to one process, whatever file they are in."""

    def _split_scope(self, nodeid: str) -> str:
        service = re.search(r"served on \w+", nodeid)
        return service[0] if service else super()._split_scope(nodeid)


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config: pytest.Config, log: Any) -> LoadFileScheduling | None:
    return _ByService(config, log) if config.getvalue("dist") == "loadfile" else None


@dataclass(frozen=True)
class RunningService:
    """A running service and what its studies may use."""

    settings: Settings
    client: httpx.Client
    folder: Path
    supervisor: Supervisor

    def definition(self, name: str, **changes: Any) -> dict[str, Any]:
        """A study of seconds: nf4, 48 rows, a tiny base."""
        return {
            "name": name,
            "model": {"id": str(self.folder / "base"), "quantization": "nf4"},
            "data": {
                "train": str(self.folder / "train.jsonl"),
                "eval": str(self.folder / "eval.jsonl"),
                "max_length": 64,
            },
            "search": {
                "algorithm": "tpe",
                "trials": 5,
                "space": {
                    "learning_rate": {"min": 1e-4, "max": 1e-2, "scale": "log"},
                    "lora_r": {"choices": [2, 4]},
                },
            },
            "recipe": {"batch_size": 8},
            "evaluation": {"every_examples": 16},
            "budget": {"max_parallel_trials": 2},
            "resources": {"workers": 1},  # a worker imports for seconds; those about several ask for them
            **changes,
        }

    def submit(self, definition: dict[str, Any]) -> dict[str, Any]:
        answer = self.client.post("/v1/studies", json=definition)
        assert answer.status_code == 201, answer.text
        study: dict[str, Any] = answer.json()
        return study

    def wait(self, name: str) -> dict[str, Any]:
        """The study, once it has ended."""
        self.wait_for(lambda: self.study(name)["ended_at"] is not None, f"the end of {name}")
        return self.study(name)

    def study(self, name: str) -> dict[str, Any]:
        study: dict[str, Any] = self.client.get(f"/v1/studies/{name}").json()
        return study

    def wait_for(self, condition: Callable[[], bool], what: str) -> None:
        wait_until(condition, what, seconds=DEADLINE_SECONDS, every=0.25)

    def trials(self, name: str) -> list[dict[str, Any]]:
        items: list[dict[str, Any]] = self.client.get(f"/v1/studies/{name}/trials").json()["items"]
        return items


@pytest.fixture(scope="session")
def study_folder(tmp_path_factory: pytest.TempPathFactory, tiny_base_dir: Path) -> Path:
    """A folder with `base`, `train.jsonl` and `eval.jsonl`."""
    folder = tmp_path_factory.mktemp("study")
    (folder / "base").symlink_to(tiny_base_dir)
    (folder / "train.jsonl").write_text(rows(48, 0))
    (folder / "eval.jsonl").write_text(rows(12, 100))
    return folder


@pytest.fixture(
    scope="session",
    params=[pytest.param(name, id=f"served on {name}") for name in ("sqlite", "postgresql")],
)
def running_service(
    request: pytest.FixtureRequest,
    tmp_path_factory: pytest.TempPathFactory,
    study_folder: Path,
    tiny_base_dir: Path,
) -> Iterator[RunningService]:
    """`nightsweep serve`, on each database."""
    options: dict[str, Any] = {}
    if request.param == "postgresql":
        options["database_url"] = fresh_postgres_database(request.getfixturevalue("postgres"))
    settings = Settings(
        home=tmp_path_factory.mktemp(f"home-{uuid.uuid4().hex[:6]}"),
        data_roots=(study_folder, tiny_base_dir),
        port=free_port(),
        poll_seconds=0.25,  # each time a coordinator asks its databases a dozen questions
        submission_check_seconds=0,  # what workers do with faulty data is a subject
        lease_seconds=5.0,  # so that a killed coordinator is soon followed by another
        **options,
    )
    with Supervisor(settings) as server, httpx.Client(base_url=server.url, timeout=120) as client:
        yield RunningService(settings=settings, client=client, folder=study_folder, supervisor=server)
