"""What the messages and tools of a row mean, whatever file they come from.

The same conversation looks different in a JSON file, a CSV cell, a Parquet column and a hub data set. Here it
takes one form, so that equal data gives equal tokens:

- Messages, tools, a message's tool calls and a call's arguments may be JSON text, as OpenAI writes arguments.
- A null among an object's members is left out. Arrow puts one wherever another row has a member that this row
  lacks, so it cannot be told from one that a person wrote. Arguments written as JSON text keep theirs.
- ShareGPT's `from` and `value` become `role` and `content`.
- Tuples, arrays, Arrow's maps and columns of lists become the lists and objects that JSON has.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple

from search_spaces.wording import shortened
from workers.data.tokenization import check_text
from workers.errors import RowError, described, without_values

CONVERSATIONS = "conversations"
"""What ShareGPT calls the column of messages."""
SYSTEM = "system"
"""What data sets in ShareGPT's form call the column with a conversation's system prompt."""
CHAT_FIELDS = ("messages", "prompt", "completion", "chosen", "rejected", "tools")
"""Fields that may hold structures; all but `messages` and `tools` may be texts, and then stay as they are."""
LIST_FIELDS = ("tokens", "labels", "label")
"""Fields that may hold a list, or a list as JSON text; a `label` may be a text or a number."""

_ROLES = {
    **dict.fromkeys(("human", "user"), "user"),
    **dict.fromkeys(("gpt", "assistant", "chatgpt", "bot", "model"), "assistant"),
    **dict.fromkeys(("tool", "observation", "function_response"), "tool"),
    "system": "system",
    "function_call": "assistant",
}
"""ShareGPT's `from`, with the names that LLaMA-Factory and others use there."""
_CHECKED = frozenset(
    {"role", "content", "name", "reasoning_content", "reasoning", "thinking", "tool_calls", "function_call"}
)
"""Keys of a message that templates render: what cannot be rendered is a fault. Others stay as they are."""


@dataclass(frozen=True)
class Unread:
    """Stands in a row for a value that was not or could not be read. It matters only where it is used."""

    reason: str
    """Why, said after the value's name: "is an integer of ..."."""
    text: str | None = None
    """What is written in the file, where that is known."""


def _integer(text: str) -> int | Unread:
    try:
        return int(text)
    except ValueError:  # Python reads integers of up to 4,300 digits
        return Unread(f"is an integer of {len(text):,} digits, too long to be read. Write it as a text", text)


