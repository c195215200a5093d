"""Documents from bytes to plain values: JSON, and YAML where people write by hand.

One reading for REST and the command line, so that a file means the same whichever way it comes. Only the
syntax is judged here. What a document means, and what is wrong in it, is said by
`search_spaces.parsing.document.parse_definition`, with the path of every fault.
"""

from __future__ import annotations

import json
import re
from typing import Any

import yaml

from service.errors import Unreadable

try:
    from yaml import CSafeLoader as _SafeLoader
except ImportError:  # PyYAML built without libyaml
    from yaml import SafeLoader as _SafeLoader  # type: ignore[assignment]

MAX_DEPTH = 64
"""Levels of nesting beyond which YAML is not read at all: its composer recurses in C."""

MAX_YAML_VALUES = 100_000
"""Keys and values beyond which YAML is not read on: a million of them take seconds. It is twice what a
definition may hold (`search_spaces.parsing.plain.MAX_VALUES`)."""

_INT = "tag:yaml.org,2002:int"
_FLOAT = "tag:yaml.org,2002:float"
_REPLACED = (_INT, _FLOAT, "tag:yaml.org,2002:timestamp")


def parse_json(raw: bytes) -> Any:
    """Read JSON. `NaN` and `Infinity` pass, so that the fault can name their place.

    Raises:
        Unreadable: not UTF-8, not JSON, nested too deeply, or a key given twice.
    """
    text = _decode(raw)
    try:
        return json.loads(text, object_pairs_hook=_without_repeats)
    except RecursionError:
        raise Unreadable("The JSON is nested too deeply to be read.") from None
    except json.JSONDecodeError as error:
        raise Unreadable(f"Invalid JSON: {error.msg} at line {error.lineno}, column {error.colno}.") from None
    except ValueError as error:  # an integer of more digits than Python reads
        raise Unreadable(f"The JSON cannot be read: {error}.") from None


def parse_yaml(raw: bytes) -> Any:
    """Read YAML of plain values: no tags, and no aliases (a few of them unfold to billions of values).

    Numbers are those of YAML 1.2: PyYAML would read `1e-4` as a word, a date as a date object, and `22:30` as
    1,350, since numbers of base sixty are part of YAML 1.1.

    Raises:
        Unreadable: not UTF-8, not YAML, nested too deeply, too many values, a key given twice, an alias, or
            a tag.
    """
    text = _decode(raw)
    try:
        _check_events(text)
        return yaml.load(text, Loader=_PlainLoader)
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        where = f" at line {mark.line + 1}, column {mark.column + 1}" if mark else ""
        raise Unreadable(f"Invalid YAML: {error.problem or error.context}{where}.") from None
    except (yaml.YAMLError, ValueError) as error:
        raise Unreadable(f"The YAML cannot be read: {error}.") from None


def _decode(raw: bytes) -> str:
    try:
        return raw.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise Unreadable(f"Invalid UTF-8: the byte at offset {error.start} is not in a character.") from None


def _without_repeats(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    result = dict(pairs)
    if len(result) < len(pairs):
        seen: set[str] = set()
        twice = next(key for key, _ in pairs if key in seen or seen.add(key))  # type: ignore[func-returns-value]
        raise Unreadable(f"Duplicate key {twice[:100]!r} in one mapping.")
    return result


def _check_events(text: str) -> None:
    """Refuse what must not reach the composer, from the flat stream of the parser's events."""
    depth = values = 0
    for event in yaml.parse(text, Loader=_SafeLoader):
        where = f" (line {event.start_mark.line + 1})" if event.start_mark else ""
        if isinstance(event, yaml.AliasEvent):
            raise Unreadable(f"YAML aliases are not supported; write the value out{where}.")
        if isinstance(event, yaml.NodeEvent) and event.anchor is not None:
            raise Unreadable(f"YAML anchors are not supported; write the value out{where}.")
        if isinstance(event, yaml.ScalarEvent | yaml.CollectionStartEvent) and event.tag is not None:
            raise Unreadable(f"YAML tags are not supported; write a plain value{where}.")
        values += isinstance(event, yaml.NodeEvent)
        if values > MAX_YAML_VALUES:
            raise Unreadable(f"The YAML holds more than {MAX_YAML_VALUES:,} keys and values{where}.")
        if isinstance(event, yaml.CollectionStartEvent):
            depth += 1
            if depth > MAX_DEPTH:
                raise Unreadable(f"The YAML is nested too deeply to be read{where}.")
        elif isinstance(event, yaml.CollectionEndEvent):
            depth -= 1


class _PlainLoader(_SafeLoader):
    """PyYAML's safe loader, without merges, dates and silently overwritten keys."""

    def construct_mapping(self, node: Any, deep: bool = False) -> dict[Any, Any]:
        result: dict[Any, Any] = {}
        for key_node, value_node in node.value:
            line = key_node.start_mark.line + 1
            if not isinstance(key_node, yaml.ScalarNode):
                raise Unreadable(f"A YAML key must be text (line {line}).")
            key = self.construct_object(key_node, deep=True)
            if key in result:
                raise Unreadable(f"Duplicate key {str(key)[:100]!r} in one mapping (line {line}).")
            result[key] = self.construct_object(value_node, deep=True)
        return result


_PlainLoader.add_constructor("tag:yaml.org,2002:map", _PlainLoader.construct_mapping)
_PlainLoader.yaml_implicit_resolvers = {
    first: [(tag, pattern) for tag, pattern in resolvers if tag not in _REPLACED]
    for first, resolvers in _SafeLoader.yaml_implicit_resolvers.items()
}
_PlainLoader.add_implicit_resolver(
    _INT, re.compile(r"^[-+]?(0|[1-9][0-9]*|0x[0-9a-fA-F]+)$"), list("-+0123456789")
)
_PlainLoader.add_implicit_resolver(
    _FLOAT,
    re.compile(
        r"^([-+]?(\.[0-9]+|[0-9]+\.[0-9]*)([eE][-+]?[0-9]+)?|[-+]?[0-9]+[eE][-+]?[0-9]+"
        r"|[-+]?\.(inf|Inf|INF)|\.(nan|NaN|NAN))$"
    ),
    list("-+.0123456789"),
)
