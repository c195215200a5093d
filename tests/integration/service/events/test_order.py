"""The one order of all events: nobody who reads on from an id misses one, whoever writes at the same time."""

from __future__ import annotations

import random
import threading
from collections.abc import Callable

import pytest
from sqlalchemy import delete, select, text

from service.db import database
from service.db.models import EventCounter, EventRow, ScheduleEvent, Study
from service.events.queries import EVERYTHING, Filters, read_page
from tests.support.service.events import a_schedule, a_study, all_events, happen, happened, scheduled

WRITERS, TRANSACTIONS = 4, 25


def test_an_event_that_is_committed_later_has_a_higher_id(service_database: database.Database) -> None:
    """On PostgreSQL the first transaction has the lower row id, and becomes visible after the second. SQLite
    lets the second begin only after the first."""
    study = a_study(service_database)
    second = threading.Thread(target=lambda: happen(service_database, happened(study, "second")))
    with service_database.write() as session:
        session.add(happened(study, "first"))
        session.flush()
        second.start()
        if session.get_bind().dialect.name == "postgresql":
            second.join(60)
            between = all_events(service_database)
            assert [event.message for event in between] == ["second"]
        else:
            assert all_events(service_database) == []
            between = []
    second.join(60)
    position = between[-1].id if between else 0
    late = [event.message for event in all_events(service_database, after=position)]
    assert late == (["first"] if between else ["first", "second"])


def test_a_follower_gets_each_event_once_while_many_write(service_database: database.Database) -> None:
    """Writers of studies' and schedules' events commit, roll back and take their time, in random order."""
    study, schedule = a_study(service_database), a_schedule(service_database)

    def write(number: int) -> None:
        dice = random.Random(number)
        for turn in range(TRANSACTIONS):
            rows: list[EventRow | ScheduleEvent] = [
                happened(study, f"{number}-{turn}-0"),
                scheduled(schedule, f"{number}-{turn}-1"),
            ]
            dice.shuffle(rows)

            def work(session: database.Session, rows: list[EventRow | ScheduleEvent] = rows) -> None:
                session.add(rows[0])
                session.flush()
                session.execute(select(text("1")))
                session.add(rows[1])
                session.flush()
                if dice.random() < 0.2:
                    session.rollback()

            with service_database.write() as session:
                work(session)

    threads = [threading.Thread(target=write, args=(number,)) for number in range(WRITERS)]
    for thread in threads:
        thread.start()
    found, position, running = [], 0, True
    while running:
        running = any(thread.is_alive() for thread in threads)  # before the last look
        with service_database.read() as session:
            page = read_page(session, EVERYTHING, after=position, limit=7)
        running = running or page.more
        found += [event.view for event in page.events]
        position = page.upto
    ids = [event.id for event in found]
    assert ids == sorted(set(ids))
    with service_database.read() as session:
        written = [
            *session.scalars(select(EventRow.message)),
            *session.scalars(select(ScheduleEvent.message)),
        ]
    assert sorted(event.message for event in found) == sorted(written)
    assert len(written) >= WRITERS * TRANSACTIONS


def test_the_events_of_one_transaction_are_in_the_order_in_which_they_were_added(
    service_database: database.Database,
) -> None:
    study, schedule = a_study(service_database), a_schedule(service_database)
    with service_database.write() as session:
        for row in (happened(study, "a"), scheduled(schedule, "b"), happened(study, "c")):
            session.add(row)
            session.flush()
    assert [event.message for event in all_events(service_database)] == ["a", "b", "c"]


def test_what_is_rolled_back_to_a_savepoint_leaves_no_trace(service_database: database.Database) -> None:
    study = a_study(service_database)
    with service_database.write() as session:
        session.add(happened(study, "kept"))
        with session.begin_nested() as savepoint:
            session.add(happened(study, "dropped"))
            session.flush()
            savepoint.rollback()
    assert [event.message for event in all_events(service_database)] == ["kept"]


