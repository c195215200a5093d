"""Rows of each task as examples: the tokenizer's own tokens, and labels that mean what the row says."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from transformers import ByT5Tokenizer, PreTrainedTokenizerBase

from search_spaces.tasks import Task
from tests.support.tokenizers_of_tasks import (
    build_bart_tokenizer,
    build_bert_tokenizer,
    build_llama_tokenizer,
    build_t5_tokenizer,
)
from tests.support.workers.models import build_tiny_tokenizer
from workers.base.heads import Labels
from workers.data.chat.chat_templates import PLAIN
from workers.data.examples import (
    Example,
    LabelledExample,
    PairExample,
    Seq2SeqExample,
    TokenLabelsExample,
)
from workers.data.formats import FORMATS
from workers.data.labels import LabelReader
from workers.data.task_formats import ReadRow, TaskEncoder
from workers.errors import DataError, ModelError, RowError

TOKENIZERS = {
    "bert": build_bert_tokenizer(),
    "t5": build_t5_tokenizer(),
    "bart": build_bart_tokenizer(),
    "llama": build_llama_tokenizer(),
    "chat": build_tiny_tokenizer(),
}
NAMES = Labels(("B-LOC", "B-PER", "O"))
LONG = "turn on the kitchen light, please " * 5


def read(
    task: Task,
    tokenizer: PreTrainedTokenizerBase | str,
    row: dict[str, Any],
    *,
    labels: Labels | None = NAMES,
    max_length: int = 64,
) -> ReadRow:
    if isinstance(tokenizer, str):
        tokenizer = TOKENIZERS[tokenizer]
    reader = None if labels is None else LabelReader(labels)
    return TaskEncoder(task, tokenizer, reader, PLAIN, max_length).encode(row)


def refusal(task: Task, tokenizer: PreTrainedTokenizerBase | str, row: dict[str, Any], **options: Any) -> str:
    with pytest.raises(RowError) as caught:
        read(task, tokenizer, row, **options)
    return str(caught.value)


@pytest.mark.parametrize("name", ["t5", "bart", "bert", "llama", "chat"])
def test_a_text_has_the_tokens_that_it_has_at_inference(name: str) -> None:
    """With all special tokens that the tokenizer adds by itself, of decoders as of encoders."""
    row = {"text": "turn on the light", "label": "O"}
    example = read("sequence_classification", name, row).example
    assert isinstance(example, LabelledExample)
    assert example.input_ids.tolist() == TOKENIZERS[name]("turn on the light")["input_ids"]
    assert (example.label.item(), example.label.dtype, example.label.shape) == (2, torch.int64, ())


@pytest.mark.parametrize(
    ("name", "whole", "types"),
    [
        ("bert", "[CLS] a man [SEP] a woman [SEP]", True),
        ("t5", "a man</s> a woman</s>", False),
        ("bart", "<s>a man</s></s>a woman</s>", False),
        ("llama", "<s>a man\na woman", False),
        ("chat", "a man\na woman", False),
    ],
)
def test_two_texts_are_put_together_as_the_tokenizer_does_it(name: str, whole: str, types: bool) -> None:
    """A decoder's tokenizer has no way to, or only a BOS in the middle: a line break stands between."""
    row = {"text": "a man", "text_pair": "a woman", "score": 2}
    example = read("regression", name, row).example
    assert isinstance(example, LabelledExample)
    assert TOKENIZERS[name].decode(example.input_ids) == whole
    assert (example.token_type_ids is not None) == types
    if example.token_type_ids is not None:
        expected = TOKENIZERS[name]("a man", "a woman")["token_type_ids"]
        assert example.token_type_ids.tolist() == expected
        assert set(expected) == {0, 1}


@pytest.mark.parametrize("pair", [None, ""])
def test_a_pair_may_lack_its_second_text(pair: str | None) -> None:
    row = {"text": "a man", "text_pair": pair, "score": 2}
    example = read("regression", "bert", row).example
    assert isinstance(example, LabelledExample)
    assert example.input_ids.tolist() == TOKENIZERS["bert"]("a man")["input_ids"]


@pytest.mark.parametrize("name", ["bert", "t5", "bart", "llama"])
@pytest.mark.parametrize("pair", [None, LONG])
def test_a_long_text_is_cut_by_the_tokenizer(name: str, pair: str | None) -> None:
    """What it puts at the end stays there; and the row is counted."""
    row = {"text": LONG, "text_pair": pair, "score": 2}
    found = read("regression", name, row, max_length=20)
    assert isinstance(found.example, LabelledExample)
    assert found.truncated
    texts = (LONG, pair) if name != "llama" else (LONG if pair is None else f"{LONG}\n{LONG}", None)
    expected = TOKENIZERS[name](*texts, truncation=True, max_length=20)["input_ids"]
    assert found.example.input_ids.tolist() == expected
    assert not read("regression", name, row, max_length=500).truncated


