"""Files become examples: every kind of file, every count, and errors that name file and line."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pyarrow
import pyarrow.parquet
import pytest
import torch
from datasets import Dataset

from search_spaces.definition import DataSpec, ModelSpec
from tests.support.workers.models import build_tiny_base, build_tiny_tokenizer
from workers.base.base_model import LoadedBase, load_base
from workers.data.datasets import TokenizedData, load_data
from workers.errors import DataError

PAIRS = [
    {"prompt": "turn on the lamp\n", "completion": "lamp on"},
    {"prompt": "turn off the light\n", "completion": "light off"},
    {"prompt": "what is two plus two?\n", "completion": "four"},
]


@pytest.fixture(scope="module")
def base(tiny_base_dir: Path) -> LoadedBase:
    return load_base(ModelSpec(id=str(tiny_base_dir), quantization="none"), torch.device("cpu"))


@pytest.fixture
def good(tmp_path: Path) -> str:
    """A data file without fault, to stand beside the one under test."""
    return write_jsonl(tmp_path / "good.jsonl", PAIRS)


def write_jsonl(path: Path, rows: list[Any]) -> str:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return str(path)


def write_parquet(path: Path, rows: list[Any]) -> str:
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist(rows), path)
    return str(path)


def load(train: Any, base: LoadedBase, **fields: Any) -> TokenizedData:
    """The train data of a study whose eval data is the same unless given."""
    spec = DataSpec.model_validate({"train": train, "eval": train, "max_length": 64, **fields})
    return load_data(spec, base)[0]


def conversation(**keys: Any) -> str:
    """A row as JSON, with keys of the assistant's message."""
    said = {"role": "assistant", "content": "done", **keys}
    return json.dumps({"messages": [{"role": "user", "content": "hi"}, said]})


def test_rows_that_ask_for_no_loss_are_left_out_and_counted(tmp_path: Path, base: LoadedBase) -> None:
    """As rows without a supervised token are."""
    rows = [*PAIRS, {**PAIRS[0], "weight": 0}, {**PAIRS[0], "train": False}]
    data = load(write_jsonl(tmp_path / "d.jsonl", rows), base)
    assert (data.rows, data.skipped, len(data.examples)) == (5, 2, 3)


def test_what_is_lost_on_purpose_leaves_the_rows(tmp_path: Path, base: LoadedBase) -> None:
    """They are trained on as the chat template renders them."""
    path = tmp_path / "d.jsonl"
    path.write_text(conversation(reasoning_content="two and two"))
    (row,) = texts(load(str(path), base, unrendered="ignore"), base)
    assert row == "<|im_start|>user\nhi<|im_end|>\n<|im_start|>assistant\ndone<|im_end|>\n"


def texts(data: TokenizedData, base: LoadedBase) -> list[str]:
    return [base.tokenizer.decode(example.input_ids) for example in data.examples]


def refusal(train: Any, base: LoadedBase, **fields: Any) -> str:
    with pytest.raises(DataError) as caught:
        load(train, base, **fields)
    return str(caught.value)


def write_csv(path: Path, rows: list[Any]) -> str:
    quoted = [",".join(f'"{row[name]}"' for name in ("prompt", "completion")) for row in rows]
    path.write_bytes("\r\n".join(["prompt,completion", *quoted, ""]).encode())
    return str(path)


def write_json(path: Path, rows: list[Any]) -> str:
    path.write_text(json.dumps(rows))
    return str(path)


def write_json_data(path: Path, rows: list[Any]) -> str:
    path.write_text(json.dumps({"version": {"data": []}, "data": rows, "after": 1}, indent=1))
    return str(path)