def _members(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    members = dict(pairs)
    if len(members) < len(pairs):
        for name in members:
            values = [value for key, value in pairs if key == name]
            if any(value != values[0] for value in values):
                text = " and ".join(json.dumps(value, default=str) for value in values)
                reason = "is written more than once, with different values. Remove all but one"
                members[name] = Unread(reason, text)
    return members


JSON = json.JSONDecoder(parse_int=_integer, object_pairs_hook=_members)
"""Reads JSON with integers of any length. A member that is written twice, with two values, is `Unread`."""


def read_structures(row: Mapping[str, Any], fields: tuple[str, ...]) -> dict[str, Any]:
    """A row whose messages, tools and lists have their one form. Everything else stays as it is.

    Args:
        row: Under the format's own names.
        fields: Of the format.

    Raises:
        RowError: A field holds what cannot be rendered as JSON; the message says where in it.
    """
    read = dict(row)
    for field in fields:
        value = row.get(field)
        if value is None:
            continue
        if field in LIST_FIELDS:
            items = _listed(_parsed(value))
            read[field] = items if isinstance(items, list) else value
        elif field not in CHAT_FIELDS:
            continue
        elif field == "tools":
            read[field] = _tools(value)
        elif field == "messages" or not isinstance(value, str):
            read[field] = _messages(value, field)
    if "messages" in fields and row.get("messages") is not None:
        _add_system(read, row["messages"])
    return read


class _Place(NamedTuple):
    """Where in a row a value is, for messages."""

    what: str
    path: str = ""

    def __str__(self) -> str:
        return f"{self.what} ({self.path})" if self.path else self.what

    def at(self, key: object) -> _Place:
        name = shortened(str(key), 60)
        return _Place(self.what, f"{self.path}.{name}" if self.path else name)


def _messages(value: Any, field: str) -> Any:
    messages = _items(value)
    if messages is None:
        return value
    return [
        _message(message, _Place(f"Message {number} of {field!r}"))
        if isinstance(message, Mapping)
        else message
        for number, message in enumerate(messages, start=1)
    ]


def _items(value: Any) -> list[Any] | None:
    """A list's items; None of anything else."""
    items = _listed(_parsed(value))
    return [_parsed(item) for item in items] if isinstance(items, list) else None


def _add_system(row: dict[str, Any], written: Any) -> None:
    """Puts the system prompt first that a row in ShareGPT's form has beside its conversation."""
    messages, system = row["messages"], row.get(SYSTEM)
    if not (isinstance(messages, list) and isinstance(system, str) and system.strip()):
        return
    is_sharegpt = any(isinstance(each, Mapping) and each.get("from") for each in _items(written) or ())
    if is_sharegpt and not any(isinstance(each, dict) and each.get("role") == SYSTEM for each in messages):
        content = check_text(row.pop(SYSTEM), f"The column {SYSTEM!r}")
        row["messages"] = [{"role": SYSTEM, "content": content}, *messages]


def _message(message: Mapping[str, Any], place: _Place) -> dict[str, Any]:
    # Keys that no template knows may hold what JSON has no form for, such as a time.
    read = {
        key: _plain(value, place.at(key), strict=key in _CHECKED)
        for key, value in message.items()
        if value is not None
    }
    if "tool_calls" in read:
        calls = _calls(_listed(_parsed(read.pop("tool_calls"))), place.at("tool_calls"))
        if calls:
            read["tool_calls"] = calls
    if "function_call" in read:
        read["function_call"] = _with_arguments(_parsed(read["function_call"]), place.at("function_call"))
    return _of_sharegpt(read, place) if "from" in read and "role" not in read else read


def _of_sharegpt(message: dict[str, Any], place: _Place) -> dict[str, Any]:
    """`from` and `value` as `role` and `content`; a call's value as tool calls."""
    speaker, value = str(message.pop("from")).strip().lower(), message.pop("value", None)
    if speaker not in _ROLES:
        sender = described(speaker)
        raise RowError(f"{place} has the sender {sender}; expected one of {', '.join(_ROLES)}.")
    role = {"role": _ROLES[speaker]}
    if speaker != "function_call":
        return {**role, **({} if value is None else {"content": value}), **message}
    calls = _parsed(value)
    if isinstance(calls, Mapping):
        calls = [calls]
    if not isinstance(calls, list) or not all(isinstance(call, Mapping) for call in calls):
        raise RowError(
            f"{place} is a function_call whose value is not a call as JSON; expected "
            '{"name": "...", "arguments": {...}}, or a list of such.'
        )
    calls = [call if "function" in call else {"type": "function", "function": call} for call in calls]
    return {**role, "tool_calls": _calls(calls, place.at("value")), **message}


def _calls(calls: Any, place: _Place) -> list[dict[str, Any]]:
    """Tool calls, whose name and arguments may lie under `function` or in the call itself."""
    if not isinstance(calls, list):
        raise RowError(f"{place} is of type {type(calls).__name__}; expected a list of calls.")
    read = []
    for number, call in enumerate(map(_parsed, calls), start=1):
        call = _plain(call, place.at(number))
        if not isinstance(call, dict):
            raise RowError(
                f"{place.at(number)} is of type {type(call).__name__}; expected a function's call."
            )
        if "function" in call:
            call["function"] = _with_arguments(_parsed(call["function"]), place.at(number).at("function"))
        read.append(_with_arguments(call, place.at(number)))
    return read


def _with_arguments(function: Any, place: _Place) -> Any:
    """A function's call with its arguments as an object."""
    if not isinstance(function, dict) or not isinstance(function.get("arguments"), str):
        return function
    text = function["arguments"]
    try:
        arguments = JSON.decode(text) if text.strip() else {}
    except (ValueError, RecursionError) as error:
        raise RowError(
            f"{place.at('arguments')} is a text that is not valid JSON: {without_values(str(error))}. Write "
            "arguments as JSON."
        ) from error
    if isinstance(arguments, str):
        raise RowError(f"{place.at('arguments')} is JSON within JSON. Encode arguments once.")
    return {**function, "arguments": _plain(arguments, place.at("arguments"), keep_null=True)}


def _tools(value: Any) -> list[dict[str, Any]] | None:
    """The tools' schemas; None of an empty text, as in a CSV cell."""
    if isinstance(value, str) and not value.strip():
        return None
    tools = _listed(_parsed(value))
    tools = [tools] if isinstance(tools, Mapping) else tools
    expected = "expected a list of tools such as {'type': 'function', 'function': {...}}, or that as JSON"
    if isinstance(tools, str):
        raise RowError(f"The field 'tools' is a text that is not valid JSON; {expected}.")
    if not isinstance(tools, list):
        raise RowError(f"The field 'tools' is of type {type(tools).__name__}; {expected}.")
    read = []
    for number, tool in enumerate(map(_parsed, tools), start=1):
        place = _Place(f"Tool {number} of 'tools'")
        tool = _plain(tool, place)
        if not isinstance(tool, dict):
            raise RowError(f"{place} is of type {type(tool).__name__}; {expected}.")
        for holder in (tool, tool.get("function")):
            if isinstance(holder, dict) and isinstance(holder.get("parameters"), str):
                holder["parameters"] = _plain(_parsed(holder["parameters"]), place.at("parameters"))
        read.append(tool)
    return read


def _parsed(value: Any) -> Any:
    """The list or object that a JSON text holds; anything else as it is."""
    if not isinstance(value, str) or not value.lstrip().startswith(("[", "{")):
        return value
    try:
        return JSON.decode(value)
    except (ValueError, RecursionError):
        return value


def _listed(value: Any) -> Any:
    """A list, where Arrow keeps a list of objects as an object of lists (`Sequence` of `datasets`)."""
    if hasattr(value, "tolist"):
        value = value.tolist()
    if isinstance(value, Mapping) and value and all(isinstance(each, list) for each in value.values()):
        columns = list(value.values())
        if len({len(column) for column in columns}) == 1:
            return [dict(zip(value, items, strict=True)) for items in zip(*columns, strict=True)]
    return list(value) if isinstance(value, tuple) else value


def _plain(value: Any, place: _Place, *, strict: bool = True, keep_null: bool = False) -> Any:
    """A value as JSON has it.

    Args:
        value: Of a row.
        place: Where it is.
        strict: Whether what cannot be rendered is a fault; else it stays.
        keep_null: Whether null members stay; else they are left out, at every depth.

    Raises:
        RowError: It holds what JSON has no form for.
    """
    if isinstance(value, Unread):
        if strict:
            raise RowError(f"{place} {value.reason}.")
        return value.text
    if hasattr(value, "tolist"):  # numpy's
        value = value.tolist()
    if isinstance(value, (list, tuple)):
        if value and all(isinstance(each, tuple) and len(each) == 2 for each in value):  # Arrow's maps
            value = dict(value)
        else:
            return [
                _plain(each, place.at(n), strict=strict, keep_null=keep_null)
                for n, each in enumerate(value, start=1)
            ]
    if isinstance(value, Mapping):
        return {
            _plain(key, place, strict=strict): _plain(each, place.at(key), strict=strict, keep_null=keep_null)
            for key, each in value.items()
            if each is not None or keep_null
        }
    if not strict or value is None or isinstance(value, (bool, int)):
        return value
    if isinstance(value, str):
        return check_text(value, str(place))
    if isinstance(value, float) and math.isfinite(value):
        return value
    what = str(value) if isinstance(value, float) else f"of type {type(value).__name__}"
    raise RowError(f"{place} is {what}, which JSON cannot represent. Store it as text.")
