"""`nightsweep plan`: what it asks the server, what it prints, and how it exits."""

from __future__ import annotations

import functools
import json
from pathlib import Path
from typing import Any

import httpx
import pytest
from typer.testing import CliRunner, Result

from search_spaces.data_report import (
    AdapterBytes,
    Balance,
    BaseBytes,
    Baseline,
    Count,
    DecodedExample,
    FilesReport,
    Lengths,
    ModelReport,
    ReportProblem,
    Scores,
    Segment,
)
from service.cli import options
from service.cli.root import app
from service.client import Client
from service.plans import commands
from service.plans.data_reports.warm_process import ReportUnavailable
from service.plans.history import EarlierTrial
from service.plans.plan import make_plan
from tests.support.fakes.api import FakeApi, Reply, problem
from tests.support.service.plans import make_data, make_definition, make_split

STUDY = """\
name: tone
model: {id: org/base}
data: {train: train.jsonl, eval: eval.jsonl}
search: {trials: 12, space: {learning_rate: {min: 1e-4, max: 1e-3, scale: log}}}
"""
EXAMPLE = DecodedExample(
    place="/data/train.jsonl:1",
    tokens=7,
    segments=(Segment(text="turn on\x1b[31m ", supervised=False), Segment(text="lamp on", supervised=True)),
)


def plan_json(sections: dict[str, Any] | None = None, **changes: Any) -> dict[str, Any]:
    data = changes.pop("data", None) or make_data(make_split(duplicate_rows=2), examples=(EXAMPLE,))
    model, earlier = changes.pop("model", None), changes.pop("earlier", [])
    report = FilesReport(model=model, data=data, problems=changes.pop("problems", ()))
    view = make_plan(make_definition(**sections or {}), report, None, earlier, name_taken=False)
    return view.model_dump(mode="json")


@pytest.fixture
def study_file(tmp_path: Path) -> Path:
    for name in ("train.jsonl", "eval.jsonl"):
        (tmp_path / name).write_text('{"text": "a"}\n')
    (tmp_path / "study.yaml").write_text(STUDY)
    return tmp_path / "study.yaml"


@pytest.fixture
def run(monkeypatch: pytest.MonkeyPatch, study_file: Path) -> Any:
    """Runs the command on the study file against one scripted answer; `run.api` has the requests."""
    monkeypatch.setenv("NIGHTSWEEP_SERVER", "http://sweeps.example")

    def run_command(reply: Reply | None, *arguments: str) -> Result:
        api = FakeApi({} if reply is None else {"POST /v1/studies": reply})
        monkeypatch.setattr(options, "Client", functools.partial(Client, transport=api.transport))
        run_command.api = api  # type: ignore[attr-defined]
        return CliRunner().invoke(app, ["plan", str(study_file), *arguments], catch_exceptions=False)

    return run_command


def test_the_server_is_asked_for_a_dry_run_of_the_file(run: Any, study_file: Path) -> None:
    assert run(httpx.Response(200, json=plan_json())).exit_code == 0
    assert run.api.requests[0].url.params["dry_run"] == "true"
    assert run.api.body()["data"]["train"] == str(study_file.parent / "train.jsonl")


def test_the_plan_is_shown_in_sections_with_its_warnings(run: Any) -> None:
    printed = run(httpx.Response(200, json=plan_json())).stdout
    output = " ".join(printed.split())  # wherever its lines were broken
    for words in (
        "Plan of tone",
        "12 trials by tpe, in a continuous space",
        "1,200 to 3,600 examples",
        "turn on [31m [[lamp on]]",  # the escape is gone, what carries loss is marked
        "Warning (duplicates). Of 100 rows of the train data, 2 repeat an earlier row exactly.",
        "no trial of this task and model has completed on this server",
    ):
        assert words in output
    assert "\x1b" not in printed
    assert all(line == line.rstrip() for line in printed.splitlines())


def test_labels_and_what_no_training_reaches_are_shown(run: Any) -> None:
    counts = [Count(value=f"label {n}", rows=rows, share=rows / 100) for n, rows in enumerate([90, 10])]
    labels = Balance(column="label", distinct=12, most_frequent=tuple(counts), rarest=counts[1])
    data = make_data(
        make_split(labels=labels),
        format="sequence_classification",
        baseline=Baseline(answer="label 0", metrics={"accuracy": 0.9, "macro_f1": 0.0789}),
    )
    sections = {"task": "sequence_classification", "objective": {"metric": "macro_f1"}}
    output = " ".join(run(httpx.Response(200, json=plan_json(sections, data=data))).stdout.split())
    assert "Data (task: sequence_classification)" in output
    assert "train labels label 0 90%, label 1 10% and 10 more; the rarest is label 1 10%" in output
    assert "baseline label 0 for every row: accuracy 0.9, macro_f1 0.0789" in output
    assert "carry loss" not in output


def test_scores_targets_and_equal_pairs_are_shown(run: Any) -> None:
    scores = Scores(lowest=0.0, mean=2.5, highest=5.0, standard_deviation=1.5)
    split = make_split(scores=scores, targets=Lengths(median=4, p95=9, longest=12), equal_pairs=3)
    output = " ".join(run(httpx.Response(200, json=plan_json(data=make_data(split)))).stdout.split())
    for words in ("scores 0 to 5", "mean score 2.5 ± 1.5", "tokens per target 4 (median)", "equal pairs 3"):
        assert words in output


