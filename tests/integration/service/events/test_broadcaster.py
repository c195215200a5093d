"""Followers of one broadcaster: those that are slow, late, or away for a while."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from contextlib import ExitStack
from typing import Any

import pytest
from sqlalchemy.orm import Session

from service.db import database
from service.events.broadcaster import Broadcaster, Follower
from service.events.queries import EVERYTHING, Filters, newest
from tests.support.service.events import a_study, happen, happened

COUNT = 40
DEADLINE_SECONDS = 60.0


@pytest.fixture
def study(service_database: database.Database) -> str:
    return a_study(service_database)


def run(work: Awaitable[None]) -> None:
    async def bounded() -> None:
        async with asyncio.timeout(DEADLINE_SECONDS):
            await work

    asyncio.run(bounded())


async def read(follower: Follower, count: int) -> list[str]:
    """The messages of the next events."""
    found: list[str] = []
    while len(found) < count:
        found += [event.view.message for event in await follower.next(DEADLINE_SECONDS)]
    return found


@pytest.mark.parametrize("kept", [1, 3, 1000])
def test_whoever_reads_slowly_is_served_from_the_database_and_misses_nothing(
    service_database: database.Database, study: str, kept: int
) -> None:
    async def work() -> None:
        events = Broadcaster(service_database, poll_seconds=0.01, kept=kept)
        with events.follow(EVERYTHING, 0) as slow, events.follow(EVERYTHING, 0) as quick:
            expected = []
            for number in range(COUNT):
                await asyncio.to_thread(happen, service_database, happened(study, str(number)))
                expected.append(str(number))
                assert await read(quick, 1) == [str(number)]
                assert len(events._recent) <= kept
                if number % 10 == 9:  # the slow one has not asked for so long
                    assert await read(slow, 10) == expected[-10:]
        events.close()

    run(work())


def test_new_events_are_read_by_one_task_for_all_who_wait(
    service_database: database.Database, study: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    of_followers: list[object] = []

    async def work() -> None:
        events = Broadcaster(service_database, poll_seconds=0.01)
        with ExitStack() as stack:
            followers = [
                stack.enter_context(events.follow(Filters(study_id=study if place % 2 else "none"), 0))
                for place in range(50)
            ]
            while not events.ready:
                await events.news(1.0)
            for follower in followers:
                await follower.next(0)  # up to now by a page of its own
            read_really = events.read

            async def noted(work: Callable[[Session], Any]) -> Any:
                if work not in (events._next_page, newest):
                    of_followers.append(work)
                return await read_really(work)

            monkeypatch.setattr(events, "read", noted)
            await asyncio.to_thread(happen, service_database, happened(study, "news"))
            found = await asyncio.gather(*(read(follower, 1) for follower in followers[1::2]))
            assert found == [["news"]] * 25
        events.close()

    run(work())
    assert of_followers == []


def test_nothing_is_read_while_nobody_follows_and_nothing_is_missed_after_it(
    service_database: database.Database, study: str
) -> None:
    async def work() -> None:
        events = Broadcaster(service_database, poll_seconds=0.01)
        with events.follow(EVERYTHING, 0) as first:
            happen(service_database, happened(study, "a"))
            assert await read(first, 1) == ["a"]
            left_at = first.position
        happen(service_database, happened(study, "b"))
        assert not events.ready
        with events.follow(EVERYTHING, left_at) as second:
            assert await read(second, 1) == ["b"]
            happen(service_database, happened(study, "c"))
            assert await read(second, 1) == ["c"]
        events.close()

    run(work())


def test_who_comes_from_a_process_that_is_ahead_gets_nothing_twice(
    service_database: database.Database, study: str
) -> None:
    """Of two servers side by side, one has read further than the other."""

    async def work() -> None:
        behind = Broadcaster(service_database, poll_seconds=0.01)
        ahead = Broadcaster(service_database, poll_seconds=0.01)
        with behind.follow(EVERYTHING, 0) as waits:
            await waits.next(0.05)
            behind._poll_seconds = 0.5
            await asyncio.sleep(0)
            with ahead.follow(EVERYTHING, 0) as there:
                happen(service_database, happened(study, "a"))
                assert await read(there, 1) == ["a"]
            with behind.follow(EVERYTHING, there.position) as here:
                happen(service_database, happened(study, "b"))
                assert await read(here, 1) == ["b"]
        behind.close()
        ahead.close()

    run(work())
