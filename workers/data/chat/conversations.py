"""Conversations: rendered by the tokenizer's own chat template, with loss on the assistant's turns only.

A turn begins where rendering everything before it with `add_generation_prompt` ends (which is what the model
gets at inference), and ends where rendering everything up to it ends. Both are right only if the template is
prefix-consistent, that is, if later messages do not change how earlier ones are rendered.

A template with `{% generation %}` markers says itself what the assistant wrote. Where the template is
prefix-consistent, the markers are checked: they are followed within the assistant's turns, and not at all if
they go beyond. Where it is not, the markers alone decide; without any, that is an error and never a guess.

What the template leaves out, cuts or rewrites of a row is found by `workers.data.chat.rendered_parts`.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from itertools import pairwise, takewhile
from typing import Any

from transformers import PreTrainedTokenizerBase

from search_spaces.data_report import TurnsFoundBy
from workers.data.chat.chat_templates import ChatTemplate, Message, Rendering, Span
from workers.data.chat.rendered_parts import (
    RowPart,
    describe_lost,
    missing,
    parts_of_context,
    parts_of_tools,
    parts_of_turn,
)
from workers.data.chat.tool_calls import in_the_templates_form
from workers.data.loss_flags import asks_for_loss
from workers.data.tokenization import (
    EncodedRow,
    TextSegment,
    check_text,
    encode_segments,
    encode_with_offsets,
    label_spans,
    overlap,
    without_trailing_space,
)
from workers.errors import DataError, RowError

_ASSISTANTS = ("assistant", "model", "gpt", "bot", "chatbot", "ai")
"""What data sets call the assistant; every chat template knows the first."""
_ENDS_A_HEADER = re.compile(r".*[\n>\]:]", re.DOTALL)


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
        role = message.get("role")
        if not isinstance(role, str) or not role:
            raise RowError(f"Message {number} of {field!r} has no 'role' (user, assistant, system).")
        if role != "assistant" and role.strip().casefold() in _ASSISTANTS:
            raise RowError(
                f"Message {number} of {field!r} has the role {role!r}, which carries no loss. Write"
                " 'assistant' for what the model is to learn."
            )
        content = message.get("content")
        if isinstance(content, str):
            check_text(content, f"Message {number} of {field!r}")
        elif content is not None or role != "assistant" or not parts_of_turn(message, number):
            hint = " Join the texts of its parts into one." if isinstance(content, list) else ""
            raise RowError(
                f"The 'content' of message {number} of {field!r} is {_kind(content)}; expected a text.{hint}"
            )
    return messages


def encode_conversation(
    tokenizer: PreTrainedTokenizerBase,
    messages: Sequence[Message],
    rendering: Rendering,
    *,
    first: int = 0,
    tools: list[dict[str, Any]] | None = None,
) -> EncodedRow:
    """Tokenises a conversation and supervises the assistant's turns, each with its end-of-turn token.

    Args:
        tokenizer: with a chat template, which also writes the BOS where the model wants one.
        messages: checked by `check_messages`.
        rendering: how it is rendered.
        first: index of the first message that may be supervised.
        tools: handed to the template.

    Raises:
        DataError: the tokenizer has no chat template, or none by which the assistant's turns can be told.
        RowError: the template refuses this conversation or loses something of it, or a turn is empty.
    """
    template = ChatTemplate(tokenizer, tools, rendering.now)
    messages = in_the_templates_form(messages, template.render)
    own = {i: parts_of_turn(messages[i], i + 1) for i in _supervised(messages, first)}
    for i, parts in own.items():
        if not parts:
            raise RowError(
                f"Message {i + 1} (assistant) is empty, so the model would learn to say nothing. Fill it in, "
                "remove it, or write 'train': false into it if it is to carry no loss."
            )
    refuse = rendering.unrendered == "refuse"
    try:
        whole, marks = template.render_marked(messages)
    except RowError:
        unread = [part for parts in own.values() for part in parts if not template.reads(part.key)]
        if refuse and (unread := [part for part in unread if part.key != "content"]):
            raise RowError(describe_lost(unread[0])) from None
        raise
    turns = _turns(template, messages, list(own), whole, marks, first)
    lost = _lost(messages, own, turns, whole, tools, _control_tokens(tokenizer))
    if lost and refuse:
        raise RowError(describe_lost(lost[0]))
    for parts in own.values():
        if {part.key for part in parts}.isdisjoint(["content"]) and set(parts) <= set(lost):
            raise RowError(f"{describe_lost(parts[0])} Nothing else of the message is rendered.")
    names = tuple(sorted({_name(part, messages) for part in lost}))
    return replace(_encode(tokenizer, whole, turns), unrendered=names)


@dataclass(frozen=True)
class _Turns:
    """Where the assistant's supervised turns are in a rendering."""

    spans: dict[int, Span]
    """By message. None is there whose beginning and end the template does not tell."""
    marks: list[Span] | None
    """What is marked within them; None: they carry loss as a whole."""
    found_by: TurnsFoundBy | None


