"""What the report says of rows with labels, scores, targets and pairs, with the tiny base's tokenizer."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
from transformers import T5Config, T5ForConditionalGeneration

from search_spaces.data_report import FilesReport, LoadingLimits, ReportRequest
from search_spaces.definition import DataSpec, ModelSpec
from tests.support.workers.models import build_tiny_tokenizer
from workers.data.datasets import load_data
from workers.data.labels import read_labels
from workers.report.base_reader import read_base
from workers.report.data_report import make_report

LAMPS = [
    {"text": "turn on the lamp", "label": "on"},
    {"text": "lamp on", "label": "on"},
    {"text": "switch on the light", "label": "on"},
    {"text": "turn off the light", "label": "off"},
]
SCORES = [{"text": f"number {n}", "score": n} for n in (1, 2, 3, 6)]
WORDS = [
    {"tokens": ["turn", "on", "the", "lamp"], "labels": ["O", "O", "O", "B-DEVICE"]},
    {"tokens": ["light", "off"], "labels": ["B-DEVICE", "O"]},
]
PAIRS = [
    {"prompt": "two plus two?", "chosen": "four", "rejected": "two"},
    {"prompt": "the lamp?", "chosen": "on", "rejected": "on"},
]
TRANSLATIONS = [
    {"source": "light", "target": "lamp on"},
    {"source": "two plus two", "target": "four is two and two is not four"},
]


def write(path: Path, rows: list[dict[str, Any]]) -> str:
    path.write_text("".join(f"{json.dumps(row)}\n" for row in rows))
    return str(path)


@pytest.fixture(scope="session")
def tiny_t5_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("t5")
    tokenizer = build_tiny_tokenizer()
    config = T5Config(
        vocab_size=len(tokenizer),
        d_model=16,
        d_kv=8,
        d_ff=32,
        num_layers=1,
        num_heads=2,
        decoder_start_token_id=0,
    )
    T5ForConditionalGeneration(config).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


@pytest.fixture
def base_of(tiny_base_dir: Path, tiny_t5_dir: Path) -> Any:
    """The folder of a base that a task can be trained on."""
    return lambda task: tiny_t5_dir if task == "seq2seq_lm" else tiny_base_dir


@pytest.fixture
def report(tmp_path: Path, base_of: Any) -> Any:
    """Makes the report of a task's rows."""

    def make(
        task: str,
        train: list[Any],
        evaluation: list[Any] | None = None,
        lengths: tuple[int, ...] = (64,),
        model: Path | None = None,
    ) -> FilesReport:
        request = {
            "model": {"id": str(model or base_of(task))},
            "task": task,
            "data": {
                "train": write(tmp_path / "train.jsonl", train),
                "eval": write(tmp_path / "eval.jsonl", evaluation or train),
                "max_length": lengths[0],
            },
            "max_lengths": lengths,
            "quantizations": ["nf4"],
            "compute_dtypes": ["float32"],
            "adapters": [{"lora_r": 4, "target_modules": "all-linear", "optimizer": "adamw"}],
            "max_rows": 1_000,
            "max_counted": 1_000,
        }
        return make_report(ReportRequest.model_validate(request))

    return make


def decoded(report: FilesReport) -> list[tuple[str, bool]]:
    assert report.data is not None
    return [(segment.text, segment.supervised) for segment in report.data.examples[0].segments]


@pytest.mark.parametrize(
    ("task", "rows"),
    [
        ("sequence_classification", LAMPS),
        ("regression", SCORES),
        ("token_classification", WORDS),
        ("preference", PAIRS),
        ("ranking", PAIRS),
        ("seq2seq_lm", TRANSLATIONS),
    ],
)
@pytest.mark.parametrize("lengths", [(64,), (9, 12)])
def test_the_counts_are_those_of_a_trial(
    report: Any, base_of: Any, tmp_path: Path, task: Any, rows: list[Any], lengths: tuple[int, ...]
) -> None:
    made = report(task, rows, lengths=lengths)
    assert made.problems == ()
    assert made.data.format == task
    spec = DataSpec(train=str(tmp_path / "train.jsonl"), eval=str(tmp_path / "eval.jsonl"))
    model = ModelSpec(id=str(base_of(task)))
    for cut in made.data.train.by_length:
        own = spec.model_copy(update={"max_length": cut.max_length})
        _, base = read_base(model, LoadingLimits(), task, read_labels(own, task))
        train, _ = load_data(own, base)
        assert (cut.usable_rows, cut.truncated_rows) == (len(train.examples), train.truncated)
        assert (cut.tokens, cut.supervised_tokens) == (train.tokens, train.supervised_tokens)


