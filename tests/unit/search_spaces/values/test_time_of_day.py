"""A time of day is read as people write it, and comes when the clocks of its timezone show it."""

from __future__ import annotations

from collections.abc import Callable
from datetime import UTC, datetime, time, timedelta
from typing import Any
from zoneinfo import ZoneInfo

import pytest
from hypothesis import given
from hypothesis import strategies as st

from search_spaces.errors import Fault
from search_spaces.parsing.document import parse_definition
from search_spaces.values.time_of_day import nearest_timezone, next_time_of_day, parse_time_of_day
from service.definitions.syntax import parse_yaml

FaultsOf = Callable[[Any], dict[str, Fault]]
DOCUMENT: dict[str, Any] = {
    "name": "night",
    "model": {"id": "org/base"},
    "data": {"train": "a.jsonl", "eval": "b.jsonl"},
    "search": {"trials": 3, "space": {"learning_rate": {"min": 1e-5, "max": 1e-3, "scale": "log"}}},
}


def with_budget(**budget: Any) -> dict[str, Any]:
    return DOCUMENT | {"budget": budget}


@pytest.mark.parametrize(
    ("written", "read"), [("06:00", "06:00"), ("6:05", "06:05"), (" 23:59 ", "23:59"), ("00:00", "00:00")]
)
def test_a_time_of_day_is_kept_in_four_digits(written: str, read: str) -> None:
    assert parse_definition(with_budget(until=written)).budget.until == read


@pytest.mark.parametrize(
    "text", ["24:00", "06:60", "6", "06:00:00", "6am", "", "\u0660\u0666:\u0660\u0660", "-6:00", None]
)
def test_what_is_no_time_of_day_is_refused(text: str | None) -> None:
    with pytest.raises(ValueError, match='from "00:00" to "23:59"'):
        parse_time_of_day(str(text))


@pytest.mark.parametrize("value", ["24:00", "dawn", ["06:00"], True])
def test_a_bad_time_is_a_fault_that_says_what_is_allowed(faults_of: FaultsOf, value: Any) -> None:
    fault = faults_of(with_budget(until=value))["budget.until"]
    assert (fault.value, fault.allowed) == (value, 'a time of day in quotes, from "00:00" to "23:59"')


def test_our_yaml_needs_no_quotes_and_who_lost_them_elsewhere_is_told(faults_of: FaultsOf) -> None:
    """YAML 1.1, which other programs read, has 22:30 as a number in base 60."""
    document = DOCUMENT | parse_yaml(b"budget: {until: 22:30}")
    assert parse_definition(document).budget.until == "22:30"
    assert "must be in quotes" in faults_of(with_budget(until=1350))["budget.until"].message


def test_an_unknown_timezone_names_the_nearest(faults_of: FaultsOf) -> None:
    fault = faults_of(with_budget(until="06:00", until_timezone="Europe/Berln"))["budget.until_timezone"]
    assert (fault.message, fault.nearest) == ("unknown time zone", "Europe/Berlin")


@pytest.mark.parametrize(
    ("text", "meant"),
    [
        ("Europe/Berlinn", "Europe/Berlin"),
        ("europe/berlin", "Europe/Berlin"),
        ("Eurpoe/Berlin", "Europe/Berlin"),
        ("Europe\\Berlin", "Europe/Berlin"),
        ("Berlin", "Europe/Berlin"),
        ("new york", "America/New_York"),
        ("America/New York", "America/New_York"),
        ("America/Los Angelos", "America/Los_Angeles"),
        ("Asia/Tokio", "Asia/Tokyo"),
        ("Australia/Sidney", "Australia/Sydney"),
        ("Africa/Cario", "Africa/Cairo"),
        ("US/Estern", "US/Eastern"),
        ("utc", "UTC"),
        ("est5edt", "EST5EDT"),
        ("etc/gmt+2", "Etc/GMT+2"),
        *(
            (text, None)
            for text in ("EST5", "UTC+2", "UTC+02:00", "GMT+2", "GMT-5", "+02:00", "2", "Etc/GMT+20")
        ),
        *(
            (text, None)
            for text in ("CEST", "PST", "PDT", "IST", "EDT", "BST", "JST", "MSK", "AEST", "CET-1CEST")
        ),
        *((text, None) for text in ("Eastern", "West", "Central", "Pacific Standard Time", "local", "", "Z")),
        *((text, None) for text in ("America/Boston", "Asia/Mumbai", "Asia/Bejing", "America/San_Juan")),
        *((text, None) for text in ("Europe/Petersburg", "Europe/Cordoba", "America/Dallas", "x" * 1000)),
        (120, None),
        (None, None),
    ],
)
def test_a_hint_for_a_timezone_has_the_clocks_that_were_meant(text: object, meant: str | None) -> None:
    """Offsets and abbreviations may mean several, and another city has other clocks: then there is none."""
    assert nearest_timezone(text) == meant


