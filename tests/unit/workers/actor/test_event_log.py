"""The event log: numbered, acknowledged, bounded, awaited."""

from __future__ import annotations

import threading
import time

import pytest
from hypothesis import given
from hypothesis import strategies as st

from workers.actor.event_log import EventLog
from workers.contract import Event, OutcomeStatus, PackCapacity, Progress, TrialOutcome


def outcome(attempt_id: int = 1) -> TrialOutcome:
    return TrialOutcome(attempt_id=attempt_id, status=OutcomeStatus.COMPLETED, reason="done")


def progress(step: int, attempt_id: int = 1) -> Progress:
    return Progress(attempt_id=attempt_id, examples_seen=step, step=step, train_loss=1.0, learning_rate=0.1)


def capacity(slots: int) -> PackCapacity:
    return PackCapacity(slots=slots, reason="as measured")


def numbers(log: EventLog, after: int = 0) -> list[int]:
    return [numbered.seq for numbered in log.events(after)]


def test_events_are_numbered_from_one_and_returned_in_order() -> None:
    log = EventLog()
    assert [log.append(outcome(n)) for n in range(3)] == [1, 2, 3]
    assert [(e.seq, e.event.attempt_id) for e in log.events(0)] == [(1, 0), (2, 1), (3, 2)]


def test_an_event_is_returned_again_until_it_is_acknowledged() -> None:
    log = EventLog()
    for n in range(3):
        log.append(outcome(n))
    assert [numbers(log), numbers(log), numbers(log, after=2), numbers(log, after=0)] == [
        [1, 2, 3],
        [1, 2, 3],
        [3],
        [3],
    ]


def test_only_the_newest_progress_of_an_attempt_is_kept() -> None:
    log = EventLog()
    for step in range(1000):
        log.append(progress(step, attempt_id=step % 2))
    log.append(outcome())
    assert [(e.seq, type(e.event), e.event.attempt_id) for e in log.events(0)] == [
        (999, Progress, 0),
        (1000, Progress, 1),
        (1001, TrialOutcome, 1),
    ]


def test_only_the_newest_capacity_of_the_worker_is_kept() -> None:
    log = EventLog()
    for slots in range(1, 100):
        log.append(progress(slots, attempt_id=slots % 2))
        log.append(capacity(slots))
    log.append(outcome())
    assert [(e.seq, type(e.event)) for e in log.events(0)] == [
        (195, Progress),
        (197, Progress),
        (198, PackCapacity),
        (199, TrialOutcome),
    ]
    assert log.events(0)[2].event == capacity(99)


def test_a_capacity_after_an_acknowledged_capacity_is_kept() -> None:
    log = EventLog()
    log.append(capacity(4))
    assert numbers(log, after=1) == []
    log.append(capacity(4))
    assert numbers(log, after=1) == [2]


def test_progress_after_an_acknowledged_progress_is_kept() -> None:
    log = EventLog()
    log.append(progress(1))
    assert numbers(log, after=1) == []
    log.append(progress(2))
    assert numbers(log, after=1) == [2]


def test_acknowledging_a_number_that_was_never_given_out_is_refused() -> None:
    log = EventLog()
    log.append(outcome())
    with pytest.raises(ValueError, match="cannot acknowledge event 2: the newest event is 1"):
        log.events(2)


def test_a_reader_that_waits_is_woken_by_an_event() -> None:
    log = EventLog()
    found: list[list[int]] = []
    reader = threading.Thread(target=lambda: found.append([e.seq for e in log.events(0, timeout_s=30)]))
    reader.start()
    log.append(outcome())
    reader.join(timeout=30)
    assert found == [[1]]


def test_a_reader_waits_no_longer_than_it_asked_to() -> None:
    started = time.monotonic()
    assert EventLog().events(0, timeout_s=0.05) == ()
    assert time.monotonic() - started >= 0.05


def test_many_writers_and_a_reader_that_comes_back_lose_and_repeat_nothing() -> None:
    log, writers, each = EventLog(), 4, 200

    def write(writer: int) -> None:
        for n in range(each):
            log.append(outcome(writer * each + n))

    threads = [threading.Thread(target=write, args=(writer,)) for writer in range(writers)]
    for thread in threads:
        thread.start()
    after, seen = 0, []
    deadline = time.monotonic() + 30
    while len(seen) < writers * each and time.monotonic() < deadline:
        for numbered in log.events(after, timeout_s=1):
            seen.append(numbered.event.attempt_id)
            after = numbered.seq
    assert sorted(seen) == list(range(writers * each))
    assert len(log) > 0
    assert log.events(after) == ()
    assert len(log) == 0


operations = st.lists(
    st.one_of(
        st.tuples(st.just("progress"), st.integers(0, 2)),
        st.tuples(st.just("outcome"), st.integers(0, 2)),
        st.tuples(st.just("capacity"), st.integers(0, 2)),
        st.tuples(st.just("read"), st.floats(0, 1)),
    ),
    max_size=60,
)


@given(operations)
def test_the_log_is_everything_after_the_acknowledgement_less_what_was_superseded(
    steps: list[tuple[str, float]],
) -> None:
    make = {"progress": lambda n: progress(1, n), "outcome": outcome, "capacity": capacity}
    log = EventLog()
    every: dict[int, Event] = {}
    acknowledged = 0
    for kind, argument in steps:
        if kind == "read":
            acknowledged = max(acknowledged, round(argument * len(every)))
            log.events(acknowledged)
        else:
            event = make[kind](int(argument))
            every[log.append(event)] = event
    newest: dict[object, int] = {}
    for seq, event in every.items():
        newest[subject(event, seq)] = seq
    expected = [
        (seq, event)
        for seq, event in every.items()
        if seq > acknowledged and newest[subject(event, seq)] == seq
    ]
    assert [(e.seq, e.event) for e in log.events(acknowledged)] == expected


def subject(event: Event, seq: int) -> object:
    """What a newer event of the same subject takes the place of."""
    if isinstance(event, Progress):
        return f"progress of {event.attempt_id}"
    return "capacity" if isinstance(event, PackCapacity) else seq
