"""Counts as sentences need them (`1 trial`, `1,200 trials`), and texts of others within messages."""

from __future__ import annotations


def counted(number: int, noun: str, plural: str | None = None) -> str:
    """`number` and its noun in the right form, for example `1 study`, `2 studies` or `1,200 rows`.

    Args:
        number: How many.
        noun: For one of them.
        plural: For any other number; None: `noun` with an s.
    """
    return f"{number:,} {noun if number == 1 else plural or noun + 's'}"


def shortened(text: str, limit: int = 200) -> str:
    """A text that somebody else wrote, as it may stand in a message: one line, escaped, and not long.

    Args:
        text: Anything.
        limit: Most characters that are kept of it.
    """
    escaped = "".join(
        c if c.isprintable() else c.encode("unicode_escape").decode() for c in text[: limit + 1]
    )
    return escaped if len(escaped) <= limit else f"{escaped[:limit]}…"
