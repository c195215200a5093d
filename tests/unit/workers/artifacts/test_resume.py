"""A trial goes on from its checkpoint, on another worker and beside others, as if nothing had happened."""

from __future__ import annotations

import errno
import json
import shutil
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
import torch

from search_spaces.definition import DataSpec
from search_spaces.recipe import Recipe
from tests.scripts.train_orders import train_elsewhere
from tests.support.workers.models import CHATML, build_tiny_base, build_tiny_tokenizer
from tests.support.workers.packs import Recorder, final_weights
from tests.support.workers.trials import data_spec, relative_difference, trial_order
from workers.contract import (
    Decision,
    OutcomeStatus,
    Progress,
    Report,
    TrialOrder,
    TrialStarted,
    Verdict,
)
from workers.pack import attempt
from workers.pack.attempt import Attempt
from workers.pack.loaded import LoadedStudies
from workers.training.objectives.language import Totals

# PEFT 0.21 reads a property that transformers 5.23 renamed; it does so whenever it wraps a model.
pytestmark = pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing` is deprecated:FutureWarning")

RECIPE = Recipe(
    learning_rate=1e-2,
    batch_size=8,
    epochs=2,
    lora_r=4,
    lora_dropout=0.2,
    weight_decay=0.1,
    lr_scheduler="cosine",
    warmup_ratio=0.2,
    seed=11,
)
"""Six steps of eight examples."""


@pytest.fixture
def order(tmp_path: Path, tiny_base_dir: Path) -> TrialOrder:
    """Each batch takes four passes at least, and each second step reaches a rung."""
    return trial_order(tmp_path, tiny_base_dir, recipe=RECIPE, every_examples=16, micro_batch_size=2)


def next_attempt(order: TrialOrder, attempt_id: int = 2) -> TrialOrder:
    """The order for another attempt, to go on from a copy of the checkpoint, which it will delete."""
    before = Path(order.artifact_dir)
    after = before.with_name(str(attempt_id))
    copy = shutil.copytree(before / "checkpoint", before / f"checkpoint-for-{attempt_id}")
    return replace(order, attempt_id=attempt_id, artifact_dir=str(after), resume_from=(str(copy),))


def running(recorder: Recorder, attempt_id: int = 1) -> Attempt:
    """What the pack holds of a trial."""
    return recorder.pack._running[attempt_id]


def train_to(order: TrialOrder, *, steps: int) -> Recorder:
    """A worker that is heard of no more after so many steps."""
    recorder = Recorder()
    recorder.pack.admit(order)
    recorder.run_until(lambda: len(recorder.of(order.attempt_id, Progress)) == steps)
    return recorder


def uninterrupted(order: TrialOrder) -> Recorder:
    """The trial from its beginning to its end, as attempt 9."""
    recorder = Recorder()
    recorder.run(replace(order, attempt_id=9, artifact_dir=f"{order.artifact_dir}-whole", resume_from=()))
    return recorder


def with_metrics(monkeypatch: pytest.MonkeyPatch, *losses: float) -> None:
    """Makes the trial's evaluations give these losses, one after the other."""
    remaining = iter(losses)
    monkeypatch.setattr(
        Totals, "metrics", lambda self: {"eval_loss": next(remaining), "perplexity": 2.0, "accuracy": 0.5}
    )


def test_rows_with_the_date_are_the_same_on_every_day_of_a_study(tmp_path: Path) -> None:
    """A checkpoint is gone on from when its rows have the same tokens: the study's date decides."""
    dated = build_tiny_tokenizer(chat_template="{{ strftime_now('%d %b %Y') + '\n' }}" + CHATML)
    base = build_tiny_base(tmp_path / "base", tokenizer=dated)
    rows = tmp_path / "rows.jsonl"
    turns = [{"role": "user", "content": "hi"}, {"role": "assistant", "content": "done"}]
    rows.write_text(json.dumps({"messages": turns}) + "\n")
    data = DataSpec(train=str(rows), eval=str(rows), max_length=64)
    day = datetime(2026, 3, 4, 12, tzinfo=UTC)

    def loaded(created: datetime) -> tuple[str, str]:
        order = replace(trial_order(tmp_path, base, data=data), study_created_at=created)
        all_of_it = LoadedStudies(torch.device("cpu")).load(order, ())
        return dated.decode(all_of_it.train.examples[0].input_ids), all_of_it.recipe_key(order)

    text, key = loaded(day)
    assert text.startswith("04 Mar 2026\n")
    assert loaded(day) == (text, key)
    assert loaded(day + timedelta(days=1))[1] != key


def flip_a_byte(file: Path) -> None:
    """As a disk may."""
    data = bytearray(file.read_bytes())
    data[len(data) // 2] ^= 1
    file.write_bytes(data)


def test_a_trial_goes_on_in_the_middle_of_a_batch_in_another_process_and_beside_other_trials(
    order: TrialOrder, tmp_path: Path, tiny_base_dir: Path
) -> None:
    whole = uninterrupted(order)
    recorder = train_to(order, steps=3)
    run = running(recorder).run
    recorder.run_until(lambda: len(run.waiting) < RECIPE.batch_size)
    assert (run.steps, len(run.waiting) > 0) == (3, True)
    running(recorder).checkpoint()
    mates = [
        trial_order(tmp_path, tiny_base_dir, attempt_id=number, recipe=recipe, every_examples=8)
        for number, recipe in (
            (4, Recipe(learning_rate=3e-3, batch_size=4, lora_r=16, seed=21)),
            (5, Recipe(learning_rate=1e-2, batch_size=1, lora_r=2, lora_dropout=0.3, seed=22)),
        )
    ]
    packs = train_elsewhere(
        [(1, [next_attempt(order, 2)]), (3, [mates[0], next_attempt(order, 3), mates[1]])]
    )
    for events, number, tolerance in zip(packs, (2, 3), (0.0, 1e-4), strict=True):
        elsewhere = Recorder()
        elsewhere.events = events
        (started,) = elsewhere.of(number, TrialStarted)
        assert started.resumed_at_examples == 24
        steps, expected_steps = elsewhere.of(number, Progress), whole.of(9, Progress)[3:]
        assert [step.examples_seen for step in steps] == [32, 40, 48]
        for step, expected_step in zip(steps, expected_steps, strict=True):
            assert step.learning_rate == expected_step.learning_rate
            assert step.train_loss == pytest.approx(expected_step.train_loss, rel=tolerance, abs=0)
        reports, expected_reports = elsewhere.of(number, Report), whole.of(9, Report)
        assert [(r.rung, r.step, r.is_best) for r in reports] == [
            (r.rung, r.step, r.is_best) for r in expected_reports
        ]
        for report, expected_report in zip(reports, expected_reports, strict=True):
            assert report.metrics == pytest.approx(expected_report.metrics, rel=tolerance, abs=0)
            assert report.train_loss == pytest.approx(expected_report.train_loss, rel=tolerance, abs=0)
        outcome, expected = elsewhere.outcomes()[number], whole.outcomes()[9]
        assert (outcome.status, outcome.best_rung, outcome.steps, outcome.examples_seen) == (
            OutcomeStatus.COMPLETED,
            expected.best_rung,
            6,
            48,
        )
        assert outcome.value == pytest.approx(expected.value, rel=tolerance, abs=0)
        difference = relative_difference(final_weights(outcome), final_weights(expected))
        assert difference <= tolerance
    assert packs[0][-1].useful_token_share == whole.outcomes()[9].useful_token_share


def test_a_trial_that_is_resumed_at_a_rung_reports_it_again_and_keeps_what_was_best(
    order: TrialOrder, monkeypatch: pytest.MonkeyPatch
) -> None:
    with_metrics(monkeypatch, 1.0, 2.0, 2.0, 3.0)
    before = train_to(order, steps=4)
    assert [report.rung for report in before.of(1, Report)] == [16, 32]
    after = Recorder()
    after.run(next_attempt(order))
    assert after.of(2, TrialStarted)[0].resumed_at_examples == 32
    *again, last = after.of(2, Report)
    # The first one comes from the checkpoint: nobody knows whether anybody had received it.
    assert [replace(report, attempt_id=1) for report in again] == before.of(1, Report)
    assert (last.rung, last.is_best) == (48, False)
    outcome = after.outcomes()[2]
    assert (outcome.value, outcome.best_rung, outcome.final_metrics["eval_loss"]) == (1.0, 16, 3.0)
    best, last_dir = Path(outcome.best_adapter_dir or ""), Path(outcome.last_adapter_dir or "")
    assert (best.parent.name, last_dir.parent.name) == ("1", "2")
    assert sorted(file.name for file in best.iterdir()) == sorted(file.name for file in last_dir.iterdir())


def test_a_trial_that_lacked_only_its_last_report_makes_it(
    order: TrialOrder, monkeypatch: pytest.MonkeyPatch
) -> None:
    def dies(self: Attempt, totals: Totals, written: object) -> None:
        raise KeyboardInterrupt

    whole = uninterrupted(order)
    recorder = train_to(order, steps=5)
    with monkeypatch.context() as patch:
        patch.setattr(Attempt, "report", dies)
        with pytest.raises(KeyboardInterrupt):
            recorder.run()
    after = Recorder()
    after.run(next_attempt(order))
    assert after.of(2, TrialStarted)[0].resumed_at_examples == 48
    assert after.of(2, Progress) == []
    *earlier, report = after.of(2, Report)
    assert [replace(report, attempt_id=1) for report in earlier] == recorder.of(1, Report)
    assert (report.metrics, report.train_loss) == (
        whole.of(9, Report)[-1].metrics,
        whole.of(9, Report)[-1].train_loss,
    )
    assert after.outcomes()[2].value == whole.outcomes()[9].value


@pytest.mark.parametrize(
    ("fault", "said"),
    [
        ("recipe", "cannot be used: changed since it was written: recipe"),
        ("data", "cannot be used: changed since it was written: train data"),
        ("evaluation", "cannot be used: changed since it was written: evaluation setting"),
        ("corrupt", "tensors.safetensors was changed or damaged: its SHA-256 differs"),
        ("absent", "There is no checkpoint"),
    ],
)
def test_with_a_checkpoint_that_is_not_its_own_or_not_whole_a_trial_starts_from_the_beginning_and_says_why(
    order: TrialOrder, tmp_path: Path, fault: str, said: str
) -> None:
    train_to(order, steps=4)
    resumed = next_attempt(order)
    match fault:
        case "recipe":
            resumed = replace(resumed, recipe=RECIPE.model_copy(update={"learning_rate": 2e-2}))
        case "data":
            other = data_spec(tmp_path, train_rows=24)
            rows = Path(str(other.train)).read_text().splitlines()
            file = tmp_path / "other.jsonl"
            file.write_text("\n".join(rows[1:] + rows[:1]) + "\n")
            resumed = replace(resumed, data=other.model_copy(update={"train": str(file)}))
        case "evaluation":
            rungs = resumed.evaluation.model_copy(update={"every_examples": 8})
            resumed = replace(resumed, evaluation=rungs)
        case "corrupt":
            for file in Path(resumed.resume_from[0]).rglob("tensors.safetensors"):
                flip_a_byte(file)
        case "absent":
            resumed = replace(resumed, resume_from=(str(tmp_path / "nowhere"),))
    after, whole = Recorder(), uninterrupted(resumed)
    after.run(resumed)
    (started,) = after.of(2, TrialStarted)
    (passed,) = started.passed_over
    assert (started.resumed_at_examples, said in passed.reason) == (0, True)
    assert (passed.folder, passed.missing) == (resumed.resume_from[0], fault == "absent")
    for kind in (Progress, Report):
        assert [_untimed(event) for event in after.of(2, kind)] == [
            _untimed(event) for event in whole.of(9, kind)
        ]
    assert after.outcomes()[2].value == whole.outcomes()[9].value


def test_a_trial_on_a_base_whose_weights_have_changed_starts_from_the_beginning(
    order: TrialOrder, tmp_path: Path
) -> None:
    """The folder is the same, so only where the trial starts tells."""
    base = build_tiny_base(tmp_path / "base", seed=0)
    order = replace(order, model=order.model.model_copy(update={"id": str(base)}))
    train_to(order, steps=4)
    build_tiny_base(base, seed=1)
    recorder = Recorder()
    recorder.pack.admit(next_attempt(order))
    (started,) = recorder.of(2, TrialStarted)
    assert started.resumed_at_examples == 0
    assert started.passed_over[0].reason.endswith("so the base's weights have changed")


def _untimed(event: Any) -> Any:
    """What does not depend on the attempt and the clock."""
    changes = {"attempt_id": 0} | ({"train_seconds": 0.0} if isinstance(event, Report) else {})
    return replace(event, **changes)


def test_the_newest_checkpoint_that_can_be_used_is_gone_on_from(order: TrialOrder, tmp_path: Path) -> None:
    train_to(order, steps=2)
    older = next_attempt(order, 2)
    train_to(order, steps=4)
    newer = next_attempt(order, 3)
    folders = (str(tmp_path / "nowhere"), *newer.resume_from, *older.resume_from)
    after = Recorder()
    after.pack.admit(replace(newer, resume_from=folders))
    assert after.of(3, TrialStarted)[0].resumed_at_examples == 32
    for file in Path(newer.resume_from[0]).rglob("tensors.safetensors"):
        flip_a_byte(file)
    after = Recorder()
    after.pack.admit(replace(newer, resume_from=folders))
    assert after.of(3, TrialStarted)[0].resumed_at_examples == 16


@pytest.mark.parametrize("end", ["completed", "pruned", "failed", "failed at the start"])
def test_checkpoints_are_there_while_they_may_be_of_use_and_no_longer(
    order: TrialOrder, monkeypatch: pytest.MonkeyPatch, end: str
) -> None:
    train_to(order, steps=2)
    resumed = next_attempt(order)
    folders = [Path(resumed.resume_from[0]), Path(resumed.artifact_dir) / "checkpoint"]
    recorder = Recorder()
    match end:
        case "failed at the start":
            recorder.run(replace(resumed, data=resumed.data.model_copy(update={"train": "gone.jsonl"})))
        case _:
            recorder.pack.admit(resumed)
            recorder.run_until(lambda: len(recorder.of(2, Report)) == 2)
            assert [folder.exists() for folder in folders] == [True, True]
            if end == "pruned":
                recorder.pack.apply(Verdict(attempt_id=2, decision=Decision.PRUNE, reason="enough"))
            elif end == "failed":
                monkeypatch.setattr(Attempt, "took", lambda self, step: 1 / 0)
            recorder.run()
    assert end.startswith(recorder.outcomes()[2].status)
    assert [folder.exists() for folder in folders] == [False, False]


def test_a_disk_that_is_full_for_checkpoints_costs_them_and_not_the_trial_and_is_said_once(
    order: TrialOrder, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def full(*args: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    whole = uninterrupted(order)
    monkeypatch.setattr(attempt, "write_checkpoint", full)
    recorder = Recorder()
    recorder.run(order)
    assert recorder.outcomes()[1].value == whole.outcomes()[9].value
    assert [report.rung for report in recorder.of(1, Report)] == [16, 32, 48]
    said = (
        f"no checkpoint of attempt 1: The checkpoint cannot be written to {order.artifact_dir}: No space left"
    )
    assert (caplog.text.count(said), caplog.text.count("no checkpoint")) == (1, 1)
