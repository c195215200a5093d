"""The shapes a row of data may have, and how each becomes tokens and labels.

| format | fields | loss on |
| --- | --- | --- |
| text | text | every token, and the EOS after it |
| prompt_completion | prompt, completion (texts, or lists of messages) | the completion and its EOS |
| messages | messages (or conversations), optionally tools | the assistant's turns with their ends |
| alpaca | instruction, output, optionally input | the output and its EOS |
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Mapping
from dataclasses import dataclass, replace
from typing import Any

from transformers import PreTrainedTokenizerBase

from search_spaces.wording import shortened
from workers.data.chat.chat_templates import PLAIN, Rendering
from workers.data.chat.conversations import check_messages, encode_conversation
from workers.data.loss_flags import asks_for_loss, refuse_lost_columns
from workers.data.row_structures import CONVERSATIONS
from workers.data.tokenization import (
    IGNORED,
    EncodedRow,
    TextSegment,
    check_text,
    encode_segments,
    end_of_text_id,
    leading_special_ids,
)
from workers.errors import DataError, RowError

Row = Mapping[str, Any]

_LONGEST_COLUMNS = 300
"""Characters of the names of columns."""

ALPACA_WITH_INPUT = (
    "Below is an instruction that describes a task, paired with an input that provides further context. "
    "Write a response that appropriately completes the request.\n\n"
    "### Instruction:\n{instruction}\n\n### Input:\n{input}\n\n### Response:"
)
ALPACA_WITHOUT_INPUT = (
    "Below is an instruction that describes a task. "
    "Write a response that appropriately completes the request.\n\n"
    "### Instruction:\n{instruction}\n\n### Response:"
)
"""The prompts of Stanford Alpaca, word for word (tatsu-lab/stanford_alpaca, train.py)."""


@dataclass(frozen=True)
class RowShape:
    """The fields that a row has."""

    name: str
    required: tuple[str, ...]
    optional: tuple[str, ...]

    @property
    def fields(self) -> tuple[str, ...]:
        return self.required + self.optional

    @property
    def title(self) -> str:
        """Its name in messages."""
        return f"the format {self.name}"


@dataclass(frozen=True)
class Format(RowShape):
    """One shape of a row of a causal language model."""

    encoder: Callable[[Row, PreTrainedTokenizerBase, Rendering], EncodedRow]
    """Raises RowError, or DataError where every row would fail alike."""

    def encode(
        self, row: Row, tokenizer: PreTrainedTokenizerBase, rendering: Rendering = PLAIN
    ) -> EncodedRow:
        """Token ids and labels of a row; none of them carries loss where the row asks for that.

        Raises:
            RowError: the row is not what the format needs, or asks for what is not done.
            DataError: every row would fail alike.
        """
        asked = asks_for_loss({k: v for k, v in row.items() if k not in self.fields}, "the row")
        if self.name != "text":
            refuse_lost_columns(row, self.fields)
        encoded = self.encoder(row, tokenizer, rendering)
        if asked is False:
            return replace(encoded, labels=[IGNORED] * len(encoded.labels))
        return encoded


def encode_text(
    row: Row, tokenizer: PreTrainedTokenizerBase, _: Rendering, *, field: str = "text"
) -> EncodedRow:
    """The text in a field, with loss on all of it and the end after it."""
    text = text_of(row, field)
    return encode_segments(
        tokenizer,
        [TextSegment(text, True)],
        prefix=leading_special_ids(tokenizer),
        suffix=[end_of_text_id(tokenizer)],
    )


def encode_answer(
    row: Row, tokenizer: PreTrainedTokenizerBase, rendering: Rendering, *, answer: str = "completion"
) -> EncodedRow:
    """A row's prompt and its answer, which is in the field `answer`, with loss on the answer and its end.

    Raises:
        RowError: one of them is not a text or a list of messages, or both are not alike.
    """
    if isinstance(row["prompt"], list) or isinstance(row[answer], list):
        prompt = check_messages(row["prompt"], "prompt")
        completion = check_messages(row[answer], answer)
        return encode_conversation(
            tokenizer, [*prompt, *completion], rendering, first=len(prompt), tools=row.get("tools")
        )
    return _encode_pair(text_of(row, "prompt", empty=True), text_of(row, answer), tokenizer)


def encode_messages(
    row: Row, tokenizer: PreTrainedTokenizerBase, rendering: Rendering, *, field: str = "messages"
) -> EncodedRow:
    """The conversation in a field, with loss on the assistant's turns."""
    messages = check_messages(row[field], field)
    return encode_conversation(tokenizer, messages, rendering, tools=row.get("tools"))