@pytest.mark.parametrize(
    ("name", "write"),
    [
        ("d.jsonl", write_jsonl),
        ("d.json", write_json),
        ("d.JSON", write_json_data),
        ("d.csv", write_csv),
        ("d.parquet", write_parquet),
    ],
)
def test_every_kind_of_file_gives_the_same_examples(
    name: str, write: Callable[[Path, list[Any]], str], tmp_path: Path, base: LoadedBase
) -> None:
    """JSON lines, JSON lists, {"data": [...]}, CSV with CRLF and Parquet hold the same rows."""
    data = load(write(tmp_path / name, PAIRS), base)
    assert texts(data, base) == [row["prompt"] + row["completion"] + "<|im_end|>" for row in PAIRS]
    assert (data.format, data.rows, data.truncated, data.skipped) == ("prompt_completion", 3, 0, 0)


def test_byte_order_mark_blank_lines_and_crlf(tmp_path: Path, base: LoadedBase) -> None:
    """Files from Windows editors read like any other; line separators inside a text are no line ends."""
    path = tmp_path / "d.jsonl"
    lines = [
        "\ufeff" + json.dumps({"text": "a"}),
        "",
        "  ",
        json.dumps({"text": "b\u2028c"}, ensure_ascii=False),
    ]
    path.write_bytes("\r\n".join(lines).encode())
    assert texts(load(str(path), base), base) == ["a<|im_end|>", "b\u2028c<|im_end|>"]

    table = tmp_path / "d.csv"
    table.write_bytes("\ufefftext\r\na\r\n\r\nb\r\n".encode())
    assert texts(load(str(table), base), base) == ["a<|im_end|>", "b<|im_end|>"]


def test_labels_are_unshifted_and_never_supervise_the_first_token(tmp_path: Path, base: LoadedBase) -> None:
    """The Hugging Face convention, with position 0 masked because nothing predicts it."""
    data = load(write_jsonl(tmp_path / "d.jsonl", [{"text": "turn on"}]), base)
    (example,) = data.examples
    assert (example.input_ids.dtype, example.labels.dtype) == (torch.int64, torch.int64)
    assert example.labels.tolist() == [-100, *example.input_ids.tolist()[1:]]
    assert (data.tokens, data.supervised_tokens) == (len(example.input_ids), len(example.input_ids) - 1)


def test_counts_of_supervised_tokens_leave_the_prompt_out(good: str, base: LoadedBase) -> None:
    """Tokens and supervised tokens add up over the examples."""
    data = load(good, base)
    assert data.tokens == sum(len(example.input_ids) for example in data.examples)
    completions = [base.tokenizer(row["completion"])["input_ids"] for row in PAIRS]
    assert data.supervised_tokens == sum(len(ids) + 1 for ids in completions)


def test_long_examples_are_cut_and_counted(tmp_path: Path, base: LoadedBase) -> None:
    """Only their first max_length tokens remain."""
    rows = [{"text": "the lamp " * 20}, {"text": "a"}]
    data = load(write_jsonl(tmp_path / "d.jsonl", rows), base, max_length=8)
    assert [len(example.input_ids) for example in data.examples] == [8, 2]
    assert (data.truncated, data.skipped, data.rows) == (1, 0, 2)


def test_rows_whose_loss_is_cut_away_are_skipped_and_counted(tmp_path: Path, base: LoadedBase) -> None:
    """A prompt as long as max_length leaves nothing to learn."""
    rows = [{"prompt": "the lamp " * 20, "completion": "x"}, {"prompt": "a", "completion": "b"}]
    data = load(write_jsonl(tmp_path / "d.jsonl", rows), base, max_length=8)
    assert (data.rows, data.skipped, data.truncated, len(data.examples)) == (2, 1, 0, 1)


def test_a_prompt_that_just_fits_keeps_one_supervised_token(tmp_path: Path, base: LoadedBase) -> None:
    """The boundary: 8 tokens of prompt are too many for max_length 8, and 7 are not."""
    rows = [{"prompt": "!" * n, "completion": "?"} for n in (7, 8)]
    data = load(write_jsonl(tmp_path / "d.jsonl", rows), base, max_length=8)
    assert (len(data.examples), data.skipped, data.truncated) == (1, 1, 1)
    assert (data.examples[0].labels != -100).nonzero().flatten().tolist() == [7]


