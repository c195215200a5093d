"""A server that is killed while many follow and somebody writes."""

from __future__ import annotations

import os
import subprocess
import sys
import threading

import httpx

from service.client import Client, UnreachableError
from service.db import database
from service.embedded.ports import free_port
from service.settings import Settings
from tests.support.service.events import a_schedule, a_study, all_events, happen, happened, scheduled
from tests.support.waiting import wait_until

WATCHERS, KILLS = 4, 2
BETWEEN_KILLS = 15
"""Events of each kind."""


def start(settings: Settings, port: int) -> subprocess.Popen[bytes]:
    """A real API process, once it answers."""
    given = {"NIGHTSWEEP_HOME": str(settings.home), "NIGHTSWEEP_PORT": str(port)}
    given["NIGHTSWEEP_DATABASE_URL"] = settings.database_url
    process = subprocess.Popen(
        [sys.executable, "-m", "service.cli", "api"],
        env={**os.environ, **given},
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )

    def answers() -> bool:
        assert process.poll() is None, "the server ended while starting"
        try:
            return httpx.get(f"http://127.0.0.1:{port}/healthz").status_code == 200
        except httpx.RequestError:
            return False

    wait_until(answers, "the start of the server")
    return process


class Watcher(threading.Thread):
    """Follows all events, and connects again with the last id whenever the server is gone."""

    def __init__(self, port: int, after: int) -> None:
        super().__init__(daemon=True)
        self.ids: list[int] = []
        self.connected = 0
        self._port, self._after = port, after
        self._stopped = threading.Event()

    def run(self) -> None:
        with Client(f"http://127.0.0.1:{self._port}") as client:
            while not self._stopped.is_set():
                try:
                    for arrived in client.arrivals(after=self._after, heartbeat=1.0):
                        self.connected += 1
                        for arrival in arrived:
                            self._after = arrival.id
                            if arrival.event is not None:
                                self.ids.append(arrival.event.id)
                        if self._stopped.is_set():
                            return
                except UnreachableError:
                    self._stopped.wait(0.05)

    def stop(self) -> None:
        self._stopped.set()


def test_nobody_misses_an_event_or_gets_one_twice(
    settings: Settings, service_database: database.Database
) -> None:
    study, schedule = a_study(service_database), a_schedule(service_database)
    port = free_port()
    process = start(settings, port)
    watchers = [Watcher(port, 0) for _ in range(WATCHERS)]
    stopped = threading.Event()
    written = 0

    def write() -> None:
        nonlocal written
        while not stopped.is_set():
            happen(service_database, happened(study, str(written)), scheduled(schedule, str(written)))
            written += 1
            stopped.wait(0.01)

    writer = threading.Thread(target=write)
    try:
        for watcher in watchers:
            watcher.start()
        writer.start()
        for _ in range(KILLS):
            heard = [len(watcher.ids) for watcher in watchers]
            wait_until(
                lambda heard=heard: all(  # type: ignore[misc]
                    len(watcher.ids) >= before + BETWEEN_KILLS
                    for watcher, before in zip(watchers, heard, strict=True)
                ),
                "events at every watcher",
            )
            process.kill()
            process.wait()
            process = start(settings, port)
        stopped.set()
        writer.join(60)
        expected = [event.id for event in all_events(service_database)]
        assert len(expected) == 2 * written
        wait_until(lambda: all(watcher.ids[-1:] == expected[-1:] for watcher in watchers), "the last event")
        assert [watcher.ids == expected for watcher in watchers] == [True] * WATCHERS
    finally:
        stopped.set()
        for watcher in watchers:
            watcher.stop()
        process.kill()
        process.wait()