def test_range_test_and_repeats_have_lines_and_are_in_the_total(run: Any) -> None:
    sections = {
        "search": {"learning_rate_range_test": {"steps": 50}},
        "repeats": {"top_k": 2, "seeds": 3},
    }
    output = " ".join(run(httpx.Response(200, json=plan_json(sections))).stdout.split())
    for words in (
        "search 1,200 to 3,600 examples, 24,000 to 72,000 tokens",
        "range test 916 examples, 18,320 tokens, fewer where a sweep diverges",
        "repeats 600 to 1,800 examples, 12,000 to 36,000 tokens, at most",
        "whole study 2,716 to 6,316 examples 54,320 to 126,320 tokens",
    ):
        assert words in output


def test_two_ends_alike_are_told_once(run: Any) -> None:
    adapters = tuple(
        AdapterBytes(
            lora_r=16, target_modules="all-linear", optimizer=name, trainable_parameters=10, bytes=size
        )
        for name, size in (("adamw", 2_000), ("sgd", 1_000))
    )
    model = ModelReport(
        architecture="LlamaForCausalLM",
        parameters=10_000,
        quantizable_parameters=8_000,
        max_positions=None,
        bases=(BaseBytes(quantization="nf4", compute_dtype="float32", bytes=9_000),),
        adapters=adapters,
    )
    known = EarlierTrial(
        device="cpu",
        examples=100,
        train_seconds=10.0,
        eval_seconds=0.0,
        peak_memory_bytes=0,
        same_data=True,
        same_evaluation=True,
    )
    sections = {"search": {"space": {"learning_rate": {"min": 1e-4, "max": 1e-3, "scale": "log"}}}}
    plan = plan_json(sections, model=model, earlier=[known])
    output = " ".join(run(httpx.Response(200, json=plan)).stdout.split())
    assert "one trial 10s of one worker" in output
    assert "1 kB to 2 kB with gradient and optimizer state, rank 16 " in output
    assert "16 to 16" not in output


def test_json_is_the_servers_answer_and_nothing_else(run: Any) -> None:
    sent = plan_json() | {"of_a_newer_server": 1}
    result = run(httpx.Response(200, json=sent), "--json")
    assert (json.loads(result.stdout), result.stderr) == (sent, "")


def test_a_study_whose_trials_would_fail_exits_with_1(run: Any) -> None:
    wrong = ReportProblem(about="data", message="train.jsonl:3: the row has no 'prompt'.", every_trial=True)
    result = run(httpx.Response(200, json=plan_json(problems=(wrong,))))
    assert result.exit_code == 1
    assert "Every trial would fail: train.jsonl:3: the row has no 'prompt'." in result.stdout
    assert result.stderr == "Error: Every trial would fail: train.jsonl:3: the row has no 'prompt'.\n"


def test_json_says_in_one_line_too_why_it_exits_with_1(run: Any) -> None:
    wrong = [
        ReportProblem(about="recipe", message=f"target_modules\nnames {name!r}.", every_trial=True)
        for name in ("a", "b")
    ]
    result = run(httpx.Response(200, json=plan_json(problems=tuple(wrong))), "--json")
    assert (result.exit_code, json.loads(result.stdout)["acceptable"]) == (1, False)
    assert result.stderr == (
        "Error: Every trial would fail: target_modules names 'a'. (1 more reason in the plan)\n"
    )


def test_recipes_of_which_some_fail_are_a_warning(run: Any) -> None:
    some = ReportProblem(about="recipe", message="target_modules names 'lm_head'.")
    result = run(httpx.Response(200, json=plan_json(problems=(some,))))
    assert (result.exit_code, result.stderr) == (0, "")
    assert "Warning. Trials with these recipes would fail: target_modules names 'lm_head'." in result.stdout


def test_a_refusal_is_told_as_for_a_submission(run: Any) -> None:
    faults = [{"path": "search.trials", "message": "is required", "value": None, "allowed": "1"}]
    result = run(problem(422, "Invalid", "The definition has 1 fault: search.trials.", faults))
    assert result.exit_code == 1
    assert "search.trials: is required" in result.stderr


def test_an_answer_of_another_version_is_told(run: Any) -> None:
    result = run(httpx.Response(200, json={"name": "tone"}))
    assert result.exit_code == 3
    assert "client and server may be of different versions" in result.stderr


def test_without_a_server_the_plan_is_made_here(run: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object) -> None:
        raise ReportUnavailable("it was not asked")

    monkeypatch.setattr(commands.ReportProcesses, "make", refuse)
    result = run(None, "--local", "--json")
    plan = json.loads(result.stdout)
    assert (result.exit_code, run.api.requests) == (1, [])
    assert result.stderr == "Error: The data and the model were not looked at: it was not asked.\n"
    assert (plan["trials"]["total"], plan["report_unknown"]) == (12, "it was not asked")
    assert "without a server" in plan["time"]["unknown"]


def test_faults_are_told_without_a_server_as_with_one(run: Any, study_file: Path) -> None:
    study_file.write_text(STUDY.replace("trials: 12, ", ""))
    result = run(None, "--local")
    assert result.exit_code == 1
    assert "search.trials: is required" in result.stderr
