"""Train and eval data: rows in, tokenised examples with label masks out, every loss on the way counted."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from datetime import datetime
from functools import cached_property
from typing import Any, Protocol

import torch
from transformers import PreTrainedTokenizerBase

from search_spaces.definition import DataSpec, ModelSpec
from search_spaces.tasks import Task
from search_spaces.wording import counted
from workers.base.heads import Labels
from workers.data.chat.chat_templates import PLAIN, Rendering
from workers.data.data_files import describe_source
from workers.data.examples import AnyExample, PairExample, Seq2SeqExample
from workers.data.formats import FORMATS, Format, RowShape
from workers.data.labels import LabelReader, first_rows
from workers.data.rows import TASK_SHAPES, TaskShape, named_row, open_rows
from workers.data.task_formats import ReadRow, TaskEncoder, cut
from workers.data.text_files import PlacedRow
from workers.data.tokenization import IGNORED, EncodedRow
from workers.errors import DataError, LengthError, RowError, faults_of_libraries
from workers.local_files import Roots


class RowReader(Protocol):
    """What turns rows into tokens: a `LoadedBase`, or the same without weights."""

    @property
    def spec(self) -> ModelSpec: ...

    @property
    def tokenizer(self) -> PreTrainedTokenizerBase: ...

    @property
    def vocabulary_size(self) -> int:
        """Token ids must be below it."""

    @property
    def max_positions(self) -> int | None:
        """Tokens the model has positions for; None where the architecture sets no limit."""

    @property
    def task(self) -> Task:
        """What the rows are for."""

    @property
    def labels(self) -> Labels | None:
        """Those of the train data; None: the task has none."""

    @property
    def row_end_id(self) -> int | None:
        """The token of which every row must have as many; None: there is none."""


@dataclass(frozen=True)
class TokenizedData:
    """One data set, ready to train on or to evaluate."""

    examples: tuple[AnyExample, ...]
    """In the source's order."""
    format: str
    """The format's name; the task's where that is not `causal_lm`."""
    rows: int
    """Rows read: `len(examples) + skipped`."""
    truncated: int
    """Examples that were longer than max_length and lost their end."""
    skipped: int
    """Rows left out because no supervised token remained: all cut away, or none there to begin with."""
    tokens: int
    """Over all examples."""
    supervised_tokens: int
    """Tokens that carry loss, over all examples; for other tasks, terms of the loss."""
    equal_pairs: int = 0
    """Examples whose chosen answer is also the rejected one, of a task with pairs."""

    @cached_property
    def digest(self) -> bytes:
        """SHA-256 of the examples' contents."""
        digest = hashlib.sha256()
        for example in self.examples:
            digest.update(b"/".join(tensor.numpy().tobytes() for tensor in example.tensors()) + b";")
        return digest.digest()


def load_data(
    spec: DataSpec, base: RowReader, now: datetime | None = None, roots: Roots = None
) -> tuple[TokenizedData, TokenizedData]:
    """Reads, formats, tokenises and truncates the train and the eval data.

    With `format: auto` the train data's columns decide, and the eval data must have the same format.

    Args:
        spec: What is read.
        base: Whose tokenizer and chat template it is read with.
        now: The date that a chat template may write; None: one that writes it is refused.
        roots: Folders that local files must lie in when they are opened; None: anywhere.

    Returns:
        Train and eval data, each with at least one example.

    Raises:
        DataError: a file cannot be read, a row is not what the format needs (naming file and line), nothing
            is left to learn from, or `max_length` is above the model's positions.
        ModelError: the tokenizer lacks the end token that the format needs.
    """
    train = load_train(spec, base, now, roots)
    return train, load_eval(spec, base, train.format, now, roots)


def load_train(
    spec: DataSpec,
    base: RowReader,
    now: datetime | None = None,
    roots: Roots = None,
    on_row: Callable[[], object] = lambda: None,
) -> TokenizedData:
    """The train data alone; raises as `load_data`. `on_row` is called before each row is tokenised."""
    check_positions(spec, base)
    format_ = None if spec.format == "auto" else FORMATS[spec.format]
    shape = _shape(base.task, format_)
    opened = open_rows(spec.train, spec.columns, spec.max_train_examples, shape, roots, spec.header)
    return _tokenize(describe_source(spec.train), opened, spec, base, now, on_row)


