"""Conversations through chat templates of the known kinds: nothing is lost, only the assistant is learnt."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Any

import pytest

from tests.support.workers.models import CHATML, CHATML_WITH_MARKERS, EOS, build_tiny_tokenizer
from workers.data.chat.chat_templates import Rendering
from workers.data.formats import FORMATS
from workers.data.tokenization import EncodedRow
from workers.errors import DataError, RowError

ASK = {"role": "user", "content": "what is two plus two?"}
ASK_AGAIN = {"role": "user", "content": "turn on the light"}
CALL = {"id": "c1", "type": "function", "function": {"name": "switch", "arguments": {"lamp": "on", "n": 2}}}
TOOL = {"type": "function", "function": {"name": "switch", "description": "d", "parameters": {}}}
HEADER = "{{ '<|im_start|>' + m.role + '\n' }}"
GENERATION_PROMPT = "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"


def template(answer: str, *, other: str = "{{ m.content + '<|im_end|>\n' }}", first: str = "") -> str:
    """ChatML with an assistant's turn of one's own after the header."""
    turn = f"{{% if m.role == 'assistant' %}}{answer}{{% else %}}{other}{{% endif %}}"
    return f"{first}{{% for m in messages %}}{HEADER}{turn}{{% endfor %}}{GENERATION_PROMPT}"


THINKING = template(
    "{% if m.reasoning_content and loop.last %}{{ '<think>\n' + m.reasoning_content + '\n</think>\n\n' }}"
    "{% endif %}{{ (m.content or '').split('</think>') | last | trim }}"
    "{% for call in m.tool_calls %}{{ '<tool_call>' + call.function | tojson + '</tool_call>' }}{% endfor %}"
    "{{ '<|im_end|>\n' }}"
)
"""As Qwen3's: reasoning in the last turn alone, thoughts in the content dropped, calls as JSON."""
MARKED = (
    "{% generation %}{% if m.reasoning_content and loop.last %}"
    "{{ '<think>' + m.reasoning_content + '</think>' }}{% endif %}{{ m.content + '<|im_end|>\n' }}"
    "{% endgeneration %}"
)


def answer(content: str | None = "four", **keys: Any) -> dict[str, Any]:
    return {"role": "assistant", "content": content, **keys}


def encode(text: str, messages: list[dict[str, Any]], rendering: Rendering, **row: Any) -> EncodedRow:
    tokenizer = build_tiny_tokenizer(chat_template=text)
    return FORMATS["messages"].encode({"messages": messages, **row}, tokenizer, rendering)


def supervised(text: str, messages: list[dict[str, Any]], **row: Any) -> str:
    encoded = encode(text, messages, Rendering(), **row)
    return str(build_tiny_tokenizer().decode([label for label in encoded.labels if label != -100]))


def refusal(text: str, messages: list[dict[str, Any]], **row: Any) -> str:
    with pytest.raises(RowError) as caught:
        encode(text, messages, Rendering(), **row)
    return str(caught.value)


@pytest.mark.parametrize("text", [CHATML, CHATML_WITH_MARKERS])
@pytest.mark.parametrize(
    ("said", "key", "shown"),
    [
        (answer(reasoning_content="two and two make four"), "reasoning_content", "two and two make four"),
        (answer(reasoning="four"), "reasoning", "four"),
        (answer(thinking="hm"), "thinking", "hm"),
        (answer("", function_call={"name": "switch", "arguments": '{"a": 1}'}), "function_call", "switch"),
        (answer(None, tool_calls=[CALL]), "tool_calls", "switch"),
        (answer("I switch.", tool_calls=[CALL]), "tool_calls", "switch"),
        (answer(refusal="I cannot"), "refusal", "I cannot"),
        (answer(thought="hm yes"), "thought", "hm yes"),
        (answer(annotations=[{"url": "http://a.example"}]), "annotations", "http://a.example"),
    ],
)
def test_a_part_of_a_turn_that_is_not_rendered_is_refused(
    text: str, said: dict[str, Any], key: str, shown: str
) -> None:
    """The message names key and message; an equal text elsewhere does not stand in for it."""
    told = refusal(text, [ASK, said])
    assert f"does not render the '{key}' of message 2, so that would be lost" in told
    assert repr(shown) not in told