def _encode_alpaca(row: Row, tokenizer: PreTrainedTokenizerBase, _: Rendering) -> EncodedRow:
    instruction, output = text_of(row, "instruction"), text_of(row, "output")
    given = text_of(row, "input", empty=True) if row.get("input") is not None else ""
    template = ALPACA_WITH_INPUT if given.strip() else ALPACA_WITHOUT_INPUT
    return _encode_pair(template.format(instruction=instruction, input=given), output, tokenizer)


def _encode_pair(prompt: str, completion: str, tokenizer: PreTrainedTokenizerBase) -> EncodedRow:
    return encode_segments(
        tokenizer,
        [TextSegment(prompt, False), TextSegment(completion, True)],
        prefix=leading_special_ids(tokenizer),
        suffix=[end_of_text_id(tokenizer)],
    )


def text_of(row: Row, field: str, *, empty: bool = False) -> str:
    """The text in a field.

    Args:
        row: Under the names of the fields.
        field: That holds it.
        empty: Whether it may be empty.

    Raises:
        RowError: it is something else, or empty.
    """
    value = row[field]
    if not isinstance(value, str):
        raise RowError(f"The field {field!r} is of type {type(value).__name__}; expected a text.")
    if not empty and not value.strip():
        raise RowError(f"The field {field!r} is empty; expected a text. Remove the row or fill it in.")
    return check_text(value, f"The field {field!r}")


FORMATS: dict[str, Format] = {
    format_.name: format_
    for format_ in (
        Format("text", ("text",), (), encode_text),
        Format("prompt_completion", ("prompt", "completion"), ("tools",), encode_answer),
        Format("messages", ("messages",), ("tools",), encode_messages),
        Format("alpaca", ("instruction", "output"), ("input",), _encode_alpaca),
    )
}


def column_list(names: Iterable[str]) -> str:
    """Columns of a file by their names, for messages: one that is not what it should be may have any."""
    shown = (name if name == name.strip() else repr(name) for name in names)
    return shortened(", ".join(shown), _LONGEST_COLUMNS) or "nothing"


def detect_format(columns: Collection[str]) -> Format:
    """The one format whose required fields are all among `columns`, which are named after renaming.

    Raises:
        DataError: no format fits, or more than one.
    """
    fitting = [format_ for format_ in FORMATS.values() if set(format_.required) <= set(columns)]
    if len(fitting) == 1:
        return fitting[0]
    found = f"The data has the columns {column_list(sorted(columns))}"
    if fitting:
        names = ", ".join(format_.name for format_ in fitting)
        raise DataError(f"{found}, which fit more than one format: {names}. Say which in data.format.")
    if CONVERSATIONS in columns:
        return FORMATS["messages"]
    if {"role", "content"} <= set(columns) or {"from", "value"} <= set(columns):
        raise DataError(
            f"{found}, so each row is a message. A row must be a conversation: "
            '{"messages": [{"role": "user", "content": "..."}, ...]}.'
        )
    if len(columns) == 1 and (mark := next((m for m in (";", "\t", "|") if m in next(iter(columns))), None)):
        raise DataError(
            f"{found}, so its cells seem to be separated by {mark!r}. Save the file with commas between them."
        )
    needs = "; ".join(
        f"{format_.name} needs {' and '.join(format_.required)}" for format_ in FORMATS.values()
    )
    raise DataError(
        f"{found}, which fit no format: {needs}. Rename columns with data.columns, for example "
        "{prompt: question, completion: answer}."
    )
