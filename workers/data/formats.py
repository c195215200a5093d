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
from workers.data.chat_templates import PLAIN, Rendering
from workers.data.conversations import check_messages, encode_conversation
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
class Format:
    """One shape of a row."""

    name: str
    required: tuple[str, ...]
    optional: tuple[str, ...]
    encoder: Callable[[Row, PreTrainedTokenizerBase, Rendering], EncodedRow]
    """Raises RowError, or DataError where every row would fail alike."""

    @property
    def fields(self) -> tuple[str, ...]:
        return self.required + self.optional

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


def _encode_text(row: Row, tokenizer: PreTrainedTokenizerBase, _: Rendering) -> EncodedRow:
    text = _text(row, "text")
    return encode_segments(
        tokenizer,
        [TextSegment(text, True)],
        prefix=leading_special_ids(tokenizer),
        suffix=[end_of_text_id(tokenizer)],
    )


def _encode_prompt_completion(
    row: Row, tokenizer: PreTrainedTokenizerBase, rendering: Rendering
) -> EncodedRow:
    if isinstance(row["prompt"], list) or isinstance(row["completion"], list):
        prompt = check_messages(row["prompt"], "prompt")
        completion = check_messages(row["completion"], "completion")
        return encode_conversation(
            tokenizer, [*prompt, *completion], rendering, first=len(prompt), tools=row.get("tools")
        )
    return _encode_pair(_text(row, "prompt", empty=True), _text(row, "completion"), tokenizer)


def _encode_messages(row: Row, tokenizer: PreTrainedTokenizerBase, rendering: Rendering) -> EncodedRow:
    messages = check_messages(row["messages"], "messages")
    return encode_conversation(tokenizer, messages, rendering, tools=row.get("tools"))


def _encode_alpaca(row: Row, tokenizer: PreTrainedTokenizerBase, _: Rendering) -> EncodedRow:
    instruction, output = _text(row, "instruction"), _text(row, "output")
    given = _text(row, "input", empty=True) if row.get("input") is not None else ""
    template = ALPACA_WITH_INPUT if given.strip() else ALPACA_WITHOUT_INPUT
    return _encode_pair(template.format(instruction=instruction, input=given), output, tokenizer)


def _encode_pair(prompt: str, completion: str, tokenizer: PreTrainedTokenizerBase) -> EncodedRow:
    return encode_segments(
        tokenizer,
        [TextSegment(prompt, False), TextSegment(completion, True)],
        prefix=leading_special_ids(tokenizer),
        suffix=[end_of_text_id(tokenizer)],
    )


def _text(row: Row, field: str, *, empty: bool = False) -> str:
    value = row[field]
    if not isinstance(value, str):
        raise RowError(f"The field {field!r} is of type {type(value).__name__}; expected a text.")
    if not empty and not value.strip():
        raise RowError(f"The field {field!r} is empty; expected a text. Remove the row or fill it in.")
    return check_text(value, f"The field {field!r}")


FORMATS: dict[str, Format] = {
    format_.name: format_
    for format_ in (
        Format("text", ("text",), (), _encode_text),
        Format("prompt_completion", ("prompt", "completion"), ("tools",), _encode_prompt_completion),
        Format("messages", ("messages",), ("tools",), _encode_messages),
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
