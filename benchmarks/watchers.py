"""What many watchers cost: streams of events beside lists, on a database with many studies.

A database is filled with 1,000 studies and 20,000 trials. A real `nightsweep api` serves it. 200 watchers
follow the stream of all events, somebody writes events, and lists are asked for 50 times a second, each at
its own time, however long the ones before take. In the end each watcher must have had each event once.

    python -m benchmarks.watchers [--database sqlite|postgresql] [--minutes 5]
"""

from __future__ import annotations

import argparse
import asyncio
import json
import multiprocessing
import os
import random
import statistics
import tempfile
import threading
import time
from contextlib import nullcontext
from dataclasses import dataclass, field
from multiprocessing import Queue
from multiprocessing.synchronize import Event
from pathlib import Path
from queue import Empty

import httpx

from benchmarks.filled_database import fill
from benchmarks.reads import LARGE, api_process, sizes
from service.client.event_stream import messages
from service.db.database import Database, open_database
from service.db.models import EventRow, Study
from service.events.queries import EVERYTHING, newest, read_page
from service.settings import Settings
from tests.support.databases import fresh_postgres_database, running_postgres

WATCHERS, LISTS_A_SECOND, EVENTS_A_SECOND = 200, 50, 10
SETTLING_SECONDS = 30.0
"""For the last event to reach every watcher."""
P99_MS = 300.0


Asked = tuple[list[float], list[str]]
"""Milliseconds, and what went wrong."""


@dataclass
class Watched:
    """What one process of watchers has received."""

    ids: list[list[int]] = field(default_factory=list)
    errors: list[str] = field(default_factory=list)


async def _watch(port: int, watched: Watched, ready: asyncio.Semaphore) -> None:
    """One watcher. By a bare connection: a client library for each would measure the library."""
    ids: list[int] = []
    watched.ids.append(ids)
    try:
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        writer.write(b"GET /v1/events/stream HTTP/1.1\r\nHost: 127.0.0.1\r\n\r\n")
        head = await reader.readuntil(b"\r\n\r\n")
        if b" 200 " not in head.split(b"\r\n")[0]:
            raise RuntimeError(head.split(b"\r\n")[0].decode())
        begun = False
        while True:
            size = int(await reader.readline(), 16)  # chunked
            block = await reader.readexactly(size + 2)
            for found in next(messages([block[:-2]]), []):
                if found.data is not None and found.id is not None:
                    ids.append(found.id)
            if not begun:
                begun = True
                ready.release()
    except (OSError, EOFError, ValueError, RuntimeError) as error:
        watched.errors.append(f"{type(error).__name__}: {error}")
        ready.release()


def watch(port: int, count: int, ready: Event, last: Queue[int], out: Queue[Watched]) -> None:
    """The watchers' process: until each has the last event, or some seconds after it was written."""

    async def work() -> Watched:
        watched, begun = Watched(), asyncio.Semaphore(0)
        tasks = [asyncio.create_task(_watch(port, watched, begun)) for _ in range(count)]
        for _ in range(count):
            await begun.acquire()
        ready.set()
        final = None
        while final is None:
            await asyncio.sleep(0.1)
            try:
                final = last.get_nowait()
            except Empty:
                continue
        give_up_at = time.monotonic() + SETTLING_SECONDS
        while time.monotonic() < give_up_at and not all(ids[-1:] == [final] for ids in watched.ids):
            await asyncio.sleep(0.1)
        for task in tasks:
            task.cancel()
        return watched

    out.put(asyncio.run(work()))


def ask_for_lists(port: int, names: list[str], seconds: float, out: Queue[Asked]) -> None:
    """Milliseconds of each answer, from the moment when it was due, and what went wrong."""
    large = names[sizes().index(LARGE)]
    paths = [
        "/v1/studies?limit=20",
        "/v1/studies?limit=20&state=completed&created_after=2026-01-01T05:00:00Z",
        f"/v1/studies/{large}/trials?limit=100",
        "/v1/events?limit=100",
    ]
    took: list[float] = []
    errors: list[str] = []

    async def one(client: httpx.AsyncClient, path: str, due: float) -> None:
        try:
            answer = await client.get(path)
            if answer.status_code != 200:
                errors.append(f"{path} gave {answer.status_code}")
        except httpx.HTTPError as error:
            errors.append(f"{path}: {type(error).__name__}: {error}")
        took.append(1000 * (time.perf_counter() - due))

    async def work() -> None:
        dice = random.Random(1)
        # The server closes what was idle for 5 s; the client must not use it just then.
        limits = httpx.Limits(max_connections=64, max_keepalive_connections=64, keepalive_expiry=2.0)
        url = f"http://127.0.0.1:{port}"
        async with httpx.AsyncClient(base_url=url, timeout=30, limits=limits) as client:
            began = time.perf_counter()
            async with asyncio.TaskGroup() as tasks:
                for number in range(round(seconds * LISTS_A_SECOND)):
                    due = began + number / LISTS_A_SECOND
                    await asyncio.sleep(max(0.0, due - time.perf_counter()))
                    tasks.create_task(one(client, dice.choice(paths), due))

    asyncio.run(work())
    out.put((took, errors))