def test_all_loss_cut_away_is_an_error_that_says_how_long_prompts_are(
    tmp_path: Path, base: LoadedBase
) -> None:
    """Every row skipped leaves nothing to train on."""
    rows = [{"prompt": "!" * n, "completion": "?"} for n in (30, 20)]
    path = write_jsonl(tmp_path / "d.jsonl", rows)
    assert refusal(path, base, max_length=8) == (
        f"No row of {path} is usable (2 rows read): data.max_length of 8 tokens cuts away everything that "
        "carries loss. The shortest prompt has 20 tokens; raise data.max_length above that."
    )


def test_all_tokens_masked_is_an_error(tmp_path: Path, base: LoadedBase) -> None:
    """Conversations without an assistant have no loss."""
    path = write_jsonl(tmp_path / "d.jsonl", [{"messages": [{"role": "user", "content": "hi"}]}] * 2)
    assert (
        " is usable (2 rows read): every token is masked, so there is no loss. Each conversation needs an"
        " assistant" in (refusal(path, base))
    )


def test_a_template_that_masks_every_token_is_an_error(tmp_path: Path) -> None:
    """Markers around nothing would train on nothing."""
    template = "{% for m in messages %}{{ m['content'] }}{% generation %}{% endgeneration %}{% endfor %}"
    folder = build_tiny_base(tmp_path / "m", tokenizer=build_tiny_tokenizer(chat_template=template))
    base = load_base(ModelSpec(id=str(folder), quantization="none"), torch.device("cpu"))
    messages = [{"role": "user", "content": "hi"}, {"role": "assistant", "content": "ho"}]
    path = write_jsonl(tmp_path / "d.jsonl", [{"messages": messages}])
    assert "every token is masked" in refusal(path, base)


def test_max_length_above_the_models_positions(good: str, base: LoadedBase) -> None:
    """Both numbers are in the message; the limit itself is fine."""
    message = refusal(good, base, max_length=257)
    assert "data.max_length is 257 tokens" in message
    assert "has positions for 256. Set data.max_length to 256 or less." in message
    assert load(good, base, max_length=256).rows == 3


def test_the_first_n_rows_are_taken(good: str, base: LoadedBase) -> None:
    """max_train_examples and max_eval_examples each limit their own data."""
    spec = DataSpec(train=good, eval=good, max_length=64, max_train_examples=2, max_eval_examples=1)
    train, evaluation = load_data(spec, base)
    assert (train.rows, evaluation.rows) == (2, 1)
    assert texts(train, base)[0] == texts(evaluation, base)[0] == "turn on the lamp\nlamp on<|im_end|>"


def test_rows_after_the_limit_are_not_read(tmp_path: Path, base: LoadedBase) -> None:
    """A fault beyond the limit does not matter."""
    path = tmp_path / "d.jsonl"
    path.write_text('{"text": "a b"}\n{broken\n')
    assert load(str(path), base, max_train_examples=1, max_eval_examples=1).rows == 1


def test_columns_are_renamed_before_the_format_is_detected(tmp_path: Path, base: LoadedBase) -> None:
    """The original columns give way to the renamed fields."""
    rows = [{"question": "two?", "answer": "four", "text": "unused"}]
    path = write_jsonl(tmp_path / "d.jsonl", rows)
    renames = {"prompt": "question", "completion": "answer"}
    data = load(path, base, format="prompt_completion", columns=renames)
    assert texts(data, base) == ["two?four<|im_end|>"]
    assert load(path, base, columns={"text": "answer"}).format == "text"
    del rows[0]["text"]
    assert load(write_jsonl(tmp_path / "e.jsonl", rows), base, columns=renames).format == "prompt_completion"


