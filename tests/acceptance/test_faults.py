"""Kill anything at any moment: nothing is lost, counted or told twice, and a study ends as it would have.

Real processes, which die at named points (tests/soak/faults/kill_points.py), stand still for longer than
their leases, or have their database taken away. And moments (tests/soak/faults/moments/catalog.py) in which
something stands still, a clock is wrong, or the machine under `nightsweep serve` fails: a few of them here.
The deployments run side by side. `make faults` runs each point and moment ten times on each database, `make
soak` at random.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any, get_args

import pytest

from tests.soak.faults import points, scenarios, studies
from tests.soak.faults.deployment import DatabaseName, Deployment
from tests.soak.faults.freezing import freeze_holders
from tests.soak.faults.judging import Tally
from tests.soak.faults.kill_points import FREEZE_POINTS, HANG_POINTS, POINTS, Point, Scenario, missing
from tests.soak.faults.moments import catalog
from tests.soak.faults.moments.catalog import MOMENTS
from tests.soak.faults.moments.moment import DeploymentKind, Moment
from tests.soak.faults.outages import outage
from tests.support.checkout import ROOT

pytestmark = pytest.mark.timeout(3600)

OUTAGE_SECONDS = 15.0
SECONDS = 3.0
"""How long a state of the machine lasts."""
HERE = (
    "a worker stopped for ever",
    "a training thread hangs in a pass",
    "a lease from two hours in the future",
    "the supervisor has no descriptors",
    "the home folder is read-only at a death",
)
ORDERS: dict[DatabaseName, tuple[Scenario, ...]] = {
    "sqlite": get_args(Scenario),
    "postgresql": get_args(Scenario)[::-1],
}
"""The deployments run each undisturbed study once for both, and begin at opposite ends, so as not to wait."""
CalmStudies = dict[str, Future[Any]]
INJECTED = Path(points.__file__).parent / "injected"


@dataclass
class Findings:
    """What came of one database's deployment."""

    kills: Tally = field(default_factory=Tally)
    frozen: list[str] = field(default_factory=list)
    outage: list[str] = field(default_factory=list)
    moments: Tally = field(default_factory=Tally)
    ended_by_themselves: list[str] = field(default_factory=list)
    check: list[str] = field(default_factory=list)


def chosen(kind: DeploymentKind) -> list[Moment]:
    """Those of the moments here that need a deployment of a kind."""
    return [moment for moment in MOMENTS if moment.name in HERE and moment.deployment == kind]


def _live_through(database: DatabaseName, folder: Path, data: Path, calm_studies: CalmStudies) -> Findings:
    found = Findings()
    with Deployment(database, folder / database, data, **catalog.LIMITS) as deployment:
        deployment.calm = calm_studies
        found.kills = points.kill_everywhere(deployment, POINTS, times=1, order=ORDERS[database])
        calm = scenarios.undisturbed(deployment, studies.random)
        moments = (FREEZE_POINTS[0], None, *FREEZE_POINTS[1:])
        found.frozen = freeze_holders(deployment, "frozen", moments, calm, studies.random(data, "frozen"))
        if database == "postgresql":
            definition = studies.random(data, "outage")
            found.outage = outage(
                deployment, "outage", seconds=OUTAGE_SECONDS, calm=calm, definition=definition
            )
        found.moments = catalog.disturb_everywhere(deployment, chosen("pair"), times=1, seconds=SECONDS)
        found.check = deployment.db_check()
        found.ended_by_themselves = [f"{end.name}: {end.code}\n{end.last_words}" for end in deployment.exits]
    return found


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What all deployments train on."""
    return studies.make_data(tmp_path_factory.mktemp("data"))


@pytest.fixture(scope="module")
def calm_studies() -> CalmStudies:
    """What undisturbed studies come to, on whichever database they were run: it must be the same on both."""
    return {}


@pytest.fixture(scope="module")
def deployments(
    tmp_path_factory: pytest.TempPathFactory, data: Path, calm_studies: CalmStudies
) -> Iterator[dict[str, Future[Findings]]]:
    """Both databases' findings, as they come."""
    folder = tmp_path_factory.mktemp("faults")
    with ThreadPoolExecutor() as pool:
        yield {
            name: pool.submit(_live_through, name, folder, data, calm_studies)
            for name in get_args(DatabaseName)
        }


