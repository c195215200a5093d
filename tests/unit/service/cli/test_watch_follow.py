"""Following a study until it ends."""

from __future__ import annotations

import io
from collections.abc import Callable
from typing import Any

import httpx
import pytest
from rich.console import Console

from service.cli.follow import follow
from service.client import Client, RefusedError, UnreachableError
from tests.support.fakes.api import FakeApi, Reply, problem, refused, study_json, trial_json

STUDY = "GET /v1/studies/tone"
TRIALS = f"GET /v1/studies/{'5' * 32}/trials"


class Clock:
    """Time that passes only when somebody sleeps."""

    def __init__(self) -> None:
        self.now = 0.0

    def sleep(self, seconds: float) -> None:
        self.now += seconds

    def __call__(self) -> float:
        return self.now


def running() -> httpx.Response:
    return httpx.Response(200, json=study_json())


def completed() -> httpx.Response:
    return httpx.Response(
        200, json=study_json(state="completed", counts={"completed": 1}, ended_at="2026-07-01T22:03:05Z")
    )


def trials(*all_trials: dict[str, Any]) -> httpx.Response:
    return httpx.Response(200, json={"items": list(all_trials)})


def followed(
    studies: list[Reply], all_trials: Reply | list[Reply], *, terminal: bool = False, **options: Any
) -> str:
    api = FakeApi({STUDY: studies, TRIALS: all_trials})
    console = Console(file=io.StringIO(), width=100, height=20, force_terminal=terminal, color_system=None)
    clock = Clock()
    sleep: Callable[[float], None] = options.pop("sleep", clock.sleep)
    with Client("http://sweeps.example", transport=api.transport) as client:
        follow(client, "tone", console, sleep=sleep, clock=clock, **options)
    assert isinstance(console.file, io.StringIO)
    return console.file.getvalue()


def test_a_pipe_gets_one_line_per_change_and_no_control_codes() -> None:
    output = followed(
        [running(), running(), completed()],
        [
            trials(trial_json(0, "running")),
            trials(trial_json(0, "running")),
            trials(trial_json(0, value=0.5)),
        ],
    )
    assert output == (
        "study tone running\n"
        "trial 0 running: learning_rate=0.000312, lora_r=8\n"
        "trial 0 completed: eval_loss 0.5\n"
        "study tone completed: 1 completed\n"
    )


def test_a_long_line_is_never_wrapped_in_a_pipe() -> None:
    reason = "word " * 60
    output = followed([completed()], trials(trial_json(0, "failed", reason=reason)))
    assert f"trial 0 failed: {reason.strip()}\n" in output


@pytest.mark.parametrize("trouble", [refused(), problem(503, "Unavailable", "starting")])
def test_a_server_that_restarts_is_asked_again_and_mentioned_once(trouble: Reply) -> None:
    output = followed([running(), trouble, trouble, trouble, completed()], trials())
    lines = output.splitlines()
    assert len(lines) == 4
    assert lines[1].startswith("trying again: ")
    assert lines[2] == "the server answers again"


def test_a_study_that_is_gone_ends_the_watch() -> None:
    with pytest.raises(RefusedError, match="no such study"):
        followed([running(), problem(404, "Not found", "no such study")], trials())


def test_patience_ends_where_it_was_limited() -> None:
    with pytest.raises(UnreachableError):
        followed([running(), refused()], trials(), give_up_after=5.0)


def test_patience_starts_anew_with_every_answer() -> None:
    silence: list[Reply] = [refused()] * 4
    output = followed([*silence, running(), *silence, completed()], trials(), give_up_after=5.0)
    assert output.endswith("study tone completed: 1 completed\n")


def test_a_terminal_gets_the_table_with_the_trouble_beneath_it() -> None:
    output = followed(
        [running(), refused(), completed()],
        trials(trial_json(0, "running", progress={"examples_seen": 480, "total_examples": 960, "step": 30})),
        terminal=True,
    )
    assert "480/960" in output
    assert "trying again: no answer from a Nightsweep server at http://sweeps.example" in output
    assert "tone  completed" in output.rsplit("trying again", 1)[1]


def test_ctrl_c_leaves_the_terminal_as_it_was() -> None:
    def interrupt(_seconds: float) -> None:
        raise KeyboardInterrupt

    api = FakeApi({STUDY: running(), TRIALS: trials()})
    console = Console(file=io.StringIO(), force_terminal=True, color_system=None)
    with Client("http://sweeps.example", transport=api.transport) as client, pytest.raises(KeyboardInterrupt):
        follow(client, "tone", console, sleep=interrupt)
    assert isinstance(console.file, io.StringIO)
    assert "\x1b[?25h" in console.file.getvalue(), "the cursor is shown again"
