"""The same news is logged once, then after a minute, two, four, and so on up to an hour."""

from __future__ import annotations

import logging

import pytest

from service.log_limit import LogLimit, RepeatFilter, short


class Clock:
    now = 0.0

    def __call__(self) -> float:
        return self.now


def logged(limit: LogLimit, clock: Clock, *, seconds: int, cause: str = "full") -> list[int]:
    """When, if something happens every second."""
    found = []
    for second in range(seconds):
        clock.now = float(second)
        if limit.suffix(cause) is not None:
            found.append(second)
    return found


def test_the_pauses_double() -> None:
    clock = Clock()
    assert logged(LogLimit(clock), clock, seconds=1000) == [0, 60, 180, 420, 900]


def test_a_line_says_how_many_were_left_out() -> None:
    clock = Clock()
    limit = LogLimit(clock)
    assert [limit.suffix("full") for _ in range(4)] == ["", None, None, None]
    clock.now = 60.0
    assert limit.suffix("full") == " (3 more of the same were not logged)"


def test_another_cause_is_logged_at_once() -> None:
    limit = LogLimit()
    assert [limit.suffix(cause) for cause in ("full", "read-only", "full")] == ["", "", None]


def test_what_comes_back_after_a_long_time_is_news_again() -> None:
    clock = Clock()
    limit = LogLimit(clock)
    logged(limit, clock, seconds=200)
    clock.now = 10_000.0
    assert limit.suffix("full") is not None
    assert logged(limit, clock, seconds=0) == []
    clock.now = 10_061.0
    assert limit.suffix("full") is not None  # a minute later, as at the first time


def test_causes_without_end_take_no_memory_without_end() -> None:
    limit = LogLimit()
    for number in range(10_000):
        limit.suffix(str(number))
    assert len(limit._causes) <= 200


def test_a_librarys_messages_are_counted_by_their_first_line(caplog: pytest.LogCaptureFixture) -> None:
    logger = logging.getLogger("tests.flood")
    repeats = RepeatFilter()
    logger.addFilter(repeats)
    with caplog.at_level(logging.INFO):
        for descriptor in range(5):
            logger.error("accept() out of system resource\nsocket: %d", descriptor)
            logger.info("a request")
    logger.removeFilter(repeats)
    assert [record.levelname for record in caplog.records].count("ERROR") == 1
    assert [record.levelname for record in caplog.records].count("INFO") == 5


def test_an_error_is_shown_by_its_innermost_cause() -> None:
    outer = RuntimeError("a wrapper\nwith lines")
    outer.__cause__ = OSError(28, "No space left on device")
    assert short(outer) == "OSError: [Errno 28] No space left on device"
