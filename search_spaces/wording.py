"""Words for people: counts as sentences need them, and text from elsewhere made safe to show.

Whatever comes from a document, a data file, a library's error or a path goes through `shortened` before it
becomes a reason, an event or part of another message, and a log through `LogFormatter`. Terminals act on some
characters and hide others: they are written as Python writes them in a string, such as `\\x1b`.
"""

from __future__ import annotations

import logging
import re
from collections.abc import Sequence

SENTENCE_CHARACTERS = 2000
"""The longest reason or event. Those of the service itself have a few hundred."""
_LOG_LINES = 500

_HIDDEN = re.compile(
    "[\x00-\x1f\x7f-\x9f"  # control characters, of which escape sequences are made
    "\xad\u061c\u180e\u200b-\u200f\u202a-\u202e\u2060-\u206f\ufeff\ufff9-\ufffb"  # unseen; bidi overrides
    "\U000e0000-\U000e007f\ud800-\udfff]"  # tags; lone surrogates
)
_BREAKS = re.compile("[ \t]*(?:\r\n|[\n\r\v\f\x85\u2028\u2029])\\s*")


def counted(number: float, noun: str, plural: str | None = None) -> str:
    """`number` and its noun in the right form: `1 study`, `2 studies`, `1,200 rows`, `0.5 GPUs`.

    A verb may follow the noun: `counted(2, "trial is", "trials are")`.

    Args:
        number: How many; a whole number is shown as one, whatever its type.
        noun: For one of them.
        plural: For any other number; None: `noun` with an s.
    """
    words = f"{int(number):,}" if number == int(number) else f"{number:g}"
    return f"{words} {noun if number == 1 else plural or noun + 's'}"


def listed(names: Sequence[str]) -> str:
    """At least one name: `a`, `a and b`, `a, b and c`."""
    *others, last = names
    return f"{', '.join(others)} and {last}" if others else last


def shortened(text: str, limit: int = 200, *, lines: bool = False) -> str:
    """The text, printable and at most so long; an ellipsis stands for what was cut off.

    Shortening it again changes nothing.

    Args:
        text: From anywhere.
        limit: Characters, those of escapes included.
        lines: Keep line breaks; otherwise a space stands for each.
    """
    text = text[: limit + 1]
    text = "\n".join(map(_escaped, text.splitlines())) if lines else _escaped(_BREAKS.sub(" ", text))
    return text if len(text) <= limit else text[: limit - 1] + "…"


def _escaped(text: str) -> str:
    return _HIDDEN.sub(lambda found: found[0].encode("unicode_escape").decode(), text)


class LogFormatter(logging.Formatter):
    """Log records of printable characters and bounded length. Only the first line of a record begins at the
    margin, so that no text can pass for another record."""

    def format(self, record: logging.LogRecord) -> str:
        lines = super().format(record).splitlines() or [""]
        if len(lines) > _LOG_LINES:
            half = _LOG_LINES // 2
            lines = [*lines[:half], f"… {len(lines) - 2 * half:,} lines left out", *lines[-half:]]
        return "\n    ".join(shortened(line, SENTENCE_CHARACTERS) for line in lines)
