"""When schedules fire: time zones, daylight saving, and catching up."""

from __future__ import annotations

import hashlib
from datetime import UTC, datetime, timedelta
from zoneinfo import ZoneInfo

import pytest

from service.schedules.firings import check, latest_firing, next_firing, sweep_seed

NOW = datetime(2026, 1, 1, tzinfo=UTC)


def _firings(cron: str, timezone: str, after: datetime, count: int) -> list[str]:
    result = []
    for _ in range(count):
        following = next_firing(cron, timezone, after)
        assert following is not None
        assert following > after
        result.append(following.isoformat()[5:16])
        after = following
    return result


def test_a_firing_is_at_the_zones_wall_clock() -> None:
    summer = datetime(2026, 7, 1, tzinfo=UTC)
    assert _firings("30 2 * * *", "Europe/Berlin", NOW, 1) == ["01-01T01:30"]
    assert _firings("30 2 * * *", "Europe/Berlin", summer, 1) == ["07-01T00:30"]


def test_an_hour_that_the_clock_skips_is_made_up_for_at_once() -> None:
    """Europe/Berlin goes from 02:00 to 03:00 on 29 March 2026, at 01:00 UTC."""
    after = datetime(2026, 3, 28, 12, tzinfo=UTC)
    assert _firings("30 2 * * *", "Europe/Berlin", after, 2) == ["03-29T01:00", "03-30T00:30"]


def test_an_hour_that_comes_twice_fires_once() -> None:
    """Europe/Berlin goes from 03:00 back to 02:00 on 25 October 2026, at 01:00 UTC."""
    after = datetime(2026, 10, 24, 12, tzinfo=UTC)
    assert _firings("30 2 * * *", "Europe/Berlin", after, 2) == ["10-25T00:30", "10-26T01:30"]


@pytest.mark.parametrize(
    ("cron", "timezone", "fired", "now", "following"),
    [
        ("30 2 * * *", "Europe/Berlin", "2026-10-25T00:30", "2026-10-25T01:05", "2026-10-26T01:30"),
        ("30 1 * * *", "America/New_York", "2026-11-01T05:30", "2026-11-01T06:13", "2026-11-02T06:30"),
        ("15,45 1-3 * * *", "Europe/Dublin", "2026-10-25T00:45", "2026-10-25T01:17", "2026-10-25T02:15"),
        ("30 2-3 * * *", "Europe/Berlin", "2026-10-25T00:30", "2026-10-25T01:05", "2026-10-25T02:30"),
    ],
)
def test_in_the_second_pass_of_a_repeated_hour_nothing_fires_in_the_past(
    cron: str, timezone: str, fired: str, now: str, following: str
) -> None:
    """Whoever asks again, to see whether a clock was wrong, is told the same as right after the firing."""
    expected = datetime.fromisoformat(following + "+00:00")
    for instant in (fired, now):
        assert next_firing(cron, timezone, datetime.fromisoformat(instant + "+00:00")) == expected


def test_every_half_hour_follows_real_time_through_both_changes() -> None:
    for day in (datetime(2026, 3, 29, tzinfo=UTC), datetime(2026, 10, 25, tzinfo=UTC)):
        fired, at = [], day - timedelta(minutes=30)
        for _ in range(6):
            following = next_firing("*/30 * * * *", "Europe/Berlin", at)
            assert following is not None
            fired.append(following - at)
            at = following
        assert fired == [timedelta(minutes=30)] * 6


def test_a_zone_of_half_an_hour() -> None:
    assert _firings("0 0 * * *", "Asia/Kolkata", NOW, 1) == ["01-01T18:30"]


@pytest.mark.parametrize(
    ("cron", "first", "now", "expected"),
    [
        ("0 2 * * *", "2026-01-01T02:00", "2026-01-01T02:00", "2026-01-01T02:00"),
        ("0 2 * * *", "2026-01-01T02:00", "2026-01-02T01:59", "2026-01-01T02:00"),
        ("0 2 * * *", "2026-01-01T02:00", "2026-01-09T12:00", "2026-01-09T02:00"),
        ("* * * * *", "2016-01-01T00:00", "2026-01-01T00:00", "2026-01-01T00:00"),
        ("0 2 1 * *", "2026-01-01T02:00", "2026-06-15T00:00", "2026-06-01T02:00"),
        ("0 0 29 2 *", "2020-02-29T00:00", "2026-06-15T00:00", "2024-02-29T00:00"),
    ],
)
def test_the_latest_missed_firing(cron: str, first: str, now: str, expected: str) -> None:
    def at(text: str) -> datetime:
        return datetime.fromisoformat(text).replace(tzinfo=UTC)

    assert latest_firing(cron, "UTC", at(first), at(now)) == at(expected)


@pytest.mark.parametrize(
    "cron", ["30 2 * * *", "*/5 * * * MON-FRI", "0 0 L * *", "0 0 29 2 *", "0 9 * * MON#1"]
)
def test_right_expressions_have_no_fault(cron: str) -> None:
    assert check(cron, "Europe/Berlin", NOW) == []


@pytest.mark.parametrize(
    "cron",
    ["", "* * * *", "* * * * * *", "@daily", "60 * * * *", "*/0 * * * *", "0 0 31 4 *", "a b c d e", None, 7],
)
def test_wrong_expressions_are_one_fault(cron: object) -> None:
    assert [fault.path for fault in check(cron, "UTC", NOW)] == ["cron"]


def test_a_wrong_zone_names_the_nearest() -> None:
    [fault] = check("* * * * *", "Europe/Berln", NOW)
    assert (fault.path, fault.nearest) == ("timezone", "Europe/Berlin")


@pytest.mark.parametrize("zone", ["EST5", "UTC+2", "GMT+2", "CEST", "PST", "IST", "+02:00", None])
def test_an_offset_or_an_abbreviation_gets_no_hint(zone: object) -> None:
    """`Etc/GMT+2` is two hours behind UTC, and `GMT+0` is not what `GMT+2` means either."""
    [fault] = check("* * * * *", zone, NOW)
    assert (fault.nearest, fault.allowed) == (None, "an IANA name, such as Europe/Berlin or UTC")


def test_the_seed_of_a_sweep_follows_from_the_base_seed_and_the_instant() -> None:
    at = datetime(2026, 5, 1, 21, tzinfo=UTC)
    digest = hashlib.blake2b(b"7/2026-05-01T21:00:00+00:00", digest_size=4).digest()
    assert sweep_seed(7, at) == int.from_bytes(digest, "big")
    assert sweep_seed(7, at.astimezone(ZoneInfo("Asia/Kolkata"))) == sweep_seed(7, at)
    seeds = {sweep_seed(base, at + timedelta(days=day)) for base in range(3) for day in range(100)}
    assert len(seeds) == 300