def test_several_classes_at_once() -> None:
    """And none at all."""
    labels = Labels(("a", "b", "c"), multi_label=True)
    for given, expected in ((["c", "a"], [1.0, 0.0, 1.0]), ([], [0.0, 0.0, 0.0])):
        row = {"text": "a man", "label": given}
        example = read("sequence_classification", "bert", row, labels=labels).example
        assert isinstance(example, LabelledExample)
        assert (example.label.tolist(), example.label.dtype) == (expected, torch.float32)


def test_several_classes_are_a_list() -> None:
    labels = Labels(("a", "b"), multi_label=True)
    row = {"text": "a man", "label": "a"}
    found = refusal("sequence_classification", "bert", row, labels=labels)
    assert found.startswith("The label is of type str, but other rows have a list of labels.")


@pytest.mark.parametrize(
    ("score", "expected"), [(3, 3.0), (2.5, 2.5), ("4.75", 4.75), (" -1e-3 ", -0.001), ("0", 0.0)]
)
def test_a_score_is_a_number_or_one_as_text(score: Any, expected: float) -> None:
    example = read("regression", "bert", {"text": "a man", "score": score}).example
    assert isinstance(example, LabelledExample)
    assert (example.label.item(), example.label.dtype, example.label.shape) == (
        pytest.approx(expected),
        torch.float32,
        (),
    )


@pytest.mark.parametrize(
    ("score", "shown"),
    [
        ("high", "'high'"),
        ("", "''"),
        ("3,5", "of type str"),
        ("1_000", "'1_000'"),
        ("nan", "'nan'"),
        (float("inf"), "inf"),
        ("1e39", "'1e39'"),  # infinite in float32
        (10**400, "of type int"),
        (True, "True"),
        ([1.0], "of type list"),
    ],
)
def test_a_score_that_is_no_number(score: Any, shown: str) -> None:
    found = refusal("regression", "bert", {"text": "a man", "score": score})
    assert found == f"The score is {shown}; expected a finite number such as 3.5."


@pytest.mark.parametrize("name", ["t5", "bart"])
def test_a_source_and_its_target_end_with_eos(name: str) -> None:
    tokenizer = TOKENIZERS[name]
    example = read("seq2seq_lm", name, {"source": "a man", "target": "a woman"}).example
    assert isinstance(example, Seq2SeqExample)
    assert example.input_ids.tolist() == tokenizer("a man")["input_ids"]
    assert example.labels.tolist() == tokenizer(text_target="a woman")["input_ids"]
    assert example.labels[-1] == tokenizer.eos_token_id


def test_a_tokenizer_that_writes_no_end_gets_one_for_targets() -> None:
    """Else the model would never stop."""
    example = read("seq2seq_lm", "llama", {"source": "a man", "target": "a woman"}).example
    assert isinstance(example, Seq2SeqExample)
    assert TOKENIZERS["llama"].decode(example.labels) == "<s>a woman</s>"
    found = read("seq2seq_lm", "llama", {"source": "a man", "target": LONG}, max_length=20)
    assert isinstance(found.example, Seq2SeqExample)
    assert (len(found.example.labels), found.example.labels[-1], found.truncated) == (20, 2, True)


@pytest.mark.parametrize(("source", "target"), [(LONG, "a"), ("a", LONG), (LONG, LONG)])
def test_source_and_target_are_both_cut(source: str, target: str) -> None:
    """Each to max_length, and the row counts as one that was cut."""
    tokenizer = TOKENIZERS["t5"]
    found = read("seq2seq_lm", "t5", {"source": source, "target": target}, max_length=20)
    assert isinstance(found.example, Seq2SeqExample)
    assert found.truncated
    for text, tokens in ((source, found.example.input_ids), (target, found.example.labels)):
        assert tokens.tolist() == tokenizer(text, truncation=True, max_length=20)["input_ids"]
        assert tokens[-1] == tokenizer.eos_token_id


@pytest.mark.parametrize("field", ["source", "target"])
def test_an_empty_source_or_target_is_refused(field: str) -> None:
    row = {"source": "a", "target": "b", field: " \n"}
    assert refusal("seq2seq_lm", "t5", row).startswith(f"The field {field!r} is empty; expected a text.")


def test_a_target_needs_an_end_token() -> None:
    with pytest.raises(ModelError, match="no end-of-sequence token"):
        read("seq2seq_lm", "bert", {"source": "a", "target": "b"})