def load_eval(
    spec: DataSpec,
    base: RowReader,
    format_name: str,
    now: datetime | None = None,
    roots: Roots = None,
    on_row: Callable[[], object] = lambda: None,
) -> TokenizedData:
    """The eval data alone, in the format that the train data has; otherwise as `load_train`."""
    check_positions(spec, base)
    shape = _shape(base.task, FORMATS.get(format_name))
    opened = open_rows(spec.eval, spec.columns, spec.max_eval_examples, shape, roots, spec.header)
    return _tokenize(describe_source(spec.eval), opened, spec, base, now, on_row)


def check_positions(spec: DataSpec, base: RowReader) -> None:
    """Raises LengthError when `max_length` is above the model's positions."""
    if base.max_positions is not None and spec.max_length > base.max_positions:
        raise LengthError(
            f"data.max_length is {spec.max_length} tokens, but the model {base.spec.id} has positions for "
            f"{base.max_positions}. Set data.max_length to {base.max_positions} or less."
        )


def _shape(task: Task, format_: Format | None) -> RowShape | None:
    """What the rows of a task look like; None: what their columns tell."""
    return format_ if task == "causal_lm" else TASK_SHAPES[task]


def _tokenize(
    name: str,
    opened: tuple[RowShape, Iterable[PlacedRow]],
    spec: DataSpec,
    base: RowReader,
    now: datetime | None,
    on_row: Callable[[], object],
) -> TokenizedData:
    shape, rows = opened
    read = row_encoder(shape, spec, base, now)
    examples: list[AnyExample] = []
    count = truncated = equal_pairs = 0
    shortest_cut: int | None = None
    for place, row in rows:
        on_row()
        count += 1
        found = read(place, row)
        if found.example is None:
            if found.before_loss is not None:
                shortest_cut = min(found.before_loss, shortest_cut or found.before_loss)
            continue
        truncated += found.truncated
        equal_pairs += is_equal_pair(found.example)
        examples.append(found.example)
    if not examples:
        fault = DataError if shortest_cut is None else LengthError
        raise fault(nothing_usable(name, count, shape, spec.max_length, shortest_cut))
    if equal_pairs == len(examples):
        raise DataError(nothing_to_prefer(name, spec.max_length))
    return TokenizedData(
        examples=tuple(examples),
        format=shape.name,
        rows=count,
        truncated=truncated,
        skipped=count - len(examples),
        tokens=sum(map(_tokens, examples)),
        supervised_tokens=sum(example.supervised_tokens for example in examples),
        equal_pairs=equal_pairs,
    )


def row_encoder(
    shape: RowShape,
    spec: DataSpec,
    base: RowReader,
    now: datetime | None = None,
    *,
    trains: bool = True,
) -> Callable[[str, dict[str, Any]], ReadRow]:
    """What makes an example of a row and its place, cut to `max_length`.

    Args:
        shape: As `open_rows` gives it.
        spec: How rows are read.
        base: Whose tokenizer and task they are read with.
        now: As in `load_data`.
        trains: Whether the model is given the examples as they are.

    Raises:
        DataError: here and from what is returned, as `load_data` does.
    """
    rendering = Rendering(now, spec.unrendered)
    if isinstance(shape, Format):
        format_ = shape
        return lambda place, row: cut(
            encode_row(place, row, format_, spec.columns, base, rendering), spec.max_length
        )
    labels = None
    if base.labels is not None:
        labels = LabelReader(base.labels, first_rows("the train data", spec.max_train_examples))
    encoder = TaskEncoder(base.task, base.tokenizer, labels, rendering, spec.max_length)
    ends = _RowEnds(base) if trains else None

    def read(place: str, row: dict[str, Any]) -> ReadRow:
        renamed = named_row(place, row, spec.columns, shape)
        with _faults_of_encoding(place, shape, renamed):
            found = encoder.encode(renamed)
        if found.example is not None:
            _check_vocabulary(place, _highest_token(found.example), base)
            if ends is not None:
                ends.check(place, found.example)
        return found

    return read


class _RowEnds:
    """Compares how many end tokens the rows of a data set have, where a model wants as many in each."""

    def __init__(self, base: RowReader) -> None:
        self._base = base
        self._first: tuple[str, int] | None = None  # the place of the first row, and how many it has

    def check(self, place: str, example: AnyExample) -> None:
        """Raises RowError where a row has none, or more or fewer than the first one."""
        end = self._base.row_end_id
        if end is None:
            return
        rows = [example.chosen, example.rejected] if isinstance(example, PairExample) else [example]
        for row in rows:
            count = int((row.input_ids == end).sum())
            token = repr(self._base.tokenizer.convert_ids_to_tokens(end))
            if not count:
                raise RowError(
                    f"{place}: The row does not have the end token {token}, at which the model"
                    f" {self._base.spec.id} reads a row. Use the tokenizer that the model was trained with."
                )
            self._first = self._first or (place, count)
            if count != self._first[1]:
                raise RowError(
                    f"{place}: The row has the end token {token} {counted(count, 'time')}, but"
                    f" {self._first[0]} has it {counted(self._first[1], 'time')}. The model"
                    f" {self._base.spec.id} needs as many in every row: give all rows a second text or none,"
                    f" and do not write {token} in texts."
                )


