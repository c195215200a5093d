"""The classes of a study, read from its train data, and which of them a row has.

A label is a name or a number. Numbers count from 0 and may be written as texts, as in every CSV file; a class
that no row has is one all the same if its number lies below the highest. Names are numbered in their sorted
order, so that the same data always gives the same numbers.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property

from search_spaces.definition import DataSpec
from search_spaces.faults import nearest_name
from search_spaces.tasks import Task
from search_spaces.wording import counted, shortened
from workers.base.heads import Labels
from workers.data.data_files import describe_source
from workers.data.row_structures import Unread
from workers.data.rows import TASK_SHAPES, named_row, open_rows
from workers.data.tokenization import check_text
from workers.errors import DataError, RowError
from workers.local_files import Roots

MOST_LABELS = 10_000
"""Different labels that a study may have."""
_LONGEST_LABEL = 200
"""Characters."""
_SHOWN = 60
"""Characters of a label in messages."""
_LISTED = 10
"""Labels that a message lists."""
_NUMBER = re.compile(r"0|-?[1-9][0-9]*")
_FIELDS: dict[Task, str] = {"sequence_classification": "label", "token_classification": "labels"}
"""What the tasks with classes call the field that has them."""


@dataclass(frozen=True)
class LabelReader:
    """Finds the numbers of labels."""

    labels: Labels
    source: str = "the train data"
    """What they were read from, for messages."""

    @cached_property
    def _numbers(self) -> dict[str, int]:
        return {name: number for number, name in enumerate(self.labels.names)}

    def number(self, value: object) -> int:
        """The number of the class that a label names.

        Raises:
            RowError: it cannot be a label, or the train data has no such label.
        """
        name = _name(value)
        number = self._numbers.get(name)
        if number is not None:
            return number
        names = self.labels.names
        if all(map(_NUMBER.fullmatch, names)):
            known = f"Labels are the numbers 0 to {len(names) - 1}"
        elif nearest := nearest_name(name, names):
            known = f"The nearest one there is {_shown(nearest)}"
        else:
            known = f"Labels there are {', '.join(map(_shown, names[:_LISTED]))}"
            known += f" and {len(names) - _LISTED:,} more" if len(names) > _LISTED else ""
        raise RowError(f"The label {_shown(name)} does not occur in {self.source}. {known}.")

    def numbers(self, value: object) -> list[int]:
        """The numbers of all classes in the list of a row.

        Raises:
            RowError: it is no list, has a label twice, or one that `number` refuses.
        """
        if not isinstance(value, list):
            raise RowError(f"The label is {_kind(value)}, {_NO_LIST}")
        numbers = [self.number(each) for each in value]
        _refuse_twice([self.labels.names[number] for number in numbers])
        return numbers


_NO_LIST = "but other rows have a list of labels. Write a list in every row, also of one label or of none."


def needs_labels(task: Task) -> bool:
    """Whether a task has classes."""
    return task in _FIELDS


def read_labels(
    spec: DataSpec, task: Task, roots: Roots = None, on_row: Callable[[], object] = lambda: None
) -> Labels | None:
    """The labels that the train data has, in one pass over its rows.

    Args:
        spec: What is read: as many rows as a trial trains on.
        task: What for.
        roots: Folders that local files must lie in when they are opened; None: anywhere.
        on_row: Called before each row is read.

    Returns:
        None for a task without classes.

    Raises:
        DataError: the rows lack the fields, have names here and numbers there, or lists here and single
            labels there; all have one label, or there are too many. The message names file, line and label.
    """
    field = _FIELDS.get(task)
    if field is None:
        return None
    shape = TASK_SHAPES[task]
    source = first_rows(describe_source(spec.train), spec.max_train_examples)
    _, rows = open_rows(spec.train, spec.columns, spec.max_train_examples, shape, roots, spec.header)
    seen = _SeenLabels(source, task)
    for place, row in rows:
        on_row()
        renamed = named_row(place, row, spec.columns, shape)
        try:
            seen.add(place, renamed[field])
        except RowError as error:
            raise RowError(f"{place}: {error}") from error
    return seen.labels()


def first_rows(source: str, limit: int | None) -> str:
    """What is read of a data set, for messages."""
    return source if limit is None else f"the first {counted(limit, 'row')} of {source}"


class _SeenLabels:
    """Collects the labels of a data set, each of which is checked against those before."""

    def __init__(self, source: str, task: Task) -> None:
        self._source = source
        self._of_tokens = task == "token_classification"
        self._names: set[str] = set()
        self._number: tuple[str, str] | None = None  # the first one, and its place
        self._name: tuple[str, str] | None = None
        self._list: str | None = None  # the place of the first one
        self._single: str | None = None

    def add(self, place: str, value: object) -> None:
        """Adds the labels of a row.

        Raises:
            RowError: they are not like the others.
        """
        if isinstance(value, list):
            self._list = self._list or place
        elif self._of_tokens:
            raise RowError(
                f"The field 'labels' is {_kind(value)}; expected a list with a label for each word."
            )
        else:
            self._single = self._single or place
        if self._list and self._single and not self._of_tokens:
            if isinstance(value, list):
                raise RowError(
                    f"The label is a list, but {self._single} has a single label. Write a list in every row, "
                    "also of one label or of none, or a single label in every row."
                )
            raise RowError(f"The label is {_kind(value)}, {_NO_LIST}")
        names = [_name(each) for each in value] if isinstance(value, list) else [_name(value)]
        if not self._of_tokens:
            _refuse_twice(names)
        for name in names:
            if name not in self._names:
                self._add_name(place, name)

    def _add_name(self, place: str, name: str) -> None:
        if _NUMBER.fullmatch(name):
            if not 0 <= int(name) < MOST_LABELS:
                raise RowError(
                    f"The label is the number {shortened(name, _SHOWN)}. Labels that are numbers count from "
                    f"0, to {MOST_LABELS - 1:,} at most. Number the classes so, or write names; for a value "
                    "on a scale, use the task regression."
                )
            self._number = self._number or (name, place)
        else:
            self._name = self._name or (name, place)
        if self._number and self._name:
            (number, its_place), (text, other_place) = self._number, self._name
            new, old = (f"the name {_shown(text)}", f"{its_place} has the number {number}")
            if _NUMBER.fullmatch(name):
                new, old = f"the number {number}", f"{other_place} has the name {_shown(text)}"
            raise RowError(
                f"The label is {new}, but {old}. Labels must all be names or all be numbers; write names for "
                "all."
            )
        self._names.add(name)
        if len(self._names) > MOST_LABELS:
            raise RowError(
                f"With {_shown(name)} there are more than {MOST_LABELS:,} different labels. Is this the "
                "column of the labels? For a value on a scale, use the task regression."
            )

    def labels(self) -> Labels:
        """All labels.

        Raises:
            DataError: there are none, or only one.
        """
        if len(self._names) < 2:
            only = next(iter(self._names), None)
            what = "No row has a label" if only is None else f"The only label is {_shown(only)}"
            raise DataError(
                f"{what} in {self._source}, so there is nothing to tell apart. Give the "
                "train data at least two labels."
            )
        names = sorted(self._names)
        if self._number:
            names = [str(number) for number in range(max(map(int, names)) + 1)]
        return Labels(tuple(names), self._list is not None and not self._of_tokens)


def _name(value: object) -> str:
    """A label as a name: a number in decimal digits.

    Raises:
        RowError: it cannot be a label.
    """
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, int):
        return str(value)
    if isinstance(value, float) and value.is_integer():
        return str(int(value))
    if isinstance(value, float):
        raise RowError(
            f"The label is {value:g}; expected a name, or a whole number that counts from 0. For a value on "
            "a scale, use the task regression."
        )
    if not isinstance(value, str):
        raise RowError(f"The label is {_kind(value)}; expected a name, or a whole number that counts from 0.")
    if not value.strip():
        raise RowError("The label is empty. Remove the row or fill it in.")
    if len(value) > _LONGEST_LABEL:
        raise RowError(
            f"The label has {len(value):,} characters, more than {_LONGEST_LABEL}. Is this the column of the "
            "labels?"
        )
    return check_text(value, "The label")


def _refuse_twice(names: list[str]) -> None:
    """Raises RowError when the list of a row has a label twice, as one of zeros and ones has."""
    if len(set(names)) < len(names):
        twice = next(name for at, name in enumerate(names) if name in names[:at])
        raise RowError(
            f"The list of labels has {_shown(twice)} twice. A list names the classes that the row has; it is "
            "not a mark for each class."
        )


def _shown(name: str) -> str:
    return shortened(repr(name), _SHOWN)


def _kind(value: object) -> str:
    if isinstance(value, Unread):
        return f"a value that {value.reason}"
    return "missing" if value is None else f"of type {type(value).__name__}"
