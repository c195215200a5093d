"""Bodies: what is read, and what is refused before anything looks at its meaning."""

from __future__ import annotations

import math

import pytest

from service.definitions.syntax import parse_json, parse_yaml
from service.errors import Unreadable


def test_json_and_yaml_of_the_same_document_are_the_same() -> None:
    expected = {"name": "a", "list": [1, 2.5, None, True], "nested": {"x": "y"}}
    assert parse_json(b'{"name": "a", "list": [1, 2.5, null, true], "nested": {"x": "y"}}') == expected
    assert parse_yaml(b"name: a\nlist: [1, 2.5, null, true]\nnested: {x: y}\n") == expected


def test_nan_passes_so_that_its_place_can_be_named() -> None:
    assert math.isnan(parse_json(b'{"a": NaN}')["a"])


def test_a_byte_order_mark_is_no_fault() -> None:
    assert parse_json(b'\xef\xbb\xbf{"a": 1}') == {"a": 1}


def test_yaml_merge_keys_are_refused() -> None:
    with pytest.raises(Unreadable, match="merge"):
        parse_yaml(b"<<: {a: 1}")


def test_a_small_yaml_that_unfolds_to_billions_is_refused_at_once() -> None:
    lines = ["a0: &a0 [x, x]"] + [f"a{i}: &a{i} [*a{i - 1}, *a{i - 1}]" for i in range(1, 40)]
    with pytest.raises(Unreadable, match=r"anchors are not supported.*line 1"):
        parse_yaml("\n".join(lines).encode())


@pytest.mark.parametrize(
    ("raw", "words"),
    [
        (b'{"a": 1,}', "line 1, column"),
        (b'{"a": 1, "a": 2}', "Duplicate key 'a'"),
        (b"[" * 500_000, "nested too deeply"),
        (b"1" * 5000, "cannot|can be read"),
        (b"\xff", "offset 0"),
    ],
)
def test_unreadable_json_says_where(raw: bytes, words: str) -> None:
    with pytest.raises(Unreadable, match=words):
        parse_json(raw)


@pytest.mark.parametrize(
    ("raw", "words"),
    [
        (b"a: [1", "line 1|line 2"),
        (b"a: 1\na: 2", "Duplicate key 'a'.*line 2"),
        (b"a: !!python/name:os.system ''", "tags are not supported"),
        (b"{" * 500_000, "nested too deeply"),
        (b"? {a: 1}\n: b", "key must be text"),
        (b"a: \x07", "YAML cannot be read"),
    ],
)
def test_unreadable_yaml_says_where(raw: bytes, words: str) -> None:
    with pytest.raises(Unreadable, match=words):
        parse_yaml(raw)


def test_dates_stay_text_and_numbers_are_those_of_yaml_1_2() -> None:
    document = parse_yaml(b"{a: 2026-02-30, b: 2026-02-28, c: 1e-4, d: -2E+3, e: .5e1, f: 1.0e-3}")
    assert document == {"a": "2026-02-30", "b": "2026-02-28", "c": 1e-4, "d": -2e3, "e": 5.0, "f": 1e-3}
