"""`python -m tests.soak.fuzz [--examples N] [--boundaries N] [--seed N]`: the full run, on both databases.

Ends with 1 when anything failed. Some 4,000 requests to each database, in a few minutes.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
import time
from pathlib import Path

from service.maintenance import schema
from service.settings import Settings
from tests.soak.fuzz.run import fuzz
from tests.soak.fuzz.world import living_coordinator, make_world
from tests.support.databases import fresh_postgres_database, running_postgres


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--examples", type=int, default=25, help="random requests of each operation")
    parser.add_argument("--boundaries", type=int, default=20, help="try one in so many boundaries; 1: all")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--database", choices=["sqlite", "postgresql", "both"], default="both")
    options = parser.parse_args()
    failed = False
    backends = ["sqlite", "postgresql"] if options.database == "both" else [options.database]
    for backend in backends:
        failed |= not _run(backend, options)
    sys.exit(failed)


def _run(backend: str, options: argparse.Namespace) -> bool:
    """Whether it found nothing."""
    with tempfile.TemporaryDirectory() as folder:
        data = Path(folder) / "data"
        data.mkdir()
        home = Path(folder) / "home"
        if backend == "sqlite":
            return _fuzz(Settings(home=home, data_roots=(data,)), backend, options)
        with running_postgres() as server:
            url = fresh_postgres_database(server)
            return _fuzz(Settings(home=home, data_roots=(data,), database_url=url), backend, options)


def _fuzz(settings: Settings, backend: str, options: argparse.Namespace) -> bool:
    schema.upgrade(settings)
    started = time.monotonic()
    with living_coordinator(settings):
        outcome = fuzz(
            make_world(settings),
            examples=options.examples,
            seed=options.seed,
            boundaries=options.boundaries,
            say=lambda line: print(line, flush=True),
        )
    seconds = time.monotonic() - started
    print(f"== {backend}: {outcome.cases:,} requests in {seconds:.0f} s, seed {options.seed}")
    print(outcome.table())
    print("of these with a body that must be accepted:", sum(outcome.sound.values()))
    for failure in outcome.failures:
        print(f"-- {failure}")
    print(f"== {backend}: {len(outcome.failures)} failures in {outcome.cases:,} requests")
    return not outcome.failures


if __name__ == "__main__":
    main()
