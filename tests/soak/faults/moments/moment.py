"""A moment: something that happens to a running study from outside, and what must come out of it.

Each is run on a study of its own, which must end as it does undisturbed, value by value.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal

from sqlalchemy import text

from tests.soak.faults import scenarios, studies
from tests.soak.faults.deployment import Deployment
from tests.soak.faults.judging import Tally

DeploymentKind = Literal["pair", "served"]
"""`Deployment`: two coordinators, started one by one. `ServedDeployment`: the real `nightsweep serve`."""

STORAGE_WORDS = re.compile(
    r"no space left|could not (be )?writ|cannot be written|read-only|disk", re.IGNORECASE
)
"""What a pause says that a disk has caused; a person who has seen to the disk resumes the study."""


@dataclass(frozen=True, kw_only=True)
class Moment:
    """Something that happens."""

    name: str
    deployment: DeploymentKind
    inject: Callable[[Any, dict[str, Any], float], list[str]]
    """Does it to a deployment while this study runs, for so many seconds where it lasts; what was wrong."""
    needs: Literal["disks"] | None = None
    """`disks`: only where file systems can be mounted."""

    def refusal(self, deployment: Deployment) -> str | None:
        """Why it cannot be done in a deployment; None: it can."""
        if self.needs != "disks":
            return None
        return deployment.home_disk.refusal or deployment.temp_disk.refusal


def disturb(deployment: Deployment, moment: Moment, turn: int, seconds: float) -> Tally:
    """Run a study, let it happen, and compare.

    Args:
        deployment: Of the moment's kind.
        moment: What happens.
        turn: From 0 on. It decides how far the study has come by then: the same turn, the same rung.
        seconds: How long a state of the machine lasts (a full disk).
    """
    calm = scenarios.undisturbed(deployment, studies.short)
    name = f"{re.sub(r'[^a-z0-9]+', '-', moment.name.lower())}-{turn + 1}"
    study = deployment.client.submit(studies.short(deployment.data, name))
    rungs = 1 + 3 * turn % 7
    deployment.wait_for(lambda: scenarios.rungs_of(deployment, name) >= rungs, f"{rungs} rungs of {name}")
    tally = Tally()
    tally.violations += [f"{name}: {fault}" for fault in moment.inject(deployment, study, seconds)]
    wait_for_end(deployment, name)
    record, wrong = scenarios.verdict(deployment, name, calm)
    tally.violations += wrong
    tally.studies, tally.trials = 1, len(record.trials)
    tally.kills[moment.name] = 1
    return tally


def wait_for_end(deployment: Deployment, name: str) -> None:
    """Wait; whoever has seen to a disk resumes what was paused because of it."""

    def resume_if_paused() -> None:
        if waits_for_a_disk(deployment.client.study(name)):
            answer = deployment.client.post(f"/v1/studies/{name}/resume")
            assert answer.status_code in (202, 409), f"resume: {answer.status_code} {answer.text}"

    scenarios.wait_for_end(deployment, name, resume_if_paused)


def waits_for_a_disk(study: dict[str, Any]) -> bool:
    """Whether it was paused because something could not be written."""
    return study["state"] == "paused" and STORAGE_WORDS.search(study["reason"]) is not None


def lost(deployment: Deployment, study_id: str) -> list[tuple[int, str, str | None]]:
    """Attempts that were lost so far: id, worker, cause."""
    query = text(
        "SELECT id, worker_id, loss_cause FROM attempts WHERE study_id = :s AND state = 'lost' ORDER BY id"
    )
    with deployment.service_engine.connect() as connection:
        return [tuple(row) for row in connection.execute(query, {"s": study_id})]


def ended(deployment: Deployment, study: dict[str, Any]) -> bool:
    """Whether it has ended."""
    return deployment.client.study(study["name"])["ended_at"] is not None


def busy_workers(deployment: Deployment, study_id: str) -> dict[int, str]:
    """Workers of a study that have one of its trials, by process id."""
    query = text(
        "SELECT DISTINCT worker_id FROM attempts WHERE study_id = :s AND state IN ('dispatched', 'running')"
    )
    with deployment.service_engine.connect() as connection:
        busy = set(connection.scalars(query, {"s": study_id}))
    return {pid: worker for pid, worker in deployment.workers().items() if worker in busy}