def write_events(database: Database, stop: threading.Event) -> None:
    """Some events a second, one or two in a transaction."""
    with database.read() as session:
        ids = [study_id for (study_id,) in session.query(Study.id).limit(100)]
    dice = random.Random(2)
    while not stop.wait(1 / EVENTS_A_SECOND):
        rows = [
            EventRow(study_id=dice.choice(ids), kind="waiting", message="of a benchmark")
            for _ in range(dice.choice((1, 1, 1, 2)))
        ]
        with database.write() as session:
            session.add_all(rows)


def resident_mb(pid: int) -> float:
    """Resident memory of a process."""
    [line] = [line for line in Path(f"/proc/{pid}/status").read_text().splitlines() if "VmRSS" in line]
    return int(line.split()[1]) / 1024


def written_since(database: Database, after: int) -> list[int]:
    """The ids of all events above one."""
    found: list[int] = []
    more = True
    while more:
        with database.read() as session:
            page = read_page(session, EVERYTHING, after=after, limit=1000)
        found += [event.view.id for event in page.events]
        after, more = page.upto, page.more
    return found


def measure(settings: Settings, names: list[str], minutes: float) -> bool:
    """Print a row of the table; whether all of it is as it should be."""
    context = multiprocessing.get_context("spawn")
    database, seconds = open_database(settings), 60 * minutes
    with api_process(settings) as (process, port):
        ready, last, heard, asked = context.Event(), context.Queue(), context.Queue(), context.Queue()
        watching = context.Process(target=watch, args=(port, WATCHERS, ready, last, heard))
        asking = context.Process(target=ask_for_lists, args=(port, names, seconds, asked))
        with database.read() as session:
            before = newest(session)
        watching.start()
        if not ready.wait(60):
            raise RuntimeError("the watchers did not connect")
        stop = threading.Event()
        writing = threading.Thread(target=write_events, args=(database, stop))
        writing.start()
        asking.start()
        memory = []
        for share in (0.1, 0.4, 0.5):  # at a tenth, in the middle, at the end
            time.sleep(share * seconds)
            memory.append(resident_mb(process.pid))
        took, errors = asked.get()
        stop.set()
        writing.join()
        expected = written_since(database, before)
        last.put(expected[-1])
        watched = heard.get()
        threads = len(list(Path(f"/proc/{process.pid}/task").iterdir()))
        asking.join()
        watching.join()
    database.dispose()
    errors += watched.errors
    wrong = sum(ids != expected for ids in watched.ids)
    quantiles = statistics.quantiles(took, n=100)
    cells = [
        f"{len(took):,}",
        f"{statistics.median(took):.1f}",
        f"{quantiles[98]:.1f}",
        f"{max(took):.0f}",
        f"{len(expected):,}",
        str(wrong),
        str(len(errors)),
        " / ".join(f"{megabytes:.0f}" for megabytes in memory),
        str(threads),
    ]
    kind = settings.database_url.partition(":")[0].partition("+")[0]
    print(f"| {kind} | " + " | ".join(cells) + " |", flush=True)
    for error in errors[:5]:
        print(f"error: {error}")
    return not errors and not wrong and quantiles[98] < P99_MS


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--database", choices=["sqlite", "postgresql"], default="sqlite")
    parser.add_argument("--minutes", type=float, default=5.0)
    given = parser.parse_args()
    postgres = running_postgres() if given.database == "postgresql" else nullcontext("")
    with tempfile.TemporaryDirectory() as home, postgres as server:
        urls = {"database_url": fresh_postgres_database(server)} if server else {}
        settings = Settings(home=Path(home) / "home", **urls)
        began = time.perf_counter()
        names = fill(settings, sizes())
        machine = {"cores": os.cpu_count(), "load": [round(one, 1) for one in os.getloadavg()]}
        print(json.dumps({"filled_in": round(time.perf_counter() - began), **machine}))
        print("| database | lists | p50 ms | p99 | most | events | watchers wrong | errors | MB | threads |")
        print("| --- | ---: | ---: | ---: | ---: | ---: | ---: | ---: | --- | ---: |", flush=True)
        good = measure(settings, names, given.minutes)
    raise SystemExit(0 if good else 1)


if __name__ == "__main__":
    main()