def test_labels_are_counted_and_the_most_frequent_one_is_the_baseline(report: Any) -> None:
    evaluation = [LAMPS[0], LAMPS[3], {"text": "off", "label": "off"}]
    data = report("sequence_classification", LAMPS, evaluation).data
    labels = data.train.labels
    assert [(count.value, count.rows, count.share) for count in labels.most_frequent] == [
        ("on", 3, 0.75),
        ("off", 1, 0.25),
    ]
    assert (labels.rarest.value, labels.rarest.rows) == ("off", 1)
    assert data.baseline.answer == "on"
    # Right for one of three rows: of `on` the F1 is 1/2, of `off` 0.
    assert data.baseline.metrics == pytest.approx(
        {"accuracy": 1 / 3, "macro_f1": 0.25, "micro_f1": 1 / 3, "mcc": 0.0, "roc_auc": 0.5}
    )


def test_rows_of_several_labels_are_answered_with_what_most_of_them_have(report: Any) -> None:
    rows = [{"text": f"row {n}", "label": ["a", *["b"] * (n == 0)]} for n in range(4)]
    data = report("sequence_classification", rows).data
    assert data.baseline.answer == "a"
    assert data.baseline.metrics == pytest.approx({"accuracy": 0.75, "macro_f1": 0.5, "micro_f1": 8 / 9})


def test_labels_of_tokens_are_counted_and_entities_are_what_the_baseline_misses(report: Any) -> None:
    data = report("token_classification", WORDS).data
    assert {count.value: count.rows for count in data.train.labels.most_frequent} == {"O": 4, "B-DEVICE": 2}
    assert data.baseline.answer == "O"
    assert data.baseline.metrics == pytest.approx({"micro_f1": 0.0, "accuracy": 4 / 6})


def test_the_mean_score_is_the_baseline(report: Any) -> None:
    data = report("regression", SCORES, [{"text": "one", "score": 1}, {"text": "five", "score": 5}]).data
    scores = data.train.scores
    assert (scores.lowest, scores.mean, scores.highest) == (1, 3, 6)
    assert scores.standard_deviation == pytest.approx(3.5**0.5)
    assert data.baseline.answer == "3"
    assert data.baseline.metrics == {"mse": 4.0, "mae": 2.0, "pearson": 0.0, "spearman": 0.0, "r2": 0.0}


@pytest.mark.parametrize("task", ["preference", "ranking"])
def test_equal_pairs_are_counted_and_nothing_but_them_is_refused(report: Any, task: str) -> None:
    made = report(task, PAIRS)
    assert (made.data.train.equal_pairs, made.data.eval.equal_pairs, made.problems) == (1, 1, ())
    (problem,) = report(task, PAIRS[1:]).problems
    assert problem.every_trial
    assert "the chosen answer and the rejected one are equal" in problem.message
    assert "The same goes for data.eval" in problem.message


def test_targets_have_a_length(report: Any) -> None:
    targets = report("seq2seq_lm", TRANSLATIONS).data.train.targets
    assert 0 < targets.median < targets.longest
    assert targets.longest == targets.p95


