"""Tool calls in the form that a chat template renders.

Most templates take a call's arguments as an object, which is what transformers documents, and write them as
JSON or one by one. Some print them as they are: given an object, they would print Python's notation with its
single quotes, so they are given JSON text. To tell which kind a template is, the conversation is rendered
with other arguments, which are then looked for.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

from jinja2 import TemplateError

from workers.errors import RowError

Message = Mapping[str, Any]
Render = Callable[[Sequence[Message]], str]

_PROBE = {"nightsweep_probe": "on"}
_TEXT = json.dumps(_PROBE)
_FAULTS = (RowError, TemplateError, ArithmeticError, AttributeError, LookupError, TypeError, ValueError)
"""What templates raise over a value of a kind they do not expect."""


def in_the_templates_form(messages: Sequence[Message], render: Render) -> list[Message]:
    """The messages with their calls' arguments as the template wants them: objects, or else JSON text.

    Args:
        messages: With arguments as objects.
        render: The chat template.

    Raises:
        RowError: The template would write arguments in Python's notation.
    """
    if not any(_functions(message) for message in messages):
        return list(messages)
    objects = _rendered(_with_arguments(messages, lambda _: _PROBE), render)
    if str(_PROBE) not in objects and all(part in objects for item in _PROBE.items() for part in item):
        _check_notation(messages, render)
        return list(messages)
    texts = _rendered(_with_arguments(messages, lambda _: _TEXT), render)
    if _TEXT in texts and repr(_TEXT) not in texts:
        return _with_arguments(messages, lambda arguments: json.dumps(arguments, ensure_ascii=False))
    if str(_PROBE) in objects:
        raise RowError(
            "The tokenizer's chat template writes the arguments of tool calls in Python's notation, not as "
            "JSON. Use `tojson` in the template, or write the calls into the content."
        )
    return list(messages)


def _check_notation(messages: Sequence[Message], render: Render) -> None:
    """Refuses lists and objects within arguments that are written in Python's notation."""
    contents = [str(message.get("content")) for message in messages]
    suspects = {
        repr(value)
        for message in messages
        for call in _functions(message)
        if isinstance(call.get("arguments"), Mapping)
        for value in _within(call["arguments"])
        if not any(repr(value) in content for content in contents)
    }
    if not suspects:
        return
    text = _rendered(messages, render)
    if any(each in text for each in suspects):
        raise RowError(
            "The tokenizer's chat template writes lists or objects among a tool call's arguments in Python's "
            "notation, not as JSON. Use `tojson` in the template, or give arguments without such values."
        )


def _within(arguments: Mapping[str, Any]) -> Iterator[Any]:
    """Lists and objects among the arguments' values that Python writes otherwise than JSON."""
    for value in arguments.values():
        if isinstance(value, (list, Mapping)) and repr(value) != json.dumps(value, ensure_ascii=False):
            yield value


def _functions(message: Message) -> list[Mapping[str, Any]]:
    """The functions that a message calls, with their arguments."""
    calls = message.get("tool_calls") or []
    if message.get("function_call"):
        calls = [*calls, message["function_call"]]
    functions = [call.get("function", call) for call in calls if isinstance(call, Mapping)]
    return [function for function in functions if isinstance(function, Mapping)]


def _with_arguments(messages: Sequence[Message], change: Callable[[Any], Any]) -> list[Message]:
    def changed(call: Any) -> Any:
        if not isinstance(call, Mapping):
            return call
        if isinstance(call.get("function"), Mapping):
            return {**call, "function": changed(call["function"])}
        return {**call, "arguments": change(call["arguments"])} if "arguments" in call else call

    result: list[Message] = []
    for message in messages:
        new = dict(message)
        if message.get("tool_calls"):
            new["tool_calls"] = [changed(call) for call in message["tool_calls"]]
        if message.get("function_call"):
            new["function_call"] = changed(message["function_call"])
        result.append(new)
    return result


def _rendered(messages: Sequence[Message], render: Render) -> str:
    """What the template makes of them; nothing where it refuses them."""
    try:
        return render(messages)
    except _FAULTS:
        return ""
