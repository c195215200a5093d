"""Counts as sentences need them: `1 trial`, `1,200 trials`."""

from __future__ import annotations


def counted(number: int, noun: str, plural: str | None = None) -> str:
    """`number` and its noun in the right form, for example `1 study`, `2 studies` or `1,200 rows`.

    Args:
        number: How many.
        noun: For one of them.
        plural: For any other number; None: `noun` with an s.
    """
    return f"{number:,} {noun if number == 1 else plural or noun + 's'}"
