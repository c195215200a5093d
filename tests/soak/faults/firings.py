"""Schedules whose coordinators die over a firing: exactly one thing comes of it."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import UTC, datetime, timedelta
from functools import partial
from typing import Any

from sqlalchemy import text

from tests.soak.faults import studies
from tests.soak.faults.deployment import Deployment
from tests.soak.faults.judging import Tally, is_in, rungs_of, undisturbed, verdict, wait_for_end
from tests.soak.faults.kill_points import Point, Scenario


def made_once(deployment: Deployment, points: Sequence[Point], times: int) -> Tally:
    """A schedule that is due; exactly one study comes of it, whoever dies over it."""
    tally = Tally()
    calm = undisturbed(deployment, studies.grid)
    for turn in range(times):
        name = f"nightly-{turn + 1}"
        for point in points:
            deployment.arm(point, 1)
        fire(deployment, name, studies.grid(deployment.data, name))
        deployment.wait_for(
            lambda: all(deployment.is_spent(point) for point in points), "the death in mid firing"
        )
        for sweep in sweeps_of(deployment, name):
            wait_for_end(deployment, sweep)
        sweeps = sweeps_of(deployment, name)
        if len(sweeps) != 1:
            tally.violations.append(f"one firing of {name} made {sweeps}")
        for sweep in sweeps:
            record, wrong = verdict(deployment, sweep, calm)
            tally.studies, tally.trials = tally.studies + 1, tally.trials + len(record.trials)
            tally.violations += wrong
        for point in points:
            tally.killed(point, len(deployment.disarm(point)))
    return tally


def fire(deployment: Deployment, name: str, definition: dict[str, Any]) -> str:
    """Make a schedule and have it fire once; the name of the sweep."""
    make_schedule(deployment, name, definition)
    return make_due(deployment, name)


def beside_sweeps(deployment: Deployment, scenario: Scenario, points: Sequence[Point], times: int) -> Tally:
    """A firing that finds a sweep under way, or paused: it waits, cancels or continues, exactly once."""
    tally = Tally()
    calm = undisturbed(deployment, studies.grid)
    for turn in range(times):
        name = f"{scenario}-{turn + 1}"
        noon = f"{datetime.now(UTC) + timedelta(hours=12):%H:%M}"
        fields: dict[str, Any] = {
            "queued": {"overlap": "queue"},
            "cancelling": {"overlap": "cancel_running"},
            "continued": {"cron": "* * * * *", "enabled": False, "until": noon, "until_action": "continue"},
        }[scenario]
        definition = studies.grid(deployment.data, name)
        make_schedule(deployment, name, definition, repeat_configurations=True, **fields)
        first = deployment.client.post(f"/v1/schedules/{name}/run").json()["name"]
        deployment.wait_for(partial(_has_rungs, deployment, first), f"a rung of {first}")
        if scenario == "continued":
            _end_window(deployment, first)
            deployment.wait_for(partial(is_in, deployment, first, {"paused"}), f"the pause of {first}")
        for point in points:
            deployment.arm(point, 1)
        if scenario == "continued":
            _enable(deployment, name, True)
            deployment.wait_for(partial(_has_event, deployment, name, "continued"), f"the firing of {name}")
            _enable(deployment, name, False)
        else:
            set_firing(deployment, name, datetime(2024, 2, 29, tzinfo=UTC))
            deployment.wait_for(
                partial(_has_sweeps, deployment, name, 2), f"the sweep of {name}", seconds=900
            )
        sweeps = sweeps_of(deployment, name)
        for sweep in sweeps:
            wait_for_end(deployment, sweep)
        if len(sweeps) != (1 if scenario == "continued" else 2):
            tally.violations.append(f"{name} made {sweeps}")
        for sweep in sweeps:
            if sweep == first and scenario == "cancelling":
                if not is_in(deployment, first, {"cancelled"}):
                    tally.violations.append(f"{first} was not cancelled")
                continue
            record, wrong = verdict(deployment, sweep, calm)
            tally.studies, tally.trials = tally.studies + 1, tally.trials + len(record.trials)
            tally.violations += wrong
        for point in points:
            kills = len(deployment.disarm(point))
            tally.killed(point, kills)
            if kills == 0:
                tally.violations.append(f"never passed: {point.name}")
    return tally


def _enable(deployment: Deployment, name: str, enabled: bool) -> None:
    answer = deployment.client.request("PATCH", f"/v1/schedules/{name}", json={"enabled": enabled})
    assert answer.status_code == 200, answer.text


def _has_rungs(deployment: Deployment, name: str) -> bool:
    return rungs_of(deployment, name) >= 1


def _has_sweeps(deployment: Deployment, name: str, count: int) -> bool:
    return len(sweeps_of(deployment, name)) >= count


def _has_event(deployment: Deployment, schedule: str, kind: str) -> bool:
    query = text("SELECT count(*) FROM schedule_events WHERE schedule_name = :n AND kind = :k")
    with deployment.service_engine.connect() as connection:
        return bool(connection.scalar(query, {"n": schedule, "k": kind}))


def _end_window(deployment: Deployment, study: str) -> None:
    """As if the sweep had been fired a day earlier."""
    at = deployment.instant(datetime.now(UTC) - timedelta(days=1))
    with deployment.service_engine.begin() as connection:
        connection.execute(
            text("UPDATE studies SET window_from = :at WHERE name = :n"), {"at": at, "n": study}
        )


def make_schedule(deployment: Deployment, name: str, definition: dict[str, Any], **fields: Any) -> None:
    # The 29th of February at midnight: nothing fires but what is made to.
    schedule = {
        "name": name,
        "cron": "0 0 29 2 *",
        "timezone": "UTC",
        "definition": definition,
        "champion": False,
        **fields,
    }
    answer = deployment.client.post("/v1/schedules", schedule)
    assert answer.status_code == 201, answer.text


def make_due(deployment: Deployment, name: str) -> str:
    """Have a schedule fire now; the name of its first sweep."""
    set_firing(deployment, name, datetime(2024, 2, 29, tzinfo=UTC))
    deployment.wait_for(lambda: len(sweeps_of(deployment, name)) > 0, f"the sweep of {name}")
    return sweeps_of(deployment, name)[0]


def set_firing(deployment: Deployment, name: str, at: datetime) -> None:
    """When a schedule fires next, as its row has it."""
    with deployment.service_engine.begin() as connection:
        connection.execute(
            text("UPDATE schedules SET next_fire_at = :at WHERE name = :n"),
            {"at": deployment.instant(at), "n": name},
        )


def sweeps_of(deployment: Deployment, schedule: str) -> list[str]:
    query = text("SELECT s.name FROM studies s JOIN schedules c ON c.id = s.schedule_id WHERE c.name = :n")
    with deployment.service_engine.connect() as connection:
        return list(connection.scalars(query, {"n": schedule}))
