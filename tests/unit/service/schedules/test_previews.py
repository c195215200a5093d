"""The next firings of a schedule, its start and end, and what changes of the clock make of them."""

from __future__ import annotations

from datetime import UTC, datetime

import pytest

from service.schedules.firings import Times, preview, read_bound

NOW = datetime(2026, 1, 1, tzinfo=UTC)


def _notes(cron: str, timezone: str, after: str, count: int) -> list[tuple[str, str | None]]:
    times = Times(cron=cron, timezone=timezone)
    firings = preview(times, datetime.fromisoformat(after + "+00:00"), count)
    return [(f"{firing.local:%d %H:%M %z}", firing.note) for firing in firings]


def test_a_time_that_the_clock_skips_is_moved_and_says_from_where() -> None:
    assert _notes("30 2 * * *", "Europe/Berlin", "2026-03-28T12:00", 2) == [
        ("29 03:00 +0200", "moved from 02:30, which the clock skips"),
        ("30 02:30 +0200", None),
    ]
    [(_, note)] = _notes("0,20,40 2 * * *", "Europe/Berlin", "2026-03-28T12:00", 1)
    assert note == "moved from 02:00, 02:20 and 02:40, which the clock skips"
    [(_, note)] = _notes("0 2,3 * * *", "Europe/Berlin", "2026-03-28T12:00", 1)
    assert note == "also for 02:00, which the clock skips"


def test_a_change_of_half_an_hour_moves_by_half_an_hour() -> None:
    assert _notes("15 2 * * *", "Australia/Lord_Howe", "2026-10-03T00:00", 1) == [
        ("04 02:30 +1100", "moved from 02:15, which the clock skips")
    ]


def test_a_time_that_comes_twice_fires_once_and_says_so() -> None:
    assert _notes("30 2 * * *", "Europe/Berlin", "2026-10-24T12:00", 2) == [
        ("25 02:30 +0200", "second 02:30 left out"),
        ("26 02:30 +0100", None),
    ]


def test_a_job_of_every_hour_follows_real_time_and_says_what_it_does_at_a_change() -> None:
    assert _notes("30 * * * *", "Europe/Berlin", "2026-03-29T00:00", 2) == [
        ("29 01:30 +0100", None),
        ("29 03:30 +0200", "02:30 left out before it: the clock skips that"),
    ]
    assert _notes("30 * * * *", "Europe/Berlin", "2026-10-25T00:00", 3) == [
        ("25 02:30 +0200", "first 02:30: it comes twice"),
        ("25 02:30 +0100", "second 02:30: the clock repeats it"),
        ("25 03:30 +0100", None),
    ]


@pytest.mark.parametrize(
    ("start", "end", "first", "last"),
    [
        ("2026-12-01", None, "2026-11-30T23:00", None),
        ("2026-12-01T18:00", None, "2026-12-01T17:00", None),
        (None, "2026-06-30", None, "2026-06-30T21:59"),
        (None, "2026-06-30T08:00", None, "2026-06-30T06:00"),
        (None, "2026-10-25T02:30", None, "2026-10-25T01:30"),  # the second of two
        ("2026-10-25T02:30", None, "2026-10-25T00:30", None),  # the first of them
    ],
)
def test_start_and_end_are_by_the_timezones_clocks(
    start: str | None, end: str | None, first: str | None, last: str | None
) -> None:
    times = Times(cron="0 0 * * *", timezone="Europe/Berlin", start=start, end=end)
    found = [None if at is None else f"{at:%Y-%m-%dT%H:%M}" for at in (times.first, times.last)]
    assert found == [first, last]


def test_nothing_fires_before_the_start_or_after_the_end_and_both_are_included() -> None:
    times = Times(
        cron="0 18 * * *", timezone="Europe/Berlin", start="2026-12-01T18:00", end="2026-12-03T18:00"
    )
    days = [f"{firing.local:%d %H:%M}" for firing in preview(times, NOW, 10)]
    assert days == ["01 18:00", "02 18:00", "03 18:00"]
    assert times.has_ended(datetime(2026, 12, 3, 17, tzinfo=UTC))
    assert not times.has_ended(datetime(2026, 12, 3, 16, 59, tzinfo=UTC))
    missed = times.latest(datetime(2026, 12, 1, 17, tzinfo=UTC), datetime(2027, 1, 1, tzinfo=UTC))
    assert missed == datetime(2026, 12, 3, 17, tzinfo=UTC)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("2026-12-01", "2026-12-01"),
        ("2026-12-01T18:00", "2026-12-01T18:00"),
        (" 2026-12-01 18:00 ", "2026-12-01T18:00"),
        ("2026-12-01T18:00:00", None),
        ("2026-12-01T18:00+01:00", None),
        ("2026-12-01T24:00", None),
        ("2026-02-30", None),
        ("9999-12-31", None),
        ("0001-01-01", None),
        ("", None),
        ("x" * 1000, None),
        (20261201, None),
    ],
)
def test_a_bound_is_a_date_or_a_date_and_time(text: object, expected: str | None) -> None:
    assert read_bound(text) == expected


@pytest.mark.parametrize(
    ("firing", "until", "ends"),
    [
        ("2026-03-28T21:00", "06:00", "2026-03-29T04:00"),  # a night of 23 hours
        ("2026-10-24T20:00", "06:00", "2026-10-25T05:00"),  # and one of 25
        ("2026-03-28T21:00", "02:30", "2026-03-29T01:30"),  # which the clock skips
        ("2026-10-24T20:00", "02:30", "2026-10-25T00:30"),  # the first of two
        ("2026-07-01T04:00", "06:00", "2026-07-02T04:00"),
    ],
)
def test_a_window_ends_at_the_first_such_time_after_the_firing(firing: str, until: str, ends: str) -> None:
    times = Times(cron="0 22 * * *", timezone="Europe/Berlin")
    found = times.window_end(datetime.fromisoformat(firing + "+00:00"), until)
    assert found == datetime.fromisoformat(ends + "+00:00")
