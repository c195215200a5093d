from __future__ import annotations

import re
from typing import Any

import pytest
from pydantic import TypeAdapter, ValidationError

from search_spaces.values.numbers import Real, Seed, Whole, parse_duration


@pytest.mark.parametrize(
    ("text", "seconds"),
    [("90s", 90), ("30m", 1800), ("10h", 36_000), ("2d", 172_800), ("1.5h", 5400), ("1h30m", 5400)],
)
def test_durations_are_read_in_seconds(text: str, seconds: float) -> None:
    assert parse_duration(text) == seconds


@pytest.mark.parametrize(
    "text", ["", "10", "h", "-1h", "1w", "1 h", "0s", "10h\n", "99999999d", "1e3s", "\u0663s"]
)
def test_other_durations_are_refused(text: str) -> None:
    with pytest.raises(ValueError, match="must be"):
        parse_duration(text)


@pytest.mark.parametrize(("raw", "number"), [(1, 1.0), (2.5, 2.5), (-1e3, -1000.0)])
def test_finite_numbers_are_reals(raw: Any, number: float) -> None:
    assert TypeAdapter(Real).validate_python(raw) == number


@pytest.mark.parametrize(
    ("raw", "write"), [("1e-5", "1e-05"), (" 2.5 ", "2.5"), (".5", "0.5"), ("-1E3", "-1000"), ("010", "10")]
)
@pytest.mark.parametrize("kind", [Real, Whole, Seed])
def test_a_number_written_as_text_is_refused_and_shown_without_quotes(
    kind: Any, raw: str, write: str
) -> None:
    with pytest.raises(ValidationError, match=f"not text: write {re.escape(write)} without quotes"):
        TypeAdapter(kind).validate_python(raw)


@pytest.mark.parametrize(
    "raw",
    [True, False, None, "", "nan", "inf", "1e999", float("inf"), 10**400, "one", "1_000", "0x10", [1], b"1"],
    ids=lambda raw: repr(raw)[:20],
)
def test_what_is_no_finite_number_is_refused(raw: Any) -> None:
    with pytest.raises(ValidationError):
        TypeAdapter(Real).validate_python(raw)
    with pytest.raises(ValidationError):
        TypeAdapter(Whole).validate_python(raw)


@pytest.mark.parametrize(("raw", "number"), [(8, 8), (8.0, 8), (1e3, 1000), (-2, -2)])
def test_whole_numbers_are_ints(raw: Any, number: int) -> None:
    value = TypeAdapter(Whole).validate_python(raw)
    assert value == number
    assert type(value) is int


@pytest.mark.parametrize("raw", [8.5, "8.5", "8", 1e-5, 2**31, 1e300])
def test_fractions_and_what_no_database_holds_are_no_whole_numbers(raw: Any) -> None:
    with pytest.raises(ValidationError):
        TypeAdapter(Whole).validate_python(raw)


@pytest.mark.parametrize(("raw", "fits"), [(0, True), (2**32 - 1, True), (-1, False), (2**32, False)])
def test_seeds_are_what_generators_take(raw: int, fits: bool) -> None:
    if fits:
        assert TypeAdapter(Seed).validate_python(raw) == raw
    else:
        with pytest.raises(ValidationError):
            TypeAdapter(Seed).validate_python(raw)
