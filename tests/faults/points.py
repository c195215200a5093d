"""`python -m tests.faults.points`: kill -9 at every named point, so many times, on one database or both.

Prints a table of the kills and everything that was wrong afterwards, and appends it to a log. Exits with 1
when something was.
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

from tests.faults import scenarios, studies
from tests.faults.house import DatabaseName, House
from tests.faults.kill_points import POINTS, Point, Scenario, missing
from tests.faults.scenarios import Tally

LOG = Path(__file__).resolve().parents[2] / "benchmarks" / "faults.log"


def main(arguments: Sequence[str] | None = None) -> int:
    """Run, print, log."""
    parser = argparse.ArgumentParser(prog="python -m tests.faults.points", description=__doc__)
    parser.add_argument("--times", type=int, default=10, help="kills at each point (10)")
    parser.add_argument(
        "--database", choices=get_args(DatabaseName), action="append", help="both, if not given"
    )
    parser.add_argument(
        "--points", nargs="*", default=None, help="names, or parts of them; all, if not given"
    )
    parser.add_argument("--folder", type=Path, default=None, help="for logs and databases; a new one")
    parser.add_argument("--log", type=Path, default=LOG, help="appended to")
    options = parser.parse_args(arguments)
    chosen = [p for p in POINTS if options.points is None or any(part in p.name for part in options.points)]
    absent = [name for point in chosen for name in missing(point)]
    if absent or not chosen:
        print(f"no such function: {', '.join(absent)}" if absent else "no such point")
        return 2
    folder = options.folder or Path(tempfile.mkdtemp(prefix="nightsweep-faults-"))
    data = studies.make_data(folder / "data")
    lines: list[str] = []
    violated = False
    for database in options.database or get_args(DatabaseName):
        began = time.monotonic()
        tally = run(database, folder, data, chosen, options.times)
        violated = violated or bool(tally.violations)
        lines += report(database, tally, chosen, options.times, time.monotonic() - began)
    text = "\n".join(lines)
    print(text)
    with options.log.open("a") as log:
        log.write(
            f"# {datetime.now(UTC):%Y-%m-%d %H:%M} UTC, {options.times} kills at each point\n\n{text}\n\n"
        )
    return 1 if violated else 0


def run(database: DatabaseName, folder: Path, data: Path, points: Sequence[Point], times: int) -> Tally:
    """All scenarios of the points on one database."""
    with House(database, folder / database, data) as house:
        total = kill_everywhere(house, points, times=times)
        total.violations += house.db_check()
        total.violations += [f"{e.name} ended by itself, with code {e.code}" for e in house.exits]
    return total


def kill_everywhere(house: House, points: Sequence[Point], *, times: int) -> Tally:
    """Kill at each of these points so many times; says on standard error how it goes."""
    total = Tally()
    for scenario in get_args(Scenario):
        began = time.monotonic()
        tally = scenarios.run_scenario(house, scenario, times=times, points=points)
        if tally.studies or tally.kills:
            said = f"{sum(tally.kills.values())} kills, {len(tally.violations)} violations"
            said += f", {tally.studies} studies, {time.monotonic() - began:.0f} s"
            print(f"{house.database}, {scenario}: {said}", *tally.violations, sep="\n  ", file=sys.stderr)
        total.add(tally)
    return total


def report(database: str, tally: Tally, points: Sequence[Point], times: int, seconds: float) -> list[str]:
    """The lines of a table."""
    width = max(len(point.name) for point in points)
    lines = [f"{database}: {sum(tally.kills.values())} kills in {seconds:.0f} s", ""]
    lines += [f"  {p.name:<{width}}  {tally.kills.get(p.name, 0):>4} of {times}" for p in points]
    lines += ["", f"  {tally.studies} studies, {tally.trials} trials, {len(tally.violations)} violations"]
    return [*lines, *(f"  VIOLATION {fault}" for fault in tally.violations), ""]


if __name__ == "__main__":
    sys.exit(main())
