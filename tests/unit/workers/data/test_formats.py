"""Rows become tokens and labels: what carries loss, where special tokens go, which format fits."""

from __future__ import annotations

from typing import Any

import pytest
from tokenizers import AddedToken
from transformers import PreTrainedTokenizerFast

from tests.support.workers.models import BOS, CHATML, CHATML_WITH_MARKERS, EOS, TURN, build_tiny_tokenizer
from workers.data.formats import FORMATS, detect_format
from workers.errors import DataError, ModelError, RowError

SYSTEM = {"role": "system", "content": "be brief"}
ASK = {"role": "user", "content": "turn on the light"}
ANSWER = {"role": "assistant", "content": "done"}
ASK_AGAIN = {"role": "user", "content": "what is two plus two?"}
ANSWER_AGAIN = {"role": "assistant", "content": "four"}


@pytest.fixture(scope="module")
def tokenizer() -> PreTrainedTokenizerFast:
    return build_tiny_tokenizer()


@pytest.fixture(scope="module")
def bos_tokenizer() -> PreTrainedTokenizerFast:
    """Puts a BOS before every text by itself, as Llama's does."""
    return build_tiny_tokenizer(bos=True, chat_template="{{ bos_token }}" + CHATML)


def encode(name: str, row: dict[str, Any], tokenizer: PreTrainedTokenizerFast) -> tuple[str, str]:
    """The whole text, and the supervised part of it, decoded from tokens and labels."""
    encoded = FORMATS[name].encode(row, tokenizer)
    assert len(encoded.input_ids) == len(encoded.labels)
    kept = [label for label in encoded.labels if label != -100]
    assert all(label in (-100, token) for token, label in zip(encoded.input_ids, encoded.labels, strict=True))
    return tokenizer.decode(encoded.input_ids), tokenizer.decode(kept)


def test_text_is_supervised_whole_with_its_end(tokenizer: PreTrainedTokenizerFast) -> None:
    """All tokens and an EOS after them."""
    assert encode("text", {"text": "the lamp"}, tokenizer) == (f"the lamp{EOS}", f"the lamp{EOS}")


def test_an_end_that_is_written_in_the_text_comes_once(tokenizer: PreTrainedTokenizerFast) -> None:
    """No second EOS is added."""
    assert encode("text", {"text": f"the lamp{EOS}"}, tokenizer)[0] == f"the lamp{EOS}"


def test_special_tokens_that_are_written_in_the_text_are_not_doubled(
    bos_tokenizer: PreTrainedTokenizerFast,
) -> None:
    """As in text that a chat template has rendered: one BOS, one end."""
    whole = f"{BOS}turn on the light{EOS}"
    assert encode("text", {"text": whole}, bos_tokenizer) == (whole, f"turn on the light{EOS}")
    pair = {"prompt": f"{BOS}turn on", "completion": f" the light{EOS}"}
    assert encode("prompt_completion", pair, bos_tokenizer) == (whole, f" the light{EOS}")


def test_prompt_completion_has_loss_on_the_completion_and_its_end(tokenizer: PreTrainedTokenizerFast) -> None:
    """The prompt is masked."""
    row = {"prompt": "turn on the lamp\n", "completion": "lamp on"}
    assert encode("prompt_completion", row, tokenizer) == (f"turn on the lamp\nlamp on{EOS}", f"lamp on{EOS}")


@pytest.mark.parametrize(
    ("prompt", "completion"),
    [
        ("turn on", " the light"),
        ("turn o", "n the light"),
        ("the kit", "chen"),
        ("a ", "b"),
        ("a\n", "\nb"),
        ("", "b"),
    ],
)
@pytest.mark.parametrize("bos", [False, True])
def test_the_prompts_tokens_are_those_of_inference(prompt: str, completion: str, bos: bool) -> None:
    """Wherever the boundary falls, the prompt's tokens are what the tokenizer gives for the prompt alone."""
    tokenizer = build_tiny_tokenizer(bos=bos)
    encoded = FORMATS["prompt_completion"].encode({"prompt": prompt, "completion": completion}, tokenizer)
    at_inference = tokenizer(prompt)["input_ids"]
    assert encoded.input_ids[: len(at_inference)] == at_inference
    assert [label == -100 for label in encoded.labels] == [
        i < len(at_inference) for i in range(len(encoded.labels))
    ]
    assert tokenizer.decode(encoded.input_ids) == (BOS if bos else "") + prompt + completion + EOS


