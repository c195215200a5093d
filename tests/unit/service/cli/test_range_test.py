"""`nightsweep range-test` against scripted answers."""

from __future__ import annotations

import functools
import io
import json
from pathlib import Path
from typing import Any

import httpx
import pytest
from rich.console import Console
from typer.testing import CliRunner, Result

from service.cli import follow, options
from service.cli.commands import range_tests
from service.cli.root import app
from service.cli.views.range_tests import sketch, study_line
from service.client import Client
from service.definitions.syntax import parse_yaml
from service.range_tests.schemas import BoundsView, RangeTestView
from tests.support.fakes.api import FakeApi, Reply, problem, refused

ID = "8" * 32
CORNER = {
    "trial_number": 0,
    "values": {"batch_size": 4, "lora_r": 32},
    "curve": [{"learning_rate": 10.0**-p, "loss": p / 2, "smoothed": p / 2} for p in range(6, 1, -1)],
    "steepest": 6.6e-4,
    "minimum": 1.05e-2,
    "divergence": None,
    "note": "steepest at 6.6e-4",
}
WAITING = CORNER | {"curve": [], "steepest": None, "minimum": None, "note": "not swept"}


def answer(**changes: Any) -> dict[str, Any]:
    return {
        "id": ID,
        "name": "tone.range-test",
        "state": "queued",
        "reason": "",
        "owner": "operator",
        "created_at": "2026-07-01T22:00:00Z",
        "started_at": None,
        "ended_at": None,
        "definition": {},
        "study": None,
        "corners": [WAITING],
        "allowed": {"min": 1e-6, "max": 1.0},
        "proposed": None,
        "bounds": None,
        "notes": [],
        "dashboard_path": None,
    } | changes


FOUND = answer(
    state="completed",
    reason="1 trial ended",
    corners=[CORNER],
    proposed={"min": 2.2e-4, "max": 1.05e-2},
    bounds={"min": 2.2e-4, "max": 1.05e-2},
    notes=["learning_rate narrowed from 1e-6…1e0 to 2.2e-4…1.05e-2", "the corners"],
    dashboard_path="/dashboard/studies/4",
)


@pytest.fixture
def run(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Any:
    """Runs the command on a study file, against a fake API."""
    monkeypatch.setenv("NIGHTSWEEP_SERVER", "http://sweeps.example")
    monkeypatch.setattr(follow, "_POLL_SECONDS", 0.0)
    study = tmp_path / "study.yaml"
    study.write_text("name: tone\n")

    def run_command(replies: dict[str, Reply | list[Reply]], *arguments: str) -> Result:
        api = FakeApi(replies)
        monkeypatch.setattr(options, "Client", functools.partial(Client, transport=api.transport))
        return CliRunner().invoke(app, ["range-test", str(study), *arguments], catch_exceptions=False)

    return run_command


def submitted(*later: dict[str, Any] | Reply) -> dict[str, Reply | list[Reply]]:
    replies: list[Reply] = [httpx.Response(200, json=a) if isinstance(a, dict) else a for a in later]
    return {
        "POST /v1/range-tests": httpx.Response(201, json=answer()),
        f"GET /v1/range-tests/{ID}": replies,
    }


def test_it_waits_and_ends_with_the_line_for_the_study(run: Any) -> None:
    result = run(submitted(answer(state="running"), refused(), FOUND))
    assert result.exit_code == 0
    assert "range test tone.range-test running: 0 of 1 corners swept" in result.stdout
    assert "trying again: " in result.stdout
    assert "range test tone.range-test completed: 1 of 1 corners swept (1 trial ended)" in result.stdout
    assert "batch 4, rank 32  6.6e-4    1.05e-2  -" in result.stdout
    assert "learning_rate narrowed from 1e-6…1e0 to 2.2e-4…1.05e-2" in result.stdout
    assert "learning_rate: {min: 2.20e-04, max: 1.05e-02, scale: log}" in result.stdout
    assert "http://sweeps.example/dashboard/studies/4" in result.stdout


def test_json_is_alone_on_stdout(run: Any) -> None:
    result = run(submitted(answer(state="running"), FOUND), "--json")
    assert json.loads(result.stdout) == FOUND
    assert "1 of 1 corners swept" in result.stderr


def test_without_waiting_it_only_submits(run: Any) -> None:
    result = run(submitted(), "--no-wait")
    assert result.exit_code == 0
    assert "Range test tone.range-test submitted" in result.stdout
    assert json.loads(run(submitted(), "--no-wait", "--json").stdout) == answer()


@pytest.mark.parametrize("state", ["failed", "cancelled"])
def test_one_that_found_nothing_is_exit_code_1_with_the_reason(run: Any, state: str) -> None:
    result = run(submitted(answer(state=state, reason="no luck")))
    assert result.exit_code == 1
    assert f"Range test tone.range-test {state}: no luck" in result.stdout
    assert "not swept" in result.stdout


def test_a_refusal_is_explained(run: Any) -> None:
    faults = [{"path": "search.space", "message": "is required"}]
    result = run({"POST /v1/range-tests": problem(422, "Invalid", "The definition has 1 fault.", faults)})
    assert result.exit_code == 1
    assert "search.space: is required" in result.stderr


def test_a_refusal_while_waiting_ends_the_waiting(run: Any) -> None:
    result = run(submitted(problem(404, "Not found", "It is gone.")))
    assert result.exit_code == 1
    assert "It is gone." in result.stderr


def test_a_terminal_gets_one_changing_line() -> None:
    api = FakeApi(submitted(FOUND))
    screen = Console(file=io.StringIO(), force_terminal=True, width=120)
    with Client("http://sweeps.example", transport=api.transport) as client:
        ended = range_tests.wait(client, RangeTestView.model_validate(answer()), screen, sleep=lambda _: None)
    assert ended.state == "completed"
    assert "1 of 1 corners swept" in screen.file.getvalue()  # type: ignore[attr-defined]


def test_the_line_for_the_study_is_read_back_as_numbers() -> None:
    line = study_line(BoundsView(min=2.2e-4, max=1.0))
    assert parse_yaml(line.encode())["learning_rate"] == {"min": 2.2e-4, "max": 1.0, "scale": "log"}


def test_a_curve_is_drawn_darker_where_it_is_higher() -> None:
    assert sketch([9.0, 9.0, 4.5, 0.0, 90.0]) == "@@+ @"
    assert sketch([1.0, 1.0]) == "@@"
    assert len(sketch([1.0 / step for step in range(1, 1000)])) == 36
