"""How rows of each task become examples.

| task | fields | tokens |
| --- | --- | --- |
| seq2seq_lm | source, target | each by itself, with special tokens; the target ends with EOS |
| sequence_classification | text, (text_pair), label | a text or a pair, with special tokens |
| regression | text, (text_pair), score | the same |
| token_classification | tokens, labels | the words, with special tokens; a word's first token has its label |
| ranking | (prompt), chosen, rejected | the prompt with each answer: a pair, or an answer with its end |
| preference | prompt, chosen, rejected | the prompt with each answer, as in the format prompt_completion |

Texts are tokenised as `tokenizer(text)` does it at inference. A tokenizer that ends each text with a special
token (BERT's, T5's) has a form for pairs, which is used, with token types where it gives them. Others, of
decoders, have none, or put a BOS between: there a pair is one text with a line break between its parts, and
has no token types. Texts that are too long are cut by the tokenizer, which keeps the special token at the
end. Words are tokenised as by `tokenizer(words, is_split_into_words=True)`, so a byte-level tokenizer puts a
space before them only if it says so (`add_prefix_space`). A word that gives no token loses its label.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from decimal import Decimal
from typing import Any

import torch
from transformers import BatchEncoding, PreTrainedTokenizerBase

from search_spaces.tasks import Task
from workers.data.chat.chat_templates import Rendering
from workers.data.examples import (
    AnyExample,
    Example,
    LabelledExample,
    PairExample,
    Seq2SeqExample,
    TokenLabelsExample,
)
from workers.data.formats import Row, encode_answer, encode_messages, encode_text, text_of
from workers.data.labels import LabelReader
from workers.data.loss_flags import asks_for_loss, refuse_lost_columns
from workers.data.rows import TASK_SHAPES
from workers.data.tokenization import IGNORED, EncodedRow, check_text, end_of_text_id, is_special
from workers.errors import DataError, RowError, described


@dataclass(frozen=True)
class ReadRow:
    """A row, cut to the length that rows may have."""

    example: AnyExample | None
    """None: nothing of it carries loss."""
    truncated: bool = False
    """Whether it was longer."""
    before_loss: int | None = None
    """Of a row whose end, with all that carries loss, was cut away: the tokens before that."""


_NO_LOSS = ReadRow(None)


def cut(encoded: EncodedRow, max_length: int) -> ReadRow:
    """A row of a language model without the tokens after the first `max_length`."""
    input_ids, labels = encoded.input_ids, encoded.labels
    first = next((i for i, label in enumerate(labels) if label != IGNORED), None)
    if first is None or first >= max_length:
        return ReadRow(None, before_loss=first)
    truncated = len(input_ids) > max_length
    example = Example(torch.tensor(input_ids[:max_length]), torch.tensor(labels[:max_length]))
    return ReadRow(example, truncated)


class TaskEncoder:
    """Makes examples of the rows of one task, of any but `causal_lm`."""

    def __init__(
        self,
        task: Task,
        tokenizer: PreTrainedTokenizerBase,
        labels: LabelReader | None,
        rendering: Rendering,
        max_length: int,
    ) -> None:
        """Args:
            task: What for.
            tokenizer: The base's.
            labels: Those of the train data; None: the task has none.
            rendering: How conversations are rendered.
            max_length: Tokens of an example; of the source and of the target each, where there are both.

        Raises:
            DataError: the tokenizer cannot do what the task needs.
        """
        if task == "token_classification" and not tokenizer.is_fast:
            raise DataError(
                "The task token_classification must know which word each token is of, which the tokenizer "
                f"{type(tokenizer).__name__} cannot tell, because it is a slow one. Save the model with its "
                "fast tokenizer (tokenizer.json)."
            )
        self._fields = TASK_SHAPES[task].fields
        self._tokenizer = tokenizer
        self._labels = labels
        self._rendering = rendering
        self._max_length = max_length
        self._ends_texts = _ends_texts(tokenizer)
        encoders: Mapping[Task, Callable[[Row], ReadRow]] = {
            "seq2seq_lm": self._source_and_target,
            "sequence_classification": self._labelled,
            "token_classification": self._labelled_tokens,
            "regression": self._scored,
            "ranking": self._ranked,
            "preference": self._preferred,
        }
        self._encode = encoders[task]

    def encode(self, row: Row) -> ReadRow:
        """The example of a row, which is under the names of the task's fields and lacks none that it needs.

        Raises:
            RowError: the row is not what the task needs.
            DataError: every row would fail alike.
        """
        if asks_for_loss({k: v for k, v in row.items() if k not in self._fields}, "the row") is False:
            return _NO_LOSS
        return self._encode(row)

    def _source_and_target(self, row: Row) -> ReadRow:
        source, source_cut = self._tokenised(text_of(row, "source"))
        target, target_cut = self._target(text_of(row, "target"))
        example = Seq2SeqExample(torch.tensor(source["input_ids"]), torch.tensor(target))
        return ReadRow(example, source_cut or target_cut)

    def _target(self, text: str) -> tuple[list[int], bool]:
        """A target's tokens, which end with EOS, and whether some were cut away."""
        end = end_of_text_id(self._tokenizer)
        ids = list(self._tokenizer(text_target=text, verbose=False)["input_ids"])
        if end not in ids[-2:]:  # mBART puts its language after it
            return [*ids[: self._max_length - 1], end], len(ids) >= self._max_length
        if len(ids) <= self._max_length:
            return ids, False
        encoding = self._tokenizer(text_target=text, truncation=True, max_length=self._max_length)
        return list(encoding["input_ids"]), True

    def _labelled(self, row: Row) -> ReadRow:
        reader, value = self._label_reader(), row["label"]
        if reader.labels.multi_label:
            label = torch.zeros(len(reader.labels.names))
            label[reader.numbers(value)] = 1.0
        else:
            label = torch.tensor(reader.number(value))
        return self._text_with(row, label)

    def _scored(self, row: Row) -> ReadRow:
        return self._text_with(row, torch.tensor(_score(row["score"]), dtype=torch.float32))

    def _text_with(self, row: Row, label: torch.Tensor) -> ReadRow:
        pair = _optional(row, "text_pair")
        input_ids, types, truncated = self._joined(text_of(row, "text"), pair)
        return ReadRow(LabelledExample(input_ids, types, label), truncated)

    def _labelled_tokens(self, row: Row) -> ReadRow:
        words, labels = _words(row["tokens"]), row["labels"]
        if not isinstance(labels, list):
            raise RowError(f"The field 'labels' is of type {type(labels).__name__}; {_LIST_OF_WORDS}")
        if len(words) != len(labels):
            raise RowError(
                f"The row has {len(words):,} words in 'tokens', but {len(labels):,} labels in 'labels'. Give "
                "each word one label."
            )
        numbers = [self._label_reader().number(label) for label in labels]
        encoding, truncated = self._tokenised(words)
        of_tokens: list[int] = []
        before: int | None = None
        for word in encoding.word_ids():
            of_tokens.append(IGNORED if word is None or word == before else numbers[word])
            before = word
        if all(label == IGNORED for label in of_tokens):
            return _NO_LOSS
        return ReadRow(
            TokenLabelsExample(torch.tensor(encoding["input_ids"]), torch.tensor(of_tokens)), truncated
        )

    def _ranked(self, row: Row) -> ReadRow:
        refuse_lost_columns(row, self._fields)
        return _paired(self._ranked_answer(row, "chosen"), self._ranked_answer(row, "rejected"))

    def _ranked_answer(self, row: Row, answer: str) -> ReadRow:
        """One answer of a ranked pair with its prompt, of which no token carries loss."""
        prompt = row.get("prompt")
        of_texts = isinstance(row[answer], str) and not isinstance(prompt, list)
        if of_texts and self._ends_texts:
            first, second = _optional(row, "prompt"), text_of(row, answer)
            parts = (second, None) if first is None else (first, second)
            input_ids, types, truncated = self._joined(*parts)
            return ReadRow(Example(input_ids, torch.full_like(input_ids, IGNORED), types), truncated)
        if of_texts and not prompt:
            encoded = encode_text(row, self._tokenizer, self._rendering, field=answer)
        elif not prompt:
            encoded = encode_messages(row, self._tokenizer, self._rendering, field=answer)
        else:
            encoded = encode_answer(row, self._tokenizer, self._rendering, answer=answer)
        input_ids = torch.tensor(encoded.input_ids[: self._max_length])
        truncated = len(encoded.input_ids) > self._max_length
        return ReadRow(Example(input_ids, torch.full_like(input_ids, IGNORED)), truncated)

    def _preferred(self, row: Row) -> ReadRow:
        refuse_lost_columns(row, self._fields)
        return _paired(self._preferred_answer(row, "chosen"), self._preferred_answer(row, "rejected"))

    def _preferred_answer(self, row: Row, answer: str) -> ReadRow:
        encoded = encode_answer(row, self._tokenizer, self._rendering, answer=answer)
        return cut(replace(encoded, labels=[IGNORED, *encoded.labels[1:]]), self._max_length)

    def _joined(self, text: str, pair: str | None) -> tuple[torch.Tensor, torch.Tensor | None, bool]:
        """Tokens and token types of a text or a pair, and whether some were cut away."""
        if pair is not None and not self._ends_texts:
            text, pair = f"{text}\n{pair}", None
        encoding, truncated = self._tokenised(text, pair)
        types = encoding.get("token_type_ids") if self._ends_texts else None
        return (
            torch.tensor(encoding["input_ids"]),
            None if types is None else torch.tensor(types),
            truncated,
        )

    def _tokenised(self, text: str | list[str], pair: str | None = None) -> tuple[BatchEncoding, bool]:
        """A text, a pair or a list of words as tokens, and whether some were cut away."""
        # Not verbose: what is longer than the model's positions is cut here, and counted, not warned about.
        options: dict[str, Any] = {"is_split_into_words": isinstance(text, list), "verbose": False}
        encoding = self._tokenizer(text, pair, **options)
        if len(encoding["input_ids"]) <= self._max_length:
            return encoding, False
        return self._tokenizer(text, pair, truncation=True, max_length=self._max_length, **options), True

    def _label_reader(self) -> LabelReader:
        if self._labels is None:
            raise ValueError("A task with classes needs the labels of its train data.")
        return self._labels