def test_an_automatic_bos_comes_once_and_without_loss(bos_tokenizer: PreTrainedTokenizerFast) -> None:
    """At the very start, for every format."""
    pair = {"prompt": "turn on", "completion": " the light"}
    assert encode("prompt_completion", pair, bos_tokenizer) == (
        f"{BOS}turn on the light{EOS}",
        f" the light{EOS}",
    )
    assert encode("text", {"text": "light"}, bos_tokenizer) == (f"{BOS}light{EOS}", f"light{EOS}")
    whole, kept = encode("messages", {"messages": [ASK, ANSWER]}, bos_tokenizer)
    assert (whole.count(BOS), whole.startswith(BOS), kept) == (1, True, f"done{EOS}")


@pytest.mark.parametrize("template", [CHATML, CHATML_WITH_MARKERS])
def test_messages_have_loss_on_all_assistant_turns_with_their_ends(template: str) -> None:
    """With and without generation markers: the same tokens, and nothing of headers or other turns."""
    tokenizer = build_tiny_tokenizer(chat_template=template)
    row = {"messages": [SYSTEM, ASK, ANSWER, ASK_AGAIN, ANSWER_AGAIN]}
    whole, kept = encode("messages", row, tokenizer)
    assert whole == tokenizer.apply_chat_template(row["messages"], tokenize=False)
    assert kept == f"done{EOS}four{EOS}"


def test_messages_are_tokenised_as_the_template_does(tokenizer: PreTrainedTokenizerFast) -> None:
    """Training sees the ids that `apply_chat_template` gives at inference."""
    messages = [SYSTEM, ASK, ANSWER, ASK_AGAIN]
    encoded = FORMATS["messages"].encode({"messages": [*messages, ANSWER_AGAIN]}, tokenizer)
    prompt = tokenizer.apply_chat_template(messages, add_generation_prompt=True)["input_ids"]
    assert encoded.input_ids[: len(prompt)] == prompt
    assert encoded.labels[len(prompt)] == encoded.input_ids[len(prompt)]


def test_markers_that_stop_before_the_end_of_turn_are_extended_by_it() -> None:
    """Else the model would never learn to stop."""
    template = CHATML_WITH_MARKERS.replace(
        "{% generation %}{{ message['content'] + '<|im_end|>' }}{% endgeneration %}",
        "{% generation %}{{ message['content'] }}{% endgeneration %}{{ '<|im_end|>' }}",
    )
    tokenizer = build_tiny_tokenizer(chat_template=template)
    assert encode("messages", {"messages": [ASK, ANSWER, ASK_AGAIN]}, tokenizer)[1] == f"done{EOS}"


@pytest.mark.parametrize("template", [CHATML, CHATML_WITH_MARKERS])
def test_an_end_of_turn_token_without_a_role_of_its_own_is_supervised(template: str) -> None:
    """Phi-3's `<|end|>` is a special token, but not among `all_special_ids`."""
    ending = "{{ message['content'] + '<|im_end|>' }}{% endgeneration %}"
    template = template.replace(ending, "{{ message['content'] }}{% endgeneration %}{{ '<|im_end|>' }}")
    tokenizer = build_tiny_tokenizer(chat_template=template.replace(EOS, "<|end|>"))
    tokenizer.add_tokens([AddedToken("<|end|>", special=True)])
    assert tokenizer.convert_tokens_to_ids("<|end|>") not in tokenizer.all_special_ids
    kept = encode("messages", {"messages": [ASK, ANSWER, ASK_AGAIN, ANSWER_AGAIN]}, tokenizer)[1]
    assert kept == "done<|end|>four<|end|>"


@pytest.mark.parametrize("template", [CHATML, CHATML_WITH_MARKERS])
def test_white_space_after_a_special_token_within_a_turn_is_supervised(template: str) -> None:
    """The model must write it; only what follows the end of the turn is the template's."""
    tokenizer = build_tiny_tokenizer(chat_template=template)
    answer = {"role": "assistant", "content": f"{TURN}\n\ndone"}
    kept = encode("messages", {"messages": [ASK, answer, ASK_AGAIN, ANSWER_AGAIN]}, tokenizer)[1]
    assert kept == f"{TURN}\n\ndone{EOS}four{EOS}"


@pytest.mark.parametrize("content", [{"content": ""}, {"content": None}, {}])
def test_tool_calls_that_the_template_does_not_render_are_refused(content: dict[str, Any]) -> None:
    """Else the model would learn to answer with nothing, or with the word None."""
    template = CHATML.replace("+ message['content'] +", "~ message['content'] ~")
    call = {"type": "function", "function": {"name": "switch", "arguments": {"lamp": "on"}}}
    answer = {"role": "assistant", "tool_calls": [call], **content}
    with pytest.raises(RowError, match=r"does not render the 'tool_calls' of message 2, so that"):
        encode("messages", {"messages": [ASK, answer]}, build_tiny_tokenizer(chat_template=template))


