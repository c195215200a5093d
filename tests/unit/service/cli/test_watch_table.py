"""The live table as text."""

from __future__ import annotations

import io
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from rich.console import Console

from service.cli.views.live_table import choose_rows, render
from service.studies.schemas import StudyView
from service.trials.schemas import TrialView
from service.wording.standing import counts_line, elapsed
from tests.support.fakes.api import study_json, trial_json

NOW = datetime(2026, 7, 1, 22, 5, 5, tzinfo=UTC)


def study(**changes: Any) -> StudyView:
    return StudyView.model_validate(study_json(**changes))


def trial(number: int, state: str = "completed", **changes: Any) -> TrialView:
    return TrialView.model_validate(trial_json(number, state, **changes))


def text(
    study: StudyView, trials: list[TrialView], *, width: int = 120, height: int = 40, message: str = ""
) -> list[str]:
    console = Console(record=True, width=width, file=io.StringIO())
    console.print(render(study, trials, NOW, height, message=message))
    return [line.rstrip() for line in console.export_text().splitlines()]


def test_the_whole_table_reads_as_a_person_expects() -> None:
    trials = [
        trial(
            0,
            value=0.41234,
            rungs=[{"rung": 480, "value": 0.6}, {"rung": 960, "value": 0.41234}],
            progress={"examples_seen": 960, "total_examples": 960, "step": 60, "train_loss": 0.3},
        ),
        trial(
            1,
            "running",
            params={"learning_rate": 0.01, "lora_r": 4},
            rungs=[{"rung": 480, "value": 1.5}],
            progress={"examples_seen": 480, "total_examples": 960, "step": 30, "train_loss": 1.2},
        ),
        trial(2, "waiting", progress=None),
    ]
    assert text(study(), trials) == [
        "tone  running  1/12 trials ended  5m 00s  1 running, 1 completed",
        "best eval_loss 0.412: trial 0 learning_rate=0.000312, lora_r=8",
        "                                           eval learning lora",
        "# state     progress examples  last rung   loss     rate    r",
        "0 completed           960/960 0.4123@960 0.4123 0.000312    8",
        "1 running   ━━━━      480/960    1.5@480      -     0.01    4",
        "2 waiting                   -          -      - 0.000312    8",
    ]


@pytest.mark.parametrize("height", [8, 12, 24])
@pytest.mark.parametrize("message", ["", "the server does not answer"])
def test_the_table_never_fills_the_terminal(height: int, message: str) -> None:
    trials = [trial(n, "running" if n > 90 else "pruned", value=0.5) for n in range(100)]
    lines = text(study(), trials, height=height, message=message)
    assert len(lines) == height - 1
    assert any(line.endswith("more trials: nightsweep trials tone") for line in lines)
    assert [message] == lines[-1:] or not message


def test_every_trial_is_shown_while_there_is_room() -> None:
    trials = [trial(n, value=0.5) for n in range(10)]
    lines = text(study(), trials, height=15)
    assert len(lines) == 14
    assert not any("not shown" in line for line in lines)


def test_a_line_of_a_narrow_terminal_is_cut_rather_than_wrapped() -> None:
    trials = [trial(0, "running", params={f"parameter_{n}": 0.123456 for n in range(20)})]
    assert len(text(study(), trials, width=80)) == 5


def test_running_trials_come_before_the_best_before_the_newest() -> None:
    trials = [
        trial(0, ended_at="2026-07-01T22:01:00Z"),
        trial(1, ended_at="2026-07-01T22:03:00Z"),
        trial(2, ended_at="2026-07-01T22:02:00Z"),
        trial(3, "running"),
        trial(4, "lost"),
        trial(5, "waiting"),
    ]

    def shown(rows: int) -> list[int]:
        return [one.number for one in choose_rows(study(), trials, rows)]

    assert [shown(rows) for rows in (0, 3, 4, 5, 9)] == [
        [],
        [3, 4, 5],
        [0, 3, 4, 5],
        [0, 1, 3, 4, 5],
        [0, 1, 2, 3, 4, 5],
    ]


def test_time_runs_from_the_start_to_the_end_and_never_backwards() -> None:
    assert elapsed(study(), NOW) == 300.0
    assert elapsed(study(ended_at="2026-07-01T22:01:05Z"), NOW) == 60.0
    assert elapsed(study(started_at=None), NOW) == 0.0
    assert elapsed(study(), NOW - timedelta(hours=1)) == 0.0


def test_counts_leave_out_the_states_that_no_trial_is_in() -> None:
    assert counts_line(study()) == "1 running, 1 completed"
    assert counts_line(study(counts={"pruned": 10, "out_of_memory": 2})) == "10 pruned, 2 out of memory"
    assert counts_line(study(counts={})) == "no trials yet"


def test_a_study_without_a_best_trial_says_so_or_why_it_ended() -> None:
    assert text(study(best=None), [])[1] == "best eval_loss: none yet"
    failed = study(state="failed", best=None, reason="no such file:\n  data.jsonl", ended_at=NOW.isoformat())
    assert text(failed, [])[1] == "no such file: data.jsonl"


def test_markup_in_a_reason_or_a_name_is_plain_text() -> None:
    failed = study(state="failed", best=None, reason="[bold]x[/bold] \x1b[31mred", ended_at=NOW.isoformat())
    assert text(failed, [])[1] == "[bold]x[/bold] [31mred"


def test_repeats_are_counted_named_and_averaged() -> None:
    best = study_json()["best"] | {"mean": 0.45, "n": 2, "sentence": "Trial 0 is the only one."}
    repeated = study(
        stage="repeats", repeats_requested=3, best=best, counts={"completed": 13, "running": 1, "repeats": 2}
    )
    lines = text(repeated, [trial(0, value=0.412), trial(12, value=0.44, repeat_of=0, seed=43)])
    assert lines[0].startswith("tone  running (repeats)  13/15 trials ended")
    assert lines[1].startswith("best eval_loss 0.412 (mean of 2 repeats: 0.45): trial 0")
    assert lines[-1].split()[:3] == ["12", "(=0)", "completed"]


def test_what_a_study_waits_for_stands_beneath_the_table_until_it_trains() -> None:
    waiting = "waiting for a worker: 0 of 2 started"
    assert text(study(state="running", best=None, reason=waiting), [])[-1] == waiting
    assert text(study(state="running", best=None, reason="training"), [])[-1] == "best eval_loss: none yet"
