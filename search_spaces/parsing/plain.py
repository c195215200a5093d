"""From anything a JSON or YAML parser can return to plain mappings, lists and scalars.

What comes over REST is written by strangers. Everything after this module may rely on string keys,
bounded depth and size, and text that a database and an HTTP response can both hold.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from search_spaces.errors import Fault, join_path
from search_spaces.faults import MAX_FAULTS, shown

MAX_DEPTH = 12
"""A definition needs 5; YAML aliases can make a document that contains itself."""
MAX_VALUES = 50_000
"""A grid's choices need at most 10,000; YAML aliases can make a small file describe billions."""

LONGEST_TEXT = 256
"""Characters of a key or a text: a name, a revision, a column, a module."""
LONGEST_PATH = 4_096
"""Characters of what may be a path: the longest that Linux opens."""
_PATHS = frozenset({"model.id", "data.train", "data.eval"})


class _TooMuchError(Exception):
    """The walk was given up; the fault has been recorded."""


class _Walk:
    def __init__(self) -> None:
        self.faults: list[Fault] = []
        self._values = 0

    def fault(self, path: str, value: Any, message: str, allowed: str | None = None) -> None:
        self.faults.append(Fault(path=path, value=shown(value), message=message, allowed=allowed))
        if len(self.faults) >= MAX_FAULTS:
            raise _TooMuchError

    def give_up(self, path: str, message: str, allowed: str) -> None:
        self.faults.append(Fault(path=path, value=None, message=message, allowed=allowed))
        raise _TooMuchError

    def plain(self, value: Any, path: str, depth: int) -> Any:
        self._values += 1
        if self._values > MAX_VALUES:
            self.give_up("", "contains too many values", f"at most {MAX_VALUES:,}")
        if depth > MAX_DEPTH:
            self.give_up(path, "is nested too deeply", f"at most {MAX_DEPTH} levels")
        if isinstance(value, Mapping):
            return self._mapping(value, path, depth)
        if isinstance(value, (list, tuple)):
            return [self.plain(item, join_path(path, str(i)), depth + 1) for i, item in enumerate(value)]
        if isinstance(value, str):
            return self._text(value, path)
        if value is not None and not isinstance(value, (bool, int, float)):
            # YAML reads an unquoted 2026-01-31 as a date, and knows sets and bytes.
            message = f"is a {type(value).__name__}, which JSON does not have; put text in quotes"
            self.fault(path, value, message, "null, true, false, a number, text, a list or a mapping")
            return shown(value)
        return value

    def _mapping(self, value: Mapping[Any, Any], path: str, depth: int) -> dict[str, Any]:
        result = {}
        for key, item in value.items():
            if not isinstance(key, str):
                # YAML 1.1 reads an unquoted `on` or `no` as a boolean, also as a key.
                message = f"has the key {shown(key)!r}, which is not text; put it in quotes"
                self.fault(path, shown(key), message, "text keys")
                continue
            here = join_path(path, str(shown(key)))
            result[self._text(key, here)] = self.plain(item, here, depth + 1)
        return result

    def _text(self, text: str, path: str) -> str:
        if "\x00" in text or any("\ud800" <= char <= "\udfff" for char in text):
            # PostgreSQL refuses both, and neither is in any name or path.
            self.fault(
                path, text, "contains a NUL character or half of a surrogate pair", "valid Unicode text"
            )
            return str(shown(text))
        longest = LONGEST_PATH if path in _PATHS else LONGEST_TEXT
        if len(text) > longest:
            message = f"is too long, with {len(text):,} characters"
            self.fault(path, text, message, f"at most {longest:,} characters")
            return str(shown(text))
        return text


def plain(document: Any) -> tuple[Any, list[Fault]]:
    """A deep copy of `document` made of str-keyed dicts, lists and scalars, and what is wrong in it.

    Values that a fault was found for are replaced by what the fault shows (keys that are not text are left
    out), so that later checks can go on and report more. After too many faults, or where the document is
    too deep or too large, the copy is None.
    """
    walk = _Walk()
    try:
        return walk.plain(document, "", 0), walk.faults
    except _TooMuchError:
        return None, walk.faults