@pytest.fixture(scope="module")
def served(
    tmp_path_factory: pytest.TempPathFactory, data: Path, calm_studies: CalmStudies
) -> Iterator[Future[Tally]]:
    """The moments of the real `nightsweep serve`, as they come."""
    run = partial(catalog.run, times=1, seconds=SECONDS, calm=calm_studies)
    with ThreadPoolExecutor() as pool:
        yield pool.submit(run, "sqlite", tmp_path_factory.mktemp("served"), data, chosen("served"))


@pytest.fixture(params=get_args(DatabaseName))
def findings(request: pytest.FixtureRequest, deployments: dict[str, Future[Findings]]) -> Findings:
    """One database's findings."""
    return deployments[request.param].result()


@pytest.mark.parametrize("point", [*POINTS, *FREEZE_POINTS, *HANG_POINTS], ids=lambda point: point.name)
def test_every_named_point_is_a_function_of_the_product(point: Point) -> None:
    """One that was renamed would never be passed."""
    assert missing(point) == []


def test_a_process_that_meets_a_point_which_is_no_more_ends_loudly(tmp_path: Path) -> None:
    """Not as if nobody had wanted to kill it."""
    point = Point(
        name="gone", process="api", scenario="search", target="service.states:no_such_function", when="after"
    )
    (tmp_path / "points.json").write_text(json.dumps([point.as_document()]))
    environment = {**os.environ, "FAULTS_FOLDER": str(tmp_path), "FAULTS_PROCESS": "api.1"}
    environment["PYTHONPATH"] = os.pathsep.join([str(INJECTED), str(ROOT)])
    ended = subprocess.run(
        [sys.executable, "-c", "import service.states"],
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )
    assert (ended.returncode, "service.states:no_such_function" in ended.stderr) == (97, True)
    assert "no_such_function" in (tmp_path / "broken").read_text()


def test_nothing_is_lost_when_a_process_dies_at_any_named_point(findings: Findings) -> None:
    """One kill -9 at each; every invariant holds, and every value is the undisturbed study's."""
    assert findings.kills.violations == []
    assert findings.kills.kills == {point.name: 1 for point in POINTS}


def test_no_write_of_a_coordinator_that_stood_still_beyond_its_lease_lands(findings: Findings) -> None:
    """Stopped with SIGSTOP at each moment before a write, and woken once another one has gone on."""
    assert findings.frozen == []


def test_the_study_outlives_its_database_going_away(findings: Findings) -> None:
    """On PostgreSQL. The API says 503 meanwhile, and nobody has to start anything."""
    assert findings.outage == []


def test_what_stands_still_or_comes_from_a_wrong_clock_is_noticed_and_costs_no_value(
    findings: Findings,
) -> None:
    """A stopped worker and a hung training thread lose their trials to others; a lease of two hours counts
    as over. Every value is the undisturbed study's."""
    assert findings.moments.violations == []
    assert findings.moments.kills == {moment.name: 1 for moment in chosen("pair")}


@pytest.mark.parametrize("moment", chosen("served"), ids=lambda moment: moment.name)
def test_serve_goes_on_once_its_machine_is_well_again(moment: Moment, served: Future[Tally]) -> None:
    """The real `nightsweep serve` supervises on, and every value is the undisturbed study's."""
    found = served.result()
    assert found.violations == []
    if moment.name in found.skipped:
        pytest.skip(found.skipped[moment.name])
    assert found.kills[moment.name] == 1


def test_no_process_ends_by_itself_and_the_databases_agree(findings: Findings) -> None:
    """What was not killed has lived through all of it, and `nightsweep db check` finds nothing."""
    assert findings.ended_by_themselves == []
    assert findings.check == []
