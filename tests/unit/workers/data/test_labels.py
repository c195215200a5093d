"""The classes of a study: read from its train data, in an order that depends on nothing else."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pyarrow
import pyarrow.parquet
import pytest

from search_spaces.definition import DataSpec
from search_spaces.tasks import Task
from workers.base.heads import Labels
from workers.data.labels import MOST_LABELS, LabelReader, read_labels
from workers.errors import DataError, RowError


def labels_of(path: Path, task: Task = "sequence_classification", **fields: Any) -> Labels | None:
    spec = DataSpec.model_validate({"train": str(path), "eval": str(path), **fields})
    return read_labels(spec, task)


def written(folder: Path, *labels: Any) -> Path:
    path = folder / "d.jsonl"
    path.write_text("".join(json.dumps({"text": "a", "label": label}) + "\n" for label in labels))
    return path


def of_words(folder: Path, *labels: Any) -> Path:
    path = folder / "d.jsonl"
    rows = [
        {"tokens": ["a"] * (len(each) if isinstance(each, list) else 1), "labels": each} for each in labels
    ]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def refusal(path: Path, task: Task = "sequence_classification", **fields: Any) -> str:
    with pytest.raises(DataError) as caught:
        labels_of(path, task, **fields)
    return str(caught.value)


@pytest.mark.parametrize(
    ("labels", "names", "multi_label"),
    [
        (["b", "a", "c", "a"], ("a", "b", "c"), False),
        ([2, 0, 2], ("0", "1", "2"), False),  # nothing is a 1, which is a class all the same
        (["10", "9", 0], tuple(map(str, range(11))), False),  # numbers by value, not by spelling
        ([1.0, 0.0], ("0", "1"), False),
        (["007", "a"], ("007", "a"), False),
        ([True, False], ("false", "true"), False),
        ([["b"], [], ["a", "b"]], ("a", "b"), True),
        ([[1, 0], [2]], ("0", "1", "2"), True),
    ],
)
def test_labels_have_one_order(
    labels: list[Any], names: tuple[str, ...], multi_label: bool, tmp_path: Path
) -> None:
    assert labels_of(written(tmp_path, *labels)) == Labels(names, multi_label)


def test_words_have_labels_of_their_own(tmp_path: Path) -> None:
    path = of_words(tmp_path, ["O", "B-PER"], ["O", "O", "B-LOC"])
    assert labels_of(path, "token_classification") == Labels(("B-LOC", "B-PER", "O"))


def test_cells_hold_lists_as_json(tmp_path: Path) -> None:
    """A CSV file can have labels of several classes and of words."""
    path = tmp_path / "d.csv"
    path.write_text('text,label\na,"[""x"", ""y""]"\nb,[]\n')
    assert labels_of(path) == Labels(("x", "y"), multi_label=True)
    path.write_text('tokens,labels\n"[""EU"", ""acts""]","[""ORG"", ""O""]"\n')
    assert labels_of(path, "token_classification") == Labels(("O", "ORG"))


def test_a_parquet_file_holds_lists(tmp_path: Path) -> None:
    rows = [{"tokens": ["a", "b"], "labels": [1, 0]}, {"tokens": ["a"], "labels": [2]}]
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist(rows), tmp_path / "d.parquet")
    assert labels_of(tmp_path / "d.parquet", "token_classification") == Labels(("0", "1", "2"))


def test_only_the_rows_that_train_count(tmp_path: Path) -> None:
    path = written(tmp_path, "a", "b", "c", 5)
    assert labels_of(path, max_train_examples=3) == Labels(("a", "b", "c"))


@pytest.mark.parametrize("task", ["regression", "causal_lm", "preference"])
def test_a_task_without_classes_has_no_labels(task: Task, tmp_path: Path) -> None:
    assert labels_of(tmp_path / "not read.csv", task) is None


@pytest.mark.parametrize(
    ("labels", "expected"),
    [
        (["a", 3], "d.jsonl:2: The label is the number 3, but {} has the name 'a'."),
        ([0, "1", "b"], "d.jsonl:3: The label is the name 'b', but {} has the number 0."),
        ([["a"], [4]], "d.jsonl:2: The label is the number 4, but {} has the name 'a'."),
    ],
)
def test_names_and_numbers_do_not_mix(labels: list[Any], expected: str, tmp_path: Path) -> None:
    """Nothing says what the number of a name is, or whether the number is a name, too."""
    path = written(tmp_path, *labels)
    assert refusal(path) == (
        f"{tmp_path}/{expected.format(f'{path}:1')} Labels must all be names or all be numbers; write "
        "names for all."
    )


@pytest.mark.parametrize(
    ("labels", "expected"),
    [
        (["a", "a"], "The only label is 'a' in {}, so there is nothing to tell apart."),
        ([3, 3], "The only label is '3' in {}"),
        ([["a"], []], "The only label is 'a' in {}"),
        ([[], []], "No row has a label in {}"),
    ],
)
def test_one_class_leaves_nothing_to_learn(labels: list[Any], expected: str, tmp_path: Path) -> None:
    path = written(tmp_path, *labels)
    assert refusal(path).startswith(expected.format(path))


def test_one_class_among_the_rows_that_train(tmp_path: Path) -> None:
    """Sorted data begins with one class only."""
    path = written(tmp_path, "a", "a", "b")
    assert f"The only label is 'a' in the first 2 rows of {path}" in refusal(path, max_train_examples=2)


@pytest.mark.parametrize(
    ("labels", "expected"),
    [
        (["a", ["b"]], "d.jsonl:2: The label is a list, but {} has a single label."),
        ([["b"], "a"], "d.jsonl:2: The label is of type str, but other rows have a list of labels."),
        ([["a", "b", "a"]], "d.jsonl:1: The list of labels has 'a' twice. A list names the classes"),
        ([[0, 1, 0]], "d.jsonl:1: The list of labels has '0' twice."),
        (["a", " "], "d.jsonl:2: The label is empty."),
        (["a", 0.5], "d.jsonl:2: The label is 0.5; expected a name, or a whole number that counts from 0."),
        ([0, -1], "d.jsonl:2: The label is the number -1. Labels that are numbers count from 0, to 9,999"),
        ([0, 10_000], "d.jsonl:2: The label is the number 10000. Labels that are numbers count from 0"),
        (["a", {"name": "b"}], "d.jsonl:2: The label is of type dict; expected a name"),
        (["a", ["b", None]], "d.jsonl:2: The label is a list, but"),
        ([["b", None]], "d.jsonl:1: The label is missing; expected a name"),
        (["a", "b" * 201], "d.jsonl:2: The label has 201 characters, more than 200."),
        (["a", "\ud83d"], "d.jsonl:2: The label holds '\\ud83d', half of a surrogate pair"),
        (["a", None], "d.jsonl:2: the row has no 'label', which the task sequence_classification needs."),
    ],
)
def test_what_cannot_be_a_label(labels: list[Any], expected: str, tmp_path: Path) -> None:
    """The message names file, line and label."""
    path = written(tmp_path, *labels)
    assert refusal(path).startswith(f"{tmp_path}/{expected.format(f'{path}:1')}")


def test_a_label_for_each_word(tmp_path: Path) -> None:
    found = refusal(of_words(tmp_path, ["O", "PER"], "O"), "token_classification")
    assert (
        "d.jsonl:2: The field 'labels' is of type str; expected a list with a label for each word." in found
    )


def test_there_are_not_too_many_labels(tmp_path: Path) -> None:
    """A column of texts, or of identifiers, is none of labels."""
    path = written(tmp_path, *(f"name {number}" for number in range(MOST_LABELS + 1)))
    assert f"d.jsonl:{MOST_LABELS + 1}: With 'name {MOST_LABELS}' there are more than 10,000" in refusal(path)


@pytest.mark.parametrize(
    ("names", "value", "expected"),
    [
        (("card_arrival", "top_up"), "card_arival", "The nearest one there is 'card_arrival'."),
        (("a", "b"), "zebra", "Labels there are 'a', 'b'."),
        (tuple(map(chr, range(97, 110))), "zebra", "'j' and 3 more."),
        (
            ("0", "1", "2"),
            3,
            "The label '3' does not occur in the train data. Labels are the numbers 0 to 2.",
        ),
        (
            ("0", "1", "2"),
            "b",
            "The label 'b' does not occur in the train data. Labels are the numbers 0 to 2.",
        ),
        (("a", "b"), 1, "The label '1' does not occur in the train data. Labels there are 'a', 'b'."),
    ],
)
def test_a_label_that_is_not_in_the_train_data(names: tuple[str, ...], value: Any, expected: str) -> None:
    with pytest.raises(RowError) as caught:
        LabelReader(Labels(names)).number(value)
    assert str(caught.value).startswith(f"The label {str(value)!r} does not occur in the train data. ")
    assert str(caught.value).endswith(expected)


@pytest.mark.parametrize("value", ["1", 1, 1.0])
def test_a_number_means_the_same_in_every_file(value: Any) -> None:
    assert LabelReader(Labels(("0", "1", "2"))).number(value) == 1