def _ends_texts(tokenizer: PreTrainedTokenizerBase) -> bool:
    """Whether a special token ends each text that is tokenised, and so also the first one of a pair."""
    ids = tokenizer("a")["input_ids"]
    return len(ids) > 1 and is_special(tokenizer, ids[-1])


def _paired(chosen: ReadRow, rejected: ReadRow) -> ReadRow:
    """The pair of two answers; no example where one of them has none."""
    if isinstance(chosen.example, Example) and isinstance(rejected.example, Example):
        return ReadRow(PairExample(chosen.example, rejected.example), chosen.truncated or rejected.truncated)
    lost = [each.before_loss for each in (chosen, rejected) if each.before_loss is not None]
    return ReadRow(None, before_loss=max(lost, default=None))


def _optional(row: Row, field: str) -> str | None:
    """The text in a field that may be missing or empty."""
    if row.get(field) is None:
        return None
    return text_of(row, field, empty=True) or None


_LIST_OF_WORDS = 'expected a list, or one as JSON text: ["EU", "rejects", "it"] and ["ORG", "O", "O"].'


def _words(value: object) -> list[str]:
    """The words of a row.

    Raises:
        RowError: it is no list, an empty one, or has something in it that is no word.
    """
    if not isinstance(value, list):
        raise RowError(f"The field 'tokens' is of type {type(value).__name__}; {_LIST_OF_WORDS}")
    if not value:
        raise RowError("The field 'tokens' is an empty list. Remove the row or fill it in.")
    for number, word in enumerate(value, start=1):
        if not isinstance(word, str):
            raise RowError(f"Word {number} of 'tokens' is of type {type(word).__name__}; expected a text.")
        check_text(word, f"Word {number} of 'tokens'")
    return value


def _score(value: object) -> float:
    """A row's score.

    Raises:
        RowError: it is no finite number.
    """
    number = math.nan
    if (
        isinstance(value, (int, float, Decimal, str))
        and not isinstance(value, bool)
        and "_" not in str(value)
    ):
        try:
            number = float(value)  # of texts, too, but 1_000 is none of them
        except (ValueError, OverflowError):
            number = math.nan
    if not abs(number) <= torch.finfo(torch.float32).max:
        raise RowError(f"The score is {described(value)}; expected a finite number such as 3.5.")
    return number