@pytest.mark.parametrize(
    ("task", "rows", "masked", "supervised"),
    [
        ("sequence_classification", LAMPS, "turn on the lamp", "on"),
        ("regression", SCORES, "number 1", "1"),
        ("token_classification", WORDS, "", "/O "),
        ("seq2seq_lm", TRANSLATIONS, "light", "lamp on"),
        ("preference", PAIRS, "two plus two?", "four"),
        ("ranking", PAIRS, "chosen: ", "four"),
    ],
)
def test_an_example_shows_what_carries_loss(
    report: Any, task: str, rows: list[Any], masked: str, supervised: str
) -> None:
    segments = decoded(report(task, rows))
    assert any(masked in text for text, carries in segments if not carries) or not masked
    assert any(supervised in text for text, carries in segments if carries)


@pytest.mark.parametrize(
    ("task", "rows", "expected"),
    [
        ("sequence_classification", [LAMPS[0], {"text": "x", "label": 3}], "train.jsonl:2"),
        ("sequence_classification", LAMPS[:3], "The only label is 'on'"),
        ("regression", [*SCORES, {"text": "x", "score": "much"}], "train.jsonl:5"),
        ("seq2seq_lm", [*TRANSLATIONS, {"source": "x", "target": ""}], "train.jsonl:3"),
        ("preference", [{"text": "x"}], "The task preference needs "),
    ],
)
def test_bad_rows_are_named_with_their_line(report: Any, task: str, rows: list[Any], expected: str) -> None:
    made = report(task, rows)
    assert any(expected in problem.message and problem.every_trial for problem in made.problems)


def test_an_unseen_label_of_the_eval_data_is_named_with_its_line(report: Any) -> None:
    (problem,) = report("sequence_classification", LAMPS, [LAMPS[0], {"text": "x", "label": "of"}]).problems
    assert "eval.jsonl:2: The label 'of' does not occur in the train data" in problem.message
    assert (problem.path, problem.every_trial, problem.rows) == ("data.eval", True, 1)


def test_a_label_that_occurs_after_the_rows_that_are_tokenised_is_one(report: Any) -> None:
    rows = [
        *LAMPS,
        *({"text": f"row {n}", "label": "on"} for n in range(1000)),
        {"text": "x", "label": "dim"},
    ]
    made = report("sequence_classification", rows, [{"text": "x", "label": "dim"}])
    assert made.problems == ()


def test_a_model_that_cannot_do_the_task_is_refused_with_what_it_can_do(
    report: Any, tiny_base_dir: Path, tiny_t5_dir: Path
) -> None:
    (problem,) = report("seq2seq_lm", TRANSLATIONS, model=tiny_base_dir).problems
    assert problem.about == "model"
    assert "is not a sequence-to-sequence model, and the task is seq2seq_lm" in problem.message
    assert "It can be trained for causal_lm, preference, sequence_classification" in problem.message
    (problem,) = report("preference", PAIRS, model=tiny_t5_dir).problems
    assert "and the task is preference" in problem.message


def test_heads_are_counted_in_full_precision_for_each_trial(report: Any) -> None:
    few = report("sequence_classification", LAMPS).model
    more = report(
        "sequence_classification", [{"text": f"row {n}", "label": f"label {n % 8}"} for n in range(16)]
    ).model
    width = (more.adapters[0].trainable_parameters - few.adapters[0].trainable_parameters) / 6
    assert width == int(width) > 1
    # 20 bytes a parameter: weights, two gradients and two moments.
    assert more.adapters[0].bytes - few.adapters[0].bytes == 20 * 6 * width
    assert more.bases[0].bytes - few.bases[0].bytes == 4 * 6 * width


def test_a_decoder_whose_first_token_nothing_names_is_a_problem(
    report: Any, tiny_t5_dir: Path, tmp_path: Path
) -> None:
    shutil.copytree(tiny_t5_dir, tmp_path / "base")
    file = tmp_path / "base/config.json"
    config = json.loads(file.read_text())
    del config["decoder_start_token_id"]
    file.write_text(json.dumps({**config, "bos_token_id": None}))
    (problem,) = report("seq2seq_lm", TRANSLATIONS, model=tmp_path / "base").problems
    assert (problem.about, problem.every_trial) == ("model", True)
    assert "names no decoder_start_token_id" in problem.message
