"""Rows of a data set under the names of the fields that they are read as."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import chain, islice
from typing import Any, Literal, TypeVar

from search_spaces.definition import DATA_FIELDS, HubData
from search_spaces.faults import nearest_name
from search_spaces.tasks import TASKS, Task
from workers.data.data_files import describe_source, read_rows
from workers.data.formats import FORMATS, Format, RowShape, column_list, detect_format
from workers.data.loss_flags import FLAGS, MEANINGFUL_COLUMNS
from workers.data.row_structures import CONVERSATIONS, SYSTEM, Unread, read_structures
from workers.data.text_files import PlacedRow
from workers.errors import DataError, RowError, faults_of_libraries
from workers.local_files import Roots

TASK_COLUMNS = ("task", "category", "source", "label")
"""What data sets call the column that says of which part of a mixture a row is. The first found counts."""

_READ_COLUMNS = frozenset({*DATA_FIELDS, *TASK_COLUMNS, CONVERSATIONS, SYSTEM, *FLAGS, *MEANINGFUL_COLUMNS})
"""Columns of a table that are read, beside those that the definition names."""


@dataclass(frozen=True)
class TaskShape(RowShape):
    """The one shape of a row of a task, of any but `causal_lm`."""

    @property
    def title(self) -> str:
        """Its name in messages."""
        return f"the task {self.name}"

    def check(self, columns: Collection[str]) -> None:
        """Raises DataError when a required field is not among the first row's columns, after renaming."""
        missing = [field for field in self.required if field not in columns]
        if not missing:
            return
        others = [name for name in columns if name not in self.fields]
        meant = {field: nearest_name(field, others) for field in missing}
        found = [f"{name!r} for {field!r}" for field, name in meant.items() if name is not None]
        renames = ", ".join(f"{field}: {meant[field] or 'COLUMN'}" for field in missing)
        optional = f" (and may have {_listed(self.optional)})" if self.optional else ""
        raise DataError(
            f"The task {self.name} needs {_listed(self.required)}{optional}, but the data has the "
            f"columns {column_list(sorted(columns))}. "
            + (f"Nearest column names: {', '.join(found)}. " if found else "")
            + f"Name the columns with data.columns: {{{renames}}}."
        )


def _listed(names: Sequence[str]) -> str:
    *others, last = names
    return f"{', '.join(others)} and {last}" if others else last


def _shape(task: Task) -> TaskShape:
    spec = TASKS[task]
    # The tools of a conversation, as in the formats of a causal language model.
    tools = ("tools",) if {"chosen", "rejected"} <= set(spec.required) else ()
    return TaskShape(task, spec.required, (*spec.optional, *tools))


TASK_SHAPES: Mapping[Task, TaskShape] = {task: _shape(task) for task in TASKS if task != "causal_lm"}

Shape = TypeVar("Shape", bound=RowShape)


def open_rows(
    source: str | HubData,
    columns: Mapping[str, str],
    limit: int | None,
    format_: Shape | None,
    roots: Roots = None,
    header: Literal["first_row", "none"] = "first_row",
) -> tuple[Shape | Format, Iterator[PlacedRow]]:
    """The format and the first `limit` rows, none of which is checked yet.

    Args:
        source: What is read.
        columns: As in a definition's data.
        limit: Most rows; None: all.
        format_: What a row looks like. None: a format of `causal_lm`, decided by the first row's columns.
        roots: Folders that local files must lie in when they are opened; None: anywhere.
        header: As in a definition's data.

    Raises:
        DataError: there is no first row, no format fits it, or it lacks what the task needs.
    """
    rows = iter(read_rows(source, {*_READ_COLUMNS, *columns.values()}, roots, header))
    first = next(rows, None)
    if first is None:
        raise DataError(f"The data {describe_source(source)} has no rows. Give it at least one.")
    if format_ is None:
        return detect_format(renamed_row(*first, columns, None).keys()), islice(chain([first], rows), limit)
    if isinstance(format_, TaskShape):
        format_.check(renamed_row(*first, columns, format_).keys())
    return format_, islice(chain([first], rows), limit)


def renamed_row(
    place: str, row: dict[str, Any], columns: Mapping[str, str], format_: RowShape | None
) -> dict[str, Any]:
    """The row under the format's own field names, and with a format its messages and tools in their one form.

    Raises:
        DataError: `columns` names a field that the format lacks, or a column that the row lacks; or what is
            in one cannot be what the format needs.
    """
    fields = [f for f_ in FORMATS.values() for f in f_.fields] if format_ is None else list(format_.fields)
    for field, column in columns.items():
        if field not in fields:
            of = "any format" if format_ is None else format_.title
            raise DataError(
                f"data.columns renames {column!r} to {field!r}, which is not a field of {of}. "
                f"Fields are: {', '.join(sorted(set(fields)))}."
            )
        if column not in row and column.isdecimal() and all(map(str.isdecimal, row)):
            raise DataError(
                f"{place}: the record has no cell at position {column}, which data.columns gives as "
                f"{field!r}. Its cells are at the positions 0 to {len(row) - 1}."
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


def named_row(
    place: str, row: dict[str, Any], columns: Mapping[str, str], format_: RowShape
) -> dict[str, Any]:
    """The row as `renamed_row` gives it, with everything that its format needs.

    Raises:
        DataError: it lacks something, or cannot be read; the message names its place.
    """
    with faults_of_libraries(lambda: f"{place}: the row cannot be read"):
        renamed = renamed_row(place, row, columns, format_)
    for field in format_.required:
        if renamed.get(field) is None:
            raise DataError(
                f"{place}: the row has no {field!r}, which {format_.title} needs. It has: "
                f"{column_list(k for k, v in renamed.items() if v is not None)}."
            )
    return renamed
