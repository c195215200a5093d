"""A saved adapter comes to what it came to before; one that is gone or does not fit is said to be so."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from search_spaces.recipe import Recipe
from tests.support.workers.packs import Recorder
from tests.support.workers.trials import data_spec, trial_order
from workers.contract import Decision, OutcomeStatus, Report, TrialOrder, TrialOutcome, TrialStarted, Verdict

# PEFT 0.21 reads a property that transformers 5.23 renamed; it does so whenever it wraps a model.
pytestmark = pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing` is deprecated:FutureWarning")


def classes(folder: Path, labels: str) -> dict[str, Any]:
    """Options of an order to sort rows into classes."""
    paths = {}
    for name, count in (("train", 24), ("eval", 12)):
        rows = [
            {"text": f"the lamp is {n % len(labels)}", "label": labels[n % len(labels)]} for n in range(count)
        ]
        path = paths[name] = folder / f"{name}-{labels}.jsonl"
        path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    spec = data_spec(folder).model_copy(update={name: str(path) for name, path in paths.items()})
    return {"data": spec, "metric": "macro_f1", "direction": "maximize"}


def evaluating(order: TrialOrder, adapter: str, attempt_id: int = 9, **changes: Any) -> TrialOrder:
    changed = {"attempt_id": attempt_id, "artifact_dir": f"{order.artifact_dir}-evaluation", **changes}
    return replace(order, evaluates=adapter, **changed)


@pytest.mark.parametrize("task", ["causal_lm", "sequence_classification"])
def test_an_evaluation_comes_to_what_the_best_rung_reported(
    tmp_path: Path, tiny_base_dir: Path, task: Any
) -> None:
    options = classes(tmp_path, "ab") if task == "sequence_classification" else {}
    order = replace(trial_order(tmp_path, tiny_base_dir, every_examples=8, **options), task=task)
    recorder = Recorder()
    trained = recorder.outcome(order)
    assert trained.best_adapter_dir is not None
    assert trained.status is OutcomeStatus.COMPLETED
    found = recorder.outcome(evaluating(order, trained.best_adapter_dir))
    assert (found.status, found.value, found.metrics) == (
        OutcomeStatus.COMPLETED,
        trained.value,
        trained.metrics,
    )
    assert (found.best_adapter_dir, found.examples_seen, recorder.of(9, Report)) == (None, 0, [])
    [started] = recorder.of(9, TrialStarted)
    assert started.total_examples == 0
    assert found.evaluated is not None
    assert (found.evaluated.rows, len(found.evaluated.data)) == (len(found.evaluated.loss), 64)
    assert {"torch", "peft", "transformers", "bitsandbytes"} <= found.evaluated.versions.keys()
    assert not Path(f"{order.artifact_dir}-evaluation").exists()


def test_an_adapter_that_is_gone_or_does_not_fit_is_unusable(tmp_path: Path, tiny_base_dir: Path) -> None:
    order = trial_order(tmp_path, tiny_base_dir)
    recorder = Recorder()
    place = str(recorder.outcome(order).best_adapter_dir)

    def ended(adapter: str, attempt_id: int, **changes: Any) -> TrialOutcome:
        return recorder.outcome(evaluating(order, adapter, attempt_id, **changes))

    wider = ended(place, 11, recipe=Recipe(learning_rate=1e-2, batch_size=8, lora_r=8, lora_dropout=0.0))
    assert "differ in name or shape" in wider.reason
    Path(place, "adapter_model.safetensors").write_bytes(b"x")
    damaged = ended(place, 12)
    assert "is damaged" in damaged.reason
    shutil.rmtree(place)
    gone = ended(place, 13)
    assert f"The adapter is gone from {place}" in gone.reason
    nowhere = ended("", 14)
    for outcome in (wider, damaged, gone, nowhere):
        assert (outcome.status, outcome.unusable_adapter) == (OutcomeStatus.FAILED, True)
        assert (outcome.fatal_to_study, outcome.storage_fault) == (False, False)


def test_a_head_for_other_labels_is_unusable(tmp_path: Path, tiny_base_dir: Path) -> None:
    order = trial_order(tmp_path, tiny_base_dir, **classes(tmp_path, "ab"))
    order = replace(order, task="sequence_classification")
    recorder = Recorder()
    place = str(recorder.outcome(order).best_adapter_dir)
    other = replace(order, data=classes(tmp_path, "cd")["data"], study_id="another")
    found = recorder.outcome(evaluating(other, place))
    assert (found.status, found.unusable_adapter) == (OutcomeStatus.FAILED, True)
    assert "which are not those of the train data now" in found.reason


def test_an_evaluation_that_is_paused_is_begun_again(tmp_path: Path, tiny_base_dir: Path) -> None:
    order = trial_order(tmp_path, tiny_base_dir)
    recorder = Recorder()
    place = str(recorder.outcome(order).best_adapter_dir)
    recorder.pack.admit(evaluating(order, place))
    recorder.pack.apply(Verdict(attempt_id=9, decision=Decision.PAUSE, reason="paused"))
    recorder.pack.step()
    assert recorder.outcomes()[9].status is OutcomeStatus.PAUSED
    assert recorder.outcome(evaluating(order, place, 10)).status is OutcomeStatus.COMPLETED