def test_a_rename_to_an_unknown_field(good: str, base: LoadedBase) -> None:
    """The fields there are are listed."""
    message = refusal(good, base, columns={"promt": "prompt"})
    assert "renames 'prompt' to 'promt', which is not a field of any format" in message


def test_a_rename_of_a_column_that_is_not_there(good: str, base: LoadedBase) -> None:
    """The row's columns are listed, with its place."""
    assert (
        f"{good}:1: the row has no column 'question', which data.columns gives as 'prompt'. It has: prompt"
        in (refusal(good, base, columns={"prompt": "question"}))
    )


def test_the_eval_data_must_have_the_train_datas_format(good: str, tmp_path: Path, base: LoadedBase) -> None:
    """What auto finds in the train data holds for both."""
    other = write_jsonl(tmp_path / "text.jsonl", [{"text": "a b"}])
    message = refusal(good, base, eval=other)
    assert message.startswith(
        f"{other}:1: the row has no 'prompt', which the format prompt_completion needs."
    )


@pytest.mark.parametrize(
    ("name", "content", "place", "expected"),
    [
        (
            "d.jsonl",
            '{"text": "a"}\n\n{"txt": "b"}\n',
            ":3",
            "the row has no 'text', which the format text needs",
        ),
        ("d.jsonl", '{"text": "a"}\n{"text": null}\n', ":2", "the row has no 'text'"),
        (
            "d.jsonl",
            '{"text": "a"}\n{"text": 7}\n',
            ":2",
            "The field 'text' is of type int; expected a text.",
        ),
        ("d.jsonl", '{"text": "a"}\n{"text": ""}\n', ":2", "The field 'text' is empty"),
        ("d.jsonl", '{"text": "a"}\n{"text": "b"\n', ":2", "the line is not valid JSON"),
        ("d.jsonl", '{"text": "a"}\n["b"]\n', ":2", "the row is of type list; expected an object"),
        ("d.jsonl", '{"text": "a"}\n{"text": "\udcff"}\n', ":2", "the line is not UTF-8"),
        ("d.json", '[\n {"text": "a"},\n\n {"text":\n  ""}\n]', ":4", "The field 'text' is empty"),
        (
            "d.json",
            '{"x": [1],\n"data": [{"text": "a"},\n 5]}',
            ":3",
            "the row is of type int; expected an object",
        ),
        ("d.json", '[{"text": "a"},\n{"text": }]', ":2", "the file is not valid JSON"),
        ("d.json", '{"text": "a"}\n{"text": }', ":2", "the line is not valid JSON"),
        ("d.json", '{"rows": []}', "", 'must hold a list of objects, or {"data": [...]}'),
        ("d.csv", 'text,n\n"a\nb",1\n"",2\n', ":4", "The field 'text' is empty"),
        ("d.csv", "prompt,completion\na,b\nc, \n", ":3", "The field 'completion' is empty"),
        (
            "d.csv",
            "instruction,output,system\na,b,\nc,d,be brief\n",
            ":3",
            "The column 'system' is filled in",
        ),
        ("d.csv", "text,weight\na,1\nb,0.5\n", ":3", "'weight' of the row is '0.5'"),
        (
            "d.jsonl",
            f"{conversation()}\n{conversation(content=' ')}\n",
            ":2",
            "Message 2 (assistant) is empty",
        ),
        (
            "d.json",
            f"[{conversation()},\n{conversation(reasoning_content='two and two')}]",
            ":2",
            "does not render the 'reasoning_content' of message 2, so that would be lost",
        ),
        (
            "d.jsonl",
            f"{conversation()}\n{conversation(content='', function_call={'name': 'f', 'arguments': '{}'})}\n",
            ":2",
            "does not render the 'function_call' of message 2, so that would be lost",
        ),
        ("d.csv", "text,n\na,1\nb\n", ":3", "the record has 1 cells, the header 2"),
        ("d.csv", "text,n,text\na,1,b\n", ":1", "the header names the column 'text' more than once"),
        ("d.csv", "text\na\nb,c\n", ":3", "the record has 2 cells, the header 1"),
        ("d.csv", 'text\na\n"b"c\n', ":3", "the record is not valid CSV"),
        ("d.csv", "text\n\udcff\n", "", "is not UTF-8"),
        ("d.parquet", "not parquet", "", "is not a readable Parquet file"),
    ],
)
def test_faults_name_file_and_line(
    name: str, content: str, place: str, expected: str, tmp_path: Path, base: LoadedBase
) -> None:
    """Each fault of a file is told with the place it is at."""
    path = tmp_path / name
    path.write_bytes(content.encode(errors="surrogateescape"))
    message = refusal(str(path), base)
    assert f"{path}{place}" in message
    assert expected in message