def _supervised(messages: Sequence[Message], first: int) -> list[int]:
    """The messages that carry loss: the assistant's, unless they say otherwise."""
    found: list[int] = []
    for i, message in enumerate(messages):
        asked = asks_for_loss(message, f"message {i + 1}")
        if message["role"] == "assistant" and i >= first and asked is not False:
            found.append(i)
        elif asked:
            can = "the completion's" if message["role"] == "assistant" else "the assistant's"
            raise RowError(
                f"Message {i + 1} ({message['role']}) asks to carry loss, but only {can} turns can. Remove"
                " the key that asks for it, or set it to false."
            )
    return found


def _turns(
    template: ChatTemplate,
    messages: Sequence[Message],
    supervised: Sequence[int],
    whole: str,
    marks: list[Span],
    first: int,
) -> _Turns:
    """Where the supervised turns are, and by what that is known.

    Raises:
        DataError: the template does not tell.
    """
    if not supervised:
        return _Turns({}, None, None)
    known: dict[int, Span] = {}
    if not template.has_markers:
        for i in supervised:
            span = _span(template, messages, whole, i)
            if span is None or span[0] < max((end for _, end in known.values()), default=0):
                raise DataError(_inconsistent(i + 1, len(messages)))
            known[i] = span
        return _Turns(known, None, "prefixes")
    assistant = [i for i, message in enumerate(messages) if message["role"] == "assistant"]
    for i in assistant:
        try:
            span = _span(template, messages, whole, i)
        except RowError:
            continue  # it renders whole conversations only
        if span is not None and span[0] >= max((end for _, end in known.values()), default=0):
            known[i] = span
    if not known.keys() >= set(supervised):
        return _turns_by_markers(template, messages, supervised, whole, marks)
    marks_beyond = any(_outside(mark, known.values(), whole) for mark in marks)
    all_known = len(known) == len(assistant)
    known = {i: known[i] for i in supervised}
    if marks_beyond and all_known:
        return _Turns(known, None, "prefixes_despite_markers")
    if first:
        return _Turns(known, None, "prefixes")
    inner = [part for mark in marks for span in known.values() if (part := overlap(mark, span)) is not None]
    return _Turns(known, inner, "markers")


def _span(template: ChatTemplate, messages: Sequence[Message], whole: str, i: int) -> Span | None:
    """Where message `i` is in the rendering of all; None: the template is not prefix-consistent there."""
    before = _rendered_before(template, messages, i)
    turn = whole if i + 1 == len(messages) else template.render(messages[: i + 1])
    if len(before) < len(turn) and turn.startswith(before) and whole.startswith(turn):
        return len(before), len(turn)
    return None


def _outside(mark: Span, spans: Iterable[Span], whole: str) -> bool:
    """Whether more than white space of it is outside of all spans."""
    start = mark[0]
    for span in sorted(spans):
        if (inner := overlap((start, mark[1]), span)) is not None:
            if whole[start : inner[0]].strip():
                return True
            start = inner[1]
    return bool(whole[start : mark[1]].strip())


def _turns_by_markers(
    template: ChatTemplate,
    messages: Sequence[Message],
    supervised: Sequence[int],
    whole: str,
    marks: list[Span],
) -> _Turns:
    """The turns by markers alone: those that rendering up to a turn has more than rendering the one before.

    Raises:
        DataError: the template marks other turns when other messages follow.
    """
    spans: dict[int, Span] = {}
    count = 0
    assistant = [i for i, message in enumerate(messages) if message["role"] == "assistant"]
    for i, following in pairwise([*assistant, len(messages)]):
        text, so_far = template.render_marked(messages[: i + 1])
        # A template may mark what ends the whole conversation too, which is not there when it goes on.
        end = len(template.render_marked(messages[:following], prompt=following < len(messages))[1])
        if not count <= end <= min(len(so_far), len(marks)) or (i == assistant[-1] and end != len(marks)):
            raise DataError(_inconsistent(i + 1, len(messages)))
        mine, count = marks[count:end], end
        if mine and i in supervised:
            # What closes a turn, such as its end token, may be unmarked; it is the same in both renderings.
            closing = _shared(text[so_far[end - 1][1] :], whole[mine[-1][1] :])
            start = mine[0][0] + len(_opening(template, messages, whole[mine[0][0] : mine[0][1]], i))
            spans[i] = (start, mine[-1][1] + len(closing))
    inner = [part for mark in marks for span in spans.values() if (part := overlap(mark, span)) is not None]
    return _Turns(spans, inner, "markers_unverified")


