"""Whether all that a message says is found in what the chat template makes of it.

Each text of a message is looked for in the rendering and taken out of it, the longest first, so that an
answer `four` does not stand in for a reasoning `four` that was left out. That is exact and costs little;
rendering once more with a changed message would say that a part is read, but not that all of it is written,
nor that it is written as it is. What may differ: white space at the ends, which many templates strip; the
escapes of JSON and how often they were applied; white space around `<think>` tags, which some set anew.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from workers.data.chat.chat_templates import REASONING_KEYS, Message
from workers.data.loss_flags import FLAGS, is_empty

BOOKKEEPING = frozenset(
    ("role", "id", "uuid", "name", "index", "turn", "type", "status", "date", "time", "timestamp", "created",
     "model", "language", "lang", "source", "metadata", "finish_reason", "stop_reason",
     "usage", "logprobs", "cache_control")
)  # fmt: skip
"""Keys of a message that say where it comes from, not what it says; so do those that end in _id or _at."""
_OF_A_CALL = frozenset(("id", "type", "index"))
_LONGEST_NUMBER = 4_300
"""Digits of the longest integer that Python reads: a longer one is kept as text."""
_THINK = re.compile(r"(</?think(?:ing)?>)")
_THOUGHT = re.compile(r"<think(?:ing)?>.*?</think(?:ing)?>", re.DOTALL)


@dataclass(frozen=True)
class RowPart:
    """Something that a row says."""

    key: str
    """Of the message, or of the row."""
    text: str
    """Without white space at its ends."""
    message: int | None = None
    """Counted from 1; None: the row says it."""
    turn: bool = False
    """Whether it is an assistant's turn that carries loss."""


def is_bookkeeping(key: str) -> bool:
    """Whether a message's key says nothing that a model could learn."""
    return key in BOOKKEEPING or key in FLAGS or key.endswith(("_id", "_at"))


def parts_of_turn(message: Message, number: int) -> list[RowPart]:
    """All that an assistant's turn says: an empty turn says nothing."""
    found: dict[tuple[str, str], RowPart] = {}
    for key, value in message.items():
        if is_bookkeeping(key):
            continue
        for place, text in enumerate(_texts(key, value)):
            # Exporters write the same reasoning under two names.
            name = "reasoning" if key in REASONING_KEYS else f"{key} {place}"
            found.setdefault((name, text), RowPart(key, text, number, turn=True))
    return list(found.values())


def parts_of_context(message: Message, number: int) -> list[RowPart]:
    """What a message says that carries no loss: its content and calls. Templates leave out old thoughts."""
    rest = dict(message)
    if message.get("role") == "assistant" and isinstance(content := message.get("content"), str):
        rest["content"] = _THOUGHT.sub("", content)
    return [
        RowPart(key, text, number)
        for key in ("content", "tool_calls", "function_call")
        for text in _texts(key, rest.get(key))
    ]


def parts_of_tools(tools: Iterable[Any] | None) -> list[RowPart]:
    """The names of the tools that a row offers."""
    functions = [tool.get("function", tool) for tool in tools or () if isinstance(tool, Mapping)]
    names = [function.get("name") for function in functions if isinstance(function, Mapping)]
    return [RowPart("tools", name.strip()) for name in names if isinstance(name, str) and name.strip()]


def missing(parts: Iterable[RowPart], text: str) -> list[RowPart]:
    """The parts that are not all found in `text`, each at a place of its own."""
    lost: list[RowPart] = []
    for part in sorted(parts, key=lambda part: -len(part.text)):
        rest = _take(text, part.text)
        if rest is None:
            lost.append(part)
        else:
            text = rest
    return lost


def describe_lost(part: RowPart) -> str:
    """What to tell a person who wants nothing lost."""
    whose = "the row" if part.message is None else f"message {part.message}"
    how = "leaves out, cuts or rewrites" if part.key == "content" else "does not render"
    return (
        f"The tokenizer's chat template {how} the {part.key!r} of {whose}, so that would be lost. "
        f"Use a model whose chat template renders it, {_instead(part)}, or set data.unrendered to ignore if "
        "this is meant."
    )


def _instead(part: RowPart) -> str:
    if part.key == "content":
        return "write it where and as the template renders it"
    if part.key == "tools":
        return "write the tools into the system message"
    return "write it into the content, remove it"


def _texts(key: str, value: Any) -> Iterator[str]:
    """What a key of a message says, in texts that a rendering must hold."""
    if is_empty(value):
        return
    if key == "tool_calls":
        for call in value if isinstance(value, list) else [value]:
            yield from _call_texts(call)
    elif key == "function_call":
        yield from _call_texts(value)
    elif isinstance(value, str):
        if not (value.isdigit() and len(value) > _LONGEST_NUMBER):
            yield value.strip()
    elif isinstance(value, (Mapping, list)):
        yield from (leaf for leaf in _leaves(value, keys=False) if isinstance(leaf, str))


def _call_texts(call: Any) -> Iterator[str]:
    if not isinstance(call, Mapping):
        yield from map(_as_text, _leaves(call, keys=True))
        return
    call = call.get("function") or call
    for key, value in call.items() if isinstance(call, Mapping) else [("", call)]:
        if key in _OF_A_CALL:
            continue
        if isinstance(value, str) and (read := _container(value)) is not None:
            value = read
        yield from map(_as_text, _leaves(value, keys=True))


def _leaves(value: Any, *, keys: bool) -> Iterator[Any]:
    """Values in lists and mappings, with the mappings' keys where those are wanted; none that is empty."""
    if isinstance(value, Mapping):
        for key, item in value.items():
            if keys and item is not None:
                yield str(key)
            yield from _leaves(item, keys=keys)
    elif isinstance(value, list):
        for item in value:
            yield from _leaves(item, keys=keys)
    elif not is_empty(value):
        yield value.strip() if isinstance(value, str) else value


def _container(text: str) -> Any:
    """What JSON text holds, where it is a list or an object."""
    try:
        read = json.loads(text)
    except (ValueError, RecursionError):
        return None
    return read if isinstance(read, (dict, list)) else None


def _as_text(leaf: Any) -> str:
    return leaf if isinstance(leaf, str) else json.dumps(leaf, default=str)


def _take(text: str, wanted: str) -> str | None:
    """`text` without `wanted`; None: it is not there."""
    for form in _forms(wanted):
        before, found, after = text.partition(form)
        if found:
            return f"{before}\0{after}"
    pieces = [piece for piece in _THINK.split(wanted) if piece.strip()]
    if len(pieces) == 1:
        return None
    for piece in pieces:
        # The generation prompt may have opened the thought already.
        if not _THINK.fullmatch(piece) or piece.startswith("</"):
            before, found, after = text.partition(piece.strip())
            if not found:
                return None
            text = f"{before}\0{after}"
    return text


def _forms(wanted: str) -> Iterator[str]:
    """A text as it is, in Python's word for JSON's, and as JSON escapes it, once and twice."""
    yield wanted
    if wanted in ("true", "false"):
        yield wanted.title()
    once = [json.dumps(wanted, ensure_ascii=ascii_)[1:-1] for ascii_ in (False, True)]
    yield from once
    yield from (json.dumps(form, ensure_ascii=False)[1:-1] for form in once)