def test_an_id_is_not_given_again_after_the_newest_events_are_gone(
    service_database: database.Database,
) -> None:
    """SQLite gives the highest row ids again once their rows are deleted."""
    study = a_study(service_database)
    happen(service_database, happened(study, "deleted with its study"))
    [gone] = all_events(service_database)
    with service_database.write() as session:
        session.execute(delete(Study))
    happen(service_database, happened(a_study(service_database, "other"), "new"))
    assert [event.message for event in all_events(service_database, after=gone.id)] == ["new"]


def test_ids_go_on_above_those_that_a_restored_backup_does_not_know(
    service_database: database.Database,
) -> None:
    study = a_study(service_database)
    happen(service_database, happened(study, "in the backup"))
    [known] = all_events(service_database)
    happen(service_database, happened(study, "after it"))
    [_, lost] = all_events(service_database)
    with service_database.write() as session:  # as a restore does
        session.execute(delete(EventRow).where(EventRow.position == lost.id))
        session.get_one(EventCounter, 1).last = known.id
    happen(service_database, happened(study, "since the restore"))
    assert [event.message for event in all_events(service_database, after=lost.id)] == ["since the restore"]


def test_ids_grow_while_the_clock_stands_still_or_is_behind(service_database: database.Database) -> None:
    study = a_study(service_database)
    happen(service_database, happened(study, "now"))
    ahead = 2**52
    with service_database.write() as session:  # it was written while the clock was wrong
        session.get_one(EventCounter, 1).last = ahead
    happen(service_database, happened(study, "a"), happened(study, "b"))
    assert [event.id for event in all_events(service_database, after=ahead)] == [ahead + 1, ahead + 2]


Choose = Callable[[str, str], Filters]
CHOICES: dict[str, tuple[Choose, list[str]]] = {
    "everything": (lambda *_: EVERYTHING, ["plain", "swept", "skipped", "machines", "ended"]),
    "two kinds": (
        lambda *_: Filters(kinds=frozenset({"study_completed", "schedule_skipped"})),
        ["skipped", "ended"],
    ),
    "a kind of schedules'": (lambda *_: Filters(kinds=frozenset({"schedule_failed"})), []),
    "a study by name": (lambda *_: Filters(study="tone"), ["plain", "ended"]),
    "a study by id": (lambda study, _: Filters(study_id=study), ["plain", "ended"]),
    "a study that is not there": (lambda *_: Filters(study="later"), []),
    "an owner": (lambda *_: Filters(owner="ann"), ["swept", "skipped"]),
    "a schedule by its present name": (
        lambda _, schedule: Filters(schedule="renamed", schedule_id=schedule),
        ["swept", "skipped"],
    ),
    "a schedule by its name then": (lambda *_: Filters(schedule="nightly"), ["swept", "skipped"]),
    "a schedule and an owner": (lambda *_: Filters(schedule="nightly", owner="default"), []),
    "a study and a kind": (
        lambda study, _: Filters(study_id=study, kinds=frozenset({"waiting"})),
        ["plain"],
    ),
}


@pytest.mark.parametrize("choice", CHOICES)
def test_the_database_and_memory_choose_the_same_events(
    service_database: database.Database, choice: str
) -> None:
    schedule = a_schedule(service_database, "renamed", owner="ann")
    study = a_study(service_database)
    swept = a_study(service_database, "nightly-1", owner="ann", schedule_id=schedule, schedule_name="nightly")
    happen(service_database, happened(study, "plain"))
    happen(service_database, happened(swept, "swept"))
    happen(service_database, scheduled(schedule, "skipped"))
    happen(service_database, happened(None, "machines", "cluster_seen"))
    happen(service_database, happened(study, "ended", "study_completed"))
    choose, expected = CHOICES[choice]
    filters = choose(study, schedule)
    assert [event.message for event in all_events(service_database, filters)] == expected
    assert [event.message for event in all_events(service_database) if filters.match(event)] == expected
    assert [event.message for event in all_events(service_database, filters, limit=1)] == expected
