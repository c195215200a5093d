"""Conversations: rendered by the tokenizer's own chat template, with loss on the assistant's turns only.

A template with `{% generation %}` markers says itself what the assistant wrote. Most templates have
none. Then a turn begins where rendering everything before it with `add_generation_prompt` ends (which is
what the model gets at inference), and ends where rendering everything up to it ends. Both are right only
if the template is prefix-consistent, that is, if later messages do not change how earlier ones are
rendered; where it is not, that is an error and never a guess.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from itertools import takewhile
from typing import Any

from jinja2 import TemplateError
from transformers import PreTrainedTokenizerBase

from workers.errors import DataError, RowError
from workers.tokenization import (
    IGNORED,
    EncodedRow,
    Segment,
    check_text,
    encode_segments,
    is_special,
)
from workers.tool_calls import in_the_templates_form

Message = Mapping[str, Any]

_GENERATION_MARKER = re.compile(r"\{%-?\s*generation\s*-?%\}")


def check_messages(messages: object, field: str) -> list[Message]:
    """A list of messages, each with a role and a content.

    Raises:
        RowError: it is something else; the message says what.
    """
    expected = "a list of messages such as {'role': 'user', 'content': '...'}"
    if not isinstance(messages, list):
        raise RowError(f"{field!r} is {_kind(messages)}; expected {expected}.")
    if not messages:
        raise RowError(f"{field!r} is an empty list; expected {expected}.")
    for number, message in enumerate(messages, start=1):
        if not isinstance(message, dict):
            raise RowError(f"Message {number} of {field!r} is {_kind(message)}; expected {expected}.")
        if not isinstance(message.get("role"), str) or not message["role"]:
            raise RowError(f"Message {number} of {field!r} has no 'role' (user, assistant, system).")
        if not isinstance(message.get("content"), str) and not message.get("tool_calls"):
            raise RowError(
                f"The 'content' of message {number} of {field!r} is {_kind(message.get('content'))}; "
                "expected a text."
            )
        if isinstance(message.get("content"), str):
            check_text(message["content"], f"Message {number} of {field!r}")
    return messages


def encode_conversation(
    tokenizer: PreTrainedTokenizerBase,
    messages: Sequence[Message],
    *,
    first: int = 0,
    tools: list[dict[str, Any]] | None = None,
) -> EncodedRow:
    """Tokenises a conversation and supervises the assistant's turns, each with its end-of-turn token.

    Args:
        tokenizer: with a chat template, which also writes the BOS where the model wants one.
        messages: checked by `check_messages`.
        first: index of the first message that may be supervised.
        tools: handed to the template.

    Raises:
        DataError: the tokenizer has no chat template, or it is not prefix-consistent.
        RowError: the template refuses this conversation, or does not render its tool calls.
    """
    template = _template(tokenizer, tools)
    caller = next((number for number, m in enumerate(messages, start=1) if m.get("tool_calls")), None)
    if caller is not None and "tool_calls" not in template:
        raise RowError(
            f"Message {caller} calls tools, but the tokenizer's chat template renders no tool_calls, so the "
            "calls would be lost. Use a model whose chat template knows tools, or write the calls into the "
            "content."
        )
    messages = in_the_templates_form(
        messages,
        lambda part: str(tokenizer.apply_chat_template(list(part), tools=tools, tokenize=False)),
    )
    if _GENERATION_MARKER.search(template) and first == 0:
        return _encode_marked(tokenizer, messages, tools)
    return _encode_by_prefixes(tokenizer, messages, first, tools)


def _template(tokenizer: PreTrainedTokenizerBase, tools: list[dict[str, Any]] | None) -> str:
    try:
        return str(tokenizer.get_chat_template(tools=tools))
    except ValueError as error:
        raise DataError(
            "The data holds conversations, but the base model's tokenizer has no chat template. Use an "
            "instruct model, set `tokenizer.chat_template` and save it with the model, or give the data as "
            "prompt_completion."
        ) from error


def _encode_marked(
    tokenizer: PreTrainedTokenizerBase, messages: Sequence[Message], tools: list[dict[str, Any]] | None
) -> EncodedRow:
    try:
        encoded = tokenizer.apply_chat_template(
            list(messages), tools=tools, tokenize=True, return_dict=True, return_assistant_tokens_mask=True
        )
    except (TemplateError, ValueError, TypeError, KeyError) as error:
        raise RowError(f"The tokenizer's chat template refuses this conversation: {error}") from error
    input_ids, mask = list(encoded["input_ids"]), list(encoded["assistant_masks"])

    def ends_turn(token: int) -> bool:
        return token != tokenizer.bos_token_id and is_special(tokenizer, token)

    for i in range(1, len(mask)):
        # Markers that stop short of the end-of-turn token would leave a model that never stops.
        if mask[i - 1] and not mask[i] and not ends_turn(input_ids[i - 1]) and ends_turn(input_ids[i]):
            mask[i] = 1
    return EncodedRow(
        input_ids, [token if on else IGNORED for token, on in zip(input_ids, mask, strict=True)]
    )


def _encode_by_prefixes(
    tokenizer: PreTrainedTokenizerBase,
    messages: Sequence[Message],
    first: int,
    tools: list[dict[str, Any]] | None,
) -> EncodedRow:
    def render(part: Sequence[Message], prompt: bool) -> str:
        try:
            return str(
                tokenizer.apply_chat_template(
                    list(part), tools=tools, tokenize=False, add_generation_prompt=prompt
                )
            )
        except (TemplateError, ValueError, TypeError, KeyError) as error:
            raise RowError(f"The tokenizer's chat template refuses this conversation: {error}") from error

    whole = render(messages, False)
    segments: list[Segment] = []
    done = 0
    for i in range(first, len(messages)):
        if messages[i]["role"] != "assistant":
            continue
        before = _rendered_before(messages, i, render)
        turn = render(messages[: i + 1], False)
        start = len(before)
        if not (done <= start < len(turn) and turn.startswith(before) and whole.startswith(turn)):
            raise DataError(_inconsistent(i + 1, len(messages)))
        segments.append(Segment(whole[done:start], supervised=False))
        segments.append(Segment(whole[start : len(turn)], supervised=True))
        done = len(turn)
    segments.append(Segment(whole[done:], supervised=False))
    return _without_trailing_space(
        tokenizer, encode_segments(tokenizer, [s for s in segments if s.text] or segments)
    )


def _rendered_before(
    messages: Sequence[Message], i: int, render: Callable[[Sequence[Message], bool], str]
) -> str:
    """What the model is given when it is to write message `i`."""
    if i:
        return render(messages[:i], True)
    # Templates cannot render nothing. What two different openings share is what comes before either.
    one, other = (render([{"role": "assistant", "content": content}], False) for content in ("A", "z"))
    shared = takewhile(lambda pair: pair[0] == pair[1], zip(one, other, strict=False))
    return "".join(character for character, _ in shared)


def _without_trailing_space(tokenizer: PreTrainedTokenizerBase, row: EncodedRow) -> EncodedRow:
    """Unsupervises the white space that a template writes after an end-of-turn token.

    Generation has stopped by then, so the model never writes it. White space after a special token *within*
    a turn stays supervised.
    """
    labels = list(row.labels)
    blanks: list[int] | None = []  # white space at the end of a turn; None while in the turn itself
    for i in reversed(range(len(labels))):
        if labels[i] == IGNORED:
            blanks = []
        elif blanks is None:
            continue
        elif not tokenizer.decode([labels[i]]).strip():
            blanks.append(i)
        else:
            if is_special(tokenizer, labels[i]):
                for blank in blanks:
                    labels[blank] = IGNORED
            blanks = None
    return EncodedRow(row.input_ids, labels)


def _inconsistent(number: int, count: int) -> str:
    return (
        f"The tokenizer's chat template renders assistant message {number} of {count} differently when other "
        "messages follow or when it is asked for, so which tokens are the assistant's cannot be told. Use a "
        "chat template with {% generation %} markers, end every conversation with its only assistant "
        "message, or give the data as prompt_completion."
    )


def _kind(value: object) -> str:
    return "missing" if value is None else f"of type {type(value).__name__}"