def is_equal_pair(example: AnyExample) -> bool:
    """Whether an example has the same answer twice."""
    return isinstance(example, PairExample) and torch.equal(
        example.chosen.input_ids, example.rejected.input_ids
    )


def _tokens(example: AnyExample) -> int:
    """Tokens of an example, without padding."""
    return (
        sum(map(_tokens, (example.chosen, example.rejected)))
        if isinstance(example, PairExample)
        else example.length
    )


def _highest_token(example: AnyExample) -> int:
    if isinstance(example, PairExample):
        return max(map(_highest_token, (example.chosen, example.rejected)))
    highest = int(example.input_ids.max())
    return max(highest, int(example.labels.max())) if isinstance(example, Seq2SeqExample) else highest


def encode_row(
    place: str,
    row: dict[str, Any],
    format_: Format,
    columns: Mapping[str, str],
    base: RowReader,
    rendering: Rendering = PLAIN,
) -> EncodedRow:
    """One row as tokens, before truncation; the first one is never supervised.

    Raises:
        DataError: the row is not what the format needs; the message names its place.
    """
    renamed = named_row(place, row, columns, format_)
    with _faults_of_encoding(place, format_, renamed):
        encoded = format_.encode(renamed, base.tokenizer, rendering)
    _check_vocabulary(place, max(encoded.input_ids, default=0), base)
    return replace(encoded, labels=[IGNORED, *encoded.labels[1:]])


@contextmanager
def _faults_of_encoding(place: str, shape: RowShape, row: Mapping[str, Any]) -> Iterator[None]:
    """Says of what goes wrong in making tokens of a row where that row is."""
    with faults_of_libraries(lambda: f"{place}: {_used(shape, row)} cannot be rendered or tokenised"):
        try:
            yield
        except RowError as error:
            raise RowError(f"{place}: {error}") from error


def _check_vocabulary(place: str, highest: int, base: RowReader) -> None:
    """Raises DataError when the model has no embedding for the highest of a row's tokens."""
    if highest >= base.vocabulary_size:
        raise DataError(
            f"{place}: the tokenizer gives token {highest} "
            f"({base.tokenizer.convert_ids_to_tokens(highest)}), but the model {base.spec.id} embeds only "
            f"{base.vocabulary_size}. Use the tokenizer the model was trained with, or a model whose "
            "embeddings were resized for it."
        )


def _used(format_: RowShape, row: Mapping[str, Any]) -> str:
    """The fields of a row that become tokens, for messages."""
    return " and ".join(repr(field) for field in format_.fields if row.get(field) is not None)


def nothing_to_prefer(name: str, max_length: int) -> str:
    """Why a data set of pairs cannot be used, for a DataError."""
    return (
        f"In every pair of {name}, the chosen answer and the rejected one are equal, so there is nothing "
        "to prefer. Check the columns; answers are also equal if they differ only after "
        f"{max_length} tokens (data.max_length)."
    )


def nothing_usable(name: str, rows: int, format_: RowShape, max_length: int, shortest_cut: int | None) -> str:
    """Why no row is left, for a DataError.

    Args:
        name: Of the data.
        rows: Read.
        format_: Of the rows.
        max_length: Tokens that remain of each.
        shortest_cut: Of the rows that lost all supervised tokens to `max_length`, the fewest tokens before
            the first supervised one; None: no row did.
    """
    none = f"No row of {name} is usable ({counted(rows, 'row')} read)"
    if shortest_cut is not None:
        return (
            f"{none}: data.max_length of {max_length} tokens cuts away everything that carries loss. The "
            f"shortest prompt has {shortest_cut} tokens; raise data.max_length above that."
        )
    if isinstance(format_, TaskShape):
        return (
            f"{none}: none carries loss. Rows with 'weight': 0 or 'train': false are left out, and so are "
            "rows whose words or answers give no token."
        )
    if format_.name == "messages":
        hint = "Each conversation needs an assistant message, and the chat template must render it."
    else:
        hint = "Each row needs at least two tokens."
    return (
        f"{none}: every token is masked, so there is no loss. {hint} Messages and rows with 'weight': 0 or "
        "'train': false carry no loss."
    )
