"""What changed between two looks, in words."""

from __future__ import annotations

from typing import Any

import pytest

from service.cli.views.changes import changes
from service.studies.schemas import StudyView
from service.trials.schemas import TrialView
from service.wording.standing import StudySnapshot
from tests.support.fakes.api import study_json, trial_json


def snapshot(*trials: dict[str, Any], **study: Any) -> StudySnapshot:
    return StudySnapshot(
        study=StudyView.model_validate(study_json(**study)),
        trials=[TrialView.model_validate(one) for one in trials],
    )


def test_the_first_look_tells_where_the_study_stands() -> None:
    rungs = [{"rung": 480, "value": 0.6}, {"rung": 960, "value": 0.41234}]
    first = snapshot(
        trial_json(0, value=0.41234, rungs=rungs), trial_json(1, "running"), trial_json(2, "waiting")
    )
    assert changes(None, first) == [
        "study tone running",
        "trial 0 completed: eval_loss 0.4123",
        "trial 1 running: learning_rate=0.000312, lora_r=8",
    ]


def test_nothing_is_said_when_nothing_but_progress_changed() -> None:
    before = snapshot(trial_json(1, "running"))
    progress = {"examples_seen": 64, "total_examples": 960, "step": 4, "train_loss": 1.0}
    assert changes(before, snapshot(trial_json(1, "running", progress=progress))) == []


def test_a_rung_and_an_end_that_came_together_are_told_in_order() -> None:
    before = snapshot(trial_json(5, "running", rungs=[{"rung": 250, "value": 2.5}]))
    rungs = [{"rung": 250, "value": 2.5}, {"rung": 500, "value": 2.4}]
    after = snapshot(trial_json(5, "pruned", rungs=rungs, reason="worse than\nthe median of 4 trials"))
    assert changes(before, after) == [
        "trial 5 at 500 examples: eval_loss 2.4",
        "trial 5 pruned at 500 examples: worse than the median of 4 trials",
    ]


def test_a_rung_without_the_objective_is_told_by_its_loss() -> None:
    rungs = [{"rung": 250, "value": None, "metrics": {"eval_loss": 2.5}}]
    after = snapshot(trial_json(5, "running", rungs=rungs), metric="rouge_l", direction="maximize")
    assert changes(snapshot(trial_json(5, "running"), metric="rouge_l"), after) == [
        "trial 5 at 250 examples: eval_loss 2.5"
    ]


@pytest.mark.parametrize("state", ["diverged", "out_of_memory", "failed", "cancelled", "lost", "paused"])
def test_every_other_end_is_told_with_its_reason(state: str) -> None:
    before = snapshot(trial_json(5, "running"))
    after = snapshot(trial_json(5, state, reason="because"))
    assert changes(before, after) == [f"trial 5 {state}: because"]


def test_a_trial_that_began_and_reported_between_two_looks_is_told_from_its_start() -> None:
    after = snapshot(trial_json(5, "running", rungs=[{"rung": 250, "value": 2.5}]))
    assert changes(snapshot(), after) == [
        "trial 5 running: learning_rate=0.000312, lora_r=8",
        "trial 5 at 250 examples: eval_loss 2.5",
    ]


def test_a_lost_trial_that_goes_on_is_told_again() -> None:
    lost, running = snapshot(trial_json(5, "lost")), snapshot(trial_json(5, "running"))
    assert changes(lost, running) == ["trial 5 running: learning_rate=0.000312, lora_r=8"]


def test_a_pause_is_told_with_how_to_go_on_and_once() -> None:
    running = snapshot(trial_json(0, "running"))
    asked = snapshot(trial_json(0, "running"), pause_requested=True)
    paused = snapshot(trial_json(0, "paused"), state="paused", reason="paused on request")
    assert changes(running, asked) == ["study tone: it is being paused: its trials are writing checkpoints"]
    assert changes(asked, paused)[:2] == [
        "study tone paused (paused on request)",
        "study tone: resume it with: nightsweep resume tone",
    ]
    assert changes(paused, paused) == []
    assert changes(paused, snapshot(state="queued", reason="resumed")) == ["study tone queued (resumed)"]


def test_the_studys_end_comes_after_its_trials_ends() -> None:
    before = snapshot(trial_json(0, "running"))
    after = snapshot(
        trial_json(0, value=0.5), state="completed", reason="all trials ended", counts={"completed": 1}
    )
    assert changes(before, after) == [
        "trial 0 completed: eval_loss 0.5",
        "study tone completed: 1 completed (all trials ended)",
    ]


def test_a_new_reason_of_a_study_that_goes_on_is_told() -> None:
    before = snapshot(reason="waiting for a worker: 0 of 2 started")
    assert changes(before, snapshot(reason="starting: loading the\nbase b")) == [
        "study tone: starting: loading the base b"
    ]


def test_that_it_trains_is_told_by_its_trials() -> None:
    assert changes(snapshot(reason="starting: loading the base b"), snapshot(reason="training")) == []
