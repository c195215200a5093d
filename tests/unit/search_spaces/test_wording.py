"""Counts in sentences have the right plural; text from elsewhere is printable and short."""

from __future__ import annotations

import logging
import sys

import pytest

from search_spaces.wording import LogFormatter, counted, shortened


@pytest.mark.parametrize(
    ("number", "noun", "plural", "words"),
    [
        (0, "trial", None, "0 trials"),
        (1, "trial", None, "1 trial"),
        (2, "trial", None, "2 trials"),
        (1200, "row", None, "1,200 rows"),
        (1, "study", "studies", "1 study"),
        (3, "study", "studies", "3 studies"),
        (1, "further attempt", None, "1 further attempt"),
        (1.0, "GPU", None, "1 GPU"),
        (0.5, "GPU", None, "0.5 GPUs"),
    ],
)
def test_a_noun_is_singular_for_one_and_plural_otherwise(
    number: float, noun: str, plural: str | None, words: str
) -> None:
    assert counted(number, noun, plural) == words


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("plain text, Ünïcode and \N{GRINNING FACE}", "plain text, Ünïcode and \N{GRINNING FACE}"),
        ("\x1b[2J\x1b]0;title\x07", r"\x1b[2J\x1b]0;title\x07"),
        ("a\u202eb\u2066c", r"a\u202eb\u2066c"),
        ("half \ud800 NUL \x00", r"half \ud800 NUL \x00"),
        ("one\r\n  two\u2028three\x85four", "one two three four"),
        ("tab\there", r"tab\there"),
        ("x" * 500, "x" * 199 + "…"),
        ("\x1b" * 500, r"\x1b" * 49 + r"\x1" + "…"),
    ],
)
def test_a_text_is_made_printable_and_short(text: str, shown: str) -> None:
    assert shortened(text) == shown
    assert shortened(shown) == shown
    assert len(shown) <= 200


def test_line_breaks_stay_where_they_are_wanted() -> None:
    assert shortened("one\x1b\ntwo\x7f", lines=True) == "one\\x1b\ntwo\\x7f"


def log_record(message: str, *args: object, error: ValueError | None = None) -> str:
    record = logging.LogRecord("service", logging.INFO, "", 0, message, args, None)
    if error is not None:
        try:
            raise error
        except ValueError:
            record.exc_info = sys.exc_info()
    return LogFormatter("%(levelname)s %(message)s").format(record)


def test_no_text_can_pass_for_another_record_of_the_log() -> None:
    assert log_record("a path: %s", "x\n2026 ERROR forged\x1b[1A") == (
        "INFO a path: x\n    2026 ERROR forged\\x1b[1A"
    )


def test_a_log_record_is_bounded() -> None:
    lines = log_record("failed", error=ValueError("y" * 5_000_000 + "\nz" * 5000)).splitlines()
    assert "… " in lines[250]
    assert lines[250].endswith(" lines left out")
    assert len(lines) == 501
    assert max(map(len, lines)) <= 2004
