"""Train and eval data: rows in, tokenised examples with label masks out, every loss on the way counted."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from datetime import datetime
from functools import cached_property
from itertools import chain, islice
from typing import Any, Protocol

import torch
from transformers import PreTrainedTokenizerBase

from search_spaces.definition import DATA_FIELDS, DataSpec, HubData, ModelSpec
from search_spaces.wording import counted
from workers.data.chat_templates import PLAIN, Rendering
from workers.data.data_files import describe_source, read_rows
from workers.data.examples import Example
from workers.data.formats import FORMATS, Format, column_list, detect_format
from workers.data.loss_flags import FLAGS, MEANINGFUL_COLUMNS
from workers.data.row_structures import CONVERSATIONS, SYSTEM, Unread, read_structures
from workers.data.text_files import PlacedRow
from workers.data.tokenization import IGNORED, EncodedRow
from workers.errors import DataError, LengthError, RowError, faults_of_libraries
from workers.local_files import Roots

TASK_COLUMNS = ("task", "category", "source", "label")
"""What data sets call the column that says of which part of a mixture a row is. The first found counts."""

_READ_COLUMNS = frozenset({*DATA_FIELDS, *TASK_COLUMNS, CONVERSATIONS, SYSTEM, *FLAGS, *MEANINGFUL_COLUMNS})
"""Columns of a table that are read, beside those that the definition names."""


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


@dataclass(frozen=True)
class TokenizedData:
    """One data set, ready to train on or to evaluate."""

    examples: tuple[Example, ...]
    """In the source's order."""
    format: str
    rows: int
    """Rows read: `len(examples) + skipped`."""
    truncated: int
    """Examples that were longer than max_length and lost their end."""
    skipped: int
    """Rows left out because no supervised token remained: all cut away, or none there to begin with."""
    tokens: int
    """Over all examples."""
    supervised_tokens: int
    """Tokens that carry loss, over all examples."""

    @cached_property
    def digest(self) -> bytes:
        """SHA-256 of the examples' tokens and labels."""
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
    opened = open_rows(spec.train, spec.columns, spec.max_train_examples, format_, roots)
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
    opened = open_rows(spec.eval, spec.columns, spec.max_eval_examples, FORMATS[format_name], roots)
    return _tokenize(describe_source(spec.eval), opened, spec, base, now, on_row)


def check_positions(spec: DataSpec, base: RowReader) -> None:
    """Raises LengthError when `max_length` is above the model's positions."""
    if base.max_positions is not None and spec.max_length > base.max_positions:
        raise LengthError(
            f"data.max_length is {spec.max_length} tokens, but the model {base.spec.id} has positions for "
            f"{base.max_positions}. Set data.max_length to {base.max_positions} or less."
        )


def open_rows(
    source: str | HubData,
    columns: Mapping[str, str],
    limit: int | None,
    format_: Format | None,
    roots: Roots = None,
) -> tuple[Format, Iterator[PlacedRow]]:
    """The format and the first `limit` rows, none of which is checked yet.

    Args:
        source: What is read.
        columns: As in a definition's data.
        limit: Most rows; None: all.
        format_: None: decided by the first row's columns.
        roots: As in `load_data`.

    Raises:
        DataError: there is no first row, or no format fits it.
    """
    rows = iter(read_rows(source, {*_READ_COLUMNS, *columns.values()}, roots))
    first = next(rows, None)
    if first is None:
        raise DataError(f"The data {describe_source(source)} has no rows. Give it at least one.")
    if format_ is None:
        format_ = detect_format(renamed_row(*first, columns, None).keys())
    return format_, islice(chain([first], rows), limit)


