"""How fast the REST API reads when there are many studies, and what a trial costs the coordinator.

A database is filled with 1,000 studies and 20,000 trials, one study of 1,000 and one of 2,000 among them.
A real `nightsweep api` serves it; each reading is asked for by one client, and then by 16 at a time.

    python -m benchmarks.reads [--database sqlite|postgresql] [--seconds 5] [--coordinator]
"""

from __future__ import annotations

import argparse
import http.client
import json
import multiprocessing
import os
import random
import signal
import socket
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, nullcontext
from dataclasses import dataclass
from pathlib import Path

from sqlalchemy import select

from benchmarks.filled_database import fill
from service.db.models import Study
from service.settings import Settings
from service.states import TERMINAL_STUDY_STATES
from tests.support.databases import fresh_postgres_database, running_postgres
from tests.support.fakes.cluster import FakeCluster
from tests.support.service.coordinator import CoordinatorLab

LARGE, REPORTED = 2000, 1000
STUDIES, TRIALS = 1000, 20_000
CLIENTS = 16

Path_ = Callable[[random.Random], str]


def sizes() -> list[int]:
    """Trials of each study."""
    rest, count = TRIALS - LARGE - REPORTED, STUDIES - 2
    small = [rest // count + (place < rest % count) for place in range(count)]
    return [*small[: count // 2], LARGE, *small[count // 2 :], REPORTED]


def readings(names: list[str], of: list[int]) -> dict[str, Path_]:
    """What is asked for, by its name in the table."""
    large, reported = names[of.index(LARGE)], names[of.index(REPORTED)]
    return {
        "list of 20 studies": lambda _: "/v1/studies?limit=20",
        "one study": lambda dice: f"/v1/studies/{dice.choice(names)}",
        "page of 100 trials": lambda dice: (
            f"/v1/studies/{large}/trials?limit=100&cursor={dice.randrange(LARGE - 100)}"
        ),
        "one trial of 2,000": lambda dice: f"/v1/studies/{large}/trials/{dice.randrange(LARGE)}",
        "best of 2,000": lambda _: f"/v1/studies/{large}/best",
        "report of 1,000": lambda _: f"/v1/studies/{reported}/report",
        "dashboard's list": lambda _: "/api/studies",
    }


@contextmanager
def api(settings: Settings) -> Iterator[int]:
    """A real REST process: its port."""
    with api_process(settings) as (_, port):
        yield port


@contextmanager
def api_process(settings: Settings) -> Iterator[tuple[subprocess.Popen[bytes], int]]:
    """A real REST process, and its port."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = int(free.getsockname()[1])
    given = {"NIGHTSWEEP_HOME": str(settings.home), "NIGHTSWEEP_PORT": str(port)}
    given["NIGHTSWEEP_DATABASE_URL"] = settings.database_url
    process = subprocess.Popen(
        [sys.executable, "-m", "service.cli", "api"], env={**os.environ, **given}, stdout=subprocess.DEVNULL
    )
    try:
        deadline = time.monotonic() + 60
        while True:
            try:
                ask(http.client.HTTPConnection("127.0.0.1", port), "/healthz")
                break
            except OSError:
                if time.monotonic() > deadline:
                    raise
                time.sleep(0.1)
        yield process, port
    finally:
        process.send_signal(signal.SIGTERM)
        process.wait(30)


def ask(connection: http.client.HTTPConnection, path: str) -> int:
    """Bytes of the answer."""
    connection.request("GET", path)
    answer = connection.getresponse()
    body = answer.read()
    if answer.status != 200:
        raise RuntimeError(f"{path} gave {answer.status}: {body[:300]!r}")
    return len(body)


def load(port: int, kind: str, names: list[str], clients: int, seconds: float) -> tuple[list[float], int]:
    """Seconds of each answer, and the bytes of the last one."""
    times: list[float] = []
    size = [0]
    end = time.perf_counter() + seconds

    def client(seed: int) -> None:
        dice, connection = random.Random(seed), http.client.HTTPConnection("127.0.0.1", port)
        path = readings(names, sizes())[kind]
        while (began := time.perf_counter()) < end:
            size[0] = ask(connection, path(dice))
            times.append(time.perf_counter() - began)

    threads = [threading.Thread(target=client, args=(seed,)) for seed in range(clients)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return times, size[0]


def _loaded(queue: multiprocessing.Queue, *given: object) -> None:  # type: ignore[type-arg]
    queue.put(load(*given))  # type: ignore[arg-type]


def apart(*given: object) -> tuple[list[float], int]:
    """`load` in a process of its own, so that clients and this process's threads do not share a lock."""
    queue: multiprocessing.Queue[tuple[list[float], int]] = multiprocessing.Queue()
    process = multiprocessing.Process(target=_loaded, args=(queue, *given))
    process.start()
    found = queue.get()
    process.join()
    return found


def percentile(values: list[float], share: float) -> float:
    return statistics.quantiles(values, n=100)[round(share * 100) - 1] if len(values) > 1 else values[0]


def measure(port: int, names: list[str], seconds: float, only: str | None) -> None:
    print("| reading | kB | first | alone p50 | p99 | 16 clients p50 | p99 | answers/s |")
    print("| --- | ---: | ---: | ---: | ---: | ---: | ---: | ---: |")
    for kind in readings(names, sizes()):
        if only is not None and only not in kind:
            continue
        began = time.perf_counter()
        connection = http.client.HTTPConnection("127.0.0.1", port)
        ask(connection, readings(names, sizes())[kind](random.Random(-1)))
        first = time.perf_counter() - began
        alone, size = apart(port, kind, names, 1, seconds)
        many, _ = apart(port, kind, names, CLIENTS, seconds)
        cells = [first, percentile(alone, 0.5), percentile(alone, 0.99)]
        cells += [percentile(many, 0.5), percentile(many, 0.99)]
        shown = " | ".join(f"{1000 * value:.1f}" for value in cells)
        print(f"| {kind} | {size / 1000:.1f} | {shown} | {len(many) / seconds:.0f} |", flush=True)


@dataclass
class Load:
    """Studies for a coordinator whose cluster trains nothing, after others that have ended."""

    name: str
    ended: int
    """Studies of `TRIALS_EACH` trials that the databases have before."""
    studies: int
    trials: int
    """Of each of these."""
    spent_s: float = 0.0
    """Seconds of a processor."""


TRIALS_EACH = 100
ROUNDS_IN_A_ROW = 5


def coordinator_costs() -> None:
    """Print the processor time of a trial for a coordinator: with few trials in the databases, with many, and
    with many in one study. The three take turns, so that other work on the machine slows all of them."""
    loads = [
        Load("1,000 trials over 10 studies", 0, 10, TRIALS_EACH),
        Load("the last 1,000 of 10,000 trials over 100 studies", 90, 10, TRIALS_EACH),
        Load("1,000 trials of one study", 0, 1, 1000),
    ]
    with ExitStack() as closing:
        labs = [
            _submitted(load, Path(closing.enter_context(tempfile.TemporaryDirectory()))) for load in loads
        ]
        for lab in labs:
            closing.callback(lab.close)
        open_ones = list(zip(loads, labs, strict=True))
        while open_ones:
            for load, lab in open_ones:
                began = time.process_time()
                for _ in range(ROUNDS_IN_A_ROW):
                    lab.coordinator.round()
                load.spent_s += time.process_time() - began
            open_ones = [(load, lab) for load, lab in open_ones if not _has_ended(lab)]
    print("| studies | ms of a processor for each trial |\n| --- | ---: |")
    for load in loads:
        print(f"| {load.name} | {1000 * load.spent_s / (load.studies * load.trials):.1f} |")


def _submitted(load: Load, folder: Path) -> CoordinatorLab:
    lab = CoordinatorLab(folder / "home", FakeCluster(8, slots=2), poll_seconds=0.5, lease_seconds=600.0)
    if load.ended:
        fill(lab.settings, [TRIALS_EACH] * load.ended)
    space = {"learning_rate": {"min": 1e-5, "max": 1e-1, "scale": "log"}, "lora_r": {"choices": [4, 8]}}
    search = {"algorithm": "random", "trials": load.trials, "space": space}
    for place in range(load.studies):
        lab.submit(name=f"s{place}", search=search)
    return lab


def _has_ended(lab: CoordinatorLab) -> bool:
    with lab.database.read() as session:
        open_ones = select(Study.id).where(Study.state.not_in(TERMINAL_STUDY_STATES)).limit(1)
        return session.scalars(open_ones).first() is None


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--database", choices=["sqlite", "postgresql"], default="sqlite")
    parser.add_argument("--seconds", type=float, default=5.0, help="for each figure")
    parser.add_argument("--only", help="readings whose names contain this")
    parser.add_argument("--coordinator", action="store_true", help="measure the coordinator instead")
    given = parser.parse_args()
    if given.coordinator:
        coordinator_costs()
        return
    postgres = running_postgres() if given.database == "postgresql" else nullcontext("")
    with tempfile.TemporaryDirectory() as home, postgres as server:
        urls = {"database_url": fresh_postgres_database(server)} if server else {}
        settings = Settings(home=Path(home) / "home", **urls)
        began = time.perf_counter()
        names = fill(settings, sizes())
        print(json.dumps({"database": given.database, "filled_in": round(time.perf_counter() - began)}))
        with api(settings) as port:
            measure(port, names, given.seconds, given.only)


if __name__ == "__main__":
    main()