@pytest.mark.parametrize("name", ["UTC+2", "CEST", "EST5"])
def test_an_offset_in_place_of_a_timezone_says_what_a_name_looks_like(faults_of: FaultsOf, name: str) -> None:
    fault = faults_of(with_budget(until="06:00", until_timezone=name))["budget.until_timezone"]
    assert (fault.allowed, fault.nearest) == ("an IANA name, such as Europe/Berlin or UTC", None)


@pytest.mark.parametrize("name", ["localtime", "Factory"])
def test_a_timezone_that_is_no_place_is_refused(faults_of: FaultsOf, name: str) -> None:
    """To the coordinator's machine `localtime` may be another one than to the API's."""
    fault = faults_of(with_budget(until="06:00", until_timezone=name))["budget.until_timezone"]
    assert fault.message == "unknown time zone"


@pytest.mark.parametrize(("key", "value"), [("until_timezone", "Europe/Berlin"), ("until_action", "end")])
def test_a_timezone_or_an_action_without_a_time_is_a_fault(faults_of: FaultsOf, key: str, value: str) -> None:
    fault = faults_of(with_budget(**{key: value}))[f"budget.{key}"]
    assert (fault.value, fault.allowed) == (value, "with budget.until")
    assert "budget.until, which is missing" in fault.message


def test_an_accepted_definition_is_accepted_again_with_a_deadline_and_without() -> None:
    for budget in ({}, {"until": "6:00", "until_timezone": "Asia/Tokyo", "until_action": "end"}):
        accepted = parse_definition(with_budget(**budget))
        assert parse_definition(accepted.model_dump(mode="json")) == accepted


def in_berlin(text: str) -> datetime:
    """What the clocks show there, as an instant."""
    return datetime.fromisoformat(text).replace(tzinfo=ZoneInfo("Europe/Berlin")).astimezone(UTC)


@pytest.mark.parametrize(
    ("after", "at", "expected"),
    [
        # Before it, on it, after it.
        ("2026-11-21 22:00", time(6), "2026-11-22 06:00"),
        ("2026-11-22 06:00", time(6), "2026-11-23 06:00"),
        ("2026-11-22 06:01", time(6), "2026-11-23 06:00"),
        # The night of 28 to 29 March 2026 is an hour short, that of 24 to 25 October an hour long.
        ("2026-03-28 22:00", time(6), "2026-03-29 06:00"),
        ("2026-10-24 22:00", time(6), "2026-10-25 06:00"),
        # 02:30 is skipped, and comes as long after midnight as ever: at 03:30.
        ("2026-03-28 22:00", time(2, 30), "2026-03-29 03:30"),
        # 02:30 comes twice: the first counts, and between the two it is the next day's.
        ("2026-10-24 22:00", time(2, 30), "2026-10-25 02:30"),
        ("2026-10-25 02:45", time(2, 30), "2026-10-26 02:30"),
    ],
)
def test_the_next_such_time_is_what_the_clocks_there_show(after: str, at: time, expected: str) -> None:
    found = next_time_of_day(in_berlin(after), at, "Europe/Berlin")
    assert found == in_berlin(expected)


def test_the_day_is_the_timezones_and_not_utcs() -> None:
    found = next_time_of_day(datetime(2026, 6, 1, 22, 30, tzinfo=UTC), time(6), "Asia/Tokyo")
    assert found == datetime(2026, 6, 2, 21, 0, tzinfo=UTC)  # in Tokyo it was 07:30 on the 2nd already


@given(
    seconds=st.integers(946_684_800, 2_114_380_800),  # from 2000 to 2037
    at=st.times(),
    zone=st.sampled_from(
        ["UTC", "Europe/Berlin", "America/New_York", "Australia/Lord_Howe", "Asia/Kathmandu"]
    ),
)
def test_it_is_always_later_and_within_a_day_but_for_changed_clocks(
    seconds: int, at: time, zone: str
) -> None:
    instant = datetime.fromtimestamp(seconds, UTC)
    found = next_time_of_day(instant, at, zone)
    assert instant < found <= instant + timedelta(hours=26)
    assert found == next_time_of_day(found - timedelta(microseconds=1), at, zone)