@pytest.mark.parametrize("name", ["bert", "t5", "bart", "llama"])
def test_the_first_token_of_a_word_has_its_label(name: str) -> None:
    tokenizer = TOKENIZERS[name]
    words = ["Peter", "lives", "in", "Hamburg"]
    example = read(
        "token_classification", name, {"tokens": words, "labels": ["B-PER", "O", "O", "B-LOC"]}
    ).example
    assert isinstance(example, TokenLabelsExample)
    encoding = tokenizer(words, is_split_into_words=True)
    assert example.input_ids.tolist() == encoding["input_ids"]
    firsts = [encoding.word_ids().index(word) for word in range(4)]
    labelled = (example.labels != -100).nonzero().flatten()
    assert labelled.tolist() == firsts
    assert example.labels[labelled].tolist() == [1, 2, 2, 0]
    assert example.supervised_tokens == 4


def test_words_that_are_cut_away_lose_their_labels() -> None:
    row = {"tokens": ["Peter"] * 30, "labels": ["B-PER"] * 30}
    found = read("token_classification", "bert", row, max_length=12)
    assert isinstance(found.example, TokenLabelsExample)
    assert found.truncated
    tokens = TOKENIZERS["bert"](["Peter"] * 30, is_split_into_words=True, truncation=True, max_length=12)
    assert found.example.input_ids.tolist() == tokens["input_ids"]
    assert found.example.supervised_tokens == len(set(tokens.word_ids()) - {None})


def test_a_word_that_gives_no_token_has_no_label() -> None:
    """BERT drops characters that are not seen."""
    row = {"tokens": ["\u200b", "Peter"], "labels": ["O", "B-PER"]}
    example = read("token_classification", "bert", row).example
    assert isinstance(example, TokenLabelsExample)
    assert [label for label in example.labels.tolist() if label != -100] == [1]
    assert read("token_classification", "bert", {"tokens": ["\u200b"], "labels": ["O"]}).example is None


@pytest.mark.parametrize(
    ("tokens", "labels", "expected"),
    [
        ("Peter lives", ["O"], "The field 'tokens' is of type str; expected a list, or one as JSON text: "),
        (["Peter"], "O", "The field 'labels' is of type str; expected a list, or one as JSON text: "),
        ([], [], "The field 'tokens' is an empty list."),
        (["Peter", 5], ["O", "O"], "Word 2 of 'tokens' is of type int; expected a text."),
        (["Peter", "a\ud83d"], ["O", "O"], "Word 2 of 'tokens' holds '\\ud83d', half of a surrogate pair"),
        (["Peter", "lives"], ["O"], "The row has 2 words in 'tokens', but 1 labels in 'labels'."),
        (["Peter"], ["PER"], "The label 'PER' does not occur in the train data."),
    ],
)
def test_words_and_labels_that_do_not_fit(tokens: Any, labels: Any, expected: str) -> None:
    found = refusal("token_classification", "bert", {"tokens": tokens, "labels": labels})
    assert found.startswith(expected)


def test_a_slow_tokenizer_cannot_tell_words() -> None:
    with pytest.raises(DataError, match=r"the tokenizer ByT5Tokenizer cannot tell, because it is a slow one"):
        TaskEncoder("token_classification", ByT5Tokenizer(), LabelReader(NAMES), PLAIN, 64)


def asked(content: str) -> list[dict[str, str]]:
    return [{"role": "user", "content": content}]


def answered(content: str) -> list[dict[str, str]]:
    return [{"role": "assistant", "content": content}]


@pytest.mark.parametrize(
    ("prompt", "chosen", "rejected"),
    [("turn on the lamp", "lamp on", "no"), (asked("turn on the lamp"), answered("lamp on"), answered("no"))],
)
def test_a_preferred_answer_is_what_a_language_model_is_trained_on(
    prompt: Any, chosen: Any, rejected: Any
) -> None:
    """Texts and conversations have the tokens and labels of the format prompt_completion."""
    tokenizer = TOKENIZERS["chat"]
    example = read(
        "preference", "chat", {"prompt": prompt, "chosen": chosen, "rejected": rejected}, labels=None
    ).example
    assert isinstance(example, PairExample)
    for answer, given in ((example.chosen, chosen), (example.rejected, rejected)):
        expected = FORMATS["prompt_completion"].encode({"prompt": prompt, "completion": given}, tokenizer)
        assert answer.input_ids.tolist() == expected.input_ids
        assert answer.labels.tolist() == expected.labels
        assert 0 < answer.supervised_tokens < answer.length


def test_the_tools_of_a_conversation_are_read() -> None:
    template = "{% if tools %}{{ tools[0].function.name }}{% endif %}" + build_tiny_tokenizer().chat_template
    tokenizer = build_tiny_tokenizer(chat_template=template)
    tools = [{"type": "function", "function": {"name": "lamp"}}]
    row = {"prompt": asked("a"), "chosen": answered("b"), "rejected": answered("c"), "tools": tools}
    for task in ("preference", "ranking"):
        example = read(task, tokenizer, row, labels=None).example
        assert isinstance(example, PairExample)
        assert tokenizer.decode(example.chosen.input_ids).startswith("lamp<|im_start|>user")