@pytest.mark.parametrize(
    "keys",
    [
        {
            "refusal": None,
            "annotations": [],
            "audio": None,
            "function_call": {"name": None, "arguments": None},
        },
        {"reasoning_content": " \n", "tool_calls": []},
        {"id": "msg_1", "name": "bot", "timestamp": 1700000000, "message_id": "a b", "created_at": "today"},
        {"score": 0.7, "approved": True},
        {"usage": {"model": "m"}, "logprobs": [{"token": "f"}], "cache_control": {"type": "ephemeral"}},
    ],
)
def test_keys_that_say_nothing_do_not_refuse_a_turn(keys: dict[str, Any]) -> None:
    """What is empty, what says where a message comes from, and what is no text."""
    assert supervised(CHATML, [ASK, answer(**keys)]) == f"four{EOS}"


@pytest.mark.parametrize(
    ("said", "expected"),
    [
        (answer(reasoning_content="four"), "<think>\nfour\n</think>\n\nfour"),
        (answer(reasoning_content="four", reasoning="four"), "<think>\nfour\n</think>\n\nfour"),
        (answer("  four \n"), "four"),
        (
            answer(None, tool_calls=[CALL]),
            '<tool_call>{"name": "switch", "arguments": {"lamp": "on", "n": 2}}',
        ),
    ],
)
def test_what_is_rendered_passes(said: dict[str, Any], expected: str) -> None:
    """Trimmed at its ends, under another name, or as JSON."""
    assert supervised(THINKING, [ASK, said]).startswith(expected)


@pytest.mark.parametrize(
    "arguments",
    [
        {"text": 'a "quoted" line\nand more', "on": True, "n": [1, 2.5], "deep": {"é": None}},
        '{"text": "a \\"quoted\\" line\\nand more", "on": true}',
        {"a": "1", "b": "a1"},
        {},
    ],
)
@pytest.mark.parametrize(
    "rendered",
    [
        "{{ call.function.arguments | tojson }}",
        "{{ call.function | tojson }}",
        "{% for k, v in call.function.arguments.items() %}"
        "{{ k }}={{ v if v is string else v | tojson }};{% endfor %}",
    ],
)
def test_arguments_are_found_however_they_are_written(arguments: Any, rendered: str) -> None:
    """As JSON, as JSON within JSON, and one by one."""
    if isinstance(arguments, str) and ".items()" in rendered:
        arguments = {"text": "x"}
    turn = (
        "{% for call in m.tool_calls %}{{ call.function.name }}" + rendered + "{% endfor %}{{ '<|im_end|>' }}"
    )
    call = {"type": "function", "function": {"name": "switch", "arguments": arguments}}
    assert supervised(template(turn), [ASK, answer(None, tool_calls=[call])]).startswith("switch")


def test_arguments_that_are_left_out_are_refused() -> None:
    turn = "{% for call in m.tool_calls %}{{ call.function.name }}{% endfor %}{{ '<|im_end|>' }}"
    assert "does not render the 'tool_calls' of message 2, so that" in refusal(
        template(turn), [ASK, answer(None, tool_calls=[CALL])]
    )


@pytest.mark.parametrize(
    ("change", "content"),
    [
        ("m.content | upper", "four"),
        ("m.content[:6]", "a longer answer"),
        ("m.content.split('</think>') | last", "<think>two and two</think>four"),
        ("m.content | replace('\n\n', '\n')", "one\n\ntwo"),
        ("m.content | striptags", "a <b>bold</b> word"),
        ("'yes'", "no"),
    ],
)
def test_a_content_that_is_cut_or_rewritten_is_refused(change: str, content: str) -> None:
    turn = f"{{{{ ({change}) + '<|im_end|>\n' }}}}"
    message = refusal(template(turn), [ASK, answer(content)])
    assert "leaves out, cuts or rewrites the 'content' of message 2" in message


def test_thoughts_in_the_content_may_be_set_anew() -> None:
    """Qwen3 takes them out and writes them with line breaks of its own."""
    turn = (
        "{{ '<think>\n' + m.content.split('</think>')[0].split('<think>') | last + '\n</think>\n\n' "
        "+ m.content.split('</think>') | last + '<|im_end|>\n' }}"
    )
    assert supervised(template(turn), [ASK, answer("<think>two and two</think>four")]) == (
        f"<think>\ntwo and two\n</think>\n\nfour{EOS}"
    )


