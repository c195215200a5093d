"""`python -m tests.soak.faults.points`: every named point and moment, so many times, on one database or both.

At a point a process dies (`kill_points`); a moment is anything else that happens to a study
(`moments.catalog`). Prints a table of them and everything that was wrong afterwards, and appends it to a
log. Exits with 1 when something was.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
import time
from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import get_args

from tests.soak.faults import scenarios, studies
from tests.soak.faults.deployment import DatabaseName, Deployment
from tests.soak.faults.judging import Tally
from tests.soak.faults.kill_points import HANG_POINTS, POINTS, Point, Scenario, missing
from tests.soak.faults.moments import catalog
from tests.soak.faults.moments.catalog import MOMENTS

LOG = Path(__file__).resolve().parents[3] / "benchmarks" / "out" / "faults.log"


def main(arguments: Sequence[str] | None = None) -> int:
    """Run, print, log."""
    parser = argparse.ArgumentParser(prog="python -m tests.soak.faults.points", description=__doc__)
    parser.add_argument("--times", type=int, default=10, help="each point and moment (10)")
    parser.add_argument("--seconds", type=float, default=60.0, help="a full disk and the like last (60)")
    parser.add_argument(
        "--database", choices=get_args(DatabaseName), action="append", help="both, if not given"
    )
    parser.add_argument(
        "--only", nargs="*", default=[""], metavar="NAME", help="names, or parts of them; all, if not given"
    )
    parser.add_argument("--kind", choices=("points", "moments"), default=None, help="both, if not given")
    parser.add_argument("--list", action="store_true", help="print their names and end")
    parser.add_argument("--folder", type=Path, default=None, help="for logs and databases; a new one")
    parser.add_argument("--log", type=Path, default=LOG, help="appended to")
    options = parser.parse_args(arguments)

    def is_chosen(name: str, kind: str) -> bool:
        return options.kind in (None, kind) and any(part in name for part in options.only)

    points = [point for point in POINTS if is_chosen(point.name, "points")]
    moments = [moment for moment in MOMENTS if is_chosen(moment.name, "moments")]
    names = [*(point.name for point in points), *(moment.name for moment in moments)]
    absent = [name for point in (*points, *HANG_POINTS) for name in missing(point)]
    if absent or not names:
        print(f"no such function: {', '.join(absent)}" if absent else "no such point or moment")
        return 2
    if options.list:
        print(*names, sep="\n")
        return 0
    folder = options.folder or Path(tempfile.mkdtemp(prefix="nightsweep-faults-"))
    data = studies.make_data(folder / "data")
    lines: list[str] = []
    violated = False
    for database in options.database or get_args(DatabaseName):
        began = time.monotonic()
        tally = Tally()
        if points:
            tally.add(run(database, folder, data, points, options.times))
        tally.add(catalog.run(database, folder, data, moments, times=options.times, seconds=options.seconds))
        violated = violated or bool(tally.violations)
        lines += report(database, tally, names, options.times, time.monotonic() - began)
    text = "\n".join(lines)
    print(text)
    options.log.parent.mkdir(parents=True, exist_ok=True)
    with options.log.open("a") as log:
        log.write(f"# {datetime.now(UTC):%Y-%m-%d %H:%M} UTC, {options.times} times each\n\n{text}\n\n")
    return 1 if violated else 0


def run(database: DatabaseName, folder: Path, data: Path, points: Sequence[Point], times: int) -> Tally:
    """All scenarios of the points on one database."""
    with Deployment(database, folder / database, data) as deployment:
        total = kill_everywhere(deployment, points, times=times)
        total.violations += deployment.db_check()
        total.violations += [f"{e.name} ended by itself, with code {e.code}" for e in deployment.exits]
    return total


def kill_everywhere(
    deployment: Deployment,
    points: Sequence[Point],
    *,
    times: int,
    order: Sequence[Scenario] = get_args(Scenario),
) -> Tally:
    """Kill at each of these points so many times; says on standard error how it goes."""
    total = Tally()
    for scenario in order:
        began = time.monotonic()
        tally = scenarios.run_scenario(deployment, scenario, times=times, points=points)
        if tally.studies or tally.kills:
            said = f"{sum(tally.kills.values())} kills, {len(tally.violations)} violations"
            said += f", {tally.studies} studies, {time.monotonic() - began:.0f} s"
            print(
                f"{deployment.database}, {scenario}: {said}", *tally.violations, sep="\n  ", file=sys.stderr
            )
        total.add(tally)
    return total


def report(database: str, tally: Tally, names: Sequence[str], times: int, seconds: float) -> list[str]:
    """The lines of a table."""
    width = max(map(len, names))
    lines = [f"{database}: {sum(tally.kills.values())} faults in {seconds:.0f} s", ""]
    for name in names:
        why = tally.skipped.get(name)
        done = f"{tally.kills.get(name, 0):>4} of {times}" if why is None else f"   skipped: {why}"
        lines.append(f"  {name:<{width}}  {done}")
    lines += ["", f"  {tally.studies} studies, {tally.trials} trials, {len(tally.violations)} violations"]
    if not tally.violations:
        lines.append("  every value equals the undisturbed study's")
    return [*lines, *(f"  VIOLATION {fault}" for fault in tally.violations), ""]


if __name__ == "__main__":
    sys.exit(main())