def test_a_fault_in_parquet_names_the_row(tmp_path: Path, base: LoadedBase) -> None:
    """A file without lines is counted in rows."""
    path = write_parquet(tmp_path / "d.parquet", [{"text": "a"}, {"text": None}])
    assert refusal(path, base).startswith(f"{path}, row 2: the row has no 'text'")


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("d.jsonl", ""),
        ("d.jsonl", "\n\n"),
        ("d.json", "[]"),
        ("d.json", '{"data": []}'),
        ("d.csv", ""),
        ("d.csv", "text\n"),
    ],
)
def test_a_file_without_rows(name: str, content: str, tmp_path: Path, base: LoadedBase) -> None:
    """Empty files, empty lists and a header alone."""
    path = tmp_path / name
    path.write_text(content)
    assert refusal(str(path), base) == f"The data {path} has no rows. Give it at least one."


def test_a_file_that_does_not_exist(tmp_path: Path, base: LoadedBase) -> None:
    """The submission checked it on another machine; the worker says where it looked."""
    assert f"The data file {tmp_path}/no.jsonl does not exist on this worker" in refusal(
        f"{tmp_path}/no.jsonl", base
    )


def test_a_kind_of_file_that_is_not_read(tmp_path: Path, base: LoadedBase) -> None:
    """The message lists the kinds that are."""
    assert "is not one of .jsonl, .json, .csv, .parquet" in refusal(str(tmp_path / "d.xlsx"), base)


def test_a_token_beyond_the_embeddings(tmp_path: Path) -> None:
    """A tokenizer with more tokens than the model embeds fails on the row that uses one."""
    folder = build_tiny_base(tmp_path / "m")
    tokenizer = build_tiny_tokenizer()
    tokenizer.add_tokens(["<new>"])
    tokenizer.save_pretrained(folder)
    base = load_base(ModelSpec(id=str(folder), quantization="none"), torch.device("cpu"))
    path = write_jsonl(tmp_path / "d.jsonl", [{"text": "a b"}, {"text": "a <new>"}])
    message = refusal(path, base)
    assert message.startswith(f"{path}:2: the tokenizer gives token 400 (<new>), but the model")
    assert "embeds only 400" in message


def test_hub_data_without_access_to_the_hub(base: LoadedBase) -> None:
    """Offline and not in the cache."""
    message = refusal({"hub": "some-organisation/some-data", "split": "train"}, base)
    assert "The hub data set some-organisation/some-data (split train) could not be loaded" in message


def test_a_local_path_is_not_hub_data(tmp_path: Path, base: LoadedBase) -> None:
    """Local folders go through the data roots, not around them."""
    assert "is not a hub data set's id" in refusal({"hub": str(tmp_path), "split": "train"}, base)


class Builder:
    """Stands in for a builder of the `datasets` library."""

    def __init__(self, asked: dict[str, Any], files: list[str]) -> None:
        self.asked = asked
        self.config = SimpleNamespace(data_files={"train": files})

    def download_and_prepare(self) -> None:
        self.asked["fetched"] = True

    def as_dataset(self, *, split: str) -> Dataset:
        self.asked["split"] = split
        return Dataset.from_list(PAIRS)


