"""The demo's choices and its last words."""

from __future__ import annotations

import os
import signal
import socket
from pathlib import Path
from typing import Any

import pytest

from service.cli.errors import CommandError
from service.cli.operations import demo
from service.cli.operations.demo import demo_settings, ending, free_port, sigterm_as_interrupt
from service.cli.views.studies import comparison, summary
from service.studies.schemas import StudyView
from service.trials.schemas import TrialView
from service.wording.standing import StudySnapshot
from tests.support.fakes.api import study_json, trial_json


def snapshot(*trials: dict[str, Any], **study: Any) -> StudySnapshot:
    return StudySnapshot(
        study=StudyView.model_validate(study_json(**study)),
        trials=[TrialView.model_validate(one) for one in trials],
    )


def test_a_port_that_is_free_is_taken_and_one_that_is_not_is_replaced() -> None:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        listener.listen()
        taken = listener.getsockname()[1]
        other = free_port("127.0.0.1", taken)
        assert other not in (0, taken)
    assert free_port("127.0.0.1", taken) == taken


def test_an_address_that_is_not_this_machines_is_said() -> None:
    with pytest.raises(CommandError, match=r"cannot listen on 192\.0\.2\.1:8787"):
        free_port("192.0.2.1", 8787)


def test_the_demo_has_a_home_of_its_own_and_may_read_the_quickstart(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("NIGHTSWEEP_HOME", str(tmp_path / "home"))
    monkeypatch.setenv("NIGHTSWEEP_DATA_ROOTS", str(tmp_path))
    quickstart = tmp_path.parent / "quickstart"
    settings = demo_settings(quickstart, None, 4711)
    assert settings.home == tmp_path / "home" / "demo"
    assert settings.database_url == f"sqlite:///{tmp_path}/home/demo/nightsweep.db"
    assert settings.artifacts_dir == tmp_path / "home" / "demo" / "artifacts"
    assert settings.data_roots == (tmp_path.resolve(), quickstart.resolve())
    assert settings.port == 4711
    assert demo_settings(quickstart, tmp_path / "mine", 4711).home == tmp_path / "mine"


def test_the_demo_ends_with_all_that_it_found(tmp_path: Path) -> None:
    settings = demo_settings(tmp_path, tmp_path / "my home", 4711)
    best = trial_json(0, value=0.4, adapter={"path": "/home/a/best", "url": "/v1/adapter"})
    ended = snapshot(
        best,
        trial_json(1, value=1.6),
        trial_json(2, "pruned", value=None),
        state="completed",
        reason="all trials ended",
        ended_at="2026-07-01T22:02:15Z",
        counts={"completed": 2, "pruned": 1},
        best={"trial_number": 0, "value": 0.4, "params": best["params"]},
    )
    assert ending(ended, "http://127.0.0.1:4711/dashboard", settings) == [
        "Study tone completed in 2m 10s: all trials ended",
        "  Trials      2 completed, 1 pruned",
        "  Best trial  0  eval_loss 0.4",
        "    learning_rate  0.000312",
        "    lora_r         8",
        "  Adapter     /home/a/best",
        "  Worst       trial 1  eval_loss 1.6: the best is 75.0% lower",
        "  Dashboard   http://127.0.0.1:4711/dashboard",
        f"              after the demo: nightsweep serve --home '{tmp_path}/my home' --port 4711",
        "",
        "Use the adapter:",
        "  from peft import PeftModel; from transformers import AutoModelForCausalLM",
        "  model = PeftModel.from_pretrained("
        "AutoModelForCausalLM.from_pretrained('/models/base'), '/home/a/best')",
    ]


def test_a_score_that_may_be_negative_compares_by_its_difference() -> None:
    ended = snapshot(
        trial_json(0, value=0.25),
        trial_json(1, value=-0.5),
        metric="r2",
        direction="maximize",
        best={"trial_number": 0, "value": 0.25, "params": {}},
    )
    assert comparison(ended) == "trial 1  r2 -0.5: the best is 0.75 higher"


def test_a_maximized_metric_compares_the_other_way_round() -> None:
    ended = snapshot(
        trial_json(0, value=0.9),
        trial_json(1, value=0.6),
        metric="accuracy",
        direction="maximize",
        best={"trial_number": 0, "value": 0.9, "params": {}},
    )
    assert comparison(ended) == "trial 1  accuracy 0.6: the best is 0.3 higher"


def test_one_completed_trial_has_nothing_to_be_compared_with() -> None:
    best = {"trial_number": 0, "value": 0.4, "params": {}}
    assert comparison(snapshot(trial_json(0, value=0.4), trial_json(1, "pruned"), best=best)) is None
    assert comparison(snapshot(trial_json(0, "failed"), best=None)) is None


def test_a_failed_study_shows_why_its_trials_failed() -> None:
    failed = snapshot(
        trial_json(0, "failed", reason="train.jsonl:3: no prompt"),
        trial_json(1, "failed", reason="train.jsonl:3: no prompt"),
        state="failed",
        reason="2 trials failed",
        best=None,
        counts={"failed": 2},
    )
    lines = summary(failed, "http://127.0.0.1:4711/dashboard")
    assert "  Best trial  no trial has completed" in lines
    assert [line for line in lines if "Failure" in line] == ["  Failure     train.jsonl:3: no prompt"]


def test_sigterm_ends_the_demo_as_an_interrupt_does() -> None:
    """Else its study would stay unfinished, and the next demo in this home would train it as well."""
    before = signal.getsignal(signal.SIGTERM)
    with pytest.raises(KeyboardInterrupt), sigterm_as_interrupt():
        os.kill(os.getpid(), signal.SIGTERM)
    assert signal.getsignal(signal.SIGTERM) is before


def test_an_interrupted_demo_waits_until_its_study_is_cancelled(monkeypatch: pytest.MonkeyPatch) -> None:
    """The service would be stopped before its coordinator had carried the cancellation out."""
    asked: list[str] = []

    class FakeClient:
        def cancel(self, study: str) -> None:
            asked.append("cancel")

        def study(self, study: str) -> StudyView:
            asked.append("study")
            state = "running" if asked.count("study") == 1 else "cancelled"
            return StudyView.model_validate(study_json(state=state))

    def interrupted(*_: Any, **__: Any) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(demo, "follow", interrupted)
    with pytest.raises(KeyboardInterrupt):
        demo._follow_or_cancel(FakeClient(), StudyView.model_validate(study_json()))  # type: ignore[arg-type]
    assert asked == ["cancel", "study", "study"]
