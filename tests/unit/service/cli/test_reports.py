"""The commands about what a study has taught, against scripted answers."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import httpx
import pytest

from service.cli.views.studies import comparison, summary
from service.studies.schemas import StudyView
from service.trials.schemas import TrialView
from service.wording.standing import StudySnapshot
from tests.support.fakes.api import Reply, study_json, trial_json

JUDGEMENT = {
    "winner": 3,
    "decided_by": "repeats",
    "candidates": [
        {
            "trial_number": 3,
            "value": 0.412,
            "runs": [{"trial_number": 12, "seed": 43, "state": "completed", "value": 0.42}],
            "n": 3,
            "mean": 0.4213,
            "standard_deviation": 0.00801,
        },
        {"trial_number": 0, "value": 0.41, "runs": [], "n": 1, "mean": 0.5, "standard_deviation": None},
    ],
    "p_value": 0.41,
    "distinguishable": False,
    "sentence": "Trial 3 and trial 0 are not distinguishable (p = 0.41, 3 runs each).",
}
FRONT = [
    {"trial_number": 3, "value": 0.412, "costs": {"train_seconds": 90.5}, "params": {"lora_r": 8}},
    {"trial_number": 1, "value": 0.5, "costs": {"train_seconds": 30.0}, "params": {"lora_r": 4}},
]
BEST = trial_json(
    3,
    value=0.412,
    diagnosis=[{"verdict": "under_trained", "evidence": "32% of its average slope", "rung": None}],
) | {"judgement": JUDGEMENT, "pareto_front": FRONT}
IMPORTANCE = {
    "parameters": [
        {"name": "learning_rate", "importance": 0.913, "above_chance": True, "reason": None},
        {"name": "lora_r", "importance": 0.087, "above_chance": False, "reason": None},
        {"name": "sgd_momentum", "importance": None, "above_chance": None, "reason": "it was never active"},
    ],
    "trials": 24,
    "best_trials": 5,
    "sentence": "Shows what distinguishes the best 5 of 24 completed trials.",
}
REPORT: dict[str, Any] = {
    "made_at": "2026-07-02T00:00:00Z",
    "study": study_json(
        state="completed",
        reason="all 24 trials have ended",
        ended_at="2026-07-01T23:00:05Z",
        counts={"completed": 20, "pruned": 8, "total": 28, "repeats": 4},
        range_test="tone.range-test",
        preparation={"learning_rate_bounds": [1e-4, 5e-3], "enqueued": 0, "prior": 0, "notes": ["3 corners"]},
        pareto_front=FRONT,
    ),
    "seconds": 3600.0,
    "best": BEST,
    "importance": IMPORTANCE,
    "verdicts": {"diverged": 2, "under_trained": 11},
    "constraints": [{"name": "peak_memory_gb", "broken": 2, "completed": 20}],
    "advice": [{"about": "epochs", "sentence": "epochs: search more | than 3."}],
    "cost": {
        "gpu_hours": 1.25,
        "worker_hours": 1.25,
        "examples_trained": 40000,
        "examples_saved_by_pruning": 10000,
        "examples_saved_by_divergence": 0,
        "saved_share": 0.2,
    },
}


TRIALS = f"GET /v1/studies/{'5' * 32}/trials"


def answer(document: dict[str, Any]) -> httpx.Response:
    return httpx.Response(200, json=document)


def replies() -> dict[str, Reply | list[Reply]]:
    return {
        "GET /v1/studies/tone": answer(study_json()),
        "GET /v1/studies/tone/best": answer(BEST),
        "GET /v1/studies/tone/report": answer(REPORT),
        "GET /v1/studies/tone/importance": answer(IMPORTANCE),
        TRIALS: answer({"items": [trial_json(0, value=0.5), BEST], "next_cursor": None}),
    }


@pytest.mark.parametrize(
    ("command", "document"), [("best", BEST), ("report", REPORT), ("importance", IMPORTANCE)]
)
def test_json_is_the_servers_answer(run: Any, command: str, document: dict[str, Any]) -> None:
    result = run(replies(), command, "tone", "--json")
    assert (result.exit_code, json.loads(result.stdout)) == (0, document)


def test_best_shows_the_repeats_the_test_and_the_front(run: Any) -> None:
    lines = [" ".join(line.split()) for line in run(replies(), "best", "tone").stdout.splitlines()]
    assert "Trial 3 eval_loss 0.412" in lines
    assert "Diagnosis: under trained: 32% of its average slope" in lines
    assert "3 0.412 0.4213 ± 0.00801 3" in lines
    assert "0 0.41 0.5 1" in lines
    assert JUDGEMENT["sentence"] in lines
    front = lines.index("Pareto front:") + 1
    assert lines[front : front + 3] == [
        "trial eval_loss train_seconds hyperparameters",
        "3 0.412 90.5 lora_r=8",
        "1 0.5 30 lora_r=4",
    ]


def test_importance_shows_shares_and_says_what_is_chance(run: Any) -> None:
    lines = [" ".join(line.split()) for line in run(replies(), "importance", "tone").stdout.splitlines()]
    assert lines == [
        "hyperparameter importance above chance",
        "learning_rate 91% yes",
        "lora_r 9% no",
        "sgd_momentum - it was never active",
        IMPORTANCE["sentence"],
    ]


def test_a_report_is_markdown_in_a_file_and_on_request_on_stdout(run: Any, tmp_path: Path) -> None:
    printed = run(replies(), "report", "tone", "--markdown", "-").stdout
    file = tmp_path / "report.md"
    result = run(replies(), "report", "tone", "--markdown", str(file))
    assert (result.exit_code, result.stdout) == (0, "")
    assert result.stderr == f"The report is in {file}\n"
    assert file.read_text() == printed
    for line in (
        "# tone",
        "- **State**: completed: all 24 trials have ended",
        "- **Trials**: 20 completed, 8 pruned, of which 4 repeats",
        "- **Learning rate**: searched from 0.0001 to 0.005, the bounds of the range test tone.range-test",
        "- **Preparation**: 3 corners",
        "- **Dashboard**: http://sweeps.example/dashboard/studies/3",
        "| 3 | 0.412 | 0.4213 ± 0.00801 | 3 |",
        JUDGEMENT["sentence"],
        "| 3 | 0.412 | 0 | learning_rate=0.000312, lora_r=8 |",
        "| 0 | 0.5 | 0 | learning_rate=0.000312, lora_r=8 |",
        "## Pareto front",
        "| 1 | 0.5 | 30 | lora_r=4 |",
        "| learning_rate | 91% | yes |",
        "| under trained | 11 | the loss was still falling when the training ended |",
        "- epochs: search more \\| than 3.",
        "- 2 of 20 completed trials break the constraint peak_memory_gb.",
        "- 1.25 GPU-hours, 1.25 worker-hours",
        "- 40,000 training examples; early ends saved 10,000 more (20% of all): 10,000 by pruning and 0 by"
        " divergence",
    ):
        assert line in printed.splitlines()


def page(path: str, html: str = "<!doctype html>\n<p>é</p>") -> dict[str, Reply | list[Reply]]:
    return {f"GET {path}": httpx.Response(200, text=html)}


@pytest.mark.parametrize(
    ("arguments", "path"),
    [(("tone",), "/reports/studies/tone/file"), (("--schedule", "tone"), "/reports/schedules/tone/file")],
)
def test_a_report_is_a_page_in_a_file(
    run: Any, tmp_path: Path, arguments: tuple[str, ...], path: str
) -> None:
    file = tmp_path / "report.html"
    result = run(page(path), "report", *arguments, "-o", str(file))
    assert (result.exit_code, result.stderr) == (0, f"The report is in {file}\n")
    assert file.read_text() == "<!doctype html>\n<p>é</p>"
    assert run(page(path), "report", *arguments, "--output", "-").stdout == file.read_text()


def test_a_page_that_cannot_be_made_leaves_an_earlier_one_as_it_is(run: Any, tmp_path: Path) -> None:
    file = tmp_path / "report.html"
    file.write_text("of yesterday")
    result = run(replies(), "report", "gone", "-o", str(file))
    assert (result.exit_code, file.read_text()) == (1, "of yesterday")
    nowhere = tmp_path / "no such folder" / "report.html"
    result = run(page("/reports/studies/tone/file"), "report", "tone", "-o", str(nowhere))
    assert result.exit_code != 0
    assert "cannot write" in result.stderr


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ((), "name either a study or, with --schedule, a schedule"),
        (("tone", "--schedule", "nightly", "-o", "x"), "name either a study or, with --schedule, a schedule"),
        (("--schedule", "nightly"), "the report of a schedule is a page: give --output FILE.html"),
        (("tone", "-o", "x", "--json"), "--output and --json cannot be used together"),
        (("tone", "--markdown", "x", "--json"), "--markdown and --json cannot be used together"),
    ],
)
def test_a_report_is_of_one_thing_in_one_form(run: Any, arguments: tuple[str, ...], said: str) -> None:
    result = run(replies(), "report", *arguments)
    assert result.exit_code == 2
    assert said in result.stderr


def test_a_report_is_text_for_people_in_a_pipe_too(run: Any) -> None:
    adapter = {"path": f"/home/artifacts/{'5' * 32}/3/1/best", "url": "/v1/adapter"}
    found = answer(REPORT | {"best": BEST | {"adapter": adapter}})
    lines = run(replies() | {"GET /v1/studies/tone/report": found}, "report", "tone").stdout.splitlines()
    assert max(len(line) for line in lines) <= 80
    assert [line for line in lines if line.startswith(("#", "|", "-")) or "**" in line or "\\" in line] == []
    for line in (
        "tone",
        "  State          completed: all 24 trials have ended",
        "  Dashboard      http://sweeps.example/dashboard/studies/3",
        "Best trial",
        f"  Adapter   {adapter['path']}",
        "  Download  nightsweep adapter tone",
        "The best trials",
        "3      0.412      0         learning_rate=0.000312, lora_r=8",
        "0      0.5        0         learning_rate=0.000312, lora_r=8",
        "  - epochs: search more | than 3.",
    ):
        assert line in lines


def test_a_report_of_a_study_that_has_not_begun_has_no_empty_sections(run: Any) -> None:
    bare = REPORT | {
        "study": study_json(state="queued", counts={}, best=None),
        "seconds": None,
        "best": None,
        "importance": {"parameters": [], "trials": 0, "best_trials": 0, "sentence": "0 completed trials."},
        "verdicts": {},
        "constraints": [],
        "advice": [],
    }
    none = {"GET /v1/studies/tone/report": answer(bare), TRIALS: answer({"items": [], "next_cursor": None})}
    printed = run(none, "report", "tone", "--markdown", "-").stdout
    headings = [line for line in printed.splitlines() if line.startswith("#")]
    assert headings == ["# tone", "## Best trial", "## Hyperparameter importance", "## Cost"]
    assert "No trial has completed." in printed


def test_one_form_of_a_report_at_a_time(run: Any, tmp_path: Path) -> None:
    result = run(replies(), "report", "tone", "--json", "--markdown", str(tmp_path / "r.md"))
    assert result.exit_code == 2
    assert "--markdown and --json cannot be used together" in result.stderr


def test_trials_show_verdicts_and_what_repeats_repeat(run: Any) -> None:
    repeat = trial_json(4, repeat_of=3, seed=43)
    broke = trial_json(
        5, feasible=False, diagnosis=[{"verdict": "not_enough_rungs", "evidence": "1 evaluation"}]
    )
    listing = httpx.Response(200, json={"items": [BEST, repeat, broke], "next_cursor": None})
    result = run(replies() | {f"GET /v1/studies/{'5' * 32}/trials": listing}, "trials", "tone")
    lines = result.stdout.splitlines()[2:]
    assert lines == [
        "3      completed  0.412  0         -     -",
        "    hyperparameters: learning_rate=0.000312, lora_r=8",
        "    diagnosis: under trained",
        "4      completed  -      0         -     -",
        "    hyperparameters: trial 3 again, seed=43",
        "5      completed  -      0         -     -",
        "    hyperparameters: learning_rate=0.000312, lora_r=8",
        "    diagnosis: breaks a constraint",
    ]


def test_a_summary_says_what_repeats_and_front_came_to() -> None:
    ended = StudyView.model_validate(
        study_json(
            state="completed",
            best=study_json()["best"] | {"sentence": "Trial 0 and trial 1 are distinguishable (p = 0.01)."},
            pareto_front=FRONT,
        )
    )
    trials = [
        TrialView.model_validate(document)
        for document in (
            trial_json(0, value=0.412),
            trial_json(1, value=0.5),
            trial_json(2, value=0.9, repeat_of=1, seed=43),
        )
    ]
    snapshot = StudySnapshot(study=ended, trials=trials)
    lines = summary(snapshot, "http://d")
    assert "  Repeats     Trial 0 and trial 1 are distinguishable (p = 0.01)." in lines
    assert "  Pareto      trials 3, 1" in lines
    # A repeat is no trial of the search, however bad.
    assert comparison(snapshot) == "trial 1  eval_loss 0.5: the best is 17.6% lower"


def test_show_names_the_stage_and_what_was_prepared(run: Any) -> None:
    shown = study_json(stage="range test", preparation=REPORT["study"]["preparation"])
    lines = run({"GET /v1/studies/tone": answer(shown)}, "show", "tone").stdout.splitlines()
    assert "stage       range test" in lines
    assert "prepared    3 corners" in lines
