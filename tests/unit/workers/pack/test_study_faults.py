"""A study that cannot be trained ends with its first trial, and with a reason."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from search_spaces.recipe import Recipe
from tests.support.workers.packs import Device, Recorder
from tests.support.workers.trials import of_type, trial_order
from workers.contract import OutcomeStatus, TrialOrder, TrialStarted
from workers.data.batches import MicroBatch

# PEFT 0.21 reads a property that transformers 5.23 renamed; it does so whenever it wraps a model.
pytestmark = pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing` is deprecated:FutureWarning")

LEAST = Device.RANK_BYTES + 60_000
"""Room for an adapter of rank 1, but not to train it on a row of 30 tokens."""


def order(folder: Path, base_dir: Path, number: int = 1, **fields: Any) -> TrialOrder:
    varied = fields.pop("varied", ("learning_rate", "lora_r"))
    study = fields.pop("study_id", "study")
    recipe = Recipe(**{"learning_rate": 1e-2, "batch_size": 8, "lora_r": 4, **fields})
    made = trial_order(
        folder, base_dir, attempt_id=number, study_id=study, quantization="none", recipe=recipe
    )
    return replace(made, varied=varied)


def broken(*_: object) -> None:
    raise NotImplementedError("derivative for aten::odd is not implemented")


def test_a_study_that_fits_nowhere_fails_once_with_what_to_change(
    tmp_path: Path, tiny_base_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    Device.installed(monkeypatch, limit_bytes=LEAST)
    recorder = Recorder()
    outcome = recorder.outcome(order(tmp_path, tiny_base_dir))
    assert (outcome.status, outcome.fatal_to_study) == (OutcomeStatus.FAILED, True)
    assert outcome.reason.startswith(
        f"No trial of the study fits the memory: training {tiny_base_dir} (none) on one example of "
    )
    assert outcome.reason.endswith(
        " tokens with LoRA rank 1 ran out of it. Shorten data.max_length (64), set"
        " resources.gradient_checkpointing to true, set model.quantization to nf4, or use a smaller model or"
        " a device with more memory."
    )
    assert of_type(recorder.events, TrialStarted) == []


def test_what_is_set_already_is_not_advised(
    tmp_path: Path, tiny_base_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    Device.installed(monkeypatch, limit_bytes=LEAST)
    made = replace(order(tmp_path, tiny_base_dir), gradient_checkpointing=True)
    made = replace(made, model=made.model.model_copy(update={"quantization": "nf4"}))
    reason = Recorder().outcome(made).reason
    assert "Shorten data.max_length (64), or use a smaller model" in reason


def test_a_trial_that_does_not_fit_where_a_smaller_one_would_is_no_fault_of_the_study(
    tmp_path: Path, tiny_base_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    Device.installed(monkeypatch, limit_bytes=8 * Device.RANK_BYTES + 250_000)
    recorder = Recorder()
    outcome = recorder.outcome(order(tmp_path, tiny_base_dir, lora_r=64))
    assert (outcome.status, outcome.fatal_to_study) == (OutcomeStatus.OUT_OF_MEMORY, False)
    smaller = recorder.outcome(order(tmp_path, tiny_base_dir, 2, lora_r=4))
    assert smaller.status is OutcomeStatus.COMPLETED


@pytest.mark.parametrize("varied", [("max_length",), ("quantization", "lora_r"), None])
def test_trials_that_differ_in_length_or_quantization_are_not_judged_by_one(
    tmp_path: Path,
    tiny_base_dir: Path,
    monkeypatch: pytest.MonkeyPatch,
    varied: tuple[str, ...] | None,
) -> None:
    Device.installed(monkeypatch, limit_bytes=LEAST)
    outcome = Recorder().outcome(order(tmp_path, tiny_base_dir, varied=varied))
    assert (outcome.status, outcome.fatal_to_study) == (OutcomeStatus.OUT_OF_MEMORY, False)


@pytest.mark.parametrize("varied", [("learning_rate",), ("target_modules",)])
def test_a_model_whose_pass_fails_ends_the_study(
    tmp_path: Path,
    tiny_base_dir: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
    varied: tuple[str, ...],
) -> None:
    Device.installed(monkeypatch).fault = broken
    recorder = Recorder()
    outcome = recorder.outcome(order(tmp_path, tiny_base_dir, varied=varied))
    assert (outcome.status, outcome.fatal_to_study) == (OutcomeStatus.FAILED, True)
    assert outcome.reason == (
        f"The model {tiny_base_dir} (LlamaForCausalLM) cannot be trained for the task causal_lm: a pass over"
        " one row fails with NotImplementedError: derivative for aten::odd is not implemented. Choose another"
        " model, or report this if the model should work."
    )
    assert "in broken" in caplog.text  # the traceback
    assert of_type(recorder.events, TrialStarted) == []


def test_a_broken_cuda_context_is_no_fault_of_the_study(
    tmp_path: Path, tiny_base_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def lost(*_: object) -> None:
        raise torch.AcceleratorError("CUDA error: an illegal memory access was encountered")

    Device.installed(monkeypatch).fault = lost
    recorder = Recorder()
    with pytest.raises(torch.AcceleratorError):
        recorder.pack.admit(order(tmp_path, tiny_base_dir))
    assert recorder.outcomes() == {}


def test_a_model_that_fails_only_in_training_ends_the_study(
    tmp_path: Path, tiny_base_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken_in_training(_: MicroBatch, trained: bool) -> None:
        if trained:
            broken()

    Device.installed(monkeypatch).fault = broken_in_training
    recorder = Recorder(slots=3)
    recorder.run(*[order(tmp_path, tiny_base_dir, number) for number in (1, 2, 3)])
    outcomes = recorder.outcomes().values()
    assert [(outcome.status, outcome.fatal_to_study) for outcome in outcomes] == [
        (OutcomeStatus.FAILED, True)
    ] * 3
    assert {outcome.reason.split(":")[0] for outcome in outcomes} == {
        f"The model {tiny_base_dir} (LlamaForCausalLM) cannot be trained for the task causal_lm"
    }


def test_nothing_is_tried_of_a_study_that_trains(
    tmp_path: Path, tiny_base_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    device = Device.installed(monkeypatch)
    recorder = Recorder()
    passes = []
    for number, varied in ((1, ("learning_rate",)), (2, None)):
        before = len(device.passes)
        recorder.outcome(order(tmp_path, tiny_base_dir, number, varied=varied, study_id=f"study-{number}"))
        passes.append([one for one in device.passes[before:] if one.trained])
    assert passes[0] == passes[1]


def test_a_study_is_tried_once_when_trials_of_it_fail(
    tmp_path: Path, tiny_base_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    device = Device.installed(monkeypatch, limit_bytes=8 * Device.RANK_BYTES + 250_000)
    recorder = Recorder()
    for number in (1, 2):
        outcome = recorder.outcome(order(tmp_path, tiny_base_dir, number, lora_r=64))
        assert outcome.status is OutcomeStatus.OUT_OF_MEMORY
        (tried,) = device.passes
        assert (tried.trained, tried.rows) == (True, 1)