@pytest.mark.parametrize(
    ("other", "messages", "what"),
    [
        ("{% if m.role == 'user' %}{{ m.content }}{% endif %}{{ '<|im_end|>' }}", None, 1),
        ("{{ m.content[:4] + '<|im_end|>' }}", [ASK, answer()], 1),
        (
            "{% if m.role != 'tool' %}{{ m.content }}{% endif %}{{ '<|im_end|>' }}",
            [ASK, answer(), {"role": "tool", "content": "it is on"}, answer("done")],
            3,
        ),
    ],
)
def test_other_messages_that_are_left_out_are_refused(other: str, messages: Any, what: int) -> None:
    """A system message that the template has no place for, a cut question, a tool's answer."""
    messages = messages or [{"role": "system", "content": "be brief"}, ASK, answer()]
    turn = "{{ m.content + '<|im_end|>\n' }}"
    told = refusal(template(turn, other=other), messages)
    assert f"the 'content' of message {what}, so that would be lost" in told


def test_tools_that_the_template_does_not_render_are_refused() -> None:
    """The model would learn calls of tools that it was never told of."""
    assert "does not render the 'tools' of the row, so that" in refusal(CHATML, [ASK, answer()], tools=[TOOL])
    first = "{% for tool in tools or [] %}{{ tool | tojson }}{% endfor %}"
    turn = "{{ m.content + '<|im_end|>\n' }}"
    assert supervised(template(turn, first=first), [ASK, answer()], tools=[TOOL]) == f"four{EOS}"


def test_what_is_lost_on_purpose_is_counted() -> None:
    """With `unrendered: ignore` the row is trained on as it is rendered."""
    messages = [{"role": "system", "content": "be brief"}, ASK, answer(reasoning_content="two and two")]
    text = template("{{ m.content + '<|im_end|>\n' }}", other="{{ m.content[:3] + '<|im_end|>\n' }}")
    encoded = encode(text, messages, Rendering(unrendered="ignore"), tools=[TOOL])
    assert encoded.unrendered == ("assistant.reasoning_content", "system.content", "tools", "user.content")


def test_a_turn_of_which_nothing_is_rendered_is_refused_even_if_losses_are_meant() -> None:
    """It would be an empty answer."""
    said = answer("", function_call={"name": "switch", "arguments": "{}"})
    with pytest.raises(RowError, match="Nothing else of the message is rendered"):
        encode(CHATML, [ASK, said], Rendering(unrendered="ignore"))


@pytest.mark.parametrize("role", ["model", "gpt", "Assistant", "BOT"])
def test_an_assistant_under_another_name_is_refused(role: str) -> None:
    """Its turns would carry no loss, and nobody would know."""
    said = {"role": role, "content": "four"}
    assert f"Message 2 of 'messages' has the role '{role}'" in refusal(CHATML, [ASK, said, ASK, answer()])


def test_thoughts_of_turns_without_loss_may_be_left_out() -> None:
    """As at inference: templates keep only the last turn's."""
    turns = [ASK, answer("<think>hm</think>four", weight=0), ASK_AGAIN, answer("done")]
    assert supervised(THINKING, turns) == f"done{EOS}"


@pytest.mark.parametrize("content", ["", " \n", None])
@pytest.mark.parametrize("text", [CHATML, CHATML_WITH_MARKERS])
def test_an_empty_answer_is_refused(text: str, content: str | None) -> None:
    """As in the other formats, so that no model learns to say nothing."""
    said = answer(content) if content is not None else answer(content, reasoning="")
    assert "empty" in refusal(text, [ASK, said]) or "is missing" in refusal(text, [ASK, said])


def test_an_empty_answer_without_loss_is_context() -> None:
    assert supervised(CHATML, [ASK, answer("", train=False), ASK_AGAIN, answer("done")]) == f"done{EOS}"


