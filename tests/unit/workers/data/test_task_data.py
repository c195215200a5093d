"""Files become the examples of each task: fields, counts, and what is refused, with file and line."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from search_spaces.definition import DataSpec
from search_spaces.tasks import Task
from tests.support.tokenizers_of_tasks import build_bert_tokenizer, build_t5_tokenizer
from tests.support.workers.models import build_tiny_tokenizer
from tests.support.workers.rows import TinyReader
from workers.base.heads import Labels
from workers.data.datasets import TokenizedData, load_data, load_eval, load_train
from workers.data.labels import read_labels
from workers.errors import DataError, LengthError

BERT = build_bert_tokenizer()


def jsonl(path: Path, *rows: dict[str, Any]) -> str:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(path)


def load(
    task: Task, train: str, *, evaluation: str | None = None, tokenizer: Any = BERT, **fields: Any
) -> tuple[TokenizedData, TokenizedData]:
    options = {
        name: fields.pop(name)
        for name in ("vocabulary_size", "max_positions", "row_end_id")
        if name in fields
    }
    spec = DataSpec.model_validate({"train": train, "eval": evaluation or train, "max_length": 64, **fields})
    reader = TinyReader(tokenizer, task=task, labels=read_labels(spec, task), **options)
    return load_data(spec, reader)


def refusal(task: Task, train: str, **options: Any) -> str:
    with pytest.raises(DataError) as caught:
        load(task, train, **options)
    return str(caught.value)


def test_columns_of_any_name_become_the_tasks_fields(tmp_path: Path) -> None:
    path = tmp_path / "d.csv"
    path.write_text("sentence,category,id\na man,card_arrival,1\na woman,top_up,2\n")
    train, evaluation = load(
        "sequence_classification", str(path), columns={"text": "sentence", "label": "category"}
    )
    assert [example.label.item() for example in train.examples] == [0, 1]
    assert (train.format, train.rows, train.skipped, train.truncated) == ("sequence_classification", 2, 0, 0)
    assert train.supervised_tokens == 2
    assert train.tokens == sum(example.length for example in train.examples)
    assert evaluation.digest == train.digest


def test_what_is_cut_and_left_out_is_counted(tmp_path: Path) -> None:
    rows = [
        {"text": "a man " * 9, "score": 1},
        {"text": "a", "score": 2},
        {"text": "b", "score": 2, "weight": 0},
    ]
    train, _ = load("regression", jsonl(tmp_path / "d.jsonl", *rows), max_length=8)
    assert (train.rows, len(train.examples), train.truncated, train.skipped) == (3, 2, 1, 1)


def test_examples_that_differ_in_the_label_differ_in_their_digest(tmp_path: Path) -> None:
    one = jsonl(tmp_path / "one.jsonl", {"text": "a", "score": 1})
    other = jsonl(tmp_path / "other.jsonl", {"text": "a", "score": 2})
    train, evaluation = load("regression", one, evaluation=other)
    assert train.digest != evaluation.digest


@pytest.mark.parametrize(
    ("task", "row", "expected"),
    [
        (
            "sequence_classification",
            {"texts": "a", "category": "b"},
            "The task sequence_classification needs text and label (and may have text_pair), but the data"
            " has the columns category, texts. Nearest column names: 'texts' for 'text'. Name the columns"
            " with data.columns: {text: texts, label: COLUMN}.",
        ),
        (
            "seq2seq_lm",
            {"mr": "a", "ref": "b"},
            "The task seq2seq_lm needs source and target, but the data has the columns mr, ref. Name the"
            " columns with data.columns: {source: COLUMN, target: COLUMN}.",
        ),
        (
            "token_classification",
            {"tokens": ["a"], "ner_labels": ["O"]},
            "The task token_classification needs tokens and labels, but the data has the columns ner_labels,"
            " tokens. Nearest column names: 'ner_labels' for 'labels'. Name the columns with data.columns:"
            " {labels: ner_labels}.",
        ),
        (
            "preference",
            {"chosen": "a", "rejected": "b"},
            "The task preference needs prompt, chosen and rejected (and may have tools), but the data has"
            " the columns chosen, rejected. Name the columns with data.columns: {prompt: COLUMN}.",
        ),
    ],
)
def test_other_fields_than_the_task_needs(
    task: Task, row: dict[str, Any], expected: str, tmp_path: Path
) -> None:
    """The message says what the task needs, what the file has, and what to write."""
    assert refusal(task, jsonl(tmp_path / "d.jsonl", row)) == expected


def test_a_later_row_without_a_field(tmp_path: Path) -> None:
    path = jsonl(tmp_path / "d.jsonl", {"text": "a", "score": 1}, {"text": "b", "score": None})
    assert refusal("regression", path) == (
        f"{path}:2: the row has no 'score', which the task regression needs. It has: text."
    )


def test_a_column_that_is_not_there(tmp_path: Path) -> None:
    path = jsonl(tmp_path / "d.jsonl", {"text": "a", "score": 1})
    found = refusal("regression", path, columns={"text": "sentence"})
    assert found == (
        f"{path}:1: the row has no column 'sentence', which data.columns gives as 'text'. It has: text, "
        "score."
    )
    found = refusal("regression", path, columns={"source": "text"})
    assert (
        "'source', which is not a field of the task regression. Fields are: score, text, text_pair." in found
    )


@pytest.mark.parametrize(
    ("task", "row", "expected"),
    [
        ("regression", {"text": "b", "score": "high"}, "The score is 'high'; expected a finite number"),
        ("regression", {"text": "", "score": 1}, "The field 'text' is empty"),
        ("regression", {"text": 5, "score": 1}, "The field 'text' is of type int; expected a text."),
        ("regression", {"text": "a", "text_pair": 5, "score": 1}, "The field 'text_pair' is of type int"),
        ("seq2seq_lm", {"source": "b", "target": ""}, "The field 'target' is empty; expected a text."),
    ],
)
def test_a_faulty_row_is_named(task: Task, row: dict[str, Any], expected: str, tmp_path: Path) -> None:
    good = {"text": "a", "score": 1, "source": "a", "target": "b"}
    path = jsonl(tmp_path / "d.jsonl", good, row)
    assert refusal(task, path, tokenizer=build_t5_tokenizer()).startswith(f"{path}:2: {expected}")


def test_an_eval_label_that_no_train_row_has(tmp_path: Path) -> None:
    """With the row, the label and the nearest that is known."""
    train = jsonl(tmp_path / "t.jsonl", {"text": "a", "label": "top_up"}, {"text": "b", "label": "lost_card"})
    evaluation = jsonl(
        tmp_path / "e.jsonl", {"text": "a", "label": "top_up"}, {"text": "b", "label": "lost_crad"}
    )
    assert refusal("sequence_classification", train, evaluation=evaluation) == (
        f"{evaluation}:2: The label 'lost_crad' does not occur in the train data. The nearest one there is "
        "'lost_card'."
    )


def test_an_eval_label_of_which_the_train_rows_are_not_read(tmp_path: Path) -> None:
    """Sorted data begins with a part of the classes."""
    rows = [{"text": "a", "label": label} for label in "aabbcc"]
    found = refusal("sequence_classification", jsonl(tmp_path / "d.jsonl", *rows), max_train_examples=4)
    assert (
        "d.jsonl:5: The label 'c' does not occur in the first 4 rows of the train data. Labels there" in found
    )


def test_eval_labels_that_are_numbers_where_the_train_data_has_names(tmp_path: Path) -> None:
    train = jsonl(tmp_path / "t.jsonl", {"text": "a", "label": "x"}, {"text": "b", "label": "y"})
    evaluation = jsonl(tmp_path / "e.jsonl", {"text": "a", "label": 1})
    assert refusal("sequence_classification", train, evaluation=evaluation) == (
        f"{evaluation}:1: The label '1' does not occur in the train data. Labels there are 'x', 'y'."
    )


def test_targets_fit_the_models_positions(tmp_path: Path) -> None:
    """Sources and targets are cut to max_length, which the model must have positions for."""
    path = jsonl(tmp_path / "d.jsonl", {"source": "a", "target": "b " * 100})
    with pytest.raises(
        LengthError, match=r"data.max_length is 64 tokens, but the model tiny has positions for 32"
    ):
        load("seq2seq_lm", path, tokenizer=build_t5_tokenizer(), max_positions=32)
    train, _ = load("seq2seq_lm", path, tokenizer=build_t5_tokenizer(), max_positions=32, max_length=32)
    assert (len(train.examples[0].labels), train.truncated) == (32, 1)


@pytest.mark.parametrize("field", ["source", "target"])
def test_tokens_that_the_model_does_not_embed(field: str, tmp_path: Path) -> None:
    tokenizer = build_t5_tokenizer()
    highest = len(tokenizer) - 1
    row = {"source": "a", "target": "a", field: tokenizer.convert_ids_to_tokens(highest)}
    path = jsonl(tmp_path / "d.jsonl", row)
    found = refusal("seq2seq_lm", path, tokenizer=tokenizer, vocabulary_size=highest)
    assert found.startswith(f"{path}:1: the tokenizer gives token {highest} (")


def pairs(path: Path, *answers: tuple[str, str]) -> str:
    rows = [{"prompt": "turn on", "chosen": chosen, "rejected": rejected} for chosen, rejected in answers]
    return jsonl(path, *rows)


@pytest.mark.parametrize("task", ["preference", "ranking"])
def test_equal_pairs_are_counted(task: Task, tmp_path: Path) -> None:
    """They teach nothing, and stay; where all are equal, a column is wrong."""
    tokenizer = build_tiny_tokenizer()
    path = pairs(tmp_path / "d.jsonl", ("yes", "no"), ("yes", "yes"), ("no", "yes"))
    train, _ = load(task, path, tokenizer=tokenizer)
    assert (train.rows, len(train.examples), train.equal_pairs, train.skipped) == (3, 3, 1, 0)
    assert train.tokens == sum(pair.chosen.length + pair.rejected.length for pair in train.examples)
    path = pairs(tmp_path / "d.jsonl", ("yes", "yes"), ("no", "no"))
    found = refusal(task, path, tokenizer=tokenizer)
    assert found.startswith(f"In every pair of {path}, the chosen answer and the rejected one are equal")


@pytest.mark.parametrize(
    ("task", "rows", "expected"),
    [
        (
            "regression",
            [{"text": "lamp", "score": 1}, {"text": "lamp", "text_pair": "light", "score": 2}],
            "DATA:2: The row has the end token '</s>' 2 times, but DATA:1 has it 1 time. The model tiny needs"
            " as many in every row: give all rows a second text or none, and do not write '</s>' in texts.",
        ),
        (
            "ranking",
            [{"chosen": "lamp", "rejected": "light</s>"}],
            "DATA:1: The row has the end token '</s>' 2 times, but DATA:1 has it 1 time.",
        ),
    ],
)
def test_a_model_that_reads_rows_at_their_end_wants_as_many_in_each(
    task: Task, rows: list[dict[str, Any]], expected: str, tmp_path: Path
) -> None:
    tokenizer = build_t5_tokenizer()
    path = jsonl(tmp_path / "train.jsonl", *rows)
    refused = refusal(task, path, tokenizer=tokenizer, row_end_id=tokenizer.eos_token_id)
    assert refused.replace(path, "DATA").startswith(expected)
    assert len(load(task, path, tokenizer=tokenizer)[0].examples) == len(rows)


def test_no_answer_is_left_within_max_length(tmp_path: Path) -> None:
    tokenizer = build_tiny_tokenizer()
    row = {"prompt": "turn on the kitchen light " * 4, "chosen": "yes", "rejected": "no"}
    path = jsonl(tmp_path / "d.jsonl", row)
    prompt = len(tokenizer(row["prompt"])["input_ids"])
    with pytest.raises(LengthError, match=rf"The shortest prompt has {prompt} tokens; raise data.max_length"):
        load("preference", path, tokenizer=tokenizer, max_length=8)


def test_no_row_carries_loss(tmp_path: Path) -> None:
    path = jsonl(tmp_path / "d.jsonl", {"text": "a", "score": 1, "train": False})
    assert refusal("regression", path) == (
        f"No row of {path} is usable (1 row read): none carries loss. Rows with 'weight': 0 or 'train': false"
        " are left out, and so are rows whose words or answers give no token."
    )


def test_lists_in_cells_are_words_and_labels(tmp_path: Path) -> None:
    path = tmp_path / "d.csv"
    path.write_text('tokens,labels\n"[""a"", ""man""]","[""O"", ""B""]"\n')
    train, _ = load("token_classification", str(path))
    assert train.supervised_tokens == 2


def test_the_train_and_eval_data_can_be_loaded_apart(tmp_path: Path) -> None:
    """As a worker does it, which reads them when they are needed."""
    path = jsonl(tmp_path / "d.jsonl", {"text": "a", "label": 0}, {"text": "b", "label": 1})
    spec = DataSpec.model_validate({"train": path, "eval": path, "max_length": 64})
    reader = TinyReader(BERT, task="sequence_classification", labels=Labels(("0", "1")))
    train = load_train(spec, reader)
    assert load_eval(spec, reader, train.format).digest == train.digest


STSB = 'a man dances,a woman dances,3.5\n"a ""dog"", and\na cat",a cat,0\n'
POSITIONS: dict[str, Any] = {"header": "none", "columns": {"text": 0, "text_pair": 1, "score": 2}}


def test_a_csv_file_without_a_header(tmp_path: Path) -> None:
    """Columns are found by their positions; the first record is a row."""
    path = tmp_path / "d.csv"
    path.write_text(STSB)
    train, _ = load("regression", str(path), **POSITIONS)
    assert [example.label.item() for example in train.examples] == [3.5, 0.0]
    assert BERT.decode(train.examples[1].input_ids) == BERT.decode(
        BERT('a "dog", and\na cat', "a cat")["input_ids"]
    )


def test_a_position_beyond_the_record(tmp_path: Path) -> None:
    path = tmp_path / "d.csv"
    path.write_text(STSB)
    found = refusal("regression", str(path), header="none", columns={"text": 0, "score": 3})
    assert found == (
        f"{path}:1: the record has no cell at position 3, which data.columns gives as 'score'. Its cells are "
        "at the positions 0 to 2."
    )


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        (f"{STSB}a,b\n", "d.csv:4: the record has 2 cells, the first record 3. Quote cells that hold commas"),
        (f"\n\n{STSB}a,b,c,d\n", "d.csv:6: the record has 4 cells, the first record 3."),
        ("\n", "d.csv has no rows. Give it at least one."),
        (f"{STSB}a,b,high\n", "d.csv:4: The score is 'high'; expected a finite number"),
        ('a,"b\n', "d.csv:1: the record is not valid CSV"),
    ],
)
def test_a_faulty_file_without_a_header(text: str, expected: str, tmp_path: Path) -> None:
    path = tmp_path / "d.csv"
    path.write_text(text)
    assert f"{tmp_path}/{expected}" in refusal("regression", str(path), **POSITIONS)


def test_joined_files_without_headers(tmp_path: Path) -> None:
    """A byte order mark in the middle is no part of a text, and the line after it is a row."""
    path = tmp_path / "d.csv"
    path.write_text("\ufeffa man,a,1\n\ufeffa dog,b,2\n")
    train, _ = load("regression", str(path), **POSITIONS)
    first = train.examples[1].input_ids
    assert BERT.decode(first) == BERT.decode(BERT("a dog", "b")["input_ids"])


def test_only_csv_files_lack_a_header(tmp_path: Path) -> None:
    path = jsonl(tmp_path / "d.jsonl", {"text": "a", "score": 1})
    assert refusal("regression", path, **POSITIONS) == (
        f"The data file {path} has names for its columns. Leave out data.header: none, which is for CSV "
        "files."
    )