def _lost(
    messages: Sequence[Message],
    own: dict[int, list[RowPart]],
    turns: _Turns,
    whole: str,
    tools: list[dict[str, Any]] | None,
    control: Sequence[str],
) -> list[RowPart]:
    """What of the row is not in its rendering: a turn must be in its own part, all else outside of those."""
    lost: list[RowPart] = []
    context = parts_of_tools(tools)
    for i, message in enumerate(messages):
        if i in turns.spans:
            start, end = turns.spans[i]
            text = whole[start:end]
            for token in control:
                # A call of `f` is not written by an `<end_of_turn>`.
                if any(p.text in token for p in own[i]) and not any(token in p.text for p in own[i]):
                    text = text.replace(token, "\0")
            lost += missing(own[i], text)
        else:
            context += own[i] if i in own else parts_of_context(message, i + 1)
    edges = [0, *(edge for span in sorted(turns.spans.values()) for edge in span), len(whole)]
    outside = "\0".join(whole[start:end] for start, end in list(pairwise(edges))[::2])
    return sorted([*lost, *missing(context, outside)], key=lambda part: part.message or 0)


@lru_cache(maxsize=4)
def _control_tokens(tokenizer: PreTrainedTokenizerBase) -> tuple[str, ...]:
    return tuple(str(token) for token in tokenizer.added_tokens_decoder.values() if token.special)


def _name(part: RowPart, messages: Sequence[Message]) -> str:
    return part.key if part.message is None else f"{messages[part.message - 1]['role']}.{part.key}"


def _encode(tokenizer: PreTrainedTokenizerBase, whole: str, turns: _Turns) -> EncodedRow:
    spans = sorted(turns.spans.values())
    if turns.found_by in (None, "prefixes") or not tokenizer.is_fast:
        supervised = spans if turns.marks is None else turns.marks
        edges = [0, *(edge for span in supervised for edge in span), len(whole)]
        segments = [
            TextSegment(whole[start:end], supervised=bool(number % 2))
            for number, (start, end) in enumerate(pairwise(edges))
        ]
        row = encode_segments(tokenizer, [s for s in segments if s.text] or segments)
        return replace(without_trailing_space(tokenizer, row), found_by=turns.found_by)
    input_ids, offsets = encode_with_offsets(tokenizer, whole, [edge for span in spans for edge in span])
    whole_turns = label_spans(tokenizer, input_ids, offsets, spans, spans)
    if turns.marks is None:
        return replace(whole_turns, found_by=turns.found_by)
    marked = label_spans(tokenizer, input_ids, offsets, turns.marks, spans)
    both = turns.found_by == "markers" and marked.labels == whole_turns.labels
    return replace(marked, found_by="both" if both else turns.found_by)


def _rendered_before(template: ChatTemplate, messages: Sequence[Message], i: int) -> str:
    """What the model is given when it is to write message `i`."""
    if i:
        return template.render(messages[:i], prompt=True)
    # Templates cannot render nothing. What two different openings share is what comes before either.
    one, other = (template.render([{"role": "assistant", "content": content}]) for content in ("A", "z"))
    return _shared(one, other)


def _opening(template: ChatTemplate, messages: Sequence[Message], marked: str, i: int) -> str:
    """The part of message `i`'s marked text that the model is given, such as a header: it never writes it."""
    if not i:
        return ""
    try:
        before, prompt = template.render(messages[:i]), template.render(messages[:i], prompt=True)
    except RowError:
        return ""  # it renders whole conversations only
    given = prompt[len(before) :] if prompt.startswith(before) else ""
    shared = _ENDS_A_HEADER.match(_shared(given, marked))
    return shared[0] if shared else ""


def _shared(one: str, other: str) -> str:
    """What both texts begin with."""
    pairs = takewhile(lambda pair: pair[0] == pair[1], zip(one, other, strict=False))
    return "".join(character for character, _ in pairs)


def _inconsistent(number: int, count: int) -> str:
    return (
        f"The tokenizer's chat template renders assistant message {number} of {count} differently when other "
        "messages follow or when it is asked for, so the assistant's tokens cannot be identified. Use a "
        "chat template with {% generation %} markers, end every conversation with its only assistant "
        "message, or give the data as prompt_completion."
    )


def _kind(value: object) -> str:
    return "missing" if value is None else f"of type {type(value).__name__}"