@pytest.mark.parametrize(
    ("turn", "found_by"),
    [
        ("{% generation %}{{ m.content + '<|im_end|>\n' }}{% endgeneration %}", "both"),
        ("{% generation %}{{ m.content + '<|im_end|>' }}{% endgeneration %}{{ '\n' }}", "both"),
        ("{% generation %}{{ m.content }}{% endgeneration %}{{ '<|im_end|>\n' }}", "both"),
        ("{% generation %}{{ m.content + '\n' }}{% endgeneration %}{{ '<|im_end|>\n' }}", "both"),
        ("{{ m.content + '<|im_end|>\n' }}", "prefixes"),
    ],
)
def test_no_label_is_outside_of_the_assistants_turns(turn: str, found_by: str) -> None:
    """Neither the line break after a turn nor the next turn's opening token; but each turn's end token."""
    encoded = encode(template(turn), [ASK, answer(), ASK_AGAIN, answer("done"), ASK], Rendering())
    kept = build_tiny_tokenizer().decode([label for label in encoded.labels if label != -100])
    expected = f"four{EOS}done{EOS}"
    assert (kept.replace("\n", "") if "+ '\n' }}{% end" in turn else kept, encoded.found_by) == (
        expected,
        found_by,
    )


@pytest.mark.parametrize(
    "text",
    [
        "{% for m in messages %}{% generation %}"
        + HEADER
        + "{{ m.content + '<|im_end|>\n' }}{% endgeneration %}"
        "{% endfor %}" + GENERATION_PROMPT,
        "{% macro say(m) %}" + HEADER + "{% generation %}{{ m.content + '<|im_end|>\n' }}{% endgeneration %}"
        "{% endmacro %}{% for m in messages %}{{ say(m) }}{% endfor %}" + GENERATION_PROMPT,
    ],
)
def test_markers_beyond_the_assistants_turns_are_not_followed(text: str) -> None:
    """Around every message with its header; or in a macro, whose places transformers counts wrongly."""
    encoded = encode(text, [ASK, answer(), ASK_AGAIN, answer("done"), ASK], Rendering())
    kept = build_tiny_tokenizer().decode([label for label in encoded.labels if label != -100])
    assert (kept, encoded.found_by) == (f"four{EOS}done{EOS}", "prefixes_despite_markers")


def test_markers_of_a_part_of_the_turn_are_followed_with_its_end_token() -> None:
    turn = "{{ 'Well:\n' }}{% generation %}{{ m.content }}{% endgeneration %}{{ '<|im_end|>\n' }}"
    encoded = encode(template(turn), [ASK, answer(), ASK_AGAIN], Rendering())
    kept = build_tiny_tokenizer().decode([label for label in encoded.labels if label != -100])
    assert (kept, encoded.found_by) == (f"four{EOS}", "markers")


def test_markers_alone_tell_the_turns_of_a_template_that_is_not_prefix_consistent() -> None:
    """Each turn with its end token, and without the line break after it."""
    turn = "{% if loop.last %}{{ '\n' }}{% endif %}" + MARKED
    encoded = encode(template(turn), [ASK, answer(), ASK_AGAIN, answer("done"), ASK], Rendering())
    kept = build_tiny_tokenizer().decode([label for label in encoded.labels if label != -100])
    assert (kept, encoded.found_by) == (f"four{EOS}done{EOS}", "markers_unverified")


def test_a_short_part_is_not_found_in_the_token_that_ends_the_turn() -> None:
    """Its name is a part of that token's."""
    told = refusal(CHATML, [ASK, answer("", function_call={"name": "end", "arguments": "{}"})])
    assert "does not render the 'function_call' of message 2, so that" in told


def test_no_token_spans_the_beginning_of_a_turn() -> None:
    """` fo` is a token, but the model is given the space before it is to write."""
    spoken = (
        "{% for m in messages %}{{ m.role + ': ' }}{% if m.role == 'assistant' %}{% generation %}"
        "{{ m.content + '<|im_end|>' }}{% endgeneration %}{% else %}{{ m.content + '<|im_end|>' }}{% endif %}"
        "{% endfor %}{% if add_generation_prompt %}{{ 'assistant: ' }}{% endif %}"
    ).replace("<|im_end|>", EOS)
    plain = spoken.replace("{% generation %}", "").replace("{% endgeneration %}", "")
    marked, unmarked = (
        encode(text, [ASK, answer(), ASK_AGAIN, answer("for")], Rendering()) for text in (spoken, plain)
    )
    assert (marked.input_ids, marked.labels) == (unmarked.input_ids, unmarked.labels)