def test_tool_calls_that_the_template_renders_carry_loss() -> None:
    """They are the assistant's turn."""
    called = "(message['content'] or message['tool_calls'][0]['function']['name'])"
    tokenizer = build_tiny_tokenizer(chat_template=CHATML.replace("message['content']", called))
    call = {"type": "function", "function": {"name": "switch", "arguments": {}}}
    answer = {"role": "assistant", "content": None, "tool_calls": [call]}
    assert encode("messages", {"messages": [ASK, answer]}, tokenizer)[1] == f"switch{EOS}"


def test_a_template_without_generation_prompt(bos_tokenizer: PreTrainedTokenizerFast) -> None:
    """Where inference gives the model no header, the turn begins right after the user's."""
    template = (
        "{{ bos_token }}{% for m in messages %}"
        "{% if m['role'] == 'user' %}{{ '[INST] ' + m['content'] + ' [/INST]' }}"
        "{% else %}{{ ' ' + m['content'] + eos_token }}{% endif %}{% endfor %}"
    )
    tokenizer = build_tiny_tokenizer(bos=True, chat_template=template)
    whole, kept = encode("messages", {"messages": [ASK, ANSWER, ASK_AGAIN, ANSWER_AGAIN]}, tokenizer)
    assert whole.startswith(f"{BOS}[INST] turn on the light [/INST] done{EOS}[INST]")
    assert kept == f" done{EOS} four{EOS}"


def test_a_conversation_that_the_assistant_opens(tokenizer: PreTrainedTokenizerFast) -> None:
    """Its first turn is supervised without the header."""
    assert (
        encode("messages", {"messages": [ANSWER, ASK, ANSWER_AGAIN]}, tokenizer)[1] == f"done{EOS}four{EOS}"
    )


def test_a_conversation_without_assistant_has_no_loss(tokenizer: PreTrainedTokenizerFast) -> None:
    """Nothing is supervised; datasets.py skips and counts such rows."""
    assert encode("messages", {"messages": [SYSTEM, ASK]}, tokenizer)[1] == ""


def test_a_template_that_is_not_prefix_consistent_is_refused() -> None:
    """A template that renders a turn differently once others follow leaves no way to find its tokens."""
    template = CHATML.replace(
        "message['content']", "(message['content'] if loop.last else message['content'] | upper)"
    )
    tokenizer = build_tiny_tokenizer(chat_template=template)
    with pytest.raises(
        DataError, match="renders assistant message 2 of 4 differently when other messages follow"
    ):
        encode("messages", {"messages": [ASK, ANSWER, ASK_AGAIN, ANSWER_AGAIN]}, tokenizer)


def test_a_template_that_refuses_a_conversation_says_why() -> None:
    """The template's own reason is passed on."""
    template = "{{ raise_exception('roles must alternate') }}"
    tokenizer = build_tiny_tokenizer(chat_template=template)
    with pytest.raises(RowError, match="refuses this conversation: roles must alternate"):
        encode("messages", {"messages": [ASK, ANSWER]}, tokenizer)


def test_messages_need_a_chat_template() -> None:
    """A base model's tokenizer often has none."""
    with pytest.raises(DataError, match="the base model's tokenizer has no chat template"):
        encode("messages", {"messages": [ASK, ANSWER]}, build_tiny_tokenizer(chat_template=None))


@pytest.mark.parametrize(
    ("messages", "expected"),
    [
        ("hello", "'messages' is of type str"),
        ([], "'messages' is an empty list"),
        (["hello"], "Message 1 of 'messages' is of type str"),
        ([ASK, {"content": "x"}], "Message 2 of 'messages' has no 'role'"),
        ([{"role": "user"}], "The 'content' of message 1 of 'messages' is missing"),
        ([{"role": "user", "content": 5}], "The 'content' of message 1 of 'messages' is of type int"),
    ],
)
def test_messages_of_the_wrong_shape(
    messages: Any, expected: str, tokenizer: PreTrainedTokenizerFast
) -> None:
    """The message names the turn and what is wrong with it."""
    with pytest.raises(RowError, match=expected):
        encode("messages", {"messages": messages}, tokenizer)


def test_prompt_and_completion_may_be_messages(tokenizer: PreTrainedTokenizerFast) -> None:
    """Only the completion's assistant turns carry loss, not those of the prompt."""
    row = {"prompt": [ASK, ANSWER, ASK_AGAIN], "completion": [ANSWER_AGAIN]}
    whole, kept = encode("prompt_completion", row, tokenizer)
    assert whole == tokenizer.apply_chat_template([ASK, ANSWER, ASK_AGAIN, ANSWER_AGAIN], tokenize=False)
    assert kept == f"four{EOS}"


