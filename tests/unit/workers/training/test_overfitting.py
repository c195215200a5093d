"""A trial whose eval loss rises while its train loss falls ends at its best rung, however it was resumed."""

from __future__ import annotations

import json
import shutil
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from search_spaces.definition import EvaluationSpec
from search_spaces.recipe import Recipe
from tests.support.workers.packs import Recorder, final_weights
from tests.support.workers.trials import trial_order
from workers.artifacts.checkpoints import read_checkpoint, write_checkpoint
from workers.contract import OutcomeStatus, Report, TrialOrder
from workers.training.objectives.language import Totals
from workers.training.overfitting import OverfitWatch

# PEFT 0.21 reads a property that transformers 5.23 renamed; it does so whenever it wraps a model.
pytestmark = pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing` is deprecated:FutureWarning")

RISING = (1.3, 1.19, 1.21, 1.27, 1.38, 1.4)


def rungs_until_it_overfits(watch: OverfitWatch, rungs: Sequence[tuple[float, float]]) -> int | None:
    for number, (eval_loss, train_loss) in enumerate(rungs, start=1):
        watch.update(eval_loss=eval_loss, train_loss=train_loss)
        if watch.overfits:
            return number
    return None


def test_enough_rises_in_a_row_while_the_train_loss_falls_are_overfitting() -> None:
    rungs = [(1.3, 1.2), (1.21, 0.9), (1.25, 0.7), (1.3, 0.5), (1.38, 0.4), (1.5, 0.3)]
    watch = OverfitWatch(3)
    assert rungs_until_it_overfits(watch, rungs) == 5
    assert watch.in_words() == (
        "eval_loss rose at 3 rungs in a row, 1.21 → 1.38, while train loss fell 0.9 → 0.4"
    )
    assert rungs_until_it_overfits(OverfitWatch(4), rungs) == 6
    assert rungs_until_it_overfits(OverfitWatch(5), rungs) is None
    assert rungs_until_it_overfits(OverfitWatch(None), rungs) is None


@pytest.mark.parametrize(
    "break_",
    [(1.25, 0.6), (1.2, 0.6), (1.35, 0.7), (1.35, 0.8)],
    ids=["no rise", "a fall", "train loss as before", "train loss rises"],
)
def test_a_rung_that_is_no_overfitting_begins_the_count_anew(break_: tuple[float, float]) -> None:
    rungs = [(1.21, 0.9), (1.25, 0.7), break_, (1.4, 0.5)]
    assert rungs_until_it_overfits(OverfitWatch(2), rungs) is None
    assert rungs_until_it_overfits(OverfitWatch(2), [*rungs, (1.5, 0.4)]) == 5


LOSSES = st.lists(st.tuples(st.integers(1, 4), st.integers(1, 4)), max_size=12)


@given(rungs=LOSSES, enough=st.integers(1, 3), cut=st.integers(0, 12))
def test_the_watch_goes_on_from_its_state_as_if_nothing_had_happened(
    rungs: list[tuple[float, float]], enough: int, cut: int
) -> None:
    whole = rungs_until_it_overfits(OverfitWatch(enough), rungs)
    first, second = OverfitWatch(enough), OverfitWatch(enough)
    before = rungs_until_it_overfits(first, rungs[:cut])
    second.restore(json.loads(json.dumps(first.state())))
    after = rungs_until_it_overfits(second, rungs[cut:])
    assert whole == (
        before if before is not None else None if after is None else after + min(cut, len(rungs))
    )


# -- in a pack ----------------------------------------------------------------------------------------


@pytest.fixture
def order(tmp_path: Path, tiny_base_dir: Path) -> TrialOrder:
    """Nine epochs of 24 examples, each with a rung at its end; the train loss falls from epoch to epoch."""
    recipe = Recipe(learning_rate=3e-3, batch_size=12, epochs=9, lora_r=4, lora_dropout=0.0)
    return with_overfit_rungs(trial_order(tmp_path, tiny_base_dir, recipe=recipe, every_examples=24), 3)


def with_overfit_rungs(order: TrialOrder, rungs: int | None) -> TrialOrder:
    evaluation = EvaluationSpec(every_examples=order.evaluation.every_examples, overfit_rungs=rungs)
    return replace(order, evaluation=evaluation)


def with_eval_losses(monkeypatch: pytest.MonkeyPatch, losses: Sequence[float]) -> None:
    """Makes the evaluations give these losses, one after the other, and then the last."""
    remaining = list(losses)

    def metrics(self: Totals) -> dict[str, float]:
        loss = remaining.pop(0) if len(remaining) > 1 else remaining[0]
        return {"eval_loss": loss, "perplexity": 2.0, "accuracy": 1 - loss / 10}

    monkeypatch.setattr(Totals, "metrics", metrics)


def test_an_overfitting_trial_ends_completed_at_its_best_rung(
    order: TrialOrder, monkeypatch: pytest.MonkeyPatch
) -> None:
    with_eval_losses(monkeypatch, RISING)
    recorder = Recorder()
    outcome = recorder.outcome(order)
    reports = recorder.of(1, Report)
    falling = [report.train_loss for report in reports]
    assert falling == sorted(falling, reverse=True)
    assert [report.rung for report in reports] == [24, 48, 72, 96, 120]
    assert (outcome.status, outcome.value, outcome.best_rung) == (OutcomeStatus.COMPLETED, 1.19, 48)
    assert (outcome.examples_seen, outcome.final_metrics["eval_loss"]) == (120, 1.38)
    assert outcome.reason == (
        "Ended after 120 of 216 planned examples because it overfits: eval_loss rose at 3 rungs in a row,"
        f" 1.19 → 1.38, while train loss fell {falling[1]:.4g} → {falling[4]:.4g};"
        " best eval_loss 1.19 at 48 examples."
    )
    assert recorder.pack.running_attempts == ()
    for folder in (outcome.best_adapter_dir, outcome.last_adapter_dir):
        assert folder is not None
        assert (Path(folder) / "adapter_model.safetensors").exists()
    best = replace(outcome, last_adapter_dir=outcome.best_adapter_dir)
    assert any((a != b).any() for a, b in zip(final_weights(best), final_weights(outcome), strict=True))
    assert not (Path(order.artifact_dir) / "checkpoint").exists()


def test_it_is_the_eval_loss_that_counts_where_the_objective_is_accuracy(
    order: TrialOrder, monkeypatch: pytest.MonkeyPatch
) -> None:
    with_eval_losses(monkeypatch, RISING)
    objective = order.objective.model_copy(update={"metric": "accuracy", "direction": "maximize"})
    outcome = Recorder().outcome(replace(order, objective=objective))
    assert (outcome.status, outcome.best_rung, outcome.examples_seen) == (OutcomeStatus.COMPLETED, 48, 120)
    assert outcome.reason.endswith("; best accuracy 0.881 at 48 examples.")


@pytest.mark.parametrize("rungs", [None, 6])
def test_a_trial_that_is_not_asked_to_watch_or_has_not_risen_enough_trains_to_its_end(
    order: TrialOrder, monkeypatch: pytest.MonkeyPatch, rungs: int | None
) -> None:
    with_eval_losses(monkeypatch, RISING)
    outcome = Recorder().outcome(with_overfit_rungs(order, rungs))
    assert (outcome.status, outcome.examples_seen) == (OutcomeStatus.COMPLETED, 216)
    assert outcome.reason == "Trained to the end on 216 examples; best eval_loss 1.19 at 48 examples."


def test_the_slot_of_an_overfitting_trial_is_free_for_the_next_and_its_pack_mate_goes_on(
    order: TrialOrder, tmp_path: Path, tiny_base_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    recipe = order.recipe
    mate = trial_order(tmp_path, tiny_base_dir, attempt_id=2, recipe=recipe, every_examples=216)
    last = trial_order(tmp_path, tiny_base_dir, attempt_id=3, recipe=recipe, every_examples=216)
    with_eval_losses(monkeypatch, RISING)
    recorder = Recorder(slots=2)
    recorder.run(order, mate, last)
    outcomes = recorder.outcomes()
    assert {number: outcome.examples_seen for number, outcome in outcomes.items()} == {1: 120, 2: 216, 3: 216}
    assert {outcome.status for outcome in outcomes.values()} == {OutcomeStatus.COMPLETED}


def interrupted(order: TrialOrder, monkeypatch: pytest.MonkeyPatch) -> TrialOrder:
    """The next attempt at a trial that was lost after its fourth rung, with the second rise."""
    with_eval_losses(monkeypatch, RISING)
    recorder = Recorder()
    recorder.pack.admit(order)
    recorder.run_until(lambda: len(recorder.of(1, Report)) == 4)
    before = Path(order.artifact_dir)
    copy = shutil.copytree(before / "checkpoint", before / "copy")
    after = str(before.with_name("2"))
    return replace(order, attempt_id=2, artifact_dir=after, resume_from=(str(copy),))


def test_a_resumed_trial_remembers_the_rises(order: TrialOrder, monkeypatch: pytest.MonkeyPatch) -> None:
    resumed = interrupted(order, monkeypatch)
    with_eval_losses(monkeypatch, RISING[3:])  # the checkpoint is from before the fourth rung's evaluation
    recorder = Recorder()
    outcome = recorder.outcome(resumed)
    assert [report.rung for report in recorder.of(2, Report)] == [24, 48, 72, 96, 120]
    assert (outcome.status, outcome.best_rung, outcome.examples_seen) == (OutcomeStatus.COMPLETED, 48, 120)
    assert "eval_loss rose at 3 rungs in a row, 1.19 → 1.38" in outcome.reason


def test_a_checkpoint_without_the_watch_can_be_gone_on_from(
    order: TrialOrder, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It counts from the rungs that come: 1.27, 1.38, 1.4 and 1.5 are three rises."""
    resumed = interrupted(order, monkeypatch)
    (folder,) = map(Path, resumed.resume_from)
    checkpoint = read_checkpoint(folder)
    state = {key: value for key, value in checkpoint.state.items() if key != "overfitting"}
    assert len(state) < len(checkpoint.state)
    write_checkpoint(folder, checkpoint.tensors, state)
    with_eval_losses(monkeypatch, (*RISING[3:], 1.5))
    recorder = Recorder()
    outcome = recorder.outcome(resumed)
    assert [report.rung for report in recorder.of(2, Report)] == [24, 48, 72, 96, 120, 144, 168]
    assert (outcome.status, outcome.best_rung) == (OutcomeStatus.COMPLETED, 48)