def test_a_marked_end_of_the_conversation_belongs_to_its_last_turn() -> None:
    """As Phi-3's template with markers, whose end is not there when the conversation goes on."""
    end = "{% if not add_generation_prompt %}{% generation %}{{ '<s>' }}{% endgeneration %}{% endif %}"
    encoded = encode(
        template(MARKED) + end, [ASK, answer(), ASK_AGAIN, answer("done")], Rendering(unrendered="ignore")
    )
    kept = build_tiny_tokenizer().decode([label for label in encoded.labels if label != -100])
    assert (kept, encoded.unrendered) == (f"four{EOS}done{EOS}\n<s>", ())


def test_a_marked_header_that_the_model_is_given_carries_no_loss() -> None:
    """As DeepSeek-R1's template with markers, whose generation prompt opens a thought as well."""
    turn = "{% generation %}{{ '<A>' + m.content + '<|im_end|>' }}{% endgeneration %}"
    text = (
        f"{{% for m in messages %}}{{% if m.role == 'assistant' %}}{turn}{{% else %}}"
        "{{ '<U>' + m.content }}{% endif %}{% endfor %}"
        "{% if add_generation_prompt %}{{ '<A><think>\n' }}{% endif %}"
    ).replace("<|im_end|>", EOS)
    assert supervised(text, [ASK, answer("<b>"), ASK_AGAIN, answer("done")]) == f"<b>{EOS}done{EOS}"


def test_reasoning_that_an_earlier_turn_loses_is_refused() -> None:
    """As Qwen3's template does with all but the last turn's; here with markers."""
    messages = [ASK, answer(reasoning_content="two and two"), ASK_AGAIN, answer("done")]
    assert "'reasoning_content' of message 2, so that" in refusal(template(MARKED), messages)
    ignoring = encode(template(MARKED), messages, Rendering(unrendered="ignore"))
    assert (ignoring.unrendered, ignoring.found_by) == (
        ("assistant.reasoning_content",),
        "markers_unverified",
    )


def test_a_turn_without_loss_between_markers() -> None:
    """Of marked turns, those that are to carry no loss carry none, whether prefixes can tell them or not."""
    messages = [ASK, answer(weight=0), ASK_AGAIN, answer("done", weight=1)]
    assert supervised(CHATML_WITH_MARKERS, messages) == f"done{EOS}"
    unverified = template("{% if loop.last %}{{ '\n' }}{% endif %}" + MARKED)
    assert supervised(unverified, [*messages, ASK]) == f"done{EOS}"


DATED = "{{ 'Today: ' + strftime_now('%d %b %Y') + '\n' }}" + CHATML


def test_a_template_that_writes_the_date_writes_the_studys() -> None:
    """Whatever the day is on which a worker renders it."""
    encoded = encode(DATED, [ASK, answer()], Rendering(now=datetime(2026, 3, 4, 23, 59, tzinfo=UTC)))
    whole = build_tiny_tokenizer().decode(encoded.input_ids)
    assert whole.startswith("Today: 04 Mar 2026\n<|im_start|>user")


@pytest.mark.parametrize(
    "start",
    ["\n  {%- if true %}x{% endif %}", "  {% if true %}\n x{% endif %}", "{#- c #}\n\n{{- 'x' }}", " \n x\n"],
)
def test_the_clock_changes_nothing_else_of_a_rendering(start: str) -> None:
    """White space at the template's beginning is as it was."""
    uses = "{% if false %}{{ strftime_now('%Y') }}{% endif %}"
    tokenizer = build_tiny_tokenizer(chat_template=start + CHATML + uses)
    encoded = encode(start + CHATML + uses, [ASK, answer()], Rendering(now=datetime(2026, 3, 4, tzinfo=UTC)))
    assert tokenizer.decode(encoded.input_ids) == tokenizer.apply_chat_template(
        [ASK, answer()], tokenize=False
    )


def test_a_template_that_writes_the_date_needs_one() -> None:
    with pytest.raises(DataError, match="writes the date"):
        encode(DATED, [ASK, answer()], Rendering())


@pytest.mark.parametrize("chance", ["{{ ['a', 'b'] | random }}", "{{ lipsum(1) }}"])
def test_a_template_that_draws_at_random_is_refused(chance: str) -> None:
    """No two processes would read the same rows."""
    with pytest.raises(DataError, match="draws at random"):
        encode(chance + CHATML, [ASK, answer()], Rendering())
