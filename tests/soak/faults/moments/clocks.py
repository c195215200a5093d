"""A database whose clock was wrong and is right again.

The clock itself stays as it is. What is written is what it would have written: a lease taken two hours
ahead, a lease that looks two hours old, a firing years ahead.
"""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import Any

from sqlalchemy import text

from tests.soak.faults import firings, scenarios, studies
from tests.soak.faults.deployment import Deployment
from tests.soak.faults.freezing import nobody_writing, stands_still
from tests.soak.faults.moments.moment import ended, wait_for_end
from tests.soak.faults.processes import Process, wait_until_gone

AHEAD = timedelta(hours=2)
FAR_FIRING = datetime(2032, 2, 29, tzinfo=UTC)
"""What a clock four years ahead makes of "the next 29th of February"."""
NEXT_FIRING = "2028-02-29"
PATIENCE_SECONDS = 90.0


def lease_from_the_future(deployment: Deployment, study: dict[str, Any], _: float) -> list[str]:
    """The coordinator that took a lease two hours ahead is dead: another one goes on all the same."""
    return _retaken(deployment, study, _lease_left_behind(deployment, study))


def cancel_of_a_lease_from_the_future(deployment: Deployment, study: dict[str, Any], _: float) -> list[str]:
    """A second study in the same plight can be cancelled."""
    name = f"{study['name']}-cancelled"
    other = deployment.client.submit(studies.short(deployment.data, name))
    deployment.wait_for(lambda: scenarios.rungs_of(deployment, name) >= 1, f"a rung of {name}")
    _lease_left_behind(deployment, other)
    answer = deployment.client.post(f"/v1/studies/{name}/cancel")
    assert answer.status_code == 202, f"{answer.status_code} {answer.text}"
    try:
        deployment.wait_for(lambda: ended(deployment, other), f"the end of {name}", seconds=PATIENCE_SECONDS)
    except AssertionError as error:
        return [str(error)]
    return []


def lease_from_the_past(deployment: Deployment, study: dict[str, Any], _: float) -> list[str]:
    """The clock jumped two hours ahead: a lease is over at once whose holder lives and goes on writing."""
    deployment.wait_for(
        lambda: deployment.holder(study["id"]) is not None or ended(deployment, study), "a holder"
    )
    number = _lease_number(deployment, study["id"])
    shift_lease(deployment, study["id"], -AHEAD)
    deployment.wait_for(lambda: _lease_number(deployment, study["id"]) > number, "another lease")
    return []


def firing_from_the_future(deployment: Deployment, study: dict[str, Any], _: float) -> list[str]:
    """A firing years later than the schedule's next one is put right, and then makes exactly one sweep."""
    name = f"{study['name']}-nightly"
    calm = scenarios.undisturbed(deployment, studies.grid)
    firings.make_schedule(deployment, name, studies.grid(deployment.data, name))
    firings.set_firing(deployment, name, FAR_FIRING)
    wrong: list[str] = []
    try:
        deployment.wait_for(
            lambda: deployment.client.get(f"/v1/schedules/{name}")["next_fire_at"].startswith(NEXT_FIRING),
            f"the next firing of {name}",
            seconds=PATIENCE_SECONDS,
        )
    except AssertionError as error:
        wrong.append(str(error))
    sweep = firings.make_due(deployment, name)
    wait_for_end(deployment, sweep)
    if firings.sweeps_of(deployment, name) != [sweep]:
        wrong.append(f"one firing of {name} made {firings.sweeps_of(deployment, name)}")
    return wrong + scenarios.verdict(deployment, sweep, calm)[1]


def leave_lease_behind(deployment: Deployment, study_id: str, holder: Process) -> int:
    """Kill a study's holder, whose lease then ends two hours from now; that lease's number."""
    pid, name = holder.pid, holder.name
    with nobody_writing(deployment):
        deployment.freeze(holder)
        deployment.wait_for(lambda: stands_still(pid), f"{name} to stand still")
    shift_lease(deployment, study_id, AHEAD)
    number = _lease_number(deployment, study_id)
    deployment.kill(holder)
    wait_until_gone([pid], PATIENCE_SECONDS)
    return number


def _lease_left_behind(deployment: Deployment, study: dict[str, Any]) -> int:
    deployment.wait_for(lambda: deployment.holder(study["id"]) is not None, f"a holder of {study['name']}")
    holder = deployment.holder(study["id"])
    assert holder is not None
    return leave_lease_behind(deployment, study["id"], holder)


def _retaken(deployment: Deployment, study: dict[str, Any], number: int) -> list[str]:
    """Somebody takes the study although that lease has two hours to go."""
    try:
        deployment.wait_for(
            lambda: _lease_number(deployment, study["id"]) > number,
            f"another holder of {study['name']}",
            seconds=PATIENCE_SECONDS,
        )
    except AssertionError as error:
        shift_lease(deployment, study["id"], -AHEAD)  # so that the study can end
        return [str(error)]
    return []


def shift_lease(deployment: Deployment, study_id: str, by: timedelta) -> None:
    """Make a study's lease end so long from now, whoever holds it."""
    at = deployment.instant(datetime.now(UTC) + by)  # the databases run on this machine
    with deployment.service_engine.begin() as connection:
        connection.execute(
            text("UPDATE studies SET lease_expires_at = :at WHERE id = :s"), {"at": at, "s": study_id}
        )


def _lease_number(deployment: Deployment, study_id: str) -> int:
    with deployment.service_engine.connect() as connection:
        return int(
            connection.scalar(text("SELECT lease_number FROM studies WHERE id = :s"), {"s": study_id}) or 0
        )
