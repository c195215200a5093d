"""Fields in the names of sweeps and in paths of data."""

from __future__ import annotations

from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest

from service.schedules.templates import Values, anchored, fault_of, name_faults, patterns_of

NEW_YEAR = Values.of(datetime(2026, 12, 31, 22, 30, tzinfo=UTC), "Asia/Kolkata", 12)


@pytest.mark.parametrize(
    ("pattern", "expected"),
    [
        ("data/{date}.jsonl", "data/2027-01-01.jsonl"),
        ("{week}-{run}", "2026-W53-12"),
        ("{{date}}", "{date}"),
        ("plain", "plain"),
    ],
)
def test_fields_are_of_the_local_date_of_the_firing(pattern: str, expected: str) -> None:
    assert NEW_YEAR.fill(pattern) == expected
    assert fault_of(pattern, "x") is None


@pytest.mark.parametrize(
    ("pattern", "message", "nearest"),
    [
        ("{dates}", "unknown field {dates}", "{date}"),
        ("{}", "unknown field {}", None),
        ("{0}", "unknown field {0}", None),
        ("{date.year}", "unknown field {date.year}", "{date}"),
        ("{run.__class__}", "unknown field {run.__class__}", "{run}"),
        ("{run:04}", "the field {run} takes no format", None),
        ("{run!r}", "the field {run} takes no format", None),
        ("{date", "has a brace without its other half", None),
        ("date}", "has a brace without its other half", None),
    ],
)
def test_a_wrong_field_is_said_with_the_nearest(pattern: str, message: str, nearest: str | None) -> None:
    fault = fault_of(pattern, "data.train")
    assert fault is not None
    assert fault.message.startswith(message)
    assert (fault.path, fault.nearest) == ("data.train", nearest)
    with pytest.raises(ValueError, match=r"."):
        NEW_YEAR.fill(pattern)


@pytest.mark.parametrize("pattern", ["nightly-{date}", "a.{week}_{run}", "fixed"])
def test_a_pattern_of_names_makes_names(pattern: str) -> None:
    assert name_faults(pattern, NEW_YEAR) == []


@pytest.mark.parametrize("pattern", ["", "{date} x", "-{date}", "x" * 119 + "{run}", "x" * 500, None])
def test_a_pattern_that_makes_no_name_is_one_fault(pattern: Any) -> None:
    assert [fault.path for fault in name_faults(pattern, NEW_YEAR)] == ["sweep_name"]


def test_patterns_are_of_local_paths_alone() -> None:
    data = {"train": "{date}.jsonl", "eval": {"hub": "a/{date}"}}
    assert patterns_of({"data": data}) == {"train": "{date}.jsonl"}
    assert [patterns_of(other) for other in (None, {}, {"data": []}, {"data": {"train": "a"}})] == [{}] * 4


def test_a_pattern_is_below_the_root_that_has_its_file_or_its_folder(tmp_path: Path) -> None:
    one, other = tmp_path / "one", tmp_path / "ot{h}er"
    (one / "a").mkdir(parents=True)
    (other / "b").mkdir(parents=True)
    roots = (one, other)
    assert anchored("a/{date}.jsonl", NEW_YEAR, roots) == f"{one}/a/{{date}}.jsonl"
    found = anchored("b/{date}.jsonl", NEW_YEAR, roots)
    assert NEW_YEAR.fill(found) == f"{other}/b/2027-01-01.jsonl"
    assert anchored("c/{date}.jsonl", NEW_YEAR, roots) == f"{one}/c/{{date}}.jsonl"
    assert anchored("/d/{date}.jsonl", NEW_YEAR, roots) == "/d/{date}.jsonl"