def test_alpaca_with_input(tokenizer: PreTrainedTokenizerFast) -> None:
    """Stanford's prompt, loss on the output; braces in the texts are nothing special."""
    row = {"instruction": "Name {it}", "input": "{input}", "output": "four"}
    whole, kept = encode("alpaca", row, tokenizer)
    assert whole == (
        "Below is an instruction that describes a task, paired with an input that provides further context. "
        "Write a response that appropriately completes the request.\n\n### Instruction:\nName {it}\n\n### "
        "Input:\n{input}\n\n### Response:four" + EOS
    )
    assert kept == f"four{EOS}"


@pytest.mark.parametrize("extra", [{}, {"input": ""}, {"input": None}])
def test_alpaca_without_input(extra: dict[str, Any], tokenizer: PreTrainedTokenizerFast) -> None:
    """An absent or empty input uses the shorter prompt."""
    whole, _ = encode("alpaca", {"instruction": "Name it", "output": "four", **extra}, tokenizer)
    assert whole == (
        "Below is an instruction that describes a task. Write a response that appropriately completes the "
        f"request.\n\n### Instruction:\nName it\n\n### Response:four{EOS}"
    )


@pytest.mark.parametrize(
    ("name", "row", "expected"),
    [
        ("text", {"text": " \n"}, "The field 'text' is empty"),
        ("text", {"text": 3}, "The field 'text' is of type int"),
        ("prompt_completion", {"prompt": "a", "completion": ""}, "The field 'completion' is empty"),
        ("prompt_completion", {"prompt": [ASK], "completion": "a"}, "'completion' is of type str"),
        ("alpaca", {"instruction": "a", "output": ""}, "The field 'output' is empty"),
        ("text", {"text": "a\ud83db"}, r"The field 'text' holds '\\ud83d', half of a surrogate pair"),
        (
            "messages",
            {"messages": [ASK, {"role": "assistant", "content": "\udc00"}]},
            r"Message 2 of 'messages' holds '\\udc00', half of a surrogate pair",
        ),
        ("alpaca", {"instruction": "a", "input": 1, "output": "b"}, "The field 'input' is of type int"),
    ],
)
def test_fields_of_the_wrong_type_or_empty(
    name: str, row: dict[str, Any], expected: str, tokenizer: PreTrainedTokenizerFast
) -> None:
    """The message names the field."""
    with pytest.raises(RowError, match=expected):
        encode(name, row, tokenizer)


def test_a_tokenizer_without_end_token_is_refused() -> None:
    """Nothing could be learnt to stop with."""
    tokenizer = build_tiny_tokenizer()
    tokenizer.eos_token = None
    with pytest.raises(ModelError, match="no end-of-sequence token"):
        encode("text", {"text": "a"}, tokenizer)


@pytest.mark.parametrize(
    ("columns", "expected"),
    [
        ({"text"}, "text"),
        ({"prompt", "completion", "id"}, "prompt_completion"),
        ({"messages", "tools"}, "messages"),
        ({"instruction", "input", "output"}, "alpaca"),
        ({"instruction", "output"}, "alpaca"),
    ],
)
def test_the_columns_tell_the_format(columns: set[str], expected: str) -> None:
    """Auto finds the one format that fits."""
    assert detect_format(columns).name == expected


def test_columns_that_fit_no_format() -> None:
    """The message lists what was found and what each format needs."""
    with pytest.raises(DataError) as caught:
        detect_format(["question", "answer"])
    assert str(caught.value) == (
        "The data has the columns answer, question, which fit no format: text needs text; prompt_completion "
        "needs prompt and completion; messages needs messages; alpaca needs instruction and output. Rename "
        "columns with data.columns, for example {prompt: question, completion: answer}."
    )


def test_columns_that_fit_two_formats() -> None:
    """Nothing is guessed."""
    with pytest.raises(
        DataError, match=r"fit more than one format: text, alpaca\. Say which in data\.format\."
    ):
        detect_format(["text", "instruction", "output"])


@pytest.mark.parametrize(
    ("columns", "expected"),
    [
        (["role", "content"], "each row is a message. A row must be a conversation"),
        (["from", "value"], "each row is a message. A row must be a conversation"),
        (["prompt;completion"], "its cells seem to be separated by ';'. Save the file with commas"),
        (["prompt\tcompletion"], r"its cells seem to be separated by '\t'. Save the file with commas"),
        (["prompt", " completion"], "The data has the columns ' completion', prompt, which fit no format"),
    ],
)
def test_columns_that_fit_no_format_get_a_hint(columns: list[str], expected: str) -> None:
    with pytest.raises(DataError) as caught:
        detect_format(columns)
    assert expected in str(caught.value)
