"""What every trial of a study needs alike is made once, and is what it would have been."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from search_spaces.recipe import Recipe
from tests.support.workers.packs import Device, Recorder
from tests.support.workers.trials import data_spec, of_type, trial_order
from workers.contract import TrialOrder, TrialOutcome
from workers.training.objectives.language import LanguageModel

# PEFT 0.21 reads a property that transformers 5.23 renamed; it does so whenever it wraps a model.
pytestmark = pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing` is deprecated:FutureWarning")


def order(folder: Path, base_dir: Path, number: int, **fields: Any) -> TrialOrder:
    recipe = Recipe(**{"learning_rate": 1e-2, "batch_size": 8, "lora_r": 4, **fields})
    made = trial_order(folder, base_dir, attempt_id=number, recipe=recipe, every_examples=8)
    return replace(made, varied=("learning_rate",))


def starts(device: Device) -> int:
    """Evaluation passes before the first training pass, where there is one."""
    trained = [number for number, one in enumerate(device.passes) if one.trained]
    return trained[0] if trained else len(device.passes)


def test_a_trial_trains_after_one_pass_at_most(
    tmp_path: Path, tiny_base_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    device = Device.installed(monkeypatch)
    recorder = Recorder(slots=None)
    recorder.pack.admit(order(tmp_path, tiny_base_dir, 1))
    assert [one.trained for one in device.passes] == [False]
    recorder.pack.step()
    assert device.passes[1].trained
    seen = len(device.passes)
    for number, fields in ((2, {"lora_r": 8}), (3, {"learning_rate": 1e-3, "lora_dropout": 0.1})):
        recorder.pack.admit(order(tmp_path, tiny_base_dir, number, **fields))
    assert len(device.passes) == seen


@pytest.mark.parametrize("fields", [{"seed": 7}, {"label_smoothing": 0.1}])
def test_a_trial_that_starts_otherwise_is_measured_itself(
    tmp_path: Path, tiny_base_dir: Path, monkeypatch: pytest.MonkeyPatch, fields: dict[str, Any]
) -> None:
    device = Device.installed(monkeypatch)
    recorder = Recorder(slots=4)
    recorder.pack.admit(order(tmp_path, tiny_base_dir, 1))
    recorder.pack.admit(order(tmp_path, tiny_base_dir, 2, **fields))
    assert starts(device) == 2


def test_the_next_study_on_the_same_rows_begins_with_a_training_pass(
    tmp_path: Path, tiny_base_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """And one on other rows measures where it starts."""
    device = Device.installed(monkeypatch)
    recorder = Recorder(slots=None)
    first = recorder.outcome(order(tmp_path, tiny_base_dir, 1))
    recorder.pack.leave_study()
    device.passes.clear()
    same = replace(order(tmp_path, tiny_base_dir, 2), study_id="next")
    assert recorder.outcome(same).value == first.value
    assert device.passes[0].trained
    recorder.pack.leave_study()
    device.passes.clear()
    (tmp_path / "other").mkdir()
    other = replace(same, attempt_id=3, study_id="last", data=data_spec(tmp_path / "other", train_rows=16))
    recorder.outcome(other)
    assert not device.passes[0].trained


def test_what_trials_share_changes_no_number_of_any(tmp_path: Path, tiny_base_dir: Path) -> None:
    """Bit for bit: alone in a fresh pack, and in one where another has measured the start and the rungs."""
    orders = [order(tmp_path, tiny_base_dir, number, lora_r=4 * number) for number in (1, 2)]
    shared = Recorder()
    together = [shared.outcome(each) for each in orders]
    fresh = [Recorder().outcome(replace(each, artifact_dir=f"{each.artifact_dir}-again")) for each in orders]
    for one, other in zip(together, fresh, strict=True):
        assert isinstance(one, TrialOutcome)
        assert (one.value, one.metrics, one.final_metrics) == (
            other.value,
            other.metrics,
            other.final_metrics,
        )


def test_eval_data_is_collated_once(
    tmp_path: Path, tiny_base_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    sizes: list[int] = []
    collate = LanguageModel.collate

    def counted(self: LanguageModel, examples: Any, base: Any) -> Any:
        sizes.append(len(examples))
        return collate(self, examples, base)

    recorder = Recorder()
    recorder.run(order(tmp_path, tiny_base_dir, 1))
    monkeypatch.setattr(LanguageModel, "collate", counted)
    device = Device.installed(monkeypatch)
    recorder.run(order(tmp_path, tiny_base_dir, 2))
    assert len(device.of_kind(trained=False)) == 3
    assert len(sizes) == len(device.of_kind(trained=True))
    assert len(of_type(recorder.events, TrialOutcome)) == 2
