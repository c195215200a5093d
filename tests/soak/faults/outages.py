"""`python -m tests.soak.faults.outages`: PostgreSQL is away for a while in the middle of a study.

Once stopped and once killed. Exits with 1 when something was wrong afterwards.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from tests.soak.faults import scenarios, studies
from tests.soak.faults.deployment import Deployment
from tests.soak.faults.invariants import Record


def outage(
    deployment: Deployment,
    name: str,
    *,
    seconds: float,
    calm: Record,
    definition: dict[str, Any],
    kill: bool = False,
) -> list[str]:
    """Take the database away for so long once a study has its first rungs; what is wrong afterwards.

    Meanwhile the API must answer 503; afterwards it must answer again, and every process must be the one that
    it was before: nobody has to start anything.
    """
    deployment.client.submit(definition)
    deployment.wait_for(lambda: scenarios.rungs_of(deployment, name) >= 2, f"two rungs of {name}")
    processes = (deployment.api, *deployment.coordinators)
    before = [process.name for process in processes]
    with deployment.without_database(kill=kill):
        until = time.monotonic() + seconds
        deployment.wait_for(
            lambda: deployment.client.status("/v1/studies") == 503, "an answer of 503", seconds=60
        )
        deployment.wait_for(lambda: time.monotonic() > until, "the end of the outage", seconds=2 * seconds)
        wrong = []
        answer = deployment.client.status("/v1/studies")
        if answer != 503:
            wrong.append(f"{name}: the API answers {answer} while the database is away")
    deployment.wait_for(
        lambda: deployment.client.status("/v1/studies") == 200, "an answer of 200", seconds=60
    )
    scenarios.wait_for_end(deployment, name)
    if [process.name for process in processes] != before:
        wrong.append(f"{name}: the processes were {before} and are {[p.name for p in processes]}")
    return wrong + scenarios.verdict(deployment, name, calm)[1]


def main(arguments: Sequence[str] | None = None) -> int:
    """Run and print."""
    parser = argparse.ArgumentParser(prog="python -m tests.soak.faults.outages", description=__doc__)
    parser.add_argument("--seconds", type=float, default=60.0, help="of each outage (60)")
    options = parser.parse_args(arguments)
    folder = Path(tempfile.mkdtemp(prefix="nightsweep-outages-"))
    data = studies.make_data(folder / "data")
    wrong = []
    with Deployment("postgresql", folder / "deployment", data) as deployment:
        calm = scenarios.undisturbed(deployment, studies.random)
        for name, kill in (("stopped", False), ("killed", True)):
            began = time.monotonic()
            definition = studies.random(data, name)
            found = outage(
                deployment, name, seconds=options.seconds, calm=calm, definition=definition, kill=kill
            )
            took = time.monotonic() - began
            print(f"{name} for {options.seconds:g} s: the study took {took:.0f} s, {len(found)} violations")
            wrong += found
        wrong += deployment.db_check()
        wrong += [f"{end.name} ended by itself, with code {end.code}" for end in deployment.exits]
    print(*wrong, sep="\n")
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