def _tokenize(
    name: str,
    opened: tuple[Format, Iterable[PlacedRow]],
    spec: DataSpec,
    base: RowReader,
    now: datetime | None,
    on_row: Callable[[], object],
) -> TokenizedData:
    format_, rows = opened
    rendering = Rendering(now, spec.unrendered)
    examples: list[Example] = []
    count = truncated = tokens = supervised_tokens = 0
    shortest_cut: int | None = None
    for place, row in rows:
        on_row()
        count += 1
        encoded = encode_row(place, row, format_, spec.columns, base, rendering)
        input_ids, labels = encoded.input_ids, encoded.labels
        first = next((i for i, label in enumerate(labels) if label != IGNORED), None)
        if first is None or first >= spec.max_length:
            if first is not None:
                shortest_cut = min(first, shortest_cut or first)
            continue
        if len(input_ids) > spec.max_length:
            truncated += 1
            del input_ids[spec.max_length :], labels[spec.max_length :]
        examples.append(Example(torch.tensor(input_ids), torch.tensor(labels)))
        tokens += len(input_ids)
        supervised_tokens += sum(label != IGNORED for label in labels)
    if not examples:
        fault = DataError if shortest_cut is None else LengthError
        raise fault(nothing_usable(name, count, format_, spec.max_length, shortest_cut))
    return TokenizedData(
        examples=tuple(examples),
        format=format_.name,
        rows=count,
        truncated=truncated,
        skipped=count - len(examples),
        tokens=tokens,
        supervised_tokens=supervised_tokens,
    )


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
    with faults_of_libraries(lambda: f"{place}: the row cannot be read"):
        renamed = renamed_row(place, row, columns, format_)
    for field in format_.required:
        if renamed.get(field) is None:
            raise DataError(
                f"{place}: the row has no {field!r}, which the format {format_.name} needs. It has: "
                f"{column_list(k for k, v in renamed.items() if v is not None)}."
            )
    with faults_of_libraries(lambda: f"{place}: {_used(format_, renamed)} cannot be rendered or tokenised"):
        try:
            encoded = format_.encode(renamed, base.tokenizer, rendering)
        except RowError as error:
            raise RowError(f"{place}: {error}") from error
    highest = max(encoded.input_ids, default=0)
    if highest >= base.vocabulary_size:
        raise DataError(
            f"{place}: the tokenizer gives token {highest} "
            f"({base.tokenizer.convert_ids_to_tokens(highest)}), but the model {base.spec.id} embeds only "
            f"{base.vocabulary_size}. Use the tokenizer the model was trained with, or a model whose "
            "embeddings were resized for it."
        )
    return replace(encoded, labels=[IGNORED, *encoded.labels[1:]])


def renamed_row(
    place: str, row: dict[str, Any], columns: Mapping[str, str], format_: Format | None
) -> dict[str, Any]:
    """The row under the format's own field names, and with a format its messages and tools in their one form.

    Raises:
        DataError: `columns` names a field that the format lacks, or a column that the row lacks; or what is
            in one cannot be what the format needs.
    """
    fields = [f for f_ in FORMATS.values() for f in f_.fields] if format_ is None else list(format_.fields)
    for field, column in columns.items():
        if field not in fields:
            of = "any format" if format_ is None else f"the format {format_.name}"
            raise DataError(
                f"data.columns renames {column!r} to {field!r}, which is not a field of {of}. "
                f"Fields are: {', '.join(sorted(set(fields)))}."
            )
        if column not in row:
            raise DataError(
                f"{place}: the row has no column {column!r}, which data.columns gives as {field!r}. It has: "
                f"{column_list(row)}."
            )
    others = {name: value for name, value in row.items() if name not in columns.values()}
    renamed = {**others, **{field: row[column] for field, column in columns.items()}}
    if format_ is None:
        return renamed
    if "messages" in format_.fields and renamed.get("messages") is None and CONVERSATIONS in renamed:
        renamed["messages"] = renamed.pop(CONVERSATIONS)
    for field in format_.fields:
        if isinstance(value := renamed.get(field), Unread):
            raise RowError(f"{place}: The column {columns.get(field, field)!r} {value.reason}.")
    try:
        return read_structures(renamed, format_.fields)
    except RowError as error:
        raise RowError(f"{place}: {error}") from error


def _used(format_: Format, row: Mapping[str, Any]) -> str:
    """The fields of a row that become tokens, for messages."""
    return " and ".join(repr(field) for field in format_.fields if row.get(field) is not None)


def nothing_usable(name: str, rows: int, format_: Format, max_length: int, shortest_cut: int | None) -> str:
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
    if format_.name == "messages":
        hint = "Each conversation needs an assistant message, and the chat template must render it."
    else:
        hint = "Each row needs at least two tokens."
    return (
        f"{none}: every token is masked, so there is no loss. {hint} Messages and rows with 'weight': 0 or "
        "'train': false carry no loss."
    )