def stand_in(
    monkeypatch: pytest.MonkeyPatch, asked: dict[str, Any], files: list[str], reader: str = "json"
) -> None:
    """Replace the hub by a data set that names these files as its own."""
    kind = type("Json", (Builder,), {"__module__": f"datasets.packaged_modules.{reader}.{reader}"})

    def load_dataset_builder(path: str, name: str | None, *, revision: str | None) -> Builder:
        asked.update(path=path, name=name, revision=revision)
        return kind(asked, files)

    monkeypatch.setattr("datasets.load_dataset_builder", load_dataset_builder)


@pytest.mark.parametrize(
    "file",
    [
        "/etc/passwd",
        "http://169.254.169.254/latest/meta-data",
        "hf://datasets/other/data@main/x.jsonl",
        "hf://datasets/org/data2@main/x.jsonl",
        "zip://x.jsonl::/srv/secret.zip",
        "zip://x.jsonl::hf://datasets/org/data@main/x.zip",
        "../x.jsonl",
    ],
)
def test_a_data_set_that_names_files_not_its_own_is_not_fetched(
    base: LoadedBase, monkeypatch: pytest.MonkeyPatch, file: str
) -> None:
    """The head of its README may name any path or address, which this worker would read."""
    asked: dict[str, Any] = {}
    stand_in(monkeypatch, asked, ["hf://datasets/org/data@main/fine.jsonl", file])
    message = refusal({"hub": "org/data", "split": "train"}, base)
    assert f"names {file!r} as its data, which is not a file of its own" in message
    assert "fetched" not in asked


@pytest.mark.parametrize("reader", ["webdataset", "pandas", "sql", "imagefolder"])
def test_a_data_set_that_needs_more_than_a_table_reader_is_not_fetched(
    base: LoadedBase, monkeypatch: pytest.MonkeyPatch, reader: str
) -> None:
    """Some readers unpickle what they find."""
    asked: dict[str, Any] = {}
    stand_in(monkeypatch, asked, ["hf://datasets/org/data@main/fine.tar"], reader)
    assert f"is in a format that cannot be read ({reader})" in refusal(
        {"hub": "org/data", "split": "train"}, base
    )
    assert "fetched" not in asked


@pytest.mark.parametrize("name", ["text", "json", "imagefolder"])
def test_a_reader_of_the_datasets_library_is_no_data_set(
    base: LoadedBase, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    """`text` would read every text file of the current folder."""
    (tmp_path / "secret.txt").write_text("secret")
    monkeypatch.chdir(tmp_path)
    assert "is a reader of the `datasets` library" in refusal({"hub": name, "split": "train"}, base)


@pytest.mark.parametrize("name", ["https://evil.example/d", "hf://org/data", "org/..", "a/b/c", "\u043erg/d"])
def test_a_url_is_not_hub_data(base: LoadedBase, name: str) -> None:
    """Nothing but `organisation/name` reaches the library."""
    assert "is not a hub data set's id" in refusal({"hub": name, "split": "train"}, base)


def test_hub_data_gives_the_same_examples(
    good: str, tmp_path: Path, base: LoadedBase, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Rows of a hub data set go the way of rows of a file; the hub itself is the only thing replaced."""
    asked: dict[str, Any] = {}
    stand_in(monkeypatch, asked, ["hf://datasets/org/data@1a2b/train.jsonl"])
    source = {"hub": "org/data", "config": "main", "split": "train[:3]", "revision": "v1"}
    data = load(source, base, eval=good)
    assert texts(data, base) == texts(load(good, base), base)
    expected = {"path": "org/data", "name": "main", "split": "train[:3]", "revision": "v1", "fetched": True}
    assert asked == expected
