"""Counts in sentences have the right plural."""

from __future__ import annotations

import pytest

from search_spaces.wording import counted


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
    ],
)
def test_a_noun_is_singular_for_one_and_plural_otherwise(
    number: int, noun: str, plural: str | None, words: str
) -> None:
    assert counted(number, noun, plural) == words
