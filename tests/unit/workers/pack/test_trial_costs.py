"""What an outcome tells of a trial's cost is the trial's own where it had the worker for itself."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from search_spaces.recipe import Recipe
from tests.support.workers.packs import Recorder
from tests.support.workers.trials import data_spec, trial_order
from workers.contract import TrialStarted

# PEFT 0.21 reads a property that transformers 5.23 renamed; it does so whenever it wraps a model.
pytestmark = pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing` is deprecated:FutureWarning")

MIB = 2**20


def _peaks_can_be_reset() -> bool:
    try:
        Path("/proc/self/clear_refs").write_text("5")
    except OSError:
        return False
    return True


@pytest.mark.skipif(not _peaks_can_be_reset(), reason="the system keeps one peak for a process's whole life")
def test_a_small_trial_after_a_large_one_is_told_its_own_peak(tmp_path: Path, tiny_base_dir: Path) -> None:
    small = Recipe(learning_rate=1e-3, batch_size=1, lora_r=2, epochs=0.1)
    large = Recipe(learning_rate=1e-3, batch_size=256, lora_r=4_096)
    data = data_spec(tmp_path, train_rows=256)
    recorder = Recorder(slots=None)
    outcomes = []
    for number, recipe in enumerate((small, large, small), start=1):
        order = trial_order(tmp_path, tiny_base_dir, attempt_id=number, recipe=recipe, data=data)
        outcomes.append(recorder.outcome(replace(order, trials_per_worker=1)))
    before, between, after = (outcome.peak_memory_bytes for outcome in outcomes)
    assert between > after + 100 * MIB
    # One side only: what earlier tests left in this process may be given back between the two.
    assert after < before + 30 * MIB


def test_an_outcome_tells_the_adapters_size(tmp_path: Path, tiny_base_dir: Path) -> None:
    recorder = Recorder()
    outcome = recorder.outcome(trial_order(tmp_path, tiny_base_dir))
    assert outcome.trainable_parameters == 4 * 2_048
    assert recorder.of(1, TrialStarted)[0].trainable_parameters == outcome.trainable_parameters
    gone = replace(trial_order(tmp_path, tiny_base_dir, attempt_id=2), study_id="another")
    gone = replace(gone, data=gone.data.model_copy(update={"train": "gone.jsonl"}))
    assert recorder.outcome(gone).trainable_parameters is None
