"""What the data report says of small files, with the tiny base's tokenizer, and in a process of its own."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from search_spaces.data_report import FilesReport, ReportRequest
from search_spaces.definition import DataSpec, ModelSpec
from tests.support.checkout import ROOT
from workers.base.base_model import load_base
from workers.data.datasets import load_data
from workers.errors import DataError, ModelError
from workers.report.data_report import make_report

PAIRS = [
    {"prompt": "turn on the lamp\n", "completion": "lamp on"},
    {"prompt": "turn off the light\n", "completion": "light off"},
    {"prompt": "what is two plus two?\n", "completion": "four"},
]


def write(path: Path, rows: list[Any]) -> str:
    path.write_text("".join(f"{json.dumps(row) if isinstance(row, dict) else row}\n" for row in rows))
    return str(path)


@pytest.fixture
def report(tmp_path: Path, tiny_base_dir: Path) -> Any:
    """Makes the report of rows."""

    def make(train: list[Any], evaluation: list[Any] | None = None, **changes: Any) -> FilesReport:
        data = {
            "train": write(tmp_path / "train.jsonl", train),
            "eval": write(tmp_path / "eval.jsonl", evaluation or PAIRS[:1]),
            "max_length": changes.pop("max_length", 64),
            **changes.pop("data", {}),
        }
        request = {
            "model": {"id": str(tiny_base_dir)},
            "data": data,
            "max_lengths": [data["max_length"], *changes.pop("further_lengths", [])],
            "quantizations": ["nf4"],
            "compute_dtypes": ["float32"],
            "adapters": [],
            "max_rows": 1_000,
            "max_counted": 1_000,
            **changes,
        }
        return make_report(ReportRequest.model_validate(request))

    return make


def test_the_counts_are_those_of_a_trial(report: Any, tiny_base_dir: Path, tmp_path: Path) -> None:
    made = report([*PAIRS, {"prompt": "lamp " * 40, "completion": "on"}], max_length=12)
    base = load_base(ModelSpec(id=str(tiny_base_dir), quantization="none"))
    files = {"train": str(tmp_path / "train.jsonl"), "eval": str(tmp_path / "eval.jsonl")}
    train, evaluation = load_data(DataSpec(**files, max_length=12), base)
    for split, loaded in ((made.data.train, train), (made.data.eval, evaluation)):
        cut = split.by_length[0]
        assert (split.rows, cut.usable_rows, cut.truncated_rows) == (
            loaded.rows,
            len(loaded.examples),
            loaded.truncated,
        )
        assert (cut.tokens, cut.supervised_tokens) == (loaded.tokens, loaded.supervised_tokens)
    assert made.data.train.by_length[0].cut_away_rows == 1
    assert made.data.format == "prompt_completion"


def test_other_lengths_are_counted_beside_the_datas_own(report: Any) -> None:
    own, shorter = report(PAIRS, further_lengths=[8]).data.train.by_length
    assert (own.max_length, own.truncated_rows) == (64, 0)
    assert shorter.max_length == 8
    assert shorter.truncated_rows + shorter.cut_away_rows == 3
    assert shorter.tokens < own.tokens


def test_duplicates_and_overlap_are_counted(report: Any) -> None:
    shouted = {"prompt": " TURN on the   lamp", "completion": "Lamp on"}
    data = report([*PAIRS, PAIRS[0], PAIRS[0]], [shouted, {"prompt": "new\n", "completion": "row"}]).data
    assert (data.train.duplicate_rows, data.eval.duplicate_rows) == (2, 0)
    assert data.overlap_rows == 1


def test_few_distinct_completions_are_labels(report: Any) -> None:
    rows = [{"prompt": f"row {n}\n", "completion": "yes" if n % 4 else "no"} for n in range(8)]
    labels = report(rows).data.train.labels
    assert [(count.value, count.rows, count.share) for count in labels.most_frequent] == [
        ("yes", 6, 0.75),
        ("no", 2, 0.25),
    ]
    assert report(PAIRS).data.train.labels is None


def test_a_column_called_task_is_a_mixtures(report: Any) -> None:
    rows = [{**row, "task": "lights", "source": f"s{n}"} for n, row in enumerate(PAIRS)]
    tasks = report(rows).data.train.tasks
    assert (tasks.column, tasks.distinct, tasks.most_frequent[0].rows) == ("task", 1, 3)


def test_examples_are_decoded_with_their_masked_part(report: Any) -> None:
    first, second = report(PAIRS).data.examples
    assert [(s.text, s.supervised) for s in first.segments] == [
        ("turn on the lamp\n", False),
        ("lamp on<|im_end|>", True),
    ]
    assert second.place.endswith("train.jsonl:2")


def test_rows_after_the_sample_are_counted_only(report: Any) -> None:
    train = report(PAIRS * 4, max_rows=5).data.train
    assert (train.rows, train.rows_read, train.sampled) == (12, 5, True)
    limited = report(PAIRS * 4, data={"max_train_examples": 4}).data.train
    assert (limited.rows, limited.rows_read, limited.sampled) == (4, 4, False)


@pytest.mark.parametrize(
    ("rows", "data"),
    [
        ([{"prompt": "a", "answer": "b"}], {}),
        ([*PAIRS, {"prompt": "a"}], {}),
        ([*PAIRS, {"prompt": "a", "completion": ""}], {}),
        ([*PAIRS, "no json"], {}),
        (PAIRS, {"columns": {"prompt": "question"}}),
        ([], {}),
        ([{"prompt": "lamp " * 80, "completion": "on"}], {}),
        (PAIRS, {"max_length": 4_096}),
    ],
)
def test_faults_are_told_as_a_trial_tells_them(
    report: Any, tiny_base_dir: Path, tmp_path: Path, rows: list[Any], data: dict[str, Any]
) -> None:
    made = report(rows, data={"format": "prompt_completion", **data} if rows != [] else data)
    base = load_base(ModelSpec(id=str(tiny_base_dir), quantization="none"))
    files = {"train": str(tmp_path / "train.jsonl"), "eval": str(tmp_path / "eval.jsonl")}
    spec = DataSpec.model_validate({**files, "max_length": 64, "format": "prompt_completion", **data})
    with pytest.raises(DataError) as caught:
        load_data(spec, base)
    assert made.problems[0].about == "data"
    assert made.problems[0].message.startswith(str(caught.value))
    assert made.problems[0].every_trial


def test_a_fault_that_rows_share_is_said_once_with_the_first_place(report: Any) -> None:
    rows = [{"prompt": "a"}, *PAIRS, {"prompt": "b", "note": "other columns"}]
    made = report(rows, [{"prompt": "c"}] * 2, data={"format": "prompt_completion"})
    assert [(problem.path, problem.rows) for problem in made.problems] == [("data.train", 4)]
    assert made.problems[0].message.partition("train.jsonl:")[2] == (
        "1: the row has no 'completion', which the format prompt_completion needs. It has: prompt. In all, 2"
        " of 5 train rows and 2 of 2 eval rows have this fault; this is the first."
    )
    assert (made.data.train.faulty_rows, made.data.train.by_length[0].usable_rows) == (2, 3)


def test_faults_that_differ_in_numbers_alone_are_one(report: Any) -> None:
    said = {"role": "user", "content": "a"}
    turns = [[*[said] * (1 + n % 3), {"role": "", "content": f"{n}"}] for n in range(9)]
    made = report([{"messages": each} for each in turns], [{"messages": turns[0]}])
    assert [problem.rows for problem in made.problems] == [10]


def test_different_faults_are_each_said_with_their_place(report: Any) -> None:
    rows = [{"prompt": "a"}, {"completion": "b"}, {"prompt": 1, "completion": "b"}]
    made = report(rows, data={"format": "prompt_completion"})
    assert [problem.message.partition(".jsonl:")[2][:1] for problem in made.problems] == ["1", "2", "3"]
    assert [problem.rows for problem in made.problems] == [1, 1, 1]


def test_a_fault_of_both_data_sets_columns_is_said_once(report: Any) -> None:
    rows = [{"question": "a", "reply": "b"}]
    assert [problem.path for problem in report(rows, rows).problems] == ["data.train"]


def test_lengths_that_fail_alike_are_one_problem(report: Any) -> None:
    (made,) = report(PAIRS, further_lengths=[4_096, 8_192, 16_384]).problems
    assert "The recipe's max_length is 4096 tokens" in made.message
    assert made.message.endswith("The same goes for max_length 8,192 and 16,384.")
    assert (made.path, made.every_trial) == ("recipe.max_length", False)


def test_lengths_of_which_none_is_left_fail_every_trial(report: Any) -> None:
    made = report(PAIRS, max_lengths=[4_096, 8_192])
    assert [(problem.about, problem.every_trial) for problem in made.problems] == [("recipe", True)]


def test_rows_after_the_first_can_be_left_unread(report: Any) -> None:
    rows = [{"prompt": "lamp " * 80, "completion": "on"}] * 4 + PAIRS
    made = report(rows, max_rows=4, max_counted=0)
    assert (made.problems, made.data.train.rows, made.data.train.rows_read) == ((), None, 4)
    assert report(rows[:4], max_rows=4, max_counted=0).problems[0].path == "data.max_length"


def test_a_model_that_is_not_there_is_told_as_a_trial_tells_it(report: Any, tmp_path: Path) -> None:
    spec = ModelSpec(id=str(tmp_path / "none"))
    made = report(PAIRS, model=spec)
    with pytest.raises(ModelError) as caught:
        load_base(spec)
    assert [(problem.about, problem.message) for problem in made.problems] == [("model", str(caught.value))]
    assert (made.model, made.data) == (None, None)


def test_target_modules_that_match_nothing_are_a_recipes_problem(report: Any) -> None:
    shapes = [{"lora_r": rank, "target_modules": ["q_prj"], "optimizer": "adamw"} for rank in (4, 8)]
    made = report(PAIRS, adapters=shapes)
    assert [(problem.about, problem.every_trial) for problem in made.problems] == [("recipe", True)]
    assert "Did you mean 'q_proj'?" in made.problems[0].message
    assert made.data is not None
    shapes.append({"lora_r": 4, "target_modules": "all-linear", "optimizer": "adamw"})
    some = report(PAIRS, adapters=shapes).problems
    assert [(problem.path, problem.every_trial) for problem in some] == [("recipe.target_modules", False)]


def test_the_head_of_a_tied_base_is_every_trials_problem(report: Any) -> None:
    shapes = [{"lora_r": 4, "target_modules": ["q_proj", "lm_head"], "optimizer": "adamw"}]
    made = report(PAIRS, adapters=shapes)
    assert [(problem.path, problem.every_trial) for problem in made.problems] == [
        ("recipe.target_modules", True)
    ]


SAID = [{"role": "user", "content": "hi"}, {"role": "assistant", "content": "done"}]


def turn(**keys: Any) -> dict[str, Any]:
    return {"messages": [SAID[0], {**SAID[1], **keys}]}


def counts(values: Any) -> list[tuple[str, int]]:
    return [(count.value, count.rows) for count in values]


def test_columns_that_nothing_reads_are_listed(report: Any) -> None:
    rows = [{**row, "id": n, "note": "x" if n else None, "weight": 1} for n, row in enumerate(PAIRS)]
    assert counts(report(rows).data.train.unread_columns) == [("id", 3), ("note", 2)]
    renamed = [{"question": row["prompt"], "completion": row["completion"]} for row in PAIRS]
    data = report(renamed, renamed, data={"columns": {"prompt": "question"}}).data
    assert data.train.unread_columns == data.train.unread_message_keys == ()


def test_message_keys_that_nothing_reads_are_listed(report: Any) -> None:
    """But for those that are empty, and flags of the loss; whoever has them."""
    rows = [turn(id="a", weight=1, name="bot"), turn(id="b", refusal=None), {"messages": SAID}]
    rows[2]["messages"] = [{**SAID[0], "score": 1}, SAID[1]]
    made = report(rows, [turn()])
    assert counts(made.data.train.unread_message_keys) == [
        ("assistant.id", 2),
        ("assistant.name", 1),
        ("user.score", 1),
    ]
    assert made.problems == ()


def test_half_a_surrogate_pair_in_what_is_told_does_not_end_the_report(report: Any) -> None:
    """JSON can escape one, and no report can be written with it."""
    made = report([{**PAIRS[0], "\ud83d": "x", "category": "\ud83d"}] * 2, [{"\ud83d": "a"}])
    split = FilesReport.model_validate_json(made.model_dump_json()).data.train
    assert (counts(split.unread_columns), counts(split.tasks.most_frequent)) == (
        [(r"\ud83d", 2), ("category", 2)],
        [(r"\ud83d", 2)],
    )


def test_a_deeply_nested_column_that_nothing_reads_is_listed(report: Any) -> None:
    made = report(['{"prompt": "a", "completion": "b", "deep": ' + "[" * 700 + "1" + "]" * 700 + "}"])
    assert counts(made.data.train.unread_columns) == [("deep", 1)]


def test_rows_that_all_ask_for_no_loss_are_told_why_none_is_left(report: Any) -> None:
    made = report([{**PAIRS[0], "weight": 0}])
    assert "Messages and rows with 'weight': 0 or 'train': false carry no loss." in made.problems[0].message


def test_what_the_template_loses_is_a_problem_or_counted(report: Any) -> None:
    rows = [turn(), turn(reasoning_content="two and two")]
    made = report(rows, [turn()])
    assert "train.jsonl:2: The tokenizer's chat template does not render" in made.problems[0].message
    made = report(rows, [turn()], data={"unrendered": "ignore"})
    assert made.problems == ()
    assert counts(made.data.train.unrendered) == [("assistant.reasoning_content", 1)]


def test_how_the_turns_were_found_is_counted(report: Any) -> None:
    made = report([turn(), turn(), {"messages": SAID[:1]}], [turn()])
    assert counts(made.data.train.turns_found_by) == [("prefixes", 2)]
    assert report(PAIRS).data.train.turns_found_by == ()


def test_rows_that_ask_for_no_loss_are_counted_as_left_out(report: Any) -> None:
    made = report([{**PAIRS[0], "weight": 0}, *PAIRS[1:]])
    assert (made.data.train.unsupervised_rows, made.data.train.by_length[0].usable_rows) == (1, 2)


def test_the_module_answers_on_stdout_and_with_nothing_else() -> None:
    quickstart = ROOT / "examples/quickstart"
    request = {
        "model": {"id": str(quickstart / "base")},
        "data": {
            "train": str(quickstart / "train.jsonl"),
            "eval": str(quickstart / "eval.jsonl"),
            "max_length": 96,
        },
        "max_lengths": [96],
        "quantizations": ["nf4"],
        "compute_dtypes": ["float32"],
        "adapters": [{"lora_r": 4, "target_modules": "all-linear", "optimizer": "adamw"}],
        "max_rows": 50,
        "max_counted": 1_000,
    }
    done = subprocess.run(
        [sys.executable, "-m", "workers.report.data_report"],
        input=json.dumps(request),
        capture_output=True,
        text=True,
        check=True,
        cwd=ROOT,
    )
    made = FilesReport.model_validate_json(done.stdout)
    assert made.problems == ()
    assert made.data is not None
    assert made.data.train is not None
    assert (made.data.train.rows, made.data.train.rows_read, made.data.overlap_rows) == (600, 50, 0)


def test_a_length_of_some_recipes_alone_is_their_problem(report: Any) -> None:
    made = report(PAIRS, further_lengths=[4_096])
    assert [problem.about for problem in made.problems] == ["recipe"]
    assert made.problems[0].message.startswith("The recipe's max_length is 4096 tokens")
    assert [cut.usable_rows for cut in made.data.train.by_length] == [3, 3]


def test_what_the_hub_does_not_give_here_a_worker_may_get(report: Any) -> None:
    made = report(PAIRS, model={"id": "nobody/nothing"})
    assert [problem.about for problem in made.problems] == ["host"]
    assert made.problems[0].message.startswith("The hub model nobody/nothing is not in this worker's cache")