def test_a_pair_is_cut_at_its_end() -> None:
    """As rows of a language model are; without any of an answer there is nothing to prefer."""
    row = {"prompt": "turn on", "chosen": LONG, "rejected": "no"}
    found = read("preference", "chat", row, labels=None, max_length=16)
    assert isinstance(found.example, PairExample)
    assert (found.example.chosen.length, found.truncated) == (16, True)
    found = read("preference", "chat", {**row, "prompt": LONG}, labels=None, max_length=16)
    assert (found.example, found.before_loss) == (None, len(TOKENIZERS["chat"](LONG)["input_ids"]))


@pytest.mark.parametrize("answer", ["chosen", "rejected"])
def test_a_preferred_answer_is_not_empty(answer: str) -> None:
    for prompt, empty in (("a", " "), (asked("a"), answered(""))):
        good = "b" if isinstance(prompt, str) else answered("b")
        row = {"prompt": prompt, "chosen": good, "rejected": good, answer: empty}
        assert "is empty" in refusal("preference", "chat", row)


def test_both_answers_are_of_the_prompts_kind() -> None:
    """A data set may hold the prompt as a text and answers as whole conversations."""
    row = {"prompt": "a", "chosen": answered("b"), "rejected": answered("c")}
    assert refusal("preference", "chat", row).startswith(
        "'prompt' is of type str; expected a list of messages"
    )
    row = {"prompt": asked("a"), "chosen": "b", "rejected": answered("c")}
    assert refusal("ranking", "chat", row).startswith("'chosen' is of type str; expected a list of messages")


@pytest.mark.parametrize(
    ("name", "prompt", "whole"),
    [
        ("bert", None, "[CLS] a man [SEP]"),
        ("bert", "a woman", "[CLS] a woman [SEP] a man [SEP]"),
        ("t5", "a woman", "a woman</s> a man</s>"),
        ("bart", "", "<s>a man</s>"),
        ("llama", None, "<s>a man</s>"),
        ("llama", "a woman ", "<s>a woman a man</s>"),
    ],
)
def test_ranked_answers_stand_after_their_prompt(name: str, prompt: str | None, whole: str) -> None:
    """Of a decoder with an end token, where the score is read; of an encoder as a pair. No token has loss."""
    row = {"prompt": prompt, "chosen": "a man", "rejected": "a flute"}
    example = read("ranking", name, row, labels=None).example
    assert isinstance(example, PairExample)
    assert TOKENIZERS[name].decode(example.chosen.input_ids) == whole
    assert TOKENIZERS[name].decode(example.rejected.input_ids) == whole.replace("a man", "a flute")
    assert (example.chosen.labels == -100).all()
    if name == "bert" and prompt:
        assert example.chosen.token_type_ids is not None
        assert set(example.chosen.token_type_ids.tolist()) == {0, 1}


def test_ranked_conversations_are_whole_or_have_a_prompt() -> None:
    """Data sets of rewards hold either."""
    tokenizer = TOKENIZERS["chat"]
    messages = [*asked("a man"), *answered("a flute")]
    rejected = [*asked("a man"), *answered("a dog")]
    whole = read("ranking", "chat", {"chosen": messages, "rejected": rejected}, labels=None).example
    row = {"prompt": messages[:1], "chosen": messages[1:], "rejected": rejected[1:]}
    split = read("ranking", "chat", row, labels=None).example
    assert isinstance(whole, PairExample)
    assert isinstance(split, PairExample)
    assert tokenizer.decode(whole.chosen.input_ids) == tokenizer.apply_chat_template(messages, tokenize=False)
    for one, other in zip(whole.tensors(), split.tensors(), strict=True):
        assert torch.equal(one, other)


@pytest.mark.parametrize("name", ["bert", "chat"])
def test_ranked_answers_are_cut(name: str) -> None:
    found = read("ranking", name, {"chosen": LONG, "rejected": "no"}, labels=None, max_length=12)
    assert isinstance(found.example, PairExample)
    assert (found.example.chosen.length, found.truncated) == (12, True)
    assert isinstance(found.example.chosen, Example)


@pytest.mark.parametrize("task", ["sequence_classification", "preference"])
def test_a_row_may_ask_to_be_left_out(task: Task) -> None:
    row = {"text": "a", "label": "O", "prompt": "a", "chosen": "b", "rejected": "c", "train": False}
    assert read(task, "chat", row).example is None
    assert "'weight' of the row is 0.5" in refusal(task, "chat", {**row, "weight": 0.5})


def test_a_column_that_changes_the_prompt_is_not_lost() -> None:
    row = {"prompt": "a", "chosen": "b", "rejected": "c", "system": "be short"}
    for task in ("preference", "ranking"):
        assert refusal(task, "chat", row).startswith("The column 'system' is filled in")
